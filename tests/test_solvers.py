"""Solvers: their orders and limits against closed forms, and a sample that depends on its own seed only."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from sfumato.denoisers import ClassifierFree, Denoiser, GaussianMixture
from sfumato.errors import SolverError
from sfumato.noise import Noise
from sfumato.processes import (
    DDPM,
    EDM,
    VE,
    Cosine,
    Flow,
    Gaussian,
    Linear,
    Prediction,
    Sigmoid,
    ZeroTerminalSNR,
)
from sfumato.solvers import (
    DDIM,
    PLMS,
    PNDM,
    Adams,
    AdamsMoulton,
    Ancestral,
    DPMpp2M,
    DPMppS,
    EDMSolver,
    Euler,
    FlowGrid,
    Heun,
    KarrasGrid,
    LogSNRGrid,
    RungeKutta,
    UniformGrid,
    UniPC,
    build_grid,
    integrate,
    sample,
)
from sfumato.solvers.laws import (
    SMOOTH,
    STEPS,
    fitted_order,
    fitting,
    gaussian_errors,
    interior_levels,
    output_law,
)
from solver_cases import DETERMINISTIC, STOCHASTIC, Small, apart, each_schedule, hills, name, run

each_deterministic = pytest.mark.parametrize("solver", DETERMINISTIC, ids=name)

each_solver = pytest.mark.parametrize("solver", DETERMINISTIC + STOCHASTIC, ids=name)


# -- order -----------------------------------------------------------------------------------------------------------


@each_schedule
@each_deterministic
def test_the_order_on_a_gaussian_is_the_stated_one(solver, schedule):
    grid, steps = fitting(solver)
    order = fitted_order(steps, errors := gaussian_errors(solver, schedule, steps, grid))
    assert order > solver.order - 0.15, errors
    # the midpoint rule owes a Gaussian nothing at h^2 in these frames, and Kutta's little: see the mixture's test
    assert order < solver.order + 0.15 or isinstance(solver, RungeKutta), errors
    if solver.start_order < solver.order:  # and a run of equal steps falls short as it says
        assert fitted_order(STEPS, gaussian_errors(solver, schedule)) > solver.start_order - 0.15


@pytest.fixture(scope="module")
def reference():
    """y at the start, and at the end of each piece of u, on the mixture's flow: one curve, y = x / (alpha + sigma)."""
    model = hills(Gaussian(Flow()))
    start = Noise(3, 6).normal(torch.empty(6, 2, dtype=torch.float64))

    def slope(u, y):
        x = torch.from_numpy(y.reshape(6, 2))
        return model(x, float(u)).combine(-1.0, 1.0).numpy().ravel()

    ends = {}
    for piece in ((0.9, 0.1), SMOOTH):
        got = solve_ivp(slope, piece, start.numpy().ravel(), method="DOP853", rtol=1e-12, atol=1e-13)
        ends[piece] = torch.from_numpy(got.y[:, -1].reshape(6, 2))
    return start, ends


@pytest.mark.parametrize("schedule", [Flow(), Linear(), EDM()], ids=name)
@each_deterministic
def test_the_order_on_a_mixture_is_the_stated_one(solver, schedule, reference):
    first, ends = reference
    last = ends[(0.9, 0.1) if solver.order <= 3 else SMOOTH]
    model = hills(Gaussian(schedule))
    grid, steps = fitting(solver)
    steps, errors = (32, 64, 128) if grid is interior_levels else steps, []
    for count in steps:
        levels = grid(model.process, count)
        scales = [level.alpha + level.sigma for level in (levels[0], levels[-1])]
        x = integrate(model, solver, levels, scales[0] * first, Noise(0, 6))
        errors.append(float((x / scales[1] - last).square().mean().sqrt()))
    assert fitted_order(steps, errors) == pytest.approx(solver.order, abs=0.15), errors
    assert errors[-1] < (0.05 if solver.order == 1 else 0.005)


