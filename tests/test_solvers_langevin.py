"""Langevin dynamics: its law on Gaussian data in closed form, alone, annealed, and as a corrector."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato.denoisers import GaussianMixture
from sfumato.errors import SolverError
from sfumato.noise import Noise
from sfumato.processes import (
    CLEAN,
    EDM,
    VE,
    Cosine,
    Flow,
    Gaussian,
    LawBroken,
    Linear,
    Prediction,
    SubVP,
    ZeroTerminalSNR,
)
from sfumato.solvers import (
    DDIM,
    Ancestral,
    AnnealedLangevin,
    DPMpp2M,
    Euler,
    FlowGrid,
    Heun,
    LogSNRGrid,
    PredictorCorrector,
    UniformGrid,
    build_solver,
    check_solver,
    integrate,
)
from sfumato.solvers.langevin import langevin
from sfumato.solvers.laws import fitted_order, interior_levels, output_law

SCHEDULES = [Flow(), Linear(), VE(0.02, 10.0), SubVP(), ZeroTerminalSNR()]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
PREDICTORS = [Ancestral(), DDIM(), DDIM(eta=0.5), Heun(), DPMpp2M()]


def gaussian(schedule, mean=0.6, variance=0.3):
    return GaussianMixture(Gaussian(schedule), *torch.tensor([[[mean]], [[variance]]], dtype=torch.float64))


def marginal(level, mean=0.6, variance=0.3):
    return level.alpha * mean, level.alpha**2 * variance + level.sigma**2


class Stays(DDIM):
    """A predictor that does not move: what remains is the corrector at one level."""

    def step(self, denoise, process, x, t, s, carry, noise):
        denoise(x, t)
        return x, carry


def at_one_level(process, log_snr=0.7):
    """Two levels so close that they are one."""
    return [process.schedule.level_at(log_snr), process.schedule.level_at(log_snr + 1e-12)]


# -- one level -------------------------------------------------------------------------------------------------------


@each_schedule
@pytest.mark.parametrize("consistent", [False, True])
@pytest.mark.parametrize("variance", [0.0, 0.02, 0.3, 4.0])
def test_the_law_after_any_number_of_steps_is_the_closed_form(schedule, consistent, variance):
    """m - alpha mu shrinks by 1 - q; the variance tends to c^2 / h S / (2 - q) by (1 - q)^2."""
    mu, snr = 0.6, 0.45
    model = gaussian(schedule, mu, variance)
    levels = at_one_level(model.process)
    h = 2 * snr**2
    centre, total = marginal(levels[0], mu, variance)
    q = h * levels[0].sigma ** 2 / total
    limit = (total * (1 - h / 2) if consistent else total) / (1 - q / 2)
    for count in (1, 7, 200):
        solver = PredictorCorrector(Stays(), snr, count, consistent)
        mean, spread = output_law(solver, model, levels, 2.0, 5.0)
        shrink = (1 - q) ** count
        assert mean == pytest.approx(centre + shrink * (2.0 - centre), rel=1e-9, abs=1e-9)
        assert spread == pytest.approx(limit + shrink**2 * (5.0 - limit), rel=1e-9)
    if variance == 0 and consistent:  # a known x_0 keeps exactly sigma of noise
        assert limit == pytest.approx(levels[0].sigma ** 2, rel=1e-12)


@pytest.mark.parametrize("consistent", [False, True])
def test_the_marginal_is_left_invariant_to_first_order_in_the_step(consistent):
    """One step from the marginal itself: off by q^2 (Langevin) or by h^2 (consistent), so by h in the limit."""
    model = gaussian(Flow())
    levels = at_one_level(model.process)
    start = marginal(levels[0])
    snrs, once, settled = (0.1, 0.15, 0.2), [], []
    for snr in snrs:
        one, many = (PredictorCorrector(Stays(), snr, k, consistent) for k in (1, 200))
        mean, spread = output_law(one, model, levels, *start)
        assert mean == pytest.approx(start[0], rel=1e-12)
        once.append(abs(spread / start[1] - 1))
        settled.append(abs(output_law(many, model, levels, *start)[1] / start[1] - 1))
    per_step = [1 / (2 * snr**2) for snr in snrs]  # 1 / h, in place of a number of steps
    assert fitted_order(per_step, once) == pytest.approx(2, abs=0.05)
    assert fitted_order(per_step, settled) == pytest.approx(1, abs=0.1)


def test_the_step_is_that_of_both_papers():
    """Song & Ermon 2019, alg. 1, and Song et al. 2021, alg. 4 with the norms at their expectation."""
    process = Gaussian(VE(0.02, 10.0))
    model = GaussianMixture(process, torch.tensor([[0.5, -1.0], [-1.0, 0.2]]), torch.tensor([[0.1, 0.2]] * 2))
    levels = interior_levels(process, 4)
    noise = Noise(1, 3)
    x = 2 * noise.normal(torch.empty(3, 2, dtype=torch.float64))
    snr, last = 0.22, levels[-1].sigma
    got = integrate(model, AnnealedLangevin(snr, 3, False), levels, x, noise)
    epsilon = 4 * snr**2 * last**2
    for i, level in enumerate(levels[1:]):
        size = epsilon * level.sigma**2 / last**2
        for k in range(3):
            z = noise.normal(x, i + 1, k)
            x = x + size / 2 * model(x, level).to("score") + size**0.5 * z
    assert torch.allclose(got, x, rtol=1e-10)

    z, level = noise.normal(x, 1, 0), levels[2]
    epsilon = (
        2 * (snr * math.sqrt(2) / (math.sqrt(2) / level.sigma)) ** 2
    )  # |z| and |score| are sqrt(dim) (/ sigma)
    want = x + epsilon * model(x, level).to("score") + (2 * epsilon) ** 0.5 * z
    assert torch.allclose(langevin(model, x, level, noise.at(1), snr, range(1), False), want, rtol=1e-10)


@given(scale=st.floats(0.05, 20), snr=st.floats(0.01, 0.99), consistent=st.booleans())
def test_the_step_is_one_step_in_whatever_coordinates(scale, snr, consistent):
    """The same x / alpha under two schedules, and the same x / alpha after: the length has no unit."""
    found = []
    for schedule in (Flow(), Cosine(), EDM(1e-4, 1e4)):
        model = gaussian(schedule)
        level = model.process.schedule.level_at(-2 * math.log(scale))
        y = torch.linspace(-2, 2, 6, dtype=torch.float64)[:, None]
        x = langevin(model, level.alpha * y, level, Noise(3, 6).at(1), snr, range(4), consistent)
        found.append(x / level.alpha)
    assert torch.allclose(found[0], found[1], rtol=1e-7, atol=1e-9)
    assert torch.allclose(found[0], found[2], rtol=1e-7, atol=1e-9)


def test_a_step_of_one_denoises_and_adds_fresh_noise():
    """h = 1 with the consistent noise is alpha x_0 + sigma z."""
    model = gaussian(Linear())
    level, x = model.process.level(0.4), torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    got = langevin(model, x, level, Noise(0, 5).at(2), math.sqrt(0.5), range(1), True)
    want = level.alpha * model(x, level).x0 + level.sigma * Noise(0, 5).normal(x, 2)
    assert torch.allclose(got, want, rtol=1e-12)


# -- annealed --------------------------------------------------------------------------------------------------------


def by_hand(levels, mean, variance, snr, inner, consistent, mu, var):
    """The recursion of the law over a whole run, in x / alpha, where no schedule is left."""
    h = 2 * snr**2
    ys = [level.sigma / level.alpha for level in levels]
    mean, variance = mean / levels[0].alpha, variance / levels[0].alpha ** 2
    for s in ys[1:]:
        q = h * s**2 / (var + s**2)
        for _ in range(inner):
            mean = mu + (1 - q) * (mean - mu)
            variance = (1 - q) ** 2 * variance + (h * (2 - h) if consistent else 2 * h) * s**2
    return mean * levels[-1].alpha, variance * levels[-1].alpha ** 2


@each_schedule
@pytest.mark.parametrize("consistent", [False, True])
def test_annealing_has_the_law_of_its_recursion(schedule, consistent):
    model = gaussian(schedule)
    levels = interior_levels(model.process, 12)
    start = (0.4, 2.0)
    got = output_law(AnnealedLangevin(0.4, 3, consistent), model, levels, *start)
    want = by_hand(levels, *start, 0.4, 3, consistent, 0.6, 0.3)
    assert got == pytest.approx(want, rel=1e-9)
    # then clean data are the denoiser's x_0: mu + gain (x - alpha mu)
    last, (_, total) = levels[-1], marginal(levels[-1])
    gain = last.alpha * 0.3 / total
    clean = output_law(AnnealedLangevin(0.4, 3, consistent), model, [*levels, CLEAN], *start)
    assert clean[0] == pytest.approx(0.6 + gain * (got[0] - last.alpha * 0.6), rel=1e-9)
    assert clean[1] == pytest.approx(gain**2 * got[1], rel=1e-9)


@pytest.mark.parametrize("variance", [0.05, 0.3, 2.0])
def test_the_lag_behind_the_level_is_that_of_the_docstring(variance):
    """On levels even in log sigma, V / S - 1 = d log sigma / (h inner) + q / 2 + higher terms, whatever the data."""
    model = gaussian(VE(1e-3, 10.0), 0.6, variance)
    for steps, inner, snr in ((100, 8, 0.2), (100, 4, 0.3), (200, 2, 0.4)):
        levels = LogSNRGrid(sigma_min=0.1, sigma_max=5.0).levels(model.process, steps)[:-1]
        end, h = levels[-1], 2 * snr**2
        got = output_law(
            AnnealedLangevin(snr, inner, False), model, levels, *marginal(levels[0], 0.6, variance)
        )
        total = marginal(end, 0.6, variance)[1]
        apart = math.log(levels[-2].sigma / end.sigma)
        want = apart / (h * inner) + h * end.sigma**2 / total / 2
        # the higher terms: what is left of earlier, larger lags where q is small, and powers of either term
        assert got[1] / total - 1 == pytest.approx(want, rel=0.25)


@pytest.mark.parametrize("schedule", [Flow(), Cosine(), ZeroTerminalSNR()], ids=lambda s: s.kind)
def test_annealing_goes_on_from_levels_without_signal(schedule):
    """alpha = 0: x / alpha is infinite there, and the noise is taken over at the size that it then has."""
    model = gaussian(schedule)
    levels = UniformGrid().levels(model.process, 60)[:-1]
    first, second = levels[:2]
    assert first.alpha == 0
    got = output_law(AnnealedLangevin(0.4, 3), model, levels, 0.0, first.sigma**2)
    want = by_hand([second, *levels[1:]], 0.0, second.sigma**2, 0.4, 3, False, 0.6, 0.3)
    assert got == pytest.approx(want, rel=1e-9)
    truth = marginal(levels[-1])
    assert got[0] == pytest.approx(truth[0], abs=0.2 * truth[1] ** 0.5)
    assert got[1] == pytest.approx(
        truth[1], rel=0.5
    )  # 60 levels and 3 steps at each lag behind the last of them


@pytest.mark.parametrize(
    "solver", [AnnealedLangevin(), AnnealedLangevin(consistent=True), *map(PredictorCorrector, PREDICTORS)]
)
@each_schedule
def test_a_denoiser_that_always_says_the_same_is_reached_exactly(solver, schedule):
    process = Gaussian(schedule)
    point = torch.tensor([[0.3, -0.7]], dtype=torch.float64)

    class Says:
        def __init__(self):
            self.process = process

        def __call__(self, x_t, t, condition=None):
            return Prediction(point.expand_as(x_t), "x0", x_t, process.level(t), process)

    levels = UniformGrid().levels(process, 6)
    x = 3 * Noise(0, 5).normal(torch.empty(5, 2, dtype=torch.float64))
    got = integrate(Says(), solver, levels, x, Noise(0, 5))
    assert torch.allclose(got, point.expand_as(got), atol=1e-9)


# -- corrected -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("predictor", PREDICTORS, ids=lambda p: p.kind)
def test_without_corrections_it_is_its_predictor(predictor):
    model = gaussian(Flow())
    levels, noise = FlowGrid(0.97).levels(model.process, 9), Noise(4, 6)
    x = noise.normal(torch.empty(6, 1, dtype=torch.float64))
    solver = PredictorCorrector(predictor, corrections=0)
    alone, wrapped = (integrate(model, part, levels, x, noise) for part in (predictor, solver))
    assert torch.equal(alone, wrapped)
    for name in ("order", "evaluations", "stochastic", "serves"):
        assert getattr(solver, name) == getattr(predictor, name)
    corrected = integrate(model, PredictorCorrector(predictor), levels, x, noise)
    assert not torch.allclose(alone, corrected, atol=1e-3)


@pytest.mark.parametrize("schedule", [Flow(), VE(0.02, 10.0)], ids=lambda s: s.kind)
def test_corrections_forget_what_the_predictor_got_wrong(schedule):
    """Few coarse steps leave ancestral sampling with too little variance; each correction takes 1 - (1 - q)^2 off."""
    model = gaussian(schedule)
    levels = interior_levels(model.process, 4, 0.9, 0.4)
    truth = marginal(levels[-1])
    gaps = []
    for corrections in (0, 1, 3, 150):
        solver = PredictorCorrector(Ancestral(), 0.2, corrections)
        got = output_law(solver, model, levels, *marginal(levels[0]))
        gaps.append(abs(math.log(got[1] / truth[1])))
    assert gaps[0] > gaps[1] > gaps[2] > gaps[3]
    assert gaps[0] > 0.1
    h, last = 2 * 0.2**2, levels[-1]
    q = h * last.sigma**2 / truth[1]
    assert gaps[3] == pytest.approx(-math.log(1 - q / 2), rel=0.15)  # Langevin's own bias is all that is left


def test_corrector_and_predictor_do_not_share_their_noise():
    seen = []

    class Recorded:
        def __init__(self, noise):
            self.noise = noise

        def at(self, step):
            return Recorded(self.noise.at(step))

        def normal(self, like, stream=0):
            seen.append(self.noise.normal(like, stream))
            return seen[-1]

    model, noise = gaussian(Flow()), Noise(0, 2)
    levels, x = interior_levels(model.process, 3), torch.zeros(2, 1, dtype=torch.float64)
    integrate(model, PredictorCorrector(corrections=2), levels, x, Recorded(noise))  # type: ignore[arg-type]
    assert len({tuple(draw.flatten().tolist()) for draw in seen}) == len(seen) == 3 * 3
    for step in range(3):  # the predictor draws what it draws alone
        assert torch.equal(seen[3 * step], noise.at(step + 1).normal(x))


@pytest.mark.parametrize("solver", [AnnealedLangevin(), PredictorCorrector()], ids=lambda s: s.kind)
def test_evaluations_of_a_run_are_the_stated_ones(solver):
    model, calls = gaussian(Flow()), 0

    class Counts:
        process = model.process

        def __call__(self, x_t, t, condition=None):
            nonlocal calls
            calls += 1
            return model(x_t, t)

    levels = FlowGrid(0.97).levels(model.process, 7)
    integrate(Counts(), solver, levels, torch.zeros(2, 1, dtype=torch.float64), Noise(0, 2))
    assert calls == 6 * solver.evaluations + 1  # clean data take one


# -- laws and values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver",
    [
        PredictorCorrector(Heun()),
        PredictorCorrector(DPMpp2M(), corrections=0),
        PredictorCorrector(Euler(), 0.3, 2),
    ],
    ids=lambda s: f"{s.predictor.kind}-{s.corrections}",
)
def test_check_solver_passes(solver):
    check_solver(solver)


class Louder(AnnealedLangevin):
    """An eighth too much noise."""

    def step(self, denoise, process, x, t, s, carry, noise):
        y, carry = super().step(denoise, process, x, t, s, carry, noise)
        return y + (0.8 * s.sigma) * noise.normal(x, 99), carry


class Twice(AnnealedLangevin):
    """Says it makes one step fewer than it does."""

    @property
    def evaluations(self):
        return self.inner - 1


class Shared(PredictorCorrector):
    """The paper's rule: norms of the score averaged over the batch."""

    def step(self, denoise, process, x, t, s, carry, noise):
        x, carry = self.predictor.step(denoise, process, x, t, s, carry, noise)
        if s.sigma == 0:
            return x, carry
        score, z = denoise(x, s).to("score"), noise.normal(x, 9)
        size = 2 * (self.snr * z.norm(dim=1).mean() / score.norm(dim=1).mean()) ** 2
        return x + size * score + (2 * size) ** 0.5 * z, carry


