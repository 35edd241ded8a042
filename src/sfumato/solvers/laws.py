"""The laws that every solver must obey, to be run on one of your own: `check_solver(solver)`.

* It is frozen, and a run leaves no trace in it: two runs in turns, as two threads make them, equal two runs apart.
* A run asks the denoiser as often as `cost` says, which grows by `evaluations` a step.
* Sample i of a batch is sample i drawn alone.
* It reaches clean data, where sigma = 0 and the log-SNR is infinite.
* **Deterministic: its order.** For data N(mu, C) the probability-flow ODE has a closed form, in the eigenbasis of C

      x_s = alpha_s mu + sqrt(S_s / S_t) (x_t - alpha_t mu),        S = alpha^2 C + sigma^2,

  so the error at n steps is known exactly, and the slope of log(error) over log(1/n) is the order. A multistep method
  whose memory fills while it runs owes a part of its error to its first steps, which are of lower order: on equal steps
  it need only be of the `start_order` that it states, and of its `order` where the first steps are short,

      u_0 - u = h / 2^16, h / 2^15, ..., h / 2, h, 2h, 3h, ...

  so that the error h^2 of a first Euler step is 2^-32 of what it was (its weights for unequal steps are tried, too).
  More than it states is no fault: on a Gaussian S is a parabola in the flow and sigma frames, where the midpoint rule
  happens to be of order 3.
* **Stochastic: its limit.** On Gaussian data a step is affine in the state and in its normal draws, so a whole run is

      x_out = A x_in + b + sum_j c_j z_j,       mean = A m + b,    variance = A^2 v + sum_j c_j^2,

  with no Monte Carlo: row j of one batch is given a one in draw j and zeros elsewhere, which reads off c_j. At many
  steps mean and deviation must be the marginal's.
* **In phase space: the order of its law.** By the same reading-off, the whole mean and 2x2 covariance of (x, v) are
  known at every number of steps, and their error must fall with the order that is stated.
* **Of symbols**: see `categorical_laws`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Condition, Denoises, GaussianMixture, InPhase
from ..noise import Noise
from ..processes import (
    CLEAN,
    Categorical,
    Flow,
    Gaussian,
    Langevin,
    Level,
    Linear,
    Prediction,
    Rows,
    Schedule,
)
from ..processes.laws import require
from .solver import Driver, Solver, integrate

STEPS = (24, 48, 96)  # to fit an order
FINE = (96, 192, 384)  # to fit that of a long memory, which takes shorter steps to show
SMOOTH = (0.8, 0.2)  # the u between which high orders show
EASING = 16  # doublings from the first step's size to the others'
MANY = 256  # to meet a limit
_MEAN, _VARIANCES = (0.3, -0.5, 0.1), (0.04, 0.5, 1.7)


def interior_levels(process: Rows, steps: int, first: float = 0.9, last: float = 0.1) -> list[Level]:
    """steps + 1 levels with u = sigma / (alpha + sigma) falling evenly, away from both ends, where orders hold."""
    u = torch.linspace(first, last, steps + 1, dtype=torch.float64)
    return [process.schedule.level_at(value) for value in (2 * torch.log((1 - u) / u)).tolist()]


def eased_levels(process: Gaussian, steps: int, first: float = 0.9, last: float = 0.1) -> list[Level]:
    """`interior_levels` with the first step split into ever shorter ones towards its start: 2^-16 of it first."""
    start, end, *rest = interior_levels(process, steps, first, last)
    u = [first + (last - first) / steps * 2.0**-k for k in range(EASING, 0, -1)]
    short = [process.schedule.level_at(2 * math.log((1 - value) / value)) for value in u]
    return [start, *short, end, *rest]


def gaussian_flow(mean: Tensor, variances: Tensor, x: Tensor, t: Level, s: Level) -> Tensor:
    """The probability flow of data N(mean, diag(variances)) from x (batch, dim) at level t to level s, exactly."""
    at, to = (level.alpha**2 * variances + level.sigma**2 for level in (t, s))
    return s.alpha * mean + (to / at).sqrt() * (x - t.alpha * mean)


def fitted_order(steps: Sequence[int], errors: Sequence[float]) -> float:
    """The least-squares slope of log(error) over log(1/steps)."""
    x = -torch.tensor(steps, dtype=torch.float64).log()
    y = torch.tensor(errors, dtype=torch.float64).log()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def fitting(solver: Solver) -> tuple[Callable[[Gaussian, int], list[Level]], tuple[int, ...]]:
    """How to fit a solver's order: the levels it is given, and at which numbers of steps.

    Orders beyond the third show on a smoother piece of the way.
    """
    grid = eased_levels if solver.start_order < solver.order else interior_levels
    if solver.order > 3:
        return partial(grid, first=SMOOTH[0], last=SMOOTH[1]), FINE
    return grid, FINE if grid is eased_levels else STEPS


def gaussian_errors(
    solver: Solver,
    schedule: Schedule,
    steps: Sequence[int] = STEPS,
    grid: Callable[[Gaussian, int], list[Level]] = interior_levels,
) -> list[float]:
    """The largest error of a deterministic solver on a three-dimensional Gaussian at several numbers of steps."""
    mean, variances = (torch.tensor(row, dtype=torch.float64) for row in (_MEAN, _VARIANCES))
    denoiser = GaussianMixture(Gaussian(schedule), mean[None], variances[None])
    start = Noise(5, 8).normal(mean.expand(8, 3))
    errors = []
    for count in steps:
        levels = grid(denoiser.process, count)
        x = levels[0].alpha * mean + (levels[0].alpha ** 2 * variances + levels[0].sigma ** 2).sqrt() * start
        exact = gaussian_flow(mean, variances, x, levels[0], levels[-1])
        errors.append(float((integrate(denoiser, solver, levels, x, Noise(0, 8)) - exact).abs().max()))
    return errors


def output_law(
    solver: Solver, denoiser: Denoises, levels: Sequence[Level], mean: float, variance: float
) -> tuple[float, float]:
    """(mean, variance) of a run's output, exactly, on one-dimensional Gaussian data from x_t ~ N(mean, variance)."""
    start = torch.tensor([mean], dtype=torch.float64), torch.tensor([[variance]], dtype=torch.float64)
    end = affine_law(solver, denoiser, levels, *start)
    return float(end[0]), float(end[1])