@each_schedule
@each_deterministic
def test_whole_runs_converge_from_noise_to_data(solver, schedule):
    """From the first level to clean data, ends included, on a Gaussian: the closed form maps quantiles to quantiles."""
    process = Gaussian(schedule)
    model = GaussianMixture(process, torch.tensor([[0.3, -0.4]]), torch.tensor([[0.4, 0.2]]))
    noise, errors = Noise(2, 4), []
    for steps in (16, 64):
        frame = getattr(solver, "frame", "")
        grid = FlowGrid(0.97) if frame == "sigma" else UniformGrid() if frame == "time" else FlowGrid()
        levels = grid.levels(process, steps)
        first = levels[0]
        z = noise.normal(torch.empty(4, 2, dtype=torch.float64))
        deviation = (first.alpha**2 * torch.tensor([0.4, 0.2], dtype=torch.float64) + first.sigma**2).sqrt()
        got = integrate(model, solver, levels, first.alpha * model.means + deviation * z, noise)
        errors.append(float((got - model.means - torch.tensor([0.4, 0.2]).double().sqrt() * z).abs().max()))
    # the time frame meets infinite slopes at the ends of most schedules, where it is of no full order
    better = 1.8 if frame == "time" else 3.3
    assert errors[1] < errors[0] / better, errors
    assert errors[1] < (0.25 if frame == "time" else 0.1)


@pytest.mark.parametrize(
    "solver", [each for each in DETERMINISTIC + STOCHASTIC if not isinstance(each, AdamsMoulton)], ids=name
)
@each_schedule
def test_a_denoiser_that_always_says_the_same_is_reached_exactly(solver, schedule):
    """Whatever the path, the last step is to x_0 itself: no noise is left, also where sigma(0) > 0.

    A multistep method's is, because the path to a fixed x_0 is straight and its slope never changes; in the angle and
    time frames earlier steps curve it a little, and the rest vanishes with the method's order.
    """
    process = Gaussian(schedule)
    point = torch.tensor([[0.3, -0.7]], dtype=torch.float64)

    class Says:
        def __init__(self):
            self.process = process

        def __call__(self, x_t, t, condition=None):
            return Prediction(point.expand_as(x_t), "x0", x_t, process.level(t), process)

    def gap(steps):
        levels = UniformGrid(0.9).levels(process, steps)
        x = 3 * Noise(0, 5).normal(torch.empty(5, 2, dtype=torch.float64))
        return float((integrate(Says(), solver, levels, x, Noise(0, 5)) - point).abs().max())

    if isinstance(solver, Adams) and solver.frame in ("angle", "time"):
        assert gap(28) < gap(7) / 4**solver.start_order + 1e-9
        assert gap(28) < 1e-3
    else:
        assert gap(7) < 1e-9


@pytest.mark.parametrize("orders", [(2, 0), (2, 3), (4, 5)])
def test_adams_moulton_reaches_it_exactly_where_the_flow_is_a_line_and_soon_where_it_is_not(orders):
    """In the flow frame the slope of one x_0 is constant; in the mixed frame it is a polynomial only in the limit."""
    process = Gaussian(Linear())
    exact = GaussianMixture(process, torch.tensor([[0.3, -0.7]]), torch.zeros(1, 2))
    x = 3 * Noise(0, 5).normal(torch.empty(5, 2, dtype=torch.float64))

    def left(frame, steps):
        levels = build_grid("angle").levels(process, steps)
        got = integrate(exact, AdamsMoulton(*orders, frame), levels, x, Noise(0, 5))
        return float((got - exact.means).abs().max())

    assert left("flow", 6) < 1e-9
    assert left("mixed", 24) < 0.05
    assert left("mixed", 96) < left("mixed", 24) / 3.5 ** min(orders[0], 3)


