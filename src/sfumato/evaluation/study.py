"""Where the error of a sample comes from: the model, the steps, or the ends of the schedule.

All parts are in one unit, how far a finished sample is moved: root mean square over samples and elements, in the
data's own units. Write w = sigma / alpha; a flow is the probability-flow ODE solved finely.

**Score.** The network says D(x, w) where E[x_0 | x] is right. In the frame y = x / alpha the flow is
dy/dw = (y - D) / w, so an error e(w) of D moves the end by Phi(w) e(w) dlog w, where on data of covariance C the flow
shrinks a deviation by

    Phi(w)^2 = C / (C + w^2)      in each eigendirection,

and the parts of all noise levels add up to at most (equally, if they all push the same way)

    score = int  sqrt(mean over elements of Phi^2 E[e^2])  dlog w.

E[e^2] is an excess: E|x_0 - D|^2 is what no denoiser can avoid plus E[e^2]. With the exact denoiser at hand it is
|D - E[x_0 | x]|^2. Without, the network's own loss on its training data stands for the unavoidable part, and the
excess is held-out less training loss: for a network that fits its training data as well as the exact denoiser would,
or better, no less than the error; one too small to fit them hides its error from this measure.

**Discretisation.** The same starting points by n steps of the solver and by the flow along the same grid: RMS, median,
and the order, the slope of log error over log 1/n.

**Truncation at the start.** Sampling starts from N(0, P), P = sigma^2 + alpha^2 sigma_data^2, where the noised data
have mean alpha m and variance S = alpha^2 C + sigma^2. Noised data are moved to the prior by the map that is optimal
between these two Gaussians, sqrt(P / S) (x - alpha m), and both are followed to the end. For models with labels m and
C are those within a label. In nats it is the Kullback-Leibler divergence, the mean of
((S + alpha^2 m^2) / P - 1 - log(S / P)) / 2.

**Truncation at the end.** A schedule that stops at w > 0 ends with a jump to D. The jump is compared with the flow
continued to w / 100, where next to nothing is left; networks are asked a little beyond what they were trained on.

On Gaussian data each part has a closed form, which the tests plant and find again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..denoisers import Condition, Denoises
from ..errors import DataError, SolverError
from ..noise import Noise
from ..processes import CLEAN, Level
from ..solvers import Grid, Heun, LogSNRGrid, Solver, integrate
from ..solvers.laws import fitted_order
from .measure import Measure, interval, resample

Examples = tuple[Tensor, Condition]  # x_0 (n, ...) and the condition of each
Progress = Callable[[str, int, int], None]
LARGEST = 4096  # elements whose covariance is worth diagonalising; beyond it one variance stands for all
SCORE, START, END = "score error", "truncation at the start", "truncation at the end"


@dataclass(frozen=True)
class Plan:
    """What is studied: the solver and grid, at which numbers of steps, and with how much care.

    fine: steps of the flow. starts: trajectories followed. levels: noise levels at which the score is looked at.
    """

    solver: Solver
    grid: Grid
    steps: tuple[int, ...] = (4, 8, 16, 32)
    fine: int = 128
    starts: int = 64
    levels: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.solver.stochastic:
            raise SolverError(
                f"a study follows single trajectories, which the stochastic {self.solver.kind} solver does not have: "
                "name a deterministic one, for example heun"
            )
        if not self.steps or list(self.steps) != sorted(set(self.steps)):
            raise SolverError(f"the numbers of steps must rise: {list(self.steps)}")
        if not (self.fine >= 2 * self.steps[-1] and self.starts >= 2 and self.levels >= 2):
            raise SolverError(
                f"a study needs fine >= twice the most steps, and at least 2 starts and levels; given fine "
                f"{self.fine}, steps {list(self.steps)}, starts {self.starts}, levels {self.levels}"
            )


@dataclass(frozen=True)
class _Moments:
    """Mean of each example's kind, and the covariance within kinds: eigenvalues (dim,) and basis (dim, dim) or None."""

    means: Tensor
    labels: Tensor | None
    variances: Tensor
    basis: Tensor | None

    @classmethod
    def of(cls, x0: Tensor, condition: Condition) -> _Moments:
        flat = x0.flatten(1).double()
        labels = None if condition is None else condition.get("label")
        kinds = torch.zeros(len(flat), dtype=torch.long) if labels is None else labels.cpu()
        count = int(kinds.max()) + 1
        sums = flat.new_zeros(count, flat.shape[1]).index_add(0, kinds, flat)
        sizes = torch.bincount(kinds, minlength=count).clamp(min=1)
        means = sums / sizes[:, None]
        centred = flat - means[kinds]
        if flat.shape[1] > LARGEST:
            return cls(means, labels, centred.square().mean().expand(flat.shape[1]), None)
        values, basis = torch.linalg.eigh(centred.T @ centred / len(flat))
        return cls(means, labels, values.clamp(min=0), basis)

    def mean(self, condition: Condition, count: int) -> Tensor:
        label = None if condition is None or self.labels is None else condition.get("label")
        kinds = torch.zeros(count, dtype=torch.long) if label is None else label.cpu()
        if int(kinds.max()) >= len(self.means):
            raise DataError(f"held-out examples have the label {int(kinds.max())}, which was not trained on")
        return self.means[kinds]

    def rotated(self, x: Tensor, back: bool = False) -> Tensor:
        flat = x.flatten(1).double()
        return flat if self.basis is None else flat @ (self.basis.T if back else self.basis)


