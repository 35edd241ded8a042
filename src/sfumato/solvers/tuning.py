"""Tuning: fitting a solver of few evaluations to the trajectories of one model.

The student is the table of `tuned` (rows a_i, b_ij and nodes lambda_i, all of them parameters theta); the teacher is
the same model solved finely. From start points x_n the teacher's ends z_n are the targets, and

    theta  =  argmin  sum_n rho(l_n),    r_n = y_N(x_n; theta) - z_n,    rho(l) = 4 c^2 ((1 + l^2 / c^2)^(1/4) - 1).

**Robust.** Near a basin boundary an arbitrarily small error becomes a jump to another end, which no table mends. So
the error l of a trajectory (root mean square over the elements of r) counts squared up to c, 0.7 of the median, and as
its square root beyond: a handful of such trajectories does not buy the rest.

**Hard starts.** Which basin a trajectory falls into is decided early, and random starts are seldom near a boundary. So
three tenths of the trajectories are made there: between two starts whose ends are known, bisection goes to the half
across which the ends lie further apart, and every trajectory that it makes is one to fit to.

**Levenberg-Marquardt.** There are about N^2 / 2 parameters and n times dim residuals, so the whole Jacobian is worth
having. With w_n = rho'(l_n) / 2 l_n = (1 + l_n^2 / c^2)^(-3/4) a step solves

    (J'WJ + mu diag(J'WJ)) d = -J'W r,

and is kept if the objective falls. A parameter of row i first moves the point y_i, along y_0 or v_j, and a node the
slope v_i itself. Its effect is carried through the later evaluations by forward differences of step h,

    v_k(y_k + h dy_k) - v_k(y_k)  ~  h dv_k,

all the directions of a row as one batch. The last row is linear and costs nothing. A denoiser need not be
differentiable, only smooth. h = eps^0.4 for the machine's eps balances rounding against curvature.

**Cost.** A Jacobian takes sum_i (i + 2) (N - i) evaluations a trajectory, 140 at N = 8. Where a model is slow, each
step uses as many trajectories as the time allows for, taken anew; whether it is kept is decided on four times as many.

**Several starts.** The minimum that is reached depends on the table one starts from, so a model that is fast enough is
fitted from the best table of each kind (orders 2 and 3, the package's default), and the fit with the smallest mean
error is kept.

**Never worse.** A quarter of the trajectories is held out. There the tuned solver must beat every rival at the same
number of evaluations, in the median error over trajectories and in the mean; else `Tuning.better` is false.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..denoisers import Condition, Denoises
from ..errors import SolverError
from ..noise import Noise
from ..processes import Gaussian, Level
from .adams_moulton import AdamsMoulton
from .grid import AngleGrid, noisiest
from .solver import Solver, integrate
from .tuned import Tuned, adams, combined, table

Progress = Callable[[str, int, int], None]
STARTS = [(order, rho) for order in (2, 3) for rho in (1.0, 1.2, 1.5)]
HALVINGS = 6
LARGEST_JACOBIAN = 2**26  # numbers
ROUNDS = 12  # Levenberg-Marquardt steps that should fit into the time


@dataclass(frozen=True)
class Effort:
    """What tuning may cost. seconds: of the clock; where they are short, fewer trajectories are made than given.

    fine: evaluations of the teacher. rounds: at most so many steps of Levenberg-Marquardt. batch: samples at once.
    """

    seconds: float = 300.0
    fine: int = 40
    rounds: int = 60
    batch: int = 256

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and self.fine >= 10 and self.rounds >= 1 and self.batch >= 1):
            raise SolverError(f"tuning needs seconds > 0, fine >= 10, rounds >= 1 and batch >= 1, not {self}")


@dataclass(frozen=True)
class Errors:
    """Errors of a solver over held-out trajectories: each one's root mean square from the teacher's end.

    median with its 95 % interval by bootstrap; mean; rms over all of them.
    """

    median: float
    low: float
    high: float
    mean: float
    rms: float

    @classmethod
    def of(cls, ends: Tensor, targets: Tensor) -> Errors:
        """From the ends of some trajectories (n, ...) and the teacher's."""
        each = _sizes(ends - targets).numpy()
        again = np.random.default_rng(0).integers(len(each), size=(1000, len(each)))
        low, high = np.quantile(np.median(each[again], axis=1), [0.025, 0.975])
        rms = math.sqrt((each**2).mean())
        return cls(float(np.median(each)), float(low), float(high), float(each.mean()), rms)