@each_schedule
@pytest.mark.parametrize("grid", [FlowGrid(0.95), LogSNRGrid(0.95), UniformGrid(0.95)], ids=name)
def test_solvers_that_are_one_method_give_one_number(schedule, grid):
    process = Gaussian(schedule, 0.7)
    levels = grid.levels(process, 6)
    ddim = run(DDIM(), process, levels)
    assert apart(run(Euler("flow"), process, levels), ddim) < 1e-12
    assert apart(run(Euler("sigma"), process, levels), ddim) < 1e-12
    assert apart(run(EDMSolver(churn=0.0), process, levels), run(Heun("sigma"), process, levels)) == 0
    assert apart(run(DPMpp2M(), process, levels[:2]), run(DDIM(), process, levels[:2])) < 1e-12
    assert apart(run(DPMpp2M(), process, levels[:3]), run(DDIM(), process, levels[:3])) > 1e-4
    assert apart(run(Ancestral(), process, levels), run(DDIM(eta=1.0), process, levels)) == 0
    assert apart(run(Ancestral(), process, levels, seed=1), run(Ancestral(), process, levels)) > 1e-2


def test_sampling_does_not_depend_on_the_row_the_network_speaks_in():
    process = Gaussian(Linear(), 0.7)
    exact = hills(process)

    class Speaks:
        def __init__(self, kind):
            self.process, self.kind = process, kind

        def __call__(self, x_t, t, condition=None):
            said = exact(x_t, t)
            return Prediction(said.to(self.kind), self.kind, x_t, said.level, process)

    x = Noise(0, 5).normal(torch.empty(5, 2, dtype=torch.float64))
    for solver in (DDIM(), Heun(), DPMpp2M(), Ancestral(), EDMSolver(), Adams(), DPMppS(), UniPC(), PLMS()):
        levels = FlowGrid().levels(process, 8)
        want = integrate(exact, solver, levels, x, Noise(1, 5))
        for kind in ("eps", "v", "velocity", "score", "edm"):
            assert apart(integrate(Speaks(kind), solver, levels, x, Noise(1, 5)), want) < 1e-8


# -- zero terminal SNR -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Flow(), Cosine(), ZeroTerminalSNR(), ZeroTerminalSNR(DDPM())], ids=name)
@each_solver
def test_sampling_starts_at_pure_noise(solver, schedule):
    process = Gaussian(schedule)
    levels = UniformGrid().levels(process, 5)
    assert levels[0].alpha == 0
    for kind in ("v", "velocity", "x0", "edm"):
        if getattr(solver, "frame", "") == "sigma":
            with pytest.raises(SolverError, match="use the flow or angle frame"):
                run(solver, process, levels, kind)
        else:
            assert torch.isfinite(run(solver, process, levels, kind)).all()
    if getattr(solver, "frame", "") != "sigma":
        for kind in ("eps", "score"):
            with pytest.raises(SolverError, match="says nothing of x0 where alpha = 0"):
                run(solver, process, levels, kind)


def test_a_velocity_that_is_infinite_is_refused():
    process = Gaussian(Sigmoid())  # alpha falls as a square root at t = 1
    with pytest.raises(SolverError, match=r"'velocity' says nothing of x0 .*predict 'v'"):
        run(DDIM(), process, UniformGrid().levels(process, 5), "velocity")


# -- stochastic solvers ----------------------------------------------------------------------------------------------


