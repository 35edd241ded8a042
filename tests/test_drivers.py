"""Adaptive solvers: errors that follow the tolerance, samples that know no batch, paths kept at a rejection."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from demo_model import make_demo_run
from sfumato.bundle import load
from sfumato.cli import main
from sfumato.denoisers import ClassifierFree, Denoiser, GaussianMixture
from sfumato.errors import SolverError
from sfumato.film import film
from sfumato.noise import Noise
from sfumato.processes import (
    CLEAN,
    EDM,
    Cosine,
    Flow,
    Gaussian,
    LawBroken,
    Linear,
    Prediction,
    SubVP,
    Table,
    ZeroTerminalSNR,
)
from sfumato.solvers import (
    AdaptiveODE,
    AdaptiveSDE,
    FlowGrid,
    Heun,
    Unfinished,
    build_solver,
    check_solver,
    integrate,
    sample,
)
from sfumato.solvers.adaptive import PAIRS
from sfumato.solvers.adaptive_sde import path
from sfumato.solvers.laws import fitted_order, gaussian_flow

MEAN, VARIANCES = (torch.tensor(row, dtype=torch.float64) for row in ((0.3, -0.5, 0.1), (0.04, 0.5, 1.7)))
SCHEDULES = [Flow(), Linear(), Cosine(), EDM(), SubVP(), ZeroTerminalSNR(), Table()]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.kind)
each_pair = pytest.mark.parametrize("pair", PAIRS)
DRIVERS = [AdaptiveODE(), AdaptiveODE(pair="bogacki-shampine", frame="angle"), AdaptiveSDE(0.05)]
each_driver = pytest.mark.parametrize("solver", DRIVERS, ids=lambda solver: f"{solver.kind}-{solver.order}")


def normal_data(schedule):
    return GaussianMixture(Gaussian(schedule), MEAN[None], VARIANCES[None])


def begin(model, count, level):
    z = Noise(5, count).normal(MEAN.expand(count, 3))
    return level.alpha * MEAN + (level.alpha**2 * VARIANCES + level.sigma**2).sqrt() * z


def hills(schedule):
    means = torch.tensor([[-1.0, 0.4], [0.9, -0.2]])
    covariances = torch.tensor([[[0.03, 0.01], [0.01, 0.02]], [[0.015, -0.005], [-0.005, 0.035]]])
    return GaussianMixture(Gaussian(schedule), means, covariances, torch.tensor([0.35, 0.65]))


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first = nn.Parameter(0.4 * torch.randn(12, 32, generator=generator, dtype=torch.float64))
        self.last = nn.Parameter(0.3 * torch.randn(32, 12, generator=generator, dtype=torch.float64))
        self.table = nn.Parameter(torch.randn(4, 12, generator=generator, dtype=torch.float64))

    def forward(self, x, noise_level, condition=None):
        flat = x.flatten(1)
        if condition is not None:
            flat = flat + self.table[condition["label"]]
        return (torch.tanh(flat @ self.first + noise_level[:, None]) @ self.last).reshape(x.shape)


class Watched:
    """Counts the samples that a denoiser is asked about, and may spoil one answer."""

    def __init__(self, denoiser, spoil=None):
        self.denoiser, self.process, self.spoil, self.rows = denoiser, denoiser.process, spoil, 0

    def __call__(self, x_t, t, condition=None):
        self.rows += len(x_t)
        found = self.denoiser(x_t, t, condition)
        if self.spoil is None:
            return found
        broken = self.spoil(found.level, x_t)
        return replace(found, value=torch.where(broken[:, None], torch.nan, found.value))


# -- the flow to a tolerance -----------------------------------------------------------------------------------------


@each_pair
@pytest.mark.parametrize("frame", ["flow", "angle"])
@each_schedule
def test_the_error_is_in_proportion_to_the_tolerance(schedule, frame, pair):
    model = normal_data(schedule)
    first, last = model.process.level(1.0), model.process.level(0.1)
    x = begin(model, 8, first)
    exact = gaussian_flow(MEAN, VARIANCES, x, first, last)
    tolerances, errors, costs = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6), [], []
    for tolerance in tolerances:
        run = AdaptiveODE(tolerance, pair=pair, frame=frame).solve(model, first, last, x, Noise(0, 8))
        errors.append(float((run.x - exact).square().mean(1).sqrt().max()))
        costs.append(float(run.evaluations.double().mean()))
    # a handful of steps, each of which may err by the tolerance, and whose errors the flow shrinks or stretches
    assert all(error < 5 * tolerance for error, tolerance in zip(errors, tolerances, strict=True)), errors
    slope = fitted_order([1 / tolerance for tolerance in tolerances], errors)
    assert slope == pytest.approx(1, abs=0.25), errors
    # err ~ h^p: a tolerance ten times as small costs at most 10^(1/p) times as many steps
    growth = fitted_order(costs[2:], tolerances[2:])
    assert growth > 0.8 * PAIRS[pair].order, costs


@each_pair
@each_schedule
def test_runs_from_noise_to_clean_data_meet_the_flow(schedule, pair):
    model = normal_data(schedule)
    first = model.process.level(1.0)
    x = begin(model, 8, first)
    exact = gaussian_flow(MEAN, VARIANCES, x, first, CLEAN)
    for tolerance in (1e-2, 1e-3):
        got = integrate(model, AdaptiveODE(tolerance, pair=pair), [first, CLEAN], x, Noise(0, 8))
        assert float((got - exact).square().mean(1).sqrt().max()) < 3 * tolerance


def test_a_smaller_sigma_min_takes_the_last_steps_error_with_it():
    model = normal_data(Flow())
    first = model.process.level(1.0)
    x = begin(model, 8, first)
    exact, errors = gaussian_flow(MEAN, VARIANCES, x, first, CLEAN), []
    for sigma_min in (0.02, 0.01, 0.005):
        got = AdaptiveODE(1e-8, sigma_min=sigma_min).solve(model, first, CLEAN, x, Noise(0, 8)).x
        errors.append(float((got - exact).abs().max()))
    # x0 from x at sigma differs from the flow's end by sigma^2 / 2s
    assert fitted_order([1 / 0.02, 1 / 0.01, 1 / 0.005], errors) == pytest.approx(2, abs=0.1)


def test_fewer_evaluations_than_fixed_steps_at_the_same_error():
    model = hills(Linear())
    first = model.process.level(1.0)
    x = first.alpha * model.sample(Noise(1, 32)) + first.sigma * Noise(2, 32).normal(
        torch.zeros(32, 2).double()
    )
    exact = AdaptiveODE(1e-9).solve(model, first, CLEAN, x, Noise(0, 32)).x
    run = AdaptiveODE(1e-3).solve(model, first, CLEAN, x, Noise(0, 32))
    cost, error = float(run.evaluations.double().mean()), float((run.x - exact).square().mean().sqrt())
    steps = math.ceil(cost / 2) + 1
    fixed = integrate(model, Heun(), FlowGrid().levels(model.process, steps), x, Noise(0, 32))
    assert error < float((fixed - exact).square().mean().sqrt()) / 2


def test_the_frames_and_schedules_agree_on_one_flow():
    ends = []
    for schedule in (Flow(), Linear(), EDM()):
        model = hills(schedule)
        level = model.process.schedule.level_at(-6.0)
        x = math.hypot(level.alpha, level.sigma) * Noise(3, 6).normal(torch.zeros(6, 2).double())
        ends += [
            AdaptiveODE(1e-7, frame=frame).solve(model, level, CLEAN, x, Noise(0, 6)).x
            for frame in ("flow", "angle")
        ]
    for end in ends[1:]:
        assert float((end - ends[0]).abs().max()) < 1e-5


# -- a sample does not know its batch --------------------------------------------------------------------------------


@settings(max_examples=4)
@given(index=st.integers(0, 23), seed=st.integers(0, 2**32))
@each_driver
def test_a_sample_of_24_is_the_sample_alone(solver, index, seed):
    process = Gaussian(Linear(), 0.7)
    denoiser = ClassifierFree(Denoiser(Small(), process), 1.5, 3)
    labels, like = torch.arange(24) % 3, torch.zeros(0, dtype=torch.float64)
    arguments = {"solver": solver, "levels": FlowGrid(0.98).levels(process, 1), "like": like}
    many = sample(denoiser, Noise(seed, 24), (3, 2, 2), condition={"label": labels}, **arguments)
    label = labels[index : index + 1]
    one = sample(denoiser, Noise(seed, [index]), (3, 2, 2), condition={"label": label}, **arguments)
    assert float((many[index] - one[0]).abs().max()) < 1e-9


@each_driver
def test_evaluations_are_counted_for_each_sample(solver):
    model = Watched(hills(Flow()))
    first, x = model.process.level(1.0), Noise(3, 40).normal(torch.zeros(40, 2).double())
    run = solver.solve(model, first, CLEAN, x, Noise(0, 40))
    assert int(run.evaluations.sum()) == model.rows
    assert len(set(run.evaluations.tolist())) > 1  # each sample goes its own way
    for i in (0, 17):
        alone = solver.solve(hills(Flow()), first, CLEAN, x[i : i + 1], Noise(0, [i]))
        assert int(alone.evaluations[0]) == int(run.evaluations[i])


def test_the_callback_sees_how_far_the_slowest_is():
    seen = []
    solver, process = AdaptiveODE(), Gaussian(Flow(), 0.7)
    like = torch.zeros(0, dtype=torch.float64)
    levels = FlowGrid().levels(process, 1)
    denoiser = Denoiser(Small(), process)
    sample(denoiser, Noise(0, 3), (3, 2, 2), solver=solver, levels=levels, like=like,
           callback=lambda done, total, x, p: seen.append((done, total)))  # fmt: skip
    assert [total for _, total in seen] == [1000] * len(seen)
    assert sorted(seen) == seen
    assert seen[0][0] == 0
    assert seen[-1][0] == 1000


# -- what can go wrong -----------------------------------------------------------------------------------------------


@each_driver
def test_the_limit_of_evaluations_keeps_what_was_finished(solver):
    model = hills(Flow())
    first, x = model.process.level(1.0), Noise(3, 40).normal(torch.zeros(40, 2).double())
    free = solver.solve(model, first, CLEAN, x, Noise(0, range(100, 140)))
    limit = int(free.evaluations.double().median())
    inside = free.evaluations <= limit
    with pytest.raises(Unfinished, match=rf"{int((~inside).sum())} of 40 samples are not finished") as caught:
        replace(solver, max_evaluations=limit).solve(model, first, CLEAN, x, Noise(0, range(100, 140)))
    assert caught.value.finished == tuple(100 + i for i in range(40) if inside[i])
    assert float((caught.value.samples - free.x[inside]).abs().max()) < 1e-9
    assert "raise max_evaluations" in str(caught.value)
    assert "of the way to go" in str(caught.value)


@each_driver
def test_a_state_that_stops_being_finite_names_its_sample(solver):
    first, x = Gaussian(Flow()).level(1.0), Noise(3, 6).normal(torch.zeros(6, 2).double())

    def spoil(level, x_t):
        noisy = torch.as_tensor(level.sigma).expand(len(x_t)) < 0.5
        return noisy & (x_t[:, 0] == x_t[:, 0].max())

    with pytest.raises(
        Unfinished, match=r"sample \d+ is not finite after \d+ evaluations, with \d+\.\d% of the way"
    ):
        solver.solve(Watched(hills(Flow()), spoil), first, CLEAN, x, Noise(0, 6))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AdaptiveODE(0.0), "tolerance of the adaptive solver must be positive"),
        (lambda: AdaptiveODE(math.nan), "tolerance"),
        (lambda: AdaptiveODE(pair="dormand"), "did you mean 'dormand-prince'"),
        (lambda: AdaptiveODE(frame="sigma"), "allowed are flow, angle"),
        (lambda: AdaptiveODE(max_evaluations=0), "max_evaluations"),
        (lambda: AdaptiveSDE(sigma_min=-1.0), "sigma_min"),
        (lambda: AdaptiveSDE(relative=math.inf), "relative"),
        (lambda: build_solver("adaptive", tolerence=1e-3), "did you mean 'tolerance'"),
    ],
)
def test_wrong_values_are_refused(make, words):
    with pytest.raises(SolverError, match=words):
        make()


# -- the reverse SDE -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule", [Flow(), Linear(), EDM(), ZeroTerminalSNR()], ids=lambda schedule: schedule.kind
)
def test_the_sde_draws_from_the_data(schedule):
    """Of 1,500 numbers: mean and variance within four standard errors, which is 15 % of the variance."""
    mean, variance = torch.full((30,), 0.3).double(), torch.linspace(0.02, 1.7, 30).double()
    model, count = GaussianMixture(Gaussian(schedule), mean[None], variance[None]), 50
    first = model.process.level(1.0)
    z = Noise(5, count).normal(mean.expand(count, 30))
    x = first.alpha * mean + (first.alpha**2 * variance + first.sigma**2).sqrt() * z
    for last in (model.process.level(0.1), CLEAN):
        run = AdaptiveSDE(0.004, relative=0.01).solve(model, first, last, x, Noise(1, count))
        own = (run.x - last.alpha * mean) / (last.alpha**2 * variance + last.sigma**2).sqrt()
        assert abs(float(own.mean())) < 4 / own.numel() ** 0.5
        assert abs(float(own.square().mean()) - 1) < 4 * (2 / own.numel()) ** 0.5


def test_a_rejected_step_keeps_its_brownian_motion():
    """Whatever is tried and rejected on the way, w moves as a Brownian motion does, and pieces add up to the whole."""
    count, noise = 4000, Noise(0, 4000)
    zero = torch.zeros(count, 1, dtype=torch.float64)
    state = {"x": zero, "t": zero[:, 0], "top": torch.zeros(count, dtype=torch.long)}
    state |= {"knots": torch.full((count, 1), math.inf, dtype=torch.float64), "gaps": zero[:, None]}
    _, whole, state = path(state, zero[:, 0] + 2.0, noise, 1)
    # rejected where it is large, which is what a redrawn normal would be biased by; then tried at a half
    large = whole[:, 0].abs() > float(whole.abs().median())
    short, part, state = path(state, torch.where(large, 1.0, 2.0).double(), noise, 2)
    assert torch.equal(part[~large], whole[~large])
    state = {**state, "t": short, "top": state["top"] - 1}
    at, rest, state = path(state, short + 5.0, noise, 3)
    assert torch.equal(at[large], torch.full_like(at[large], 2.0))  # no farther than the path is known
    assert torch.allclose(part[large] + rest[large], whole[large], atol=1e-12)
    # over all samples the increments to log-SNR 1 of the rejected, and beyond, are normal with the clock's variance
    middle = part[large, 0] - whole[large, 0] * math.expm1(1.0) / math.expm1(2.0)
    want = math.expm1(1.0) * (math.exp(2.0) - math.exp(1.0)) / math.expm1(2.0)
    assert float(middle.var()) == pytest.approx(want, rel=5 * (2 / len(middle)) ** 0.5)
    assert float(rest[~large].var()) == pytest.approx(
        math.exp(7.0) - math.exp(2.0), rel=5 * (2 / (count // 2)) ** 0.5
    )


# -- check_solver ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Careless(AdaptiveODE):
    def solve(self, denoiser, first, last, x, noise, condition=None, callback=None):
        run = super().solve(denoiser, first, last, x, noise, condition, callback)
        return run._replace(x=run.x + 0.02)


@dataclass(frozen=True)
class Shares(AdaptiveODE):
    def solve(self, denoiser, first, last, x, noise, condition=None, callback=None):
        run = super().solve(denoiser, first, last, x, noise, condition, callback)
        return run._replace(x=run.x - 1e-6 * run.x.mean(0))


@dataclass(frozen=True)
class Flatters(AdaptiveODE):
    def solve(self, denoiser, first, last, x, noise, condition=None, callback=None):
        run = super().solve(denoiser, first, last, x, noise, condition, callback)
        return run._replace(evaluations=run.evaluations - 1)


@dataclass(frozen=True)
class Narrow(AdaptiveSDE):
    def solve(self, denoiser, first, last, x, noise, condition=None, callback=None):
        run = super().solve(denoiser, first, last, x, noise, condition, callback)
        return run._replace(x=0.8 * run.x)


@pytest.mark.parametrize(
    ("solver", "words"),
    [
        (Careless(), "misses the flow"),
        (Shares(), "alone differs"),
        (Flatters(), "evaluations for its samples but makes"),
        (Narrow(), "misses the law"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_check_solver_catches_planted_defects(solver, words):
    with pytest.raises(LawBroken, match=words):
        check_solver(solver)


@pytest.mark.parametrize(
    "solver", [AdaptiveODE(1e-5, pair="bogacki-shampine", frame="angle"), AdaptiveSDE(0.02)]
)
def test_check_solver_passes_their_variants(solver):
    check_solver(solver)
    assert build_solver(**solver.to_json()) == solver


def test_a_prediction_of_noise_alone_is_enough_away_from_the_ends():
    exact = hills(Linear())

    class Speaks:
        def __init__(self, kind):
            self.process, self.kind = exact.process, kind

        def __call__(self, x_t, t, condition=None):
            said = exact(x_t, t)
            return Prediction(said.to(self.kind), self.kind, x_t, said.level, exact.process)

    x = Noise(3, 5).normal(torch.zeros(5, 2).double())
    first = exact.process.level(1.0)
    for solver in (AdaptiveODE(1e-4), AdaptiveSDE(0.1)):
        want = solver.solve(exact, first, CLEAN, x, Noise(1, 5)).x
        for kind in ("eps", "v", "velocity"):
            got = solver.solve(Speaks(kind), first, CLEAN, x, Noise(1, 5)).x
            assert float((got - want).abs().max()) < 1e-6


# -- where a user meets them ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    run = tmp_path_factory.mktemp("demo")
    make_demo_run(run)
    return load(run / "model")


def test_a_model_is_sampled_to_a_tolerance(model):
    fine = model.sample(3, solver=AdaptiveODE(1e-5), batch=2)
    gaps = [
        float((model.sample(3, solver=AdaptiveODE(t)) - fine).square().mean().sqrt()) for t in (1e-2, 1e-3)
    ]
    assert gaps[1] < 3e-3
    assert gaps[0] < 3e-2
    with pytest.raises(SolverError, match="chooses its own steps"):
        model.sample(3, solver="adaptive", steps=5)
    with pytest.raises(SolverError, match="choose another solver for the film"):
        film(model, 2, solver="adaptive-sde")


def test_the_cost_of_an_adaptive_solver_is_what_was_asked_for(model):
    from sfumato.model import Sampling
    from sfumato.recipes.bench import sampling_cost

    solver = AdaptiveODE(1e-3)
    adaptive = replace(model, sampling=Sampling(solver, FlowGrid()))
    cost = sampling_cost(adaptive, 3, 1)
    process, noise = model.denoiser.process, Noise(0, 3)
    x = process.prior(torch.zeros(3, 1, 8, 8), noise.at(0))
    with torch.no_grad():
        run = solver.solve(model.denoiser, process.level(1.0), CLEAN, x, noise, {"label": torch.arange(3)})
    assert cost.nfe == pytest.approx(float(run.evaluations.double().mean()), abs=1e-6)


def test_the_command_line_takes_a_tolerance(model, tmp_path, capsys):
    from sfumato.bundle import save

    save(model, tmp_path / "model")
    command = ["sample", str(tmp_path / "model"), "--count", "2", "--out", str(tmp_path / "drawn")]
    with pytest.raises(SystemExit) as left:
        main([*command, "--solver", "adaptive", "--tolerance", "0.01"])
    assert left.value.code == 0
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 2
    with pytest.raises(SystemExit) as left:
        main([*command, "--solver", "heun", "--tolerance", "0.01"])
    assert left.value.code == 1
    assert "tolerance" in capsys.readouterr().err
