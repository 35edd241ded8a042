"""Seeing sampling: what starts from an estimate, what a trace records, where the error of a sample comes from."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato.denoisers import GaussianMixture
from sfumato.errors import BundleError, SolverError
from sfumato.noise import Noise
from sfumato.processes import EDM, Cosine, Flow, Gaussian, Linear, SubVP
from sfumato.solvers import DDIM, Ancestral, FlowGrid, Heun, UniformGrid, sample, sample_from

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


# -- coming closer -----------------------------------------------------------------------------------------------------


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