def by_hand(solver, levels, mu, var, mean, variance):
    """The output law's recursion in numpy, written from the papers for data N(mu, var)."""
    for t, s in pairwise(levels):
        if isinstance(solver, EDMSolver):
            at, to = t.sigma, s.sigma  # on VE, where alpha = 1
            if solver.s_min <= at <= solver.s_max:
                raised = at * (1 + min(solver.churn, 2**0.5 - 1))
                variance += (raised**2 - at**2) * solver.s_noise**2
                at = raised
            slope = at / (var + at**2)  # d = (x - D(x)) / sigma = (x - mu) sigma / (var + sigma^2)
            factor = 1 + (to - at) * slope
            if to > 0:
                factor = 1 + (to - at) * (slope + factor * to / (var + to**2)) / 2
            mean, variance = mu + factor * (mean - mu), factor**2 * variance
            continue
        ratio = t.alpha / s.alpha
        chain = t.sigma**2 - ratio**2 * s.sigma**2
        posterior = s.sigma**2 * chain / t.sigma**2
        share, keep = s.alpha * chain / t.sigma**2, ratio * s.sigma**2 / t.sigma**2  # Ho et al. 2020, eq. 7
        gain = t.alpha * var / (t.alpha**2 * var + t.sigma**2)
        mean = share * (mu + gain * (mean - t.alpha * mu)) + keep * mean
        added = chain if getattr(solver, "variance", "lag") == "chain" and s.sigma > 0 else posterior
        variance = (share * gain + keep) ** 2 * variance + added
    return mean, variance


@pytest.mark.parametrize(
    ("solver", "schedule"),
    [
        (Ancestral(), Linear()),
        (Ancestral(), Flow()),
        (Ancestral("chain"), Linear()),
        (DDIM(eta=1.0), EDM()),
        (EDMSolver(churn=0.3, s_noise=1.01), EDM()),
        (EDMSolver(churn=0.0), VE()),
    ],
    ids=name,
)
@pytest.mark.parametrize("steps", [3, 8])
def test_few_steps_have_the_law_of_the_recursion(solver, schedule, steps):
    process, mu, var = Gaussian(schedule), 0.6, 0.3
    model = GaussianMixture(process, *torch.tensor([[[mu]], [[var]]], dtype=torch.float64))
    levels = LogSNRGrid(0.9).levels(process, steps)
    first = levels[0]
    start = first.alpha * mu, first.alpha**2 * var + first.sigma**2
    want = by_hand(solver, levels, mu, var, *start)
    got = output_law(solver, model, levels, *start)
    assert got == pytest.approx(want, rel=1e-9)
    # and the draws of a real run are such draws
    noise = Noise(11, 2000)
    x = start[0] + start[1] ** 0.5 * noise.normal(torch.empty(2000, 1, dtype=torch.float64))
    out = integrate(model, solver, levels, x, noise)
    assert float(out.mean()) == pytest.approx(want[0], abs=5 * (want[1] / 2000) ** 0.5)
    assert float(out.var()) == pytest.approx(want[1], rel=5 * (2 / 2000) ** 0.5)


@pytest.mark.parametrize("solver", [DDIM(eta=1.0), DDIM(eta=0.6), Ancestral("chain")], ids=name)
def test_stochastic_chains_are_of_first_weak_order(solver):
    process, mu, var = Gaussian(Linear()), 0.6, 0.3
    model = GaussianMixture(process, torch.tensor([[mu]]), torch.tensor([[var]]))
    steps, errors = (64, 128, 256), []
    for count in steps:
        levels = interior_levels(process, count)
        ends = [(row.alpha * mu, row.alpha**2 * var + row.sigma**2) for row in (levels[0], levels[-1])]
        errors.append(abs(output_law(solver, model, levels, *ends[0])[1] - ends[1][1]))
    assert fitted_order(steps, errors) == pytest.approx(1, abs=0.15), errors


