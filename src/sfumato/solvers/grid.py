"""Grids: the noise levels that a solver visits.

A grid of n steps is n + 1 levels with rising log-SNR, from t = 1 (or a `start` below it) to clean data, so that
n steps of a one-stage solver are n evaluations of the model. Schedules whose sigma(0) is above zero (VE, EDM)
visit n levels and then step to sigma = 0; the others reach it at t = 0.

With r = i / n from 0 to 1 along the grid:

    uniform    t = start (1 - r)
    quadratic  t = start (1 - r)^2 (Song et al. 2021)
    cosine     t = start cos^2(pi r / 2): dense at both ends
    flow       u = sigma / (sigma + alpha) = u_0 (1 - r)^rho: uniform in rectified flow's time for every schedule
    angle      phi = atan(sigma / alpha) = phi_0 (1 - r^rise)^fall: flat at the noisy end, fine at the clean one
    log-snr    lambda even between the ends (Lu et al. 2022)
    karras     sigma / alpha = (s_max^(1/rho) + r (s_min^(1/rho) - s_max^(1/rho)))^rho (Karras et al. 2022, eq. 5)

The last two divide by sigma, so they need a smallest sigma / alpha; below it they make one last step to clean data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import SolverError, choose
from ..processes import CLEAN, Level, Rows

NOISIEST = 80.0  # sigma / alpha, as in Karras et al. 2022


def check_levels(levels: Sequence[Level]) -> None:
    """Raise SolverError unless the log-SNR rises from each level to the next."""
    if len(levels) < 2:
        raise SolverError("a grid needs at least two levels: where it starts and where it ends")
    for i, (t, s) in enumerate(pairwise(levels)):
        if not s.log_snr > t.log_snr:
            raise SolverError(
                f"a sampling grid goes from noise to data, but from entry {i} to {i + 1} the time goes "
                f"from {t.time:.6g} to {s.time:.6g}: reverse it"
            )


def check_steps(steps: int) -> int:
    """Return a number of steps, or raise SolverError unless it is a whole number from 1 to 100,000."""
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= 100_000:
        raise SolverError(f"steps must be a whole number from 1 to 100,000, not {steps!r}")
    return steps


def noisiest(process: Rows, start: float = 1.0) -> Level:
    """Where to start: the level at a time, or sigma / alpha = 80 where that is pure noise.

    Beyond it there is nothing of the data to be seen, and a trained network has hardly been asked. To make the first of
    a few steps there costs a model of Fashion-MNIST ten times the error.
    """
    first = process.level(start)
    return first if first.alpha > 0 else process.schedule.level_at(-2 * math.log(NOISIEST))


@dataclass(frozen=True)
class Grid:
    """Base of the grids. start: the time to start from, in (0, 1]."""

    kind: ClassVar[str] = ""
    start: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.start <= 1:
            raise SolverError(f"a grid starts at a time in (0, 1], not {self.start!r}")

    def levels(self, process: Rows, steps: int) -> list[Level]:
        """The steps + 1 levels, the last of them clean."""
        check_steps(steps)
        reaches_zero = process.level(0.0).sigma == 0
        count = steps + 1 if reaches_zero else steps
        r = torch.arange(count, dtype=torch.float64) / max(count - 1, 1)
        levels = [*self.visit(process, r)[:steps], CLEAN]
        check_levels(levels)
        return levels

    def visit(self, process: Rows, r: Tensor) -> list[Level]:
        """The levels at positions r in [0, 1] along the grid."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class UniformGrid(Grid):
    """t falls evenly."""

    kind: ClassVar[str] = "uniform"

    def visit(self, process: Rows, r: Tensor) -> list[Level]:
        return process.schedule.levels(self.start * (1 - r))


@dataclass(frozen=True)
class QuadraticGrid(Grid):
    """t = start (1 - r)^2: finer near the data."""

    kind: ClassVar[str] = "quadratic"

    def visit(self, process: Rows, r: Tensor) -> list[Level]:
        return process.schedule.levels(self.start * (1 - r) ** 2)


@dataclass(frozen=True)
class CosineGrid(Grid):
    """t = start cos^2(pi r / 2): finer at both ends."""

    kind: ClassVar[str] = "cosine"

    def visit(self, process: Rows, r: Tensor) -> list[Level]:
        return process.schedule.levels(self.start * torch.cos(0.5 * math.pi * r) ** 2)


@dataclass(frozen=True)
class FlowGrid(Grid):
    """u = sigma / (sigma + alpha) falls as u_0 (1 - r)^rho, whatever the schedule."""

    kind: ClassVar[str] = "flow"
    rho: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rho <= 0:
            raise SolverError(f"rho of a flow grid must be positive, not {self.rho!r}")

    def levels(self, process: Rows, steps: int) -> list[Level]:
        # u = 0 is an ordinary point, so schedules that stop above it need no extra level
        check_steps(steps)
        levels = self.visit(process, torch.arange(steps + 1, dtype=torch.float64) / steps)
        check_levels(levels)
        return levels

    def visit(self, process: Rows, r: Tensor) -> list[Level]:
        first = process.level(self.start)
        u = first.sigma / (first.sigma + first.alpha) * (1 - r) ** self.rho
        return _at_log_snr(process, 2 * (torch.log1p(-u) - torch.log(u)), first)