def affine_law(
    solver: Solver, denoiser: Denoises, levels: Sequence[Level], mean: Tensor, covariance: Tensor
) -> tuple[Tensor, Tensor]:
    """(mean (dim,), covariance (dim, dim)) of a run's output, exactly, on Gaussian data from a state with these."""
    dim = len(mean)
    count = _Impulses(-1)
    integrate(denoiser, solver, levels, torch.zeros(1, dim, dtype=torch.float64), count)  # type: ignore[arg-type]
    x = torch.zeros(1 + dim + count.draws, dim, dtype=torch.float64)
    x[1 : 1 + dim] = torch.eye(dim)
    out = integrate(denoiser, solver, levels, x, _Impulses(1 + dim))  # type: ignore[arg-type]
    over, drawn = (out[1:] - out[0]).split(
        [dim, count.draws]
    )  # rows: where a one in the start, in a draw, ends
    return out[0] + mean @ over, over.T @ covariance @ over + drawn.T @ drawn


class _Impulses:
    """In place of noise: the j-th number that a run draws is one in row first + j and zero in all others."""

    def __init__(self, first: int):
        self.first, self.draws = first, 0

    def at(self, step: int) -> _Impulses:
        return self

    def normal(self, like: Tensor, stream: int = 0) -> Tensor:
        draw, numbers = torch.zeros_like(like), like.shape[1]
        if self.first >= 0:
            row = self.first + self.draws
            draw[row : row + numbers] = torch.eye(numbers, dtype=like.dtype)
        self.draws += numbers
        return draw


class _Counted:
    """A denoiser that counts its calls and has a learned variance half-way between the bounds."""

    def __init__(self, denoiser: Denoises):
        self.denoiser, self.process, self.calls = denoiser, denoiser.process, 0

    def __call__(self, x_t: Tensor, t: float | Tensor | Level, condition: Condition = None) -> Prediction:
        self.calls += 1
        return replace(self.denoiser(x_t, t, condition), variance=torch.zeros_like(x_t))