@pytest.mark.parametrize("solver", [Ancestral(), EDMSolver(churn=0.05, s_noise=1.0)], ids=name)
def test_many_steps_draw_from_the_data(solver):
    process = Gaussian(EDM(0.002, 20))
    model, n = hills(process), 2000
    levels = KarrasGrid().levels(process, 100)
    noise = Noise(8, n)
    x = process.prior(torch.empty(n, 2, dtype=torch.float64), noise, levels[0])
    x = integrate(model, solver, levels, x, noise)
    truth = hills(process).sample(Noise(77, 200_000))
    cov = truth.T.cov()
    assert torch.allclose(x.mean(0), truth.mean(0), atol=5 * float(cov.diagonal().max() / n) ** 0.5)
    assert torch.allclose(x.T.cov(), cov, atol=5 * float(cov.max()) * (2 / n) ** 0.5)
    share = float((x[:, 0] > 0).double().mean())
    want = float((truth[:, 0] > 0).double().mean())
    assert share == pytest.approx(want, abs=5 * (want * (1 - want) / n) ** 0.5)
    # the density where the samples fall is what it is for the data: nothing between or beyond the hills
    got, own = -model.log_density(x).mean(), -model.log_density(truth).mean()
    assert float(got) == pytest.approx(float(own), abs=0.12)


# -- samples depend on their own seed --------------------------------------------------------------------------------


@settings(max_examples=4)
@given(index=st.integers(0, 63), seed=st.integers(0, 2**32))
@each_solver
def test_a_sample_of_64_is_the_sample_alone(solver, index, seed):
    process = Gaussian(Linear(), 0.7)
    denoiser = ClassifierFree(Denoiser(Small(), process), 1.5, 3)
    labels = torch.arange(64) % 3
    levels = FlowGrid(0.98).levels(process, 4)
    arguments = {"solver": solver, "levels": levels}
    many = sample(denoiser, Noise(seed, 64), (3, 2, 2), condition={"label": labels}, **arguments)
    one = sample(
        denoiser, Noise(seed, [index]), (3, 2, 2), condition={"label": labels[index : index + 1]}, **arguments
    )
    assert many.shape == (64, 3, 2, 2)
    assert many.dtype == torch.float32
    assert not many.requires_grad
    # rounding in float32, which a step in eps multiplies by alpha_s / alpha_t, some 15 in the first one here
    assert apart(many[index : index + 1], one) < 3e-5
    draws = [
        process.prior(torch.empty(n, 3, 2, 2), noise)
        for n, noise in ((64, Noise(seed, 64)), (1, Noise(seed, [index])))
    ]
    assert torch.equal(draws[0][index], draws[1][0])


def test_steps_and_prior_do_not_share_their_noise():
    seen = []

    @dataclass(frozen=True)
    class Listens(Ancestral):
        def step(self, denoise, process, x, t, s, carry, noise):
            seen.append(noise.normal(x))
            return super().step(denoise, process, x, t, s, carry, noise)

    process = Gaussian(Flow())
    sample(
        Denoiser(Small(), process),
        Noise(0, 2),
        (3, 2, 2),
        solver=Listens(),
        levels=FlowGrid().levels(process, 4),
    )
    seen.append(process.prior(torch.empty(2, 3, 2, 2), Noise(0, 2)))
    assert len({tuple(draw.flatten().tolist()) for draw in seen}) == 5


def test_eight_threads_share_one_solver_and_one_denoiser():
    process = Gaussian(Linear())
    denoiser, gate = Denoiser(Small(), process), threading.Barrier(8)
    for solver in (DPMpp2M(), Heun(), Ancestral(), EDMSolver(), Adams(), UniPC(), PNDM()):
        levels = FlowGrid().levels(process, 12)

        def work(seed, solver=solver, levels=levels, wait=True):
            if wait:
                gate.wait()
            return sample(denoiser, Noise(seed, 3), (3, 2, 2), solver=solver, levels=levels)

        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(work, range(8)))
        for seed, got in enumerate(together):
            assert torch.equal(got, work(seed, wait=False))


def test_samples_take_the_type_asked_for():
    process = Gaussian(Flow())
    out = sample(
        Denoiser(Small().double(), process),
        Noise(0, 2),
        (3, 2, 2),
        solver=Heun(),
        levels=FlowGrid().levels(process, 3),
        like=torch.empty(0, dtype=torch.float64),
    )
    assert out.dtype == torch.float64