@pytest.mark.parametrize(
    ("solver", "words"),
    [
        (Louder(), "misses the law"),
        (Twice(), "evaluations"),
        (Shared(), "alone differs from the same sample in a"),
        # no defect, but not the data's law where they are wide: 1 - h / 2 of the variance is left
        (AnnealedLangevin(consistent=True), "misses the law"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_check_solver_catches_planted_defects(solver, words):
    with pytest.raises(LawBroken, match=words):
        check_solver(solver)


@pytest.mark.parametrize("predictor", [*PREDICTORS, AnnealedLangevin(0.3, 2)], ids=lambda p: p.kind)
def test_solvers_are_made_again_from_what_they_write(predictor):
    for solver in (predictor, PredictorCorrector(predictor, 0.2, 3, True), AnnealedLangevin(0.1, 7, True)):
        assert build_solver(**solver.to_json()) == solver


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AnnealedLangevin(snr=0.0), r"\(0, 1\)"),
        (lambda: AnnealedLangevin(snr=1.0), r"\(0, 1\)"),
        (lambda: AnnealedLangevin(snr=math.nan), r"\(0, 1\)"),
        (lambda: AnnealedLangevin(inner=0), "inner .* whole number from 1"),
        (lambda: AnnealedLangevin(inner=2.5), "inner .* whole number from 1"),  # type: ignore[arg-type]
        (lambda: PredictorCorrector(corrections=-1), "corrections .* whole number from 0"),
        (lambda: PredictorCorrector(snr=2.0), r"\(0, 1\)"),
        (lambda: PredictorCorrector("heun"), "predictor is a solver"),  # type: ignore[arg-type]
        (lambda: PredictorCorrector(PredictorCorrector()), "without corrections of its own"),
        (lambda: build_solver("predictor-corrector", predictor={"kind": "henu"}), "did you mean 'heun'"),
        (
            lambda: build_solver("predictor-corrector", predictor={"kind": "ddim", "etta": 1}),
            "did you mean 'eta'",
        ),
        (lambda: build_solver("annealed-langevin", iner=3), "did you mean 'inner'"),
    ],
)
def test_wrong_values_are_refused(make, words):
    with pytest.raises(SolverError, match=words):
        make()