def check_solver(solver: Solver) -> None:
    """Raise LawBroken unless the solver obeys the laws above; the message says which, and by how much it failed."""
    name = f"the {solver.kind} solver"
    if isinstance(solver, Driver):
        _check_driver(solver, name)
        return
    before = _check_frozen(solver, name)
    numbers = [cls for cls in solver.serves if not issubclass(cls, Categorical)]
    if len(numbers) < len(solver.serves):
        from .categorical_laws import check_chain_solver

        check_chain_solver(solver)
        if not numbers:
            return
    plain = _exact(solver, Flow(), [[1.0, 0.0], [-1.0, 0.5]], [[0.1, 0.3], [0.2, 0.1]])
    denoiser, process = _Counted(plain), plain.process
    x = Noise(1, 4).normal(torch.empty(4, *process.state_shape((2,)), dtype=torch.float64))
    for count in (8, 11):
        denoiser.calls = 0
        integrate(denoiser, solver, [*interior_levels(process, count - 1), CLEAN], x, Noise(2, 4))
        require(
            denoiser.calls == solver.cost(count),
            f"{name} states {solver.cost(count)} evaluations for {count} steps but makes {denoiser.calls}",
        )
    require(
        solver.cost(11) - solver.cost(8) == 3 * solver.evaluations,
        f"{name} states {solver.evaluations} evaluations a step but {solver.cost(11) - solver.cost(8)} for three",
    )
    levels = interior_levels(process, 6)
    together = integrate(denoiser, solver, levels, x, Noise(2, 4))
    require(dict(vars(solver)) == before, f"{name} is changed by a run: {before} became {vars(solver)}")
    for i in range(4):
        alone = integrate(denoiser, solver, levels, x[i : i + 1], Noise(2, (i,)))
        gap = float((alone - together[i : i + 1]).abs().max())
        require(gap < 1e-9, f"{name}: sample {i} alone differs from the same sample in a batch by {gap:.1e}")
    gap = float((_in_turns(solver, denoiser, levels, x) - together).abs().max())
    require(
        gap == 0, f"{name}: two runs made in turns, as threads make them, disturb each other by {gap:.1e}"
    )
    end = integrate(denoiser, solver, [*levels, CLEAN], x, Noise(2, 4))
    require(bool(end.isfinite().all()), f"{name} does not reach clean data: the state there is not finite")
    if _in_phase(solver):
        _check_phase(solver, name)
        return
    for schedule in (Flow(), Linear()):
        if solver.stochastic:
            _check_limit(solver, schedule, name)
        else:
            _check_order(solver, schedule, name)


def _check_frozen(solver: Solver, name: str) -> dict[str, Any]:
    frozen = is_dataclass(solver) and type(solver).__dataclass_params__.frozen  # type: ignore[attr-defined]
    require(frozen, f"{name} must be a frozen dataclass: what it remembers belongs in the carry")
    return dict(vars(solver))


def _check_driver(solver: Driver, name: str, batch: int = 12, dim: int = 48) -> None:
    """The laws of a solver that chooses its levels: as of the others, and that it counts its evaluations.

    On Gaussian data a deterministic one follows the closed-form flow to ten of its tolerances, and a stochastic one has
    the marginal's mean and variance within four standard errors of 12 samples of 48 dimensions.
    """
    before = _check_frozen(solver, name)
    mean, variance = torch.full((dim,), 0.3, dtype=torch.float64), torch.linspace(0.04, 1.7, dim).double()
    for schedule in (Flow(), Linear()):
        process = Gaussian(schedule)
        exact = GaussianMixture(process, mean[None], variance[None])
        denoiser = _Rows(exact)
        first, last = interior_levels(process, 1)
        z = Noise(5, batch).normal(mean.expand(batch, dim))
        x = first.alpha * mean + (first.alpha**2 * variance + first.sigma**2).sqrt() * z
        run = solver.solve(denoiser, first, last, x, Noise(2, batch))
        require(dict(vars(solver)) == before, f"{name} is changed by a run: {before} became {vars(solver)}")
        stated, asked = int(run.evaluations.sum()), denoiser.rows
        require(stated == asked, f"{name} states {stated} evaluations for its samples but makes {asked}")
        for i in (0, 7):
            alone = solver.solve(exact, first, last, x[i : i + 1], Noise(2, (i,)))
            gap = float((alone.x - run.x[i : i + 1]).abs().max())
            require(
                gap < 1e-9, f"{name}: sample {i} alone differs from the same sample in a batch by {gap:.1e}"
            )
        end = integrate(exact, solver, [first, CLEAN], x, Noise(2, batch))
        require(
            bool(end.isfinite().all()), f"{name} does not reach clean data: the state there is not finite"
        )
        own = (run.x - last.alpha * mean) / (last.alpha**2 * variance + last.sigma**2).sqrt()
        off = abs(float(own.mean())), abs(float(own.square().mean()) - 1)
        if solver.stochastic:
            fits = off[0] < 4 / own.numel() ** 0.5 and off[1] < 4 * (2 / own.numel()) ** 0.5
            words = f"misses the law of Gaussian data under {schedule.kind}: by {off[0]:.3f} in its mean and "
            require(fits, f"{name} {words}{off[1]:.3f} in its variance, in units of the deviation")
        else:
            flow = gaussian_flow(mean, variance, x, first, last)
            gap = float((run.x - flow).square().mean(1).sqrt().max())
            allowed = 10 * getattr(solver, "tolerance", 1e-3)
            words = f"misses the flow of a Gaussian under {schedule.kind} by {gap:.1e}, where {allowed:.1e} is allowed"
            require(gap < allowed, f"{name} {words}")


class _Rows:
    """A denoiser that counts the samples it is asked about."""

    def __init__(self, denoiser: Denoises):
        self.denoiser, self.process, self.rows = denoiser, denoiser.process, 0

    def __call__(self, x_t: Tensor, t: float | Tensor | Level, condition: Condition = None) -> Prediction:
        self.rows += len(x_t)
        return self.denoiser(x_t, t, condition)


