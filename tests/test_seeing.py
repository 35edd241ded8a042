"""Seeing sampling: what starts from an estimate, what a trace records, where the error of a sample comes from."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato.denoisers import GaussianMixture
from sfumato.errors import BundleError, DataError, SolverError
from sfumato.evaluation.study import END, SCORE, START, Plan, study
from sfumato.evaluation.study_report import picture as study_picture
from sfumato.evaluation.study_report import verdict
from sfumato.evaluation.trace import Recorder, energy, picture, rings, trace
from sfumato.noise import Noise
from sfumato.processes import CLEAN, EDM, Cosine, Flow, Gaussian, Linear, SubVP
from sfumato.solvers import (
    DDIM,
    Ancestral,
    FlowGrid,
    Heun,
    KarrasGrid,
    LogSNRGrid,
    UniformGrid,
    integrate,
    sample,
    sample_from,
)
from sfumato.solvers.laws import gaussian_flow

SCHEDULES = [Flow(), Linear(), Cosine(), EDM(), SubVP()]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.kind)


def gaussian(schedule, mean=(0.3, -0.5, 0.1), variances=(0.04, 0.5, 1.7)):
    mean, variances = (torch.tensor(row, dtype=torch.float64) for row in (mean, variances))
    return GaussianMixture(Gaussian(schedule, sigma_data=0.9), mean[None], variances[None])


def hills(process):
    return GaussianMixture(
        process,
        torch.tensor([[-1.0, 0.4], [0.9, -0.2]]),
        torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.15, -0.05], [-0.05, 0.35]]]),
        torch.tensor([0.35, 0.65]),
    )


# -- coming closer ---------------------------------------------------------------------------------------------------


@given(
    schedule=st.sampled_from(SCHEDULES),
    t0=st.floats(0.05, 1.0),
    steps=st.integers(1, 12),
    size=st.floats(1e-3, 10.0),
)
def test_the_reverse_chain_contracts_an_estimates_error_by_the_closed_form(schedule, t0, steps, size):
    model = gaussian(schedule)
    levels = UniformGrid(start=t0).levels(model.process, steps)
    noise = Noise(3, 4)
    truth = model.sample(noise)
    error = size * Noise(4, 4).normal(truth)
    runs = [sample_from(model, x, noise, solver=Ancestral(), levels=levels) for x in (truth, truth + error)]
    variance = model.eigenvalues[0]  # of a diagonal covariance, in the order of the axes
    alpha, sigma = levels[0].alpha, levels[0].sigma
    factor = alpha**2 * variance / (alpha**2 * variance + sigma**2)
    assert bool((factor < 1).all())
    got = runs[1] - runs[0]
    # the two runs subtract: rounding is that of the larger, whose size in a VE process is sigma
    assert float((got - factor * error).abs().max()) < 1e-11 * max(1.0, sigma, size)


@each_schedule
def test_the_flow_contracts_by_the_root_of_it_as_steps_grow(schedule):
    model = gaussian(schedule)
    noise, error = Noise(3, 4), 0.5
    truth = model.sample(noise)
    levels = FlowGrid(start=0.5, rho=2.0).levels(model.process, 40)
    runs = [sample_from(model, x, noise, solver=Heun(), levels=levels) for x in (truth, truth + error)]
    alpha, sigma, variance = levels[0].alpha, levels[0].sigma, model.eigenvalues[0]
    factor = alpha * (variance / (alpha**2 * variance + sigma**2)).sqrt()
    torch.testing.assert_close(runs[1] - runs[0], (factor * error).expand(4, 3), rtol=1e-2, atol=1e-4)


def test_what_starts_from_data_has_the_law_of_the_data():
    model = hills(Gaussian(Flow()))
    truth = model.sample(Noise(1, 2000))
    for solver, t0 in ((Heun(), 0.7), (Ancestral(), 0.5)):
        levels = FlowGrid(start=t0).levels(model.process, 20)
        drawn = sample_from(model, truth, Noise(2, 2000), solver=solver, levels=levels)
        assert float((drawn - truth).abs().mean()) > 0.1  # it is not the estimate given back
        # four standard errors: of the mean 0.9 / sqrt(2000), of the share above zero 0.5 / sqrt(2000), times sqrt(2)
        assert float((drawn.mean(0) - truth.mean(0)).abs().max()) < 0.11
        assert float((drawn.std(0) - truth.std(0)).abs().max()) < 0.08
        assert abs(float((drawn[:, 0] > 0).double().mean() - (truth[:, 0] > 0).double().mean())) < 0.065


def test_both_limits_of_the_strength():
    model = gaussian(Flow())
    estimate, noise = 3 * torch.ones(5, 3, dtype=torch.float64), Noise(7, 5)
    for solver in (DDIM(), Heun(), Ancestral()):
        levels = FlowGrid().levels(model.process, 6)
        plain = sample(model, noise, (3,), solver=solver, levels=levels, like=estimate)
        # alpha(1) = 0: nothing of the estimate is left
        assert torch.equal(sample_from(model, estimate, noise, solver=solver, levels=levels), plain)
        gaps = []
        for t0 in (0.1, 0.01, 0.001):
            levels = FlowGrid(start=t0).levels(model.process, 6)
            back = sample_from(model, estimate, noise, solver=solver, levels=levels)
            gaps.append(float((back - estimate).abs().max()))
        assert gaps[0] > gaps[1] > gaps[2]
        assert gaps[2] < 0.02


def test_an_estimate_that_does_not_fit_is_refused():
    model = gaussian(Flow())
    levels = FlowGrid(start=0.4).levels(model.process, 3)
    with pytest.raises(SolverError, match="2 estimates were given for 3"):
        sample_from(model, torch.zeros(2, 3), Noise(0, 3), solver=DDIM(), levels=levels)
    with pytest.raises(SolverError, match="must be finite"):
        sample_from(model, torch.full((1, 3), math.nan), Noise(0, 1), solver=DDIM(), levels=levels)


@pytest.fixture(scope="module")
def model(demo_folder):
    from sfumato.bundle import load

    return load(demo_folder / "runs" / "demo" / "model")


def test_a_models_sample_from_an_estimate_depends_on_its_own_alone(model):
    given = model.sample(5, seed=1, steps=2)
    drawn = model.sample(start=(given, 0.4), steps=3, condition={"label": 2}, batch=2)
    alone = model.sample(indices=[3], start=(given[3:4], 0.4), steps=3, condition={"label": 2})
    assert float((alone - drawn[3:4]).abs().max()) < 1e-5  # a batch's products are summed in another order
    assert float((drawn - model.sample(5, steps=3, condition={"label": 2})).abs().max()) > 0.1
    with pytest.raises(BundleError, match="samples need"):
        model.sample(4, start=(given, 0.4))
    with pytest.raises(SolverError, match="starts at a time"):
        model.sample(start=(given, 0.0))


# -- a trace ---------------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 3), c=st.sampled_from([1, 3]), h=st.integers(1, 17), w=st.integers(1, 17))
def test_the_rings_share_out_the_whole_energy(n, c, h, w):
    x = Noise(1, n).normal(torch.empty(n, c, h, w, dtype=torch.float64)) + 0.3
    shares = energy(x)
    assert shares.shape == (n, len(rings(h, w)))
    torch.testing.assert_close(shares.sum(1), x.square().flatten(1).mean(1), rtol=1e-10, atol=0)


@pytest.mark.parametrize("cycles", [0, 1, 2, 3, 4, 5, 8, 9, 15])
def test_a_wave_has_its_energy_in_its_own_ring(cycles):
    x = torch.cos(2 * math.pi * cycles * torch.arange(32, dtype=torch.float64) / 32).expand(1, 1, 32, 32)
    (place,) = (k for k, (low, high) in enumerate(rings(32, 32)) if low <= cycles <= high)
    shares = energy(x)[0]
    assert float(shares[place] / shares.sum()) > 1 - 1e-12


def test_the_recorder_sees_the_gradient_of_the_log_density():
    model = hills(Gaussian(Linear()))
    levels = UniformGrid().levels(model.process, 5)
    recorder, states = Recorder(keep=2), []

    def both(done, total, x, prediction):
        recorder(done, total, x, prediction)
        states.append((prediction.x_t.clone(), x.clone()))

    like = torch.empty(0, dtype=torch.float64)
    out = sample(model, Noise(3, 20), (2,), solver=DDIM(), levels=levels, callback=both, like=like)
    for level, row, (x_t, x_s) in zip(levels, recorder.steps, states, strict=False):
        x_t = x_t.requires_grad_()
        (score,) = torch.autograd.grad(model.log_density(x_t, level).sum(), x_t)
        assert row["score"]["mean"] == pytest.approx(float(score.square().mean(1).sqrt().mean()), rel=1e-9)
        assert row["time"] == level.time
        if row["step"] > 1:
            assert row["moved"]["mean"] == pytest.approx(
                float((x_s - x_t.detach()).square().mean(1).sqrt().mean())
            )
    assert recorder.steps[0]["change"] is None
    assert torch.equal(recorder.shots[-1], out[:2])
    with pytest.raises(DataError, match="one batch"):
        sample(model, Noise(3, 2), (2,), solver=DDIM(), levels=levels, callback=recorder)


def test_a_trace_of_a_model_is_of_its_samples_and_can_be_drawn(model):
    recorder = trace(model, 4, keep=2, steps=4, solver="heun", condition={"label": 3})
    drawn = model.sample(4, steps=4, solver="heun", condition={"label": 3}, batch=4)
    assert torch.equal(recorder.shots[-1], drawn[:2])
    size = drawn.double().square().flatten(1).mean(1).sqrt().mean()
    assert recorder.steps[-1]["x"]["mean"] == pytest.approx(float(size))
    assert sum(recorder.steps[-1]["energy_of_samples"]) == pytest.approx(
        float(drawn.double().square().mean())
    )
    for pixels in (model.domain.pixels, None):
        height, width = plotted(picture(recorder, pixels, "a title"))
        assert width > 900
        assert height > 600


def plotted(png):
    """(height, width) of a PNG on which something is drawn."""
    import io

    import numpy as np
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    assert 0.01 < (pixels < 250).mean() < 0.9
    return pixels.shape


# -- where the error comes from --------------------------------------------------------------------------------------


class Moved:
    """A denoiser whose x0 is off by b everywhere: a planted error of the score."""

    def __init__(self, denoiser, b):
        self.denoiser, self.process, self.b = denoiser, denoiser.process, b

    def __call__(self, x_t, t, condition=None):
        found = self.denoiser(x_t, t, condition)
        return replace(found, value=found.value + self.b)


def budget(denoiser, law, exact=None, solver=None, grid=None, starts=64, **settings):
    held, train = law.sample(Noise(11, 300)), law.sample(Noise(12, 300))
    plan = Plan(solver or Heun(), grid or FlowGrid(), starts=starts, **settings)
    return {m.name: m for m in study(denoiser, plan, (held, None), (train, None), exact=exact)}


FEW = {"steps": (4, 8), "fine": 64}


def test_a_planted_score_error_is_found_as_far_as_it_moves_the_samples():
    variance, b = 0.25, 0.03
    law = gaussian(Linear(), (0.2, -0.1), (variance, variance))
    wrong = Moved(law, b)
    found = budget(wrong, law, exact=law, levels=40, **FEW)[SCORE]
    visited = LogSNRGrid().levels(law.process, 40)[:-1]
    high, low = (math.exp(-level.log_snr / 2) for level in (visited[0], visited[-1]))
    # int dlog w / sqrt(1 + w^2 / C) = asinh(sqrt(C) / w), taken between the ends
    exact = b * (math.asinh(math.sqrt(variance) / low) - math.asinh(math.sqrt(variance) / high))
    # a trapezoid rule of 40 points, and a variance estimated from 300 examples
    assert found.value == pytest.approx(exact, rel=0.03)
    # and by another way: both denoisers followed from the same points, to the last level that has noise
    levels = LogSNRGrid().levels(law.process, 100)[:-1]
    x = law.process.prior(law.means.expand(5, 2), Noise(2, 5).at(0), levels[0])
    ends = [integrate(d, Heun("sigma"), levels, x, Noise(2, 5)) for d in (wrong, law)]
    assert float((ends[0] - ends[1]).mean()) == pytest.approx(exact, rel=0.05)


def test_without_the_exact_denoiser_the_gap_is_no_less_than_the_error_of_one_that_overfits():
    law = hills(Gaussian(Linear()))
    train, held = law.sample(Noise(12, 40)), law.sample(Noise(11, 300))
    # the denoiser of the training points themselves, each a little widened: it fits them better than the exact one
    learned = GaussianMixture(law.process, train, torch.full_like(train, 0.01))
    plan = Plan(Heun(), FlowGrid(), starts=20, levels=12, **FEW)
    parts = [study(learned, plan, (held, None), (train, None), exact=exact)[0] for exact in (law, None)]
    assert parts[0].low > 0
    assert parts[1].high > parts[0].value > 0.3 * parts[1].value
    # and of one that is exact the interval reaches zero
    again = study(law, plan, (held, None), (law.sample(Noise(13, 300)), None))[0]
    assert again.low == 0


def test_the_error_of_the_steps_is_that_against_the_closed_form_and_so_is_its_order():
    law = gaussian(Flow())
    found = budget(law, law, exact=law, solver=DDIM(), steps=(8, 16, 32), fine=256, levels=2)
    x = law.process.prior(law.means.expand(64, 3), Noise(0, 64).at(0), law.process.level(1.0))
    x = x.double()
    end = gaussian_flow(law.means[0], law.eigenvalues[0], x, law.process.level(1.0), CLEAN)
    for steps in (8, 16, 32):
        drawn = integrate(law, DDIM(), FlowGrid().levels(law.process, steps), x, Noise(0, 64))
        error = (drawn - end).square().mean(1).sqrt()
        measure = found[f"discretisation, {steps} steps"]
        assert measure.value == pytest.approx(float(error.square().mean().sqrt()), rel=0.02)
        assert measure.low < measure.value < measure.high
        assert measure.details["median"] == pytest.approx(float(error.median()), rel=0.02)
    assert measure.details["order"] == pytest.approx(1, abs=0.2)
    assert found[SCORE].value == found[START].value == found[END].value == 0
    assert "the steps cost most" in verdict(list(found.values()), 8)


def test_a_start_that_is_not_noise_costs_what_the_closed_form_says():
    mean, variances = (1.5, -1.0), (0.3, 1.2)
    law = gaussian(Linear(beta_max=5.0), mean, variances)
    held, train = law.sample(Noise(11, 600)), law.sample(Noise(12, 600))
    plan = Plan(Heun(), FlowGrid(), starts=600, levels=2, **FEW)
    found = {m.name: m for m in study(law, plan, (held, None), (train, None), exact=law)}
    first = law.process.level(1.0)
    m, c = torch.tensor(mean), torch.tensor(variances)
    there, prior = first.alpha**2 * c + first.sigma**2, first.sigma**2 + (first.alpha * 0.9) ** 2
    exact = (c / there * ((there.sqrt() - math.sqrt(prior)) ** 2 + first.alpha**2 * m**2)).mean().sqrt()
    assert found[START].value == pytest.approx(float(exact), rel=0.1)  # 600 examples for the moments
    nats = 0.5 * (((there + first.alpha**2 * m**2) / prior - 1) - torch.log(there / prior)).mean()
    assert found[START].details["nats per element"] == pytest.approx(float(nats), rel=0.2)
    assert found[START].value > 10 * found[SCORE].value
    assert "a schedule that reaches further will help" in verdict(list(found.values()), 8)


def test_a_schedule_that_stops_early_costs_what_the_closed_form_says():
    law = gaussian(EDM(sigma_min=0.1), (0.0, 0.0), (0.04, 0.5))
    found = budget(law, law, exact=law, grid=KarrasGrid(), starts=300, levels=2, **FEW)[END]
    c = law.eigenvalues[0]
    share = c / (c + 0.1**2)
    exact = (c * (1 - share.sqrt()).square()).mean().sqrt()
    assert found.value == pytest.approx(float(exact), rel=0.1)
    assert found.details["sigma / alpha"] == pytest.approx(0.1)


def test_a_study_that_cannot_be_is_refused():
    with pytest.raises(SolverError, match="stochastic ancestral solver"):
        Plan(Ancestral(), FlowGrid())
    with pytest.raises(SolverError, match="must rise"):
        Plan(Heun(), FlowGrid(), steps=(8, 4))
    law = gaussian(Flow())
    with pytest.raises(DataError, match="10 held out"):
        study(
            law, Plan(Heun(), FlowGrid()), (law.sample(Noise(0, 10)), None), (law.sample(Noise(1, 99)), None)
        )


def test_a_study_can_be_drawn():
    law = gaussian(Linear())
    found = list(budget(Moved(law, 0.02), law, exact=law, levels=5, **FEW).values())
    assert plotted(study_picture(found, "a title"))[1] > 900
    assert "score error costs most" in verdict(found, 8)