@torch.no_grad()
def study(
    denoiser: Denoises,
    plan: Plan,
    held: Examples,
    train: Examples,
    *,
    exact: Denoises | None = None,
    progress: Progress | None = None,
) -> list[Measure]:
    """The parts of a sample's error, each a `Measure` with a 95 % interval: score, discretisation, both truncations.

    held: examples not trained on. train: those trained on, for the unavoidable loss and the moments. exact: the right
    denoiser, where it is known. each measure's details hold what its part of `study_report.picture` shows.
    """
    if min(len(held[0]), len(train[0])) < plan.starts or len(held[0]) < 20:
        raise DataError(
            f"a study of {plan.starts} starts needs as many examples of both kinds, and 20 held out; there are "
            f"{len(held[0])} held out and {len(train[0])} trained on"
        )

    def told(what: str, done: int, total: int) -> None:
        if progress is not None:
            progress(what, done, total)

    moments = _Moments.of(*train)
    few = held[0][: plan.starts], _part(held[1], plan.starts)
    found = [_score(denoiser, plan, held, train, exact, moments, told)]
    found += _discretisation(denoiser, plan, few, told)
    found.append(_start(denoiser, plan, few, moments))
    found.append(_end(denoiser, plan, few))
    return found


def _part(condition: Condition, count: int) -> Condition:
    return None if condition is None else {name: rows[:count] for name, rows in condition.items()}


def _score(
    denoiser: Denoises,
    plan: Plan,
    held: Examples,
    train: Examples,
    exact: Denoises | None,
    moments: _Moments,
    told: Progress,
) -> Measure:
    levels = LogSNRGrid().levels(denoiser.process, plan.levels)[:-1]
    log_w = np.array([-level.log_snr / 2 for level in levels])
    rows = []
    for k, level in enumerate(levels):
        shrunk = moments.variances / (moments.variances + math.exp(2 * log_w[k]))
        own = _losses(denoiser, held, level, plan.seed, k, exact, moments, shrunk)
        other = (
            None
            if exact is not None
            else _losses(denoiser, train, level, plan.seed, k, None, moments, shrunk)
        )
        excess, error = own.mean(0), own.var(0) / len(own)
        if other is not None:
            excess, error = excess - other.mean(0), error + other.var(0) / len(other)
        rows.append((excess, 1.96 * error.sqrt()))
        told("score", k + 1, len(levels))
    excess, half = (
        torch.stack(part).numpy() for part in zip(*rows, strict=True)
    )  # (levels, 2): plain, weighted

    def whole(values: np.ndarray) -> float:
        return abs(float(np.trapezoid(np.sqrt(np.clip(values, 0, None)), log_w)))

    by_noise = [
        {
            "log_snr": level.log_snr,
            "rms": math.sqrt(max(excess[k, 0], 0.0)),
            "low": math.sqrt(max(excess[k, 0] - half[k, 0], 0.0)),
            "high": math.sqrt(max(excess[k, 0] + half[k, 0], 0.0)),
            "moves": math.sqrt(max(excess[k, 1], 0.0)),
        }
        for k, level in enumerate(levels)
    ]
    against = "the exact denoiser" if exact is not None else "held-out less training loss"
    # the ends of all levels at once: errors at neighbouring levels come from the same examples, and do not average out
    weighed, sure = excess[:, 1], half[:, 1]
    return Measure(
        SCORE, whole(weighed), whole(weighed - sure), whole(weighed + sure), len(held[0]),
        note=f"what the network's error moves a sample by, at most; {against}",
        details={"by_noise": by_noise, "against": against},
    )  # fmt: skip


def _losses(
    denoiser: Denoises,
    examples: Examples,
    level: Level,
    seed: int,
    step: int,
    exact: Denoises | None,
    moments: _Moments,
    shrunk: Tensor,
) -> Tensor:
    """Squared error of x_0 per example, plain and weighted by Phi^2, (n, 2)."""
    found = []
    for start in range(0, len(examples[0]), 256):
        part = slice(start, start + 256)
        x0 = examples[0][part]
        condition = None if examples[1] is None else {name: rows[part] for name, rows in examples[1].items()}
        noise = Noise(seed, range(start, start + len(x0)))
        x_t = denoiser.process.corrupt(x0, level, noise.normal(x0, step + 1))
        right = x0 if exact is None else exact(x_t, level, condition).x0
        squared = moments.rotated(right - denoiser(x_t, level, condition).x0).square()
        found.append(torch.stack([squared.mean(1), (squared * shrunk).mean(1)], 1))
    return torch.cat(found)