@dataclass(frozen=True)
class AngleGrid(Grid):
    """phi = atan(sigma / alpha) falls as phi_0 (1 - r^rise)^fall, whatever the schedule; from `noisiest` on.

    None: chosen by the number of steps. (1.5, 2) up to 6 steps, where the last of few nodes must still lie near the
    data; (1.15, 1.6) up to 17; (1.1, 1.75) beyond. Chosen by the errors of `AdamsMoulton` on Gaussian mixtures, see
    `benchmarks/solvers.py`.
    """

    kind: ClassVar[str] = "angle"
    rise: float | None = None
    fall: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rise", "fall"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SolverError(f"{name} of an angle grid must be positive, not {value!r}")

    def levels(self, process: Rows, steps: int) -> list[Level]:
        # the angle 0 is an ordinary point, so schedules that stop above it need no extra level
        check_steps(steps)
        rise, fall = (1.5, 2.0) if steps <= 6 else (1.15, 1.6) if steps <= 17 else (1.1, 1.75)
        rise, fall = self.rise or rise, self.fall or fall
        first = noisiest(process, self.start)
        r = torch.arange(steps + 1, dtype=torch.float64) / steps
        angle = math.atan2(first.sigma, first.alpha) * (1 - r**rise) ** fall
        levels = _at_log_snr(process, 2 * (torch.log(torch.cos(angle)) - torch.log(torch.sin(angle))), first)
        levels[0] = first
        check_levels(levels)
        return levels


@dataclass(frozen=True)
class _Bounded(Grid):
    """Grids over sigma / alpha, which need finite ends. None: the schedule's own, at least 0.002 and at most 80.

    sigma_max: above 80 for data whose largest principal deviation D is not small beside that: a start at s = sigma /
    alpha draws of D^2 the share s^2 / (s^2 + D^2). The mean of n numbers has D = sqrt(n) times its own deviation.
    """

    sigma_min: float | None = None
    sigma_max: float | None = None

    def ends(self, process: Rows) -> tuple[float, float]:
        """(largest, smallest) sigma / alpha visited."""
        first, last = process.level(self.start), process.level(0.0)
        largest = first.sigma / first.alpha if first.alpha > 0 else math.inf
        smallest = last.sigma / last.alpha
        high = min(largest, self.sigma_max or (NOISIEST if largest == math.inf else largest))
        low = max(smallest, self.sigma_min or (0.002 if smallest == 0 else 0.0))
        if not 0 < low < high:
            raise SolverError(
                f"a grid needs 0 < smallest < largest sigma / alpha; here {low:.3g} and {high:.3g}"
            )
        return high, low

    def levels(self, process: Rows, steps: int) -> list[Level]:
        check_steps(steps)
        r = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
        levels = [*self.visit(process, r), CLEAN]
        check_levels(levels)
        return levels


@dataclass(frozen=True)
class LogSNRGrid(_Bounded):
    """The log-SNR rises evenly."""

    kind: ClassVar[str] = "log-snr"

    def visit(self, process: Rows, r: Tensor) -> list[Level]:
        high, low = self.ends(process)
        return _at_log_snr(
            process, -2 * (math.log(high) + r * math.log(low / high)), process.level(self.start)
        )


@dataclass(frozen=True)
class KarrasGrid(_Bounded):
    """(sigma / alpha)^(1/rho) falls evenly."""

    kind: ClassVar[str] = "karras"
    rho: float = 7.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rho <= 0:
            raise SolverError(f"rho of a Karras grid must be positive, not {self.rho!r}")

    def visit(self, process: Rows, r: Tensor) -> list[Level]:
        high, low = (end ** (1 / self.rho) for end in self.ends(process))
        return _at_log_snr(
            process, -2 * self.rho * torch.log(high + r * (low - high)), process.level(self.start)
        )


@dataclass(frozen=True)
class TunedGrid(Grid):
    """The start of the process, a tuned solver's nodes (log-SNRs), and clean data."""

    kind: ClassVar[str] = "tuned"
    nodes: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "nodes", tuple(map(float, self.nodes)))

    def levels(self, process: Rows, steps: int) -> list[Level]:
        if steps != len(self.nodes) + 1:
            raise SolverError(f"this grid is tuned to {len(self.nodes) + 1} steps, not {steps}")
        levels = [noisiest(process, self.start), *map(process.schedule.level_at, self.nodes), CLEAN]
        check_levels(levels)
        return levels


def _at_log_snr(process: Rows, log_snr: Tensor, first: Level) -> list[Level]:
    levels = [CLEAN if value == math.inf else process.schedule.level_at(value) for value in log_snr.tolist()]
    # the first entry is the start itself, not the start up to rounding
    if levels[0].log_snr == first.log_snr or abs(levels[0].log_snr - first.log_snr) < 1e-9:
        levels[0] = first
    return levels


GRIDS: dict[str, type[Grid]] = {
    cls.kind: cls
    for cls in (UniformGrid, QuadraticGrid, CosineGrid, FlowGrid, AngleGrid, LogSNRGrid, KarrasGrid)
}


def build_grid(kind: str = "flow", **config: Any) -> Grid:
    """A grid from its name and values; a tuned one from the values of its `to_json` only."""
    if kind == TunedGrid.kind and "nodes" in config:
        return TunedGrid(**config)
    cls = GRIDS[choose(kind, GRIDS, "grid", SolverError)]
    for name in config:
        choose(name, [field.name for field in fields(cls)], f"value of the {kind} grid", SolverError)
    return cls(**config)
