"""Noise schedules: how much signal and how much noise there is at each time.

A Gaussian process holds x_t = alpha(t) x_0 + sigma(t) eps with t in [0, 1], 0 data and 1 noise. Two choices hide in
the pair (alpha, sigma):

* the **log-SNR** lambda(t) = 2 log(alpha / sigma), which is all that matters to what can be known of x_0; and
* the **path**, the curve that (alpha, sigma) stays on, which only rescales x_t:

      vp      alpha^2 + sigma^2 = 1        variance preserving (DDPM)
      flow    alpha + sigma = 1            straight lines (rectified flow)
      ve      alpha = 1                    variance exploding (NCSN, EDM)
      sub-vp  sigma = 1 - alpha^2          Song et al. 2021, eq. 29

A point of a path is found from any pair (a, b) with b / a = sigma / alpha, without dividing, so both ends, alpha = 0
and sigma = 0, are ordinary points. Transformations of a schedule (`Shifted`, `ZeroTerminalSNR`) act on it and stay on
its path. Everything is computed in float64. Derivatives come from automatic differentiation unless a schedule gives
its own, which are some five times as fast, so a schedule that you write needs `log_snr` and nothing else
(`check_process` in `processes.laws` states what must hold).

The schedules themselves are in `schedules`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import SolverError

Scalar = float | Tensor  # a float while sampling; a tensor (batch,) while training


class Level(NamedTuple):
    """A noise level: a time and what the schedule says there. Floats, or tensors (batch,)."""

    time: Any
    alpha: Any
    sigma: Any
    log_snr: Any


CLEAN = Level(
    0.0, 1.0, 0.0, math.inf
)  # no noise at all: where sampling ends, also for schedules with sigma(0) > 0


PATHS = ("vp", "flow", "ve", "sub-vp")


def path_point(path: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The (alpha, sigma) on a path with sigma / alpha = b / a, for a, b >= 0 that are not both 0."""
    if path == "vp":
        size = torch.hypot(a, b)
        return a / size, b / size
    if path == "flow":
        return a / (a + b), b / (a + b)
    if path == "ve":
        return torch.ones_like(a), b / a
    if path != "sub-vp":
        raise SolverError(f"a schedule's path is one of {', '.join(PATHS)}, not {path!r}")
    # sub-vp: alpha b = a (1 - alpha^2); the root in [0, 1], written so that nothing cancels
    alpha = 2 * a / (b + torch.sqrt(b * b + 4 * a * a))
    return alpha, torch.where(a > b, alpha * b / a.clamp(min=1e-300), 1 - alpha * alpha)


def float64(t: Scalar | Sequence[float]) -> Tensor:
    """A tensor in float64, from numbers or from a tensor."""
    return t.double() if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)


@dataclass(frozen=True)
class Schedule:
    """Base of the schedules: subclasses give `log_snr(t)`, falling in t; better also `alpha`, `sigma` and `time`.

    Every method takes float64 tensors of any shape. `level` and `levels` also take floats and check the range.
    """

    kind: ClassVar[str] = ""
    path: ClassVar[str] = "vp"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "base":
                if not isinstance(value, Schedule):
                    raise SolverError(f"base of the {self.kind} schedule must be a schedule, not {value!r}")
            elif not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
                raise SolverError(
                    f"{field.name} of the {self.kind} schedule must be a finite number, not {value!r}"
                )
        self._check()

    def _check(self) -> None: ...

    def _require(self, holds: bool, rule: str) -> None:
        if not holds:
            raise SolverError(f"a {self.kind} schedule needs {rule}, not {self.to_json()}")

    # -- what a subclass gives ---------------------------------------------------------------------------------
    def log_snr(self, t: Tensor) -> Tensor:
        """lambda(t) = 2 log(alpha(t) / sigma(t))."""
        raise NotImplementedError

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha(t), sigma(t))."""
        log_snr = self.log_snr(t)
        return path_point(self.path, torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt())

    def time(self, log_snr: Tensor) -> Tensor:
        """The t at which the log-SNR has this value, clamped to [0, 1]. The general answer is bisection."""
        low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
        for _ in range(60):
            middle = (low + high) / 2
            noisier = self.log_snr(middle) < log_snr
            low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
        return (low + high) / 2

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha / dt, d sigma / dt), by automatic differentiation; where it is short, better by its closed form."""
        with torch.inference_mode(False), torch.enable_grad():
            point = t.detach().clone().requires_grad_()
            alpha, sigma = self.alpha_sigma(point)
            rates = [
                torch.autograd.grad(value.sum(), point, retain_graph=True)[0]
                if value.requires_grad
                else torch.zeros_like(point)
                for value in (alpha, sigma)
            ]
        return rates[0], rates[1]

    # -- what everything downstream uses -----------------------------------------------------------------------
    def level(self, t: Scalar | Level) -> Level:
        """The noise level at t: a float in [0, 1] gives floats, a tensor (batch,) gives float64 tensors."""
        if isinstance(t, Level):
            return t
        if not isinstance(t, Tensor):
            return self.levels([t])[0]
        t64 = t.double()
        return Level(t64, *self.alpha_sigma(t64), self.log_snr(t64))

    def levels(self, times: Sequence[float] | Tensor) -> list[Level]:
        """The noise levels at several times, as floats."""
        t = float64(times)
        if not bool(((t >= 0) & (t <= 1)).all()):
            raise SolverError(f"times run from 0 (data) to 1 (noise); given {t.tolist()}")
        alpha, sigma = self.alpha_sigma(t)
        rows = (t.tolist(), alpha.tolist(), sigma.tolist(), self.log_snr(t).tolist())
        return [Level(*row) for row in zip(*rows, strict=True)]

    def level_at(self, log_snr: float) -> Level:
        """The level with this log-SNR, on this schedule's path."""
        value = float64(log_snr)
        alpha, sigma = path_point(self.path, torch.sigmoid(value).sqrt(), torch.sigmoid(-value).sqrt())
        return Level(float(self.time(value)), float(alpha), float(sigma), float(log_snr))

    def to_json(self) -> dict[str, Any]:
        """What `build_schedule` needs to make it again."""
        return {"kind": self.kind, **asdict(self)}