def _discretisation(denoiser: Denoises, plan: Plan, few: Examples, told: Progress) -> list[Measure]:
    noise, condition = Noise(plan.seed, len(few[0])), few[1]
    first = plan.grid.levels(denoiser.process, plan.fine)[0]
    x = denoiser.process.prior(few[0], noise.at(0), first)
    total = len(plan.steps) + 2

    def run(solver: Solver, steps: int) -> Tensor:
        return integrate(denoiser, solver, plan.grid.levels(denoiser.process, steps), x, noise, condition)

    right = run(Heun(), plan.fine)
    told("discretisation", 1, total)
    # of second order: halving the steps leaves a third of the difference to be made up
    own = float(_rms(right - run(Heun(), plan.fine // 2)).square().mean().sqrt()) / 3
    told("discretisation", 2, total)
    found, errors = [], []
    for k, steps in enumerate(plan.steps):
        each = _rms(run(plan.solver, steps) - right)
        errors.append(float(each.square().mean().sqrt()))
        details = {
            "steps": steps,
            "evaluations": steps * plan.solver.evaluations,
            "median": float(each.median()),
        }
        name, note = f"discretisation, {steps} steps", f"{plan.solver.kind} on the {plan.grid.kind} grid"
        found.append(_measure(name, each, plan.seed, note, details | {"error of the reference": own}))
        told("discretisation", k + 3, total)
    clear = [
        (n, error) for n, error in zip(plan.steps, errors, strict=True) if error > 5 * own and error > 1e-12
    ]
    order = fitted_order(*zip(*clear, strict=True)) if len(clear) > 1 else None  # type: ignore[arg-type]
    for measure in found:
        measure.details["order"] = order  # type: ignore[index]
    return found


def _start(denoiser: Denoises, plan: Plan, few: Examples, moments: _Moments) -> Measure:
    process, (x0, condition) = denoiser.process, few
    levels = plan.grid.levels(process, plan.fine)
    alpha, sigma = levels[0].alpha, levels[0].sigma
    prior, there = sigma**2 + (alpha * process.sigma_data) ** 2, alpha**2 * moments.variances + sigma**2
    mean = alpha * moments.rotated(moments.mean(condition, len(x0)))
    nats = 0.5 * (((there + mean.square()) / prior - 1 - torch.log(there / prior)).mean(1))
    details: dict[str, Any] = {"nats per element": float(nats.mean()), "alpha": alpha, "sigma": sigma}
    note = (
        f"sampling starts where sigma / alpha = {sigma / alpha:.4g}"
        if alpha
        else "sampling starts from pure noise"
    )
    if alpha == 0:
        return Measure(START, 0.0, 0.0, 0.0, len(x0), note=note, details=details)
    noise = Noise(plan.seed, len(x0))
    x = process.corrupt(x0, levels[0], noise.normal(x0))
    moved = (
        moments.rotated((prior / there).sqrt() * (moments.rotated(x) - mean), back=True)
        .reshape(x.shape)
        .to(x)
    )
    ends = [integrate(denoiser, Heun(), levels, start, noise, condition) for start in (x, moved)]
    return _measure(START, _rms(ends[1] - ends[0]), plan.seed, note, details)


def _end(denoiser: Denoises, plan: Plan, few: Examples) -> Measure:
    process, (x0, condition) = denoiser.process, few
    last, further = (plan.grid.levels(process, n)[-2] for n in (plan.fine, 2 * plan.fine))
    if abs(last.log_snr - further.log_snr) > 1e-6:  # the finer the grid, the nearer to clean data it comes
        return Measure(END, 0.0, 0.0, 0.0, len(x0), note="the grid reaches clean data")
    noise = Noise(plan.seed, len(x0))
    x = process.corrupt(x0, last, noise.normal(x0, 1))
    below = [process.schedule.level_at(last.log_snr + 2 * k * math.log(100) / 10) for k in range(1, 11)]
    flowed = integrate(denoiser, Heun(), [last, *below, CLEAN], x, noise, condition)
    gap = _rms(denoiser(x, last, condition).x0 - flowed)
    note = f"sampling jumps from sigma / alpha = {last.sigma / last.alpha:.4g} to clean data"
    return _measure(END, gap, plan.seed, note, {"sigma / alpha": last.sigma / last.alpha})


def _rms(x: Tensor) -> Tensor:
    return x.flatten(1).double().square().mean(1).sqrt()


def _measure(name: str, each: Tensor, seed: int, note: str, details: dict[str, Any]) -> Measure:
    """The RMS of figures of samples, with a bootstrap interval."""
    squares = each.square().cpu()
    draws = [float((weights @ squares / len(each)).sqrt()) for weights in resample(len(each), 200, seed)]
    value = float(squares.mean().sqrt())
    low, high = interval(value, draws, (0.0, math.inf))
    return Measure(name, value, low, high, len(each), note=note, details=details)