def _in_phase(solver: Solver) -> bool:
    return Gaussian not in solver.serves


def _exact(
    solver: Solver, schedule: Schedule, means: Sequence[Sequence[float]], variances: Sequence[Sequence[float]]
) -> Denoises:
    """The exact denoiser of a mixture, under a process that the solver serves."""
    rows = (torch.tensor(row, dtype=torch.float64) for row in (means, variances))
    plain = GaussianMixture(Gaussian(schedule), *rows)
    return InPhase(plain, Langevin()) if _in_phase(solver) else plain


def phase_errors(solver: Solver, steps: Sequence[int] = STEPS) -> list[float]:
    """How far a phase-space solver's law of (x, v) is from the diffusion's own, on N(0.7, 0.3) at numbers of steps.

    The largest error of the mean and covariance, relative to the right deviations; exact, without Monte Carlo. A
    deterministic solver is fitted by it too: its map is linear, and carries the law as it carries the states.
    """
    mean, variance, process = 0.7, 0.3, Langevin()
    exact = _exact(solver, Flow(), [[mean]], [[variance]])

    def law(level: Level) -> tuple[Tensor, Tensor]:
        time = process.at(level)
        a = process.schedule.mean(time)
        return a * mean, process.schedule.covariance(time) + variance * a[:, None] * a

    errors = []
    for count in steps:
        # between these times no solver is stiff: at the data the score of v has the slope 1 / gamma
        levels = process.schedule.levels(torch.linspace(0.3, 0.07, count + 1, dtype=torch.float64))
        got, want = affine_law(solver, exact, levels, *law(levels[0])), law(levels[-1])
        size = want[1].diagonal().sqrt()
        errors.append(
            max(
                float(((got[0] - want[0]) / size).abs().max()),
                float(((got[1] - want[1]) / torch.outer(size, size)).abs().max()),
            )
        )
    return errors


def _check_phase(solver: Solver, name: str) -> None:
    errors = phase_errors(solver)
    order = fitted_order(STEPS, errors)
    require(
        abs(order - solver.order) < 0.2,
        f"{name} states order {solver.order} but its law on a Gaussian errs with order {order:.2f}: "
        f"{', '.join(f'{error:.1e}' for error in errors)} at {STEPS} steps",
    )


def _in_turns(solver: Solver, denoiser: Denoises, levels: Sequence[Level], x: Tensor) -> Tensor:
    """The run of `integrate`, with a run from elsewhere taking every other step."""
    solver = solver.within(len(levels) - 1)
    runs: list[list[Any]] = [[x, solver.init(x), Noise(2, 4)], [-x, solver.init(-x), Noise(3, 4)]]
    for i, (t, s) in enumerate(pairwise(levels)):
        for run in runs:
            state, carry, noise = run
            run[:2] = solver.step(denoiser, denoiser.process, state, t, s, carry, noise.at(i + 1))
    return runs[0][0]


def _check_order(solver: Solver, schedule: Schedule, name: str) -> None:
    grid, fine = fitting(solver)
    runs = [(solver.order, fine, grid)]
    if solver.start_order < solver.order:
        runs.append((solver.start_order, STEPS, interior_levels))
    for stated, steps, levels in runs:
        errors = gaussian_errors(solver, schedule, steps, levels)
        # exact on a Gaussian up to rounding: there is no order to fit, and nothing to complain of
        if max(errors) > 1e-12:
            order = fitted_order(steps, errors)
            require(
                order > stated - 0.15,
                f"{name} states order {stated} but its error on a Gaussian under {schedule.kind} falls with order "
                f"{order:.2f}: {', '.join(f'{error:.1e}' for error in errors)} at {steps} steps",
            )


def _check_limit(solver: Solver, schedule: Schedule, name: str) -> None:
    process, mean, variance = Gaussian(schedule), 0.7, 0.3
    exact = GaussianMixture(process, torch.tensor([[mean]]), torch.tensor([[variance]]))
    levels = interior_levels(process, MANY, 0.95, 0.05)
    first, last = levels[0], levels[-1]
    got = output_law(
        solver, _Counted(exact), levels, first.alpha * mean, first.alpha**2 * variance + first.sigma**2
    )
    want = last.alpha * mean, last.alpha**2 * variance + last.sigma**2
    gap = max(abs(got[0] - want[0]) / math.sqrt(want[1]), abs(math.sqrt(got[1] / want[1]) - 1))
    require(
        gap < 0.02,
        f"{name} misses the law of Gaussian data under {schedule.kind} by {gap:.1%} at {MANY} steps: "
        f"mean {got[0]:.4f} and variance {got[1]:.4f} where {want[0]:.4f} and {want[1]:.4f} are right",
    )
