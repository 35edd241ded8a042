"""The laws that every Gaussian process must obey, to be run on one of your own: `check_process(process)`.

Those of a categorical process, which it runs too, are in `categorical_laws`.

* The log-SNR falls, is 2 log(alpha / sigma), and `time` is its inverse.
* (alpha, sigma) lies on the stated path; the derivatives are the slopes that finite differences measure.
* `convert` closes its cycle over every pair of rows wherever D is not 0, and refuses where it is (at both ends).
* The bridge at eta = 1 is the posterior that Bayes' rule gives, in its variance and in its weight of x_t.
* The SDE carries the marginals: f = alpha'/alpha and g^2 = -sigma^2 lambda', in the slopes of finite differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from ..errors import SolverError
from .categorical import Categorical
from .gaussian import PARAMETERISATIONS, Gaussian
from .schedule import Level

_PATHS = {
    "vp": lambda a, s: a * a + s * s - 1,
    "flow": lambda a, s: a + s - 1,
    "ve": lambda a, s: a - 1,
    "sub-vp": lambda a, s: s - (1 - a * a),
}


class LawBroken(AssertionError):
    """A part does not obey a law of its kind; the message says which and where."""


def require(holds: bool, law: str) -> None:
    """Raise LawBroken with the law unless it holds."""
    if not holds:
        raise LawBroken(law)


def check_process(process: Gaussian | Categorical, points: int = 41) -> None:
    """Raise LawBroken unless the process obeys its laws at `points` times inside (0, 1)."""
    if isinstance(process, Categorical):
        from .categorical_laws import check_categorical

        check_categorical(process, min(points, 5))
        return
    schedule = process.schedule
    t = torch.linspace(0, 1, points + 2, dtype=torch.float64)[1:-1]
    alpha, sigma = schedule.alpha_sigma(t)
    log_snr = schedule.log_snr(t)
    require(bool((log_snr.diff() < 0).all()), f"the log-SNR of {schedule.kind} must fall with time")
    gap = (log_snr - 2 * torch.log(alpha / sigma)).abs().max()
    require(float(gap) < 1e-7, f"log_snr must be 2 log(alpha / sigma); {schedule.kind} is off by {gap:.1e}")
    require(schedule.path in _PATHS, f"{schedule.kind} names a path that is none: {schedule.path!r}")
    off = float(_PATHS[schedule.path](alpha, sigma).abs().max())
    require(off < 1e-9, f"{schedule.kind} leaves its path {schedule.path} by {off:.1e}")
    gap = (schedule.time(log_snr) - t).abs().max()
    require(float(gap) < 1e-7, f"time(log_snr(t)) must be t; {schedule.kind} is off by {gap:.1e}")
    _check_rates(process, t)
    for level in schedule.levels(t.tolist()[:: max(1, points // 8)]):
        _check_cycle(process, level, PARAMETERISATIONS)
        _check_bridge(process, level)
    for level in schedule.levels([0.0, 1.0]):
        _check_end(process, level)


def _check_rates(process: Gaussian, t: torch.Tensor) -> None:
    schedule, level = process.schedule, process.level(t)

    def compare(name: str, value: Callable[[torch.Tensor], torch.Tensor], rate: torch.Tensor) -> None:
        """A rate against the slopes to the left, to the right and across: a table has kinks, where they differ."""
        h = 1e-6
        before, here, after = value(t - h), value(t), value(t + h)
        slopes = torch.stack([(here - before) / h, (after - here) / h, (after - before) / (2 * h)])
        gap = float(((slopes - rate).abs() / (1 + rate.abs())).min(0).values.max())
        require(gap < 1e-4, f"{name} of {schedule.kind} is off by {gap:.1e} from finite differences")

    alpha_rate, sigma_rate = schedule.rates(t)
    compare("d alpha / dt", lambda u: schedule.alpha_sigma(u)[0], alpha_rate)
    compare("d sigma / dt", lambda u: schedule.alpha_sigma(u)[1], sigma_rate)
    compare("the drift alpha'/alpha", lambda u: schedule.alpha_sigma(u)[0].log(), process.drift(t))
    squared = process.diffusion(t) ** 2
    compare("the diffusion g^2 = -sigma^2 lambda'", lambda u: -schedule.log_snr(u), squared / level.sigma**2)


def _check_cycle(process: Gaussian, level: Level, kinds: Sequence[str]) -> None:
    x0 = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(2, 12)
    eps = torch.linspace(1, -3, 24, dtype=torch.float64).reshape(2, 12).sin()
    x_t = process.corrupt(x0, level, eps)
    for source in kinds:
        a, b = process.row(source, level)
        y = a * x0 + b * eps
        for target in kinds:
            there = process.convert(y, x_t, level, source, target)
            a2, b2 = process.row(target, level)
            expected = a2 * x0 + b2 * eps
            back = process.convert(there, x_t, level, target, source)
            for got, want in ((there, expected), (back, y)):
                gap = float((got - want).abs().max() / want.abs().max().clamp(min=1))
                require(gap < 1e-6, f"{source} -> {target} at t = {level.time:.3f} is off by {gap:.1e}")


def _check_end(process: Gaussian, level: Level) -> None:
    """Rows with D != 0 close their cycle at an end of the schedule too; the others must be refused."""
    x = torch.ones(2, 3, dtype=torch.float64)
    require(all(map(math.isfinite, level[1:3])), f"alpha and sigma must be finite at t = {level.time:.0f}")
    whole = []
    for kind in PARAMETERISATIONS:
        if kind == "score" and level.sigma == 0:  # infinite: there is no such row
            continue
        determinant = process.determinant(kind, level)
        if 1e-12 <= abs(determinant) < math.inf:
            whole.append(kind)
            continue
        other = "x0" if kind != "x0" else "eps"
        try:
            process.convert(x, x, level, kind, other)
        except SolverError:
            continue
        require(
            False, f"{kind} -> {other} at t = {level.time:.0f}, where D = {determinant:.3g}, must be refused"
        )
    _check_cycle(process, level, whole)


def _check_bridge(process: Gaussian, t: Level) -> None:
    for s in process.schedule.levels([0.2 * t.time, 0.9 * t.time]):
        # Bayes: the precision of q(x_s | x_t, x_0) is that of q(x_s | x_0) plus that of the chain's q(x_t | x_s)
        ratio = t.alpha / s.alpha
        chain = t.sigma**2 - (ratio * s.sigma) ** 2
        posterior = 1 / (1 / s.sigma**2 + ratio**2 / chain)
        gap = abs(process.lag(t, s) / posterior - 1)
        require(gap < 1e-6, f"the bridge's variance is off from Bayes' rule by {gap:.1e}")
        weight = math.sqrt(s.sigma**2 - process.lag(t, s)) / t.sigma
        gap = abs(weight / (posterior * ratio / chain) - 1)
        require(gap < 1e-5, f"the bridge's weight of x_t is off from Bayes' rule by {gap:.1e}")