@dataclass(frozen=True)
class Tuning:
    """What tuning found. solver: the tuned one, whether or not it is better than every rival on held-out trajectories.

    untuned: the table that it was fitted from. errors: of the tuned solver ("tuned") and the rivals. fitted, held_out:
    trajectories. rounds: steps of the fit.
    """

    solver: Tuned
    untuned: Tuned
    errors: Mapping[str, Errors]
    fitted: int
    held_out: int
    rounds: int
    seconds: float

    @property
    def better(self) -> bool:
        """Whether the tuned solver has the smallest median error and the smallest mean error."""
        own = self.errors["tuned"]
        others = [errors for name, errors in self.errors.items() if name != "tuned"]
        return all(own.median < other.median and own.mean < other.mean for other in others)


def tune(
    denoiser: Denoises,
    x: Tensor,
    steps: int,
    *,
    condition: Condition = None,
    rivals: Mapping[str, tuple[Solver, Sequence[Level]]] | None = None,
    effort: Effort | None = None,
    progress: Progress | None = None,
) -> Tuning:
    """Fit a solver of so many steps (evaluations) to the trajectories that start at x, (n, ...), where noise begins.

    condition: for each start point. rivals: deterministic solvers with their levels, to be compared with; the best
    untuned table of Adams is always among them. progress(what, done, total).
    Raises SolverError for fewer than 2 steps or 16 start points, or a trajectory that is not finite.
    """
    if steps < 2 or len(x) < 16:
        raise SolverError(f"tuning needs at least 2 steps and 16 start points, not {steps} and {len(x)}")
    effort, began, tell = effort or Effort(), time.monotonic(), progress or (lambda *_: None)
    with torch.no_grad():
        runner, x, targets, plain = _teach(denoiser, condition, x, effort, began + effort.seconds / 4, tell)
        count = len(targets)
        pace = (time.monotonic() - began) / (count * effort.fine)  # seconds an evaluation of one sample takes
        held, fit = slice(0, plain // 4), slice(plain // 4, count)
        untuned = [adams(denoiser.process, steps, *start) for start in STARTS]
        untuned.append(table(AdamsMoulton(), AngleGrid().levels(denoiser.process, steps)))
        few = slice(fit.start, min(fit.start + 32, count))
        scores = [float(_sizes(runner.ends(start, x, few) - targets[few]).mean()) for start in untuned]
        deadline, found = began + 0.9 * effort.seconds, []
        families = [range(k, min(k + 3, len(untuned))) for k in range(0, len(untuned), 3)]
        tries = sorted((min(one, key=scores.__getitem__) for one in families), key=scores.__getitem__)
        for start in [untuned[k] for k in tries]:
            since = time.monotonic()
            fitting = _Fit(runner.of(fit), x[fit], targets[fit], start)
            wanted = effort.seconds * 0.5 / (ROUNDS * pace * fitting.evaluations)
            fitting.use(min(int(wanted), LARGEST_JACOBIAN // (len(fitting.theta) * x[0].numel())))
            done = 0
            while done < effort.rounds and time.monotonic() < deadline:
                tell("fitting", done, effort.rounds)
                if not fitting.step(done, deadline) and fitting.count == len(fitting.all):
                    break
                done += 1
            natural = slice(fit.start, plain)  # without the hard ones: what samples will be like
            error = float(_sizes(runner.ends(fitting.solver(), x, natural) - targets[natural]).mean())
            found.append((error, len(found), fitting.solver(), start, done))
            # another start only where the model is fast enough for it to be fitted as far
            if fitting.count < len(fitting.all) or 2 * time.monotonic() - since > deadline:
                break
        _, _, best, start, done = min(found)
        compared = {"tuned": best, "untuned Adams": start}
        ends = {name: runner.ends(solver, x, held) for name, solver in compared.items()}
        for name, (solver, levels) in (rivals or {}).items():
            ends[name] = runner.integrate(solver, levels, x, held)
    errors = {name: Errors.of(end, targets[held]) for name, end in ends.items()}
    seconds = time.monotonic() - began
    return Tuning(compared["tuned"], start, errors, count - held.stop, held.stop, done, seconds)


def _sizes(residuals: Tensor) -> Tensor:
    """Root mean square of each row, in float64 on the CPU."""
    return residuals.flatten(1).double().square().mean(1).sqrt().cpu()


class _Runner:
    """The denoiser as a field of slopes v = eps - x_0 in the flow frame, for numbered trajectories, in batches."""

    def __init__(self, denoiser: Denoises, condition: Condition, batch: int):
        self.denoiser, self.condition, self.batch = denoiser, condition, batch
        self.process: Gaussian = denoiser.process
        self.first = noisiest(self.process)

    def of(self, part: slice) -> _Runner:
        """The same for some of the trajectories."""
        return _Runner(self.denoiser, self.given(part), self.batch)

    def given(self, which: Tensor | slice) -> Condition:
        return None if self.condition is None else {name: c[which] for name, c in self.condition.items()}

    def slope(self, y: Tensor, level: Level, which: Tensor) -> Tensor:
        """v at y (m, ...), rows of which belong to the trajectories `which` (m,)."""
        x = (level.alpha + level.sigma) * y
        parts = [slice(k, k + self.batch) for k in range(0, len(x), self.batch)]
        given = [self.denoiser(x[part], level, self.given(which[part])) for part in parts]
        return torch.cat([prediction.combine(-1.0, 1.0) for prediction in given])

    def integrate(self, solver: Solver, levels: Sequence[Level], x: Tensor, part: slice) -> Tensor:
        chosen, ends = range(len(x))[part], []
        for rows in (chosen[k : k + self.batch] for k in range(0, len(chosen), self.batch)):
            one = slice(rows.start, rows.stop)
            noise = Noise(0, len(rows))  # not drawn from: the solvers compared are deterministic
            ends.append(integrate(self.denoiser, solver, levels, x[one], noise, self.given(one)))
        return torch.cat(ends)

    def ends(self, solver: Tuned, x: Tensor, part: slice) -> Tensor:
        return self.integrate(solver, solver.grid.levels(self.process, solver.steps), x, part)


def _teach(
    denoiser: Denoises, condition: Condition, x: Tensor, effort: Effort, deadline: float, tell: Progress
) -> tuple[_Runner, Tensor, Tensor, int]:
    """As many trajectories as the deadline allows for: runner, starts and ends, and how many of them are not hard."""
    teacher, total, pairs = adams(denoiser.process, effort.fine, 3), len(x), len(x) // 20
    x, ends, size = x[: total - HALVINGS * pairs], [], min(50, effort.batch)
    first = len(x) // 4  # of the pairs, after those that will be held out
    one, two = (slice(first + k * pairs, first + (k + 1) * pairs) for k in (0, 1))
    if condition is not None:
        condition = {name: value[: len(x)].clone() for name, value in condition.items()}
        for value in condition.values():
            value[two] = value[one]
    runner = _Runner(denoiser, condition, effort.batch)
    for k in range(0, len(x), size):
        if k and time.monotonic() > deadline:
            x = x[:k]
            break
        tell("trajectories", k, total)
        ends.append(runner.ends(teacher, x, slice(k, k + size)))
    ends, plain = torch.cat(ends), len(x)
    runner = runner.of(slice(0, plain))
    condition = runner.condition
    if plain < first + 2 * pairs:
        return runner, x, ends, plain
    a, b, at_a, at_b = x[one], x[two], ends[one], ends[two]
    hard = runner.of(one)
    for k in range(HALVINGS):
        if not pairs or time.monotonic() > deadline:
            break
        tell("trajectories", plain + k * pairs, total)
        middle = _between(a, b)
        there = hard.ends(teacher, middle, slice(0, pairs))
        x, ends = torch.cat([x, middle]), torch.cat([ends, there])
        if condition is not None:
            condition = {name: torch.cat([value, value[one]]) for name, value in condition.items()}
        near = (_sizes(there - at_a) < _sizes(there - at_b)).to(x.device).view(-1, *[1] * (x.ndim - 1))
        a, at_a = torch.where(near, middle, a), torch.where(near, there, at_a)
        b, at_b = torch.where(near, b, middle), torch.where(near, at_b, there)
    return _Runner(denoiser, condition, effort.batch), x, ends, plain


def _between(a: Tensor, b: Tensor) -> Tensor:
    """Half-way from a to b, at the size that noise has there: the sum of two normals is sqrt(2) too wide."""
    total, norms = (a + b).flatten(1), (a.flatten(1).norm(dim=1) * b.flatten(1).norm(dim=1)).sqrt()
    return (total * (norms / total.norm(dim=1).clamp(min=1e-12))[:, None]).reshape(a.shape)


class _Fit:
    """Levenberg-Marquardt on theta = (nodes, row 1, .., row N)."""

    def __init__(self, runner: _Runner, x: Tensor, targets: Tensor, start: Tuned):
        self.runner, self.targets, self.steps = runner, targets, start.steps
        self.y0 = x / (runner.first.alpha + runner.first.sigma)
        self.all = torch.arange(len(x), device=x.device)
        self.first = runner.slope(self.y0, runner.first, self.all)  # no parameter moves it
        self.theta = torch.tensor(
            [*start.nodes, *(value for row in start.rows for value in row)], dtype=torch.float64
        )
        self.last = runner.process.level(0.0).log_snr  # the model knows no cleaner data
        self.h = torch.finfo(x.dtype).eps ** 0.4
        self.damping = 1e-2
        self.evaluations = sum((i + 2) * (self.steps - i) for i in range(1, self.steps))
        self.use(len(x))

    def use(self, count: int) -> None:
        """How many trajectories each Jacobian is of (4 at least)."""
        self.count = min(max(count, 4), len(self.all))
        self.panel = self.chosen(
            min(4 * self.count, len(self.all)), 0
        )  # which decides whether a step is kept
        self.sizes = self.measured(self.theta)

    def chosen(self, count: int, seed: int) -> Tensor:
        """So many of the trajectories, in order."""
        chosen = np.random.default_rng(seed).permutation(len(self.all))[:count]
        return self.all[np.sort(chosen)]

    def measured(self, theta: Tensor) -> Tensor:
        """Errors of the panel's trajectories."""
        return _sizes(self.run(theta, self.panel)[1] - self.targets[self.panel])

    def solver(self, theta: Tensor | None = None) -> Tuned:
        nodes, rows = self.parts(self.theta if theta is None else theta)
        return Tuned(tuple(nodes), tuple(map(tuple, rows)))

    def parts(self, theta: Tensor) -> tuple[list[float], list[list[float]]]:
        """Nodes and rows."""
        values = theta.tolist()
        ends = [self.steps - 1 + i * (i + 3) // 2 for i in range(self.steps + 1)]
        return values[: ends[0]], [values[a:b] for a, b in pairwise(ends)]

    def run(self, theta: Tensor, which: Tensor) -> tuple[list[Tensor], Tensor]:
        """Slopes v_0 .. v_{N-1} and ends y_N of some trajectories."""
        nodes, rows = self.parts(theta)
        y0, slopes = self.y0[which], [self.first[which]]
        for node, row in zip(nodes, rows[:-1], strict=True):
            level = self.runner.process.schedule.level_at(node)
            slopes.append(self.runner.slope(combined(row, y0, slopes), level, which))
        return slopes, combined(rows[-1], y0, slopes)

    def jacobian(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """d y_N / d theta, (parameters, n, ...), and y_N of some trajectories."""
        nodes, rows = self.parts(self.theta)
        slopes, end = self.run(self.theta, which)
        y0, at, h = self.y0[which], self.runner.process.schedule.level_at, self.h
        moved: list[Tensor] = []  # by the nodes first, then row by row: the order of theta
        for i in range(1, self.steps):
            y = combined(rows[i - 1], y0, slopes[:i])
            by_node = (self.runner.slope(y, at(nodes[i - 1] + h), which) - slopes[i]) / h
            by_row = self.along(y, torch.stack([y0, *slopes[:i]]), slopes[i], nodes[i - 1], which)
            changes = [torch.cat([by_node[None], by_row])]  # of v_i, v_i+1, ..
            for k in range(i + 1, self.steps):
                change = _total(rows[k - 1][1 + i :], changes)
                y = combined(rows[k - 1], y0, slopes[:k])
                changes.append(self.along(y, change, slopes[k], nodes[k - 1], which))
            total = _total(rows[-1][1 + i :], changes)
            moved.insert(i - 1, total[:1])
            moved.append(total[1:])
        return torch.cat([*moved, torch.stack([y0, *slopes])]), end

    def along(self, y: Tensor, directions: Tensor, slope: Tensor, node: float, which: Tensor) -> Tensor:
        """How v at y changes along each of some directions (q, n, ...), each made to move y by h."""
        level, flat = self.runner.process.schedule.level_at(node), directions.flatten(2)
        h = self.h / flat.square().mean(2).sqrt().clamp(min=1e-9)
        h = h.reshape(*h.shape, *[1] * (y.ndim - 1))
        points = (y + h * directions).flatten(0, 1)
        there = self.runner.slope(points, level, which.repeat(len(directions)))
        return (there.reshape(directions.shape) - slope) / h

    def step(self, number: int, deadline: float = math.inf) -> bool:
        """One step; whether the objective over the panel fell."""
        which = self.chosen(self.count, number + 1)
        # where there are others to choose, their Jacobian is worth more than a smaller step
        trials = 12 if self.count == len(self.all) else 3
        jacobian, end = self.jacobian(which)
        residuals = end - self.targets[which]
        c = 0.7 * float(self.sizes.median())
        weights = (1 + (_sizes(residuals) / c) ** 2) ** -0.75
        residuals = residuals.flatten()
        weighted = jacobian.flatten(2) * weights.to(jacobian)[None, :, None]
        jacobian, weighted = jacobian.flatten(1), weighted.flatten(1)
        curvature = (weighted @ jacobian.T).double().cpu() / len(residuals)
        gradient = (weighted @ residuals).double().cpu() / len(residuals)
        scale = curvature.diagonal() + 1e-14 * curvature.diagonal().max()
        before = float(_robust(self.sizes, c))
        for _ in range(trials):
            if time.monotonic() > deadline:
                break
            theta = self.theta - torch.linalg.solve(curvature + self.damping * torch.diag(scale), gradient)
            if self.sensible(theta):
                sizes = self.measured(theta)
                if float(_robust(sizes, c)) < before * (1 - 1e-6):
                    self.theta, self.sizes, self.damping = theta, sizes, max(self.damping / 5, 1e-9)
                    return True
            self.damping = min(self.damping * 5, 1e6)
        return False

    def sensible(self, theta: Tensor) -> bool:
        """Whether the nodes rise, do not leap, and stay within what the model knows."""
        nodes = theta[: self.steps - 1]
        rises = bool((nodes.diff() > 0.02).all()) and float(nodes[0]) > self.runner.first.log_snr
        leaps = bool(((nodes - self.theta[: self.steps - 1]).abs() > 1.4).any())
        return bool(theta.isfinite().all()) and rises and not leaps and float(nodes[-1]) <= self.last


def _total(weights: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
    return torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum(0)


def _robust(sizes: Tensor, c: float) -> Tensor:
    """Mean of rho(l) = 4 c^2 ((1 + l^2 / c^2)^(1/4) - 1); infinite where an end is not finite."""
    return (4 * c * c * ((1 + (sizes / c) ** 2) ** 0.25 - 1)).nan_to_num(nan=math.inf).mean()
