"""Stochastic solvers: their laws on Gaussian data without Monte Carlo, their limits, and one path on all grids."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from sfumato.denoisers import GaussianMixture
from sfumato.errors import SolverError
from sfumato.noise import Noise
from sfumato.processes import (
    EDM,
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
    DPMpp2M,
    Euler,
    EulerMaruyama,
    FlowGrid,
    KarrasGrid,
    LogSNRGrid,
    SASolver,
    SDEDPMpp,
    UniformGrid,
    brownian,
    build_solver,
    check_solver,
    integrate,
    sample,
)
from sfumato.solvers.laws import STEPS, fitted_order, gaussian_errors, interior_levels, output_law
from sfumato.solvers.sde_dpm import step_weights

SOLVERS = [SDEDPMpp(1), SDEDPMpp(2), SDEDPMpp(3, 0.6), SASolver(1, 0), SASolver(), SASolver(3, 3, 0.5)]
SCHEDULES = [Flow(), Linear(), Cosine(), EDM(), ZeroTerminalSNR(), SubVP()]


def name(part) -> str:
    return "-".join(str(value) for value in part.to_json().values())[:40]


each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=name)
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


class Says:
    """A denoiser that knows x_0."""

    def __init__(self, process, point):
        self.process, self.point = process, torch.as_tensor(point, dtype=torch.float64)

    def __call__(self, x_t, t, condition=None):
        return Prediction(self.point.expand_as(x_t), "x0", x_t, self.process.level(t), self.process)


def gaussian(process, mean=0.6, variance=0.3):
    return GaussianMixture(process, *torch.tensor([[[mean]], [[variance]]], dtype=torch.float64))


def apart(a, b):
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))


# -- the laws that all solvers obey ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver",
    [
        *SOLVERS,
        SDEDPMpp(2, 0.0),
        SASolver(tau=0.0),
        SASolver(1, 1),
        SASolver(s_min=0.05, s_max=1.0),
        EulerMaruyama(0.5),
    ],
    ids=name,
)
def test_check_solver_passes_the_variants(solver):
    check_solver(solver)


@dataclass(frozen=True)
class TooQuiet(SDEDPMpp):
    def step(self, denoise, process, x, t, s, carry, noise):
        quiet = type("Quiet", (), {"normal": lambda _, like, stream=0: 0.9 * noise.normal(like, stream)})()
        return super().step(denoise, process, x, t, s, carry, quiet)


@dataclass(frozen=True)
class NewNoise(SASolver):
    """Corrects with other noise than it predicted with."""

    def step(self, denoise, process, x, t, s, carry, noise):
        x, made = super().step(denoise, process, x, t, s, carry, noise)
        spread = s.sigma * math.sqrt(-math.expm1(t.log_snr - s.log_snr))
        return x, made._replace(rest=made.rest + spread * (noise.normal(x, 1) - noise.normal(x)))


@dataclass(frozen=True)
class Misplaced(SASolver):
    """Takes what it saw at the last level for having been seen a little earlier."""

    def step(self, denoise, process, x, t, s, carry, noise):
        if carry is not None:
            carry = carry._replace(
                seen=tuple((place - 0.2 * (t.log_snr - place), x0) for place, x0 in carry.seen)
            )
        return super().step(denoise, process, x, t, s, carry, noise)


@dataclass(frozen=True)
class NoLangevin(EulerMaruyama):
    """Adds the noise, and not the drift that pays for it."""

    def step(self, denoise, process, x, t, s, carry, noise):
        still, _ = EulerMaruyama(0.0).step(denoise, process, x, t, s, carry, noise)
        noisy, _ = super().step(Says(process, 0.0), process, 0 * x, t, s, carry, noise)
        return still + noisy, None


@pytest.mark.parametrize(
    ("solver", "words"),
    [
        (TooQuiet(), "misses the law"),
        (NewNoise(), "misses the law|alone differs"),
        (Misplaced(2, 0, 0.0), "order 2 but"),
        (NoLangevin(), "misses the law"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_check_solver_catches_planted_defects(solver, words):
    with pytest.raises(LawBroken, match=words):
        check_solver(solver)


# -- one step ----------------------------------------------------------------------------------------------------------


@given(
    y=st.floats(1e-4, 30.0),
    rate=st.floats(1.0, 2.0),
    back=st.lists(st.floats(0.2, 3.0), max_size=3),
    ahead=st.booleans(),
    coefficients=st.lists(st.floats(-2, 2), min_size=5, max_size=5),
)
def test_the_weights_integrate_polynomials_exactly(y, rate, back, ahead, coefficients):
    h = y / rate
    nodes = [h] * ahead + [0.0] + [-h * sum(back[: i + 1]) for i in range(len(back))]
    polynomial = np.polynomial.Polynomial(coefficients[: len(nodes)])
    want, _ = quad(lambda r: y * math.exp(-y * (1 - r)) * polynomial(r), 0, 1, epsabs=1e-13, epsrel=1e-12)
    weights = step_weights(rate, h, nodes)
    got = sum(w * polynomial(v / h) for w, v in zip(weights, nodes, strict=True))
    # the weights of far-off nodes cancel
    assert got == pytest.approx(want, rel=1e-8, abs=1e-10 * sum(abs(w) for w in weights) * 300)
    assert sum(weights) == pytest.approx(-math.expm1(-y), rel=1e-9)


@settings(max_examples=30)
@given(
    point=st.floats(-3, 3),
    eta=st.floats(0.05, 3.0),
    steps=st.integers(1, 9),
    points=st.integers(1, 3),
    corrector=st.integers(0, 3),
    schedule=st.sampled_from(SCHEDULES),
    pure=st.booleans(),
)
def test_when_x0_is_known_every_step_has_the_right_law(point, eta, steps, points, corrector, schedule, pure):
    """x_t = alpha x_0 + sigma eps stays so for every rate, grid and order, from pure noise on, too."""
    process = Gaussian(schedule)
    levels = UniformGrid(1.0 if pure else 0.9).levels(process, steps + 1)[:-1]
    for solver in (SDEDPMpp(points, eta), SASolver(points, corrector, eta)):
        first, last = levels[0], levels[-1]
        mean, variance = (
            output_law(solver, Says(process, point), levels, first.alpha * point, first.sigma**2)
            if len(levels) > 1
            else (last.alpha * point, last.sigma**2)
        )
        assert mean == pytest.approx(last.alpha * point, abs=1e-9)
        assert variance == pytest.approx(last.sigma**2, rel=1e-9)


def test_a_rate_within_an_interval_draws_there_only():
    process, drawn = Gaussian(EDM()), []

    class Listens(Noise):
        def at(self, step):
            drawn.append(step)
            return super().at(step)

    levels = KarrasGrid().levels(process, 12)
    model, x = gaussian(process), torch.zeros(1, 1, dtype=torch.float64)
    asked = []

    class Draws:
        def __init__(self, step):
            self.step = step

        def normal(self, like, stream=0):
            asked.append(self.step)
            return torch.zeros_like(like)

    integrate(
        model,
        SASolver(s_min=0.05, s_max=1.0),
        levels,
        x,
        type("Keyed", (), {"indices": (0,), "at": lambda _, i: Draws(i)})(),
    )
    inside = [i + 1 for i, row in enumerate(levels[:-2]) if 0.05 <= row.sigma / row.alpha <= 1.0]
    assert asked == inside
    assert 0 < len(inside) < 10


# -- the deterministic limit, and one number from two solvers ----------------------------------------------------------


def run(solver, process, levels, noise=None):
    model = GaussianMixture(
        process, torch.tensor([[-1.0, 0.4], [0.9, -0.2]]), torch.tensor([[0.3, 0.2], [0.15, 0.35]])
    )
    x = 2 * Noise(4, 5).normal(torch.empty(5, 2, dtype=torch.float64))
    return integrate(model, solver, levels, x, noise or Noise(9, 5))


@each_schedule
@pytest.mark.parametrize("grid", [FlowGrid(), FlowGrid(0.95), UniformGrid(0.9)], ids=name)
def test_solvers_that_are_one_method_give_one_number(schedule, grid):
    process = Gaussian(schedule)
    of = partial(run, process=process, levels=grid.levels(process, 7))
    assert apart(of(SDEDPMpp(2, 0.0)), of(DPMpp2M())) < 1e-12
    assert apart(of(SDEDPMpp(1, 0.0)), of(DDIM())) < 1e-12
    assert apart(of(SASolver(1, 0, 0.0)), of(DDIM())) < 1e-12
    assert apart(of(SDEDPMpp(1)), of(Ancestral())) < 1e-12, "a constant x_0 at eta = 1 is the chain's bridge"
    for eta in (0.0, 0.7, 1.0):
        assert apart(of(SASolver(3, 0, eta)), of(SDEDPMpp(3, eta))) < 1e-12
        assert apart(of(SASolver(1, 0, eta)), of(SDEDPMpp(1, eta))) < 1e-12
    assert apart(of(SASolver(s_min=1e9, s_max=2e9)), of(SASolver(tau=0.0))) == 0
    assert apart(of(SASolver()), of(SASolver(tau=0.0))) > 1e-3
    assert apart(of(SASolver(2, 2)), of(SASolver(2, 0))) > 1e-4
    assert apart(of(EulerMaruyama(0.0)), of(Euler("time"))) < 1e-9 or process.level(1.0).alpha == 0


@pytest.mark.slow  # its import alone takes seconds
def test_the_steps_are_those_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++",
        solver_order=2,
        prediction_type="sample",
        use_karras_sigmas=True,
        final_sigmas_type="sigma_min",
        lower_order_final=False,
    )
    theirs.set_timesteps(9)
    process = Gaussian(Linear())
    levels = [process.schedule.level_at(-2 * math.log(float(sigma))) for sigma in theirs.sigmas]
    # its last sigma repeats the one before: 8 steps that go somewhere
    levels, model = levels[:9], gaussian(process)
    noise = Noise(3, 4)
    x = start = noise.normal(torch.empty(4, 1, dtype=torch.float64))
    for i, time in enumerate(theirs.timesteps[:8]):
        draw = noise.at(i + 1).normal(start)
        x = theirs.step(model(x, levels[i]).x0, time, x, variance_noise=draw).prev_sample
    ours = integrate(model, SDEDPMpp(2), levels, start, noise)
    assert apart(ours, x) < 1e-5  # theirs keeps sigma in float32


ODE = [
    SDEDPMpp(1, 0.0),
    SDEDPMpp(2, 0.0),
    SASolver(1, 0, 0.0),
    SASolver(2, 0, 0.0),
    SASolver(1, 1, 0.0),
    SASolver(2, 2, 0.0),
]


@each_schedule
@pytest.mark.parametrize("solver", ODE, ids=name)
def test_without_noise_the_order_is_the_stated_one(solver, schedule):
    errors = gaussian_errors(solver, schedule)
    assert fitted_order(STEPS, errors) == pytest.approx(solver.order, abs=0.15), errors


@pytest.mark.parametrize("solver", [SDEDPMpp(3, 0.0), SASolver(3, 0, 0.0), SASolver(3, 3, 0.0)], ids=name)
def test_the_first_steps_bound_the_order_of_longer_memories(solver):
    steps = (200, 400, 800)
    errors = gaussian_errors(solver, Flow(), steps)
    # third-order errors are near rounding's reach and not quite in their limit at these steps
    assert fitted_order(steps, errors) == pytest.approx(solver.order, abs=0.25), errors


# -- weak order --------------------------------------------------------------------------------------------------------


def deviation_errors(solver, schedule, steps):
    process, errors = Gaussian(schedule), []
    for count in steps:
        levels = interior_levels(process, count)
        ends = [(0.6 * row.alpha, 0.3 * row.alpha**2 + row.sigma**2) for row in (levels[0], levels[-1])]
        got = output_law(solver, gaussian(process), levels, *ends[0])
        errors.append(abs(math.sqrt(got[1] / ends[1][1]) - 1) + abs(got[0] - ends[1][0]))
    return errors


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (SDEDPMpp(1), 1),
        (SDEDPMpp(1, 0.5), 1),
        (EulerMaruyama(), 1),
        (SDEDPMpp(2), 2),
        (SDEDPMpp(2, 0.5), 2),
        (SASolver(1, 1), 2),
        (SASolver(2, 0), 2),
        (SDEDPMpp(3), 2),
        (SASolver(2, 2), 2),
    ],
    ids=lambda value: name(value) if hasattr(value, "kind") else str(value),
)
def test_the_weak_order_on_gaussian_data(solver, order):
    """Fitted without Monte Carlo. Longer memories and correctors come to the second order from above."""
    steps = (64, 128, 256)
    fitted = fitted_order(steps, deviation_errors(solver, Linear(), steps))
    assert order - 0.15 < fitted < order + (0.8 if order == 2 else 0.15)


# -- one path ----------------------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(
    eta=st.floats(0.3, 1.2),
    schedule=st.sampled_from(SCHEDULES),
    grids=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    seed=st.integers(0, 2**32),
)
def test_where_x0_is_known_all_grids_draw_one_path(eta, schedule, grids, seed):
    """The noise of a step is an increment of a Brownian motion: the end does not depend on where steps were split."""
    process, noise, ends = Gaussian(schedule), Noise(seed, 3), []
    x = torch.tensor([[0.5, -1.0]] * 3, dtype=torch.float64)
    for count in grids:
        levels = interior_levels(process, count, 0.95, 0.08)
        path = brownian(noise, levels, eta)
        ends.append(integrate(Says(process, [0.4, -0.2]), SDEDPMpp(2, eta), levels, x, path))
    assert apart(ends[0], ends[1]) < 1e-9
    # which it would, with draws of each step's own
    own = integrate(Says(process, [0.4, -0.2]), SDEDPMpp(2, eta), levels, x, noise)
    assert apart(own, ends[1]) > 1e-3


@pytest.mark.parametrize(
    ("solver", "rate"),
    [
        (EulerMaruyama(), 1.0),
        (Ancestral(), 1.0),
        (SDEDPMpp(1), 1.0),
        (SDEDPMpp(2), 1.0),
        (SDEDPMpp(2, 0.5), 0.5),
        (SASolver(2, 2), 1.0),
    ],
    ids=lambda value: name(value) if hasattr(value, "kind") else str(value),
)
def test_the_strong_order_on_gaussian_data_is_one(solver, rate):
    """Runs on ever finer grids near the same end, sample by sample, as the step does."""
    steps, exact = (16, 32, 64), path_end(SDEDPMpp(2, rate), 512, rate)
    errors = [float((path_end(solver, count, rate) - exact).square().mean().sqrt()) for count in steps]
    # of 64 samples a root mean square is known to a tenth, and with it the slope; the reference adds as much
    assert fitted_order(steps, errors) == pytest.approx(1, abs=0.25), errors


@cache
def path_end(solver, steps, rate):
    """4 times 16 samples at the end of a run on their own paths."""
    process, noise = Gaussian(Linear()), Noise(5, 4)
    model = GaussianMixture(process, torch.full((1, 16), 0.6), torch.full((1, 16), 0.3))
    levels = interior_levels(process, steps)
    start = noise.normal(torch.empty(4, 16, dtype=torch.float64))
    return integrate(model, solver, levels, start, brownian(noise, levels, rate, 16))


@each_schedule
@pytest.mark.parametrize("solver", [*SOLVERS, EulerMaruyama()], ids=name)
def test_a_sample_alone_is_the_sample_of_a_batch_from_pure_noise_to_data(solver, schedule):
    process = Gaussian(schedule)
    model = GaussianMixture(process, torch.tensor([[-1.0, 0.4], [0.9, -0.2]]), torch.full((2, 2), 0.2))
    levels = UniformGrid().levels(process, 6)
    for keyed in (lambda rows: Noise(7, rows), lambda rows: brownian(Noise(7, rows), levels, 0.8)):
        many = sample(model, keyed(range(9)), (2,), solver=solver, levels=levels)
        one = sample(model, keyed([5]), (2,), solver=solver, levels=levels)
        assert bool(many.isfinite().all())
        assert apart(many[5:6], one) < 1e-5
        assert many.std(0).min() > 0.1


def test_eight_threads_share_one_solver_and_one_path():
    process = Gaussian(Flow())
    levels = FlowGrid().levels(process, 8)
    path = brownian(Noise(1, 3), levels)
    for solver in (SASolver(), SDEDPMpp()):
        alone = run_path(solver, process, levels, brownian(Noise(1, 3), levels))
        with ThreadPoolExecutor(8) as pool:
            for got in pool.map(lambda _, of=solver: run_path(of, process, levels, path), range(16)):
                assert torch.equal(got, alone)


def run_path(solver, process, levels, path):
    x = process.prior(torch.empty(3, 1, dtype=torch.float64), path.at(0), levels[0])
    return integrate(gaussian(process), solver, levels, x, path)


def test_levels_that_share_a_leaf_are_refused():
    process = Gaussian(Linear())
    levels = LogSNRGrid().levels(process, 2000)
    with pytest.raises(ValueError, match="depth 6"):
        brownian(Noise(0, 2), levels, depth=6)
    brownian(Noise(0, 2), levels, depth=16)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SDEDPMpp(4), "1, 2 or 3 points, not 4"),
        (lambda: SDEDPMpp(eta=-0.1), "at least 0"),
        (lambda: SDEDPMpp(eta=math.nan), "at least 0"),
        (lambda: SASolver(0), "1 to 3 levels"),
        (lambda: SASolver(2, 4), "0 to 3 to correct"),
        (lambda: SASolver(tau=math.inf), "tau >= 0"),
        (lambda: SASolver(s_min=2.0, s_max=1.0), "s_min <= s_max"),
        (lambda: EulerMaruyama(1.1), r"\[0, 1\]"),
        (lambda: build_solver("sa", ta=1.0), "did you mean 'tau'"),
        (lambda: build_solver("sde-dpm"), r"did you mean 'sde-dpm\+\+'"),
    ],
)
def test_wrong_values_are_refused(make, words):
    with pytest.raises(SolverError, match=words):
        make()


def test_solvers_are_made_again_from_what_they_write():
    for solver in [*SOLVERS, EulerMaruyama(0.3), SASolver(s_min=0.1, s_max=3.0)]:
        assert build_solver(**solver.to_json()) == solver
