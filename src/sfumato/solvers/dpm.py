"""DPM-Solvers: exponential integrators in the half-log-SNR, one step or several at a time.

With l = lambda / 2 = log(alpha / sigma) the probability-flow ODE has the exact solutions (Lu et al. 2022a, prop. 3.1;
Lu et al. 2022b, eq. 8)

    x_s = (alpha_s / alpha_t) x_t - alpha_s  int_{l_t}^{l_s}  e^-l eps(x_l) dl          DPM-Solver
        = (sigma_s / sigma_t) x_t + sigma_s  int_{l_t}^{l_s}  e^l x0(x_l) dl            DPM-Solver++

and a polynomial in l in the place of eps or x0 leaves integrals that are known (see `adams`). Keeping it fixed over the
step gives DDIM from either. With h = l_s - l_t and "line (p, q)" the polynomial through what was said at l_t + p h and
l_t + q h,

    singlestep, order 2     u at 1/2 by the value at 0;       x_s by the value at 1/2                 2 evaluations
    singlestep, order 3     u at 1/3 by the value at 0;       v at 2/3 by the line (0, 1/3);
                            x_s by the line (0, 2/3)                                                  3 evaluations
    multistep, order 3      x_s by the parabola through the last three levels                         1 evaluation

which are DPM-Solver-2 and -3 for eps (alg. 1 and 2 of 2022a, with r_1 = 1/2 and r_1, r_2 = 1/3, 2/3), and
DPM-Solver++(2S) (alg. 1 of 2022b), (3S) and (3M) for x0. A singlestep solver keeps its evaluations inside the step: n
steps of order k are nk evaluations. Where l is infinite, at pure noise and at clean data, the same construction is
made in the flow frame, where it is the midpoint rule and Heun's method of order 3.

The 3M that other packages hold (k-diffusion, diffusers) takes half of the parabola's second difference, and so is of
order 2; here the parabola is integrated exactly, so that 3M is Adams-Bashforth of order 3 in the frame of x0.

**2M** (alg. 2 of 2022b) holds the line through the last two levels at its value in mid-step, which differs
from its exact integral by O(h^3), as the method does:

    D = (1 + 1 / 2r) x0_t - 1 / 2r x0_last,     r = h_last / h,     x_s = (sigma_s/sigma_t) x_t - alpha_s (e^-h - 1) D.

Both ends of 2M take care of themselves: from alpha = 0, h is infinite and e^-h = 0; after it r is infinite and the
line is flat; and the step to sigma = 0, where the line would be followed to infinity, keeps x0 fixed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..noise import Draws
from ..processes import Gaussian, Level
from .adams import Adams, Said, adams_step, ask, check_order
from .solver import Denoise, Solver, frame_at, frame_to, level_in


def singlestep(
    order: int, frame: str, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level
) -> Tensor:
    """x_s by the one-step method of order 1, 2 or 3 in a frame: as many evaluations, all before s."""
    frame = frame_to(frame, t, s)
    start, end = (frame_at(frame, process, level)[1] for level in (t, s))

    def at(share: float, *said: Said) -> Said:
        level = level_in(frame, process, start + share * (end - start))
        return ask(frame, denoise, process, adams_step(frame, process, x, t, level, said), level)

    first = ask(frame, denoise, process, x, t)
    if order == 1:
        return adams_step(frame, process, x, t, s, [first])
    if order == 2:
        return adams_step(frame, process, x, t, s, [at(1 / 2, first)])
    second = at(1 / 3, first)
    return adams_step(frame, process, x, t, s, [first, at(2 / 3, first, second)])


@dataclass(frozen=True)
class DPMSolver(Solver):
    """DPM-Solver-1, -2 or -3: singlestep, for eps. Order 1 is DDIM."""

    kind: ClassVar[str] = "dpm-solver"
    frame: ClassVar[str] = "eps-exponential"
    order: int = 3  # type: ignore[override]

    def __post_init__(self) -> None:
        check_order(self.order, f"order of {self.kind}", 1, 3)

    @property
    def evaluations(self) -> int:  # type: ignore[override]
        return self.order

    def step(
        self, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        return singlestep(self.order, self.frame, denoise, process, x, t, s), None


@dataclass(frozen=True)
class DPMppS(DPMSolver):
    """DPM-Solver++ singlestep, for x0: (2S), (3S); order 1 is DDIM."""

    kind: ClassVar[str] = "dpm++s"
    frame: ClassVar[str] = "x0-exponential"


@dataclass(frozen=True)
class DPMpp3M(Adams):
    """DPM-Solver++(3M) with the parabola integrated exactly: Adams-Bashforth of order 3 in the frame of x0."""

    kind: ClassVar[str] = "dpm++3m"
    order: ClassVar[int] = 3  # type: ignore[misc]
    frame: ClassVar[str] = "x0-exponential"  # type: ignore[misc]


@dataclass(frozen=True)
class DPMpp2M(Solver):
    """DPM-Solver++ multistep of order 2; its carry is the last x0 and the log-SNR it was seen at."""

    kind: ClassVar[str] = "dpm++2m"
    order: ClassVar[int] = 2

    def step(
        self, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        x0 = direction = denoise(x, t).x0
        h = (s.log_snr - t.log_snr) / 2
        if carry is not None and math.isfinite(h):
            last, last_log_snr = carry
            slope = h / (t.log_snr - last_log_snr)  # 1 / 2r
            if slope > 0:
                direction = (1 + slope) * x0 - slope * last
        x = (s.sigma / t.sigma) * x + (-s.alpha * math.expm1(-h)) * direction
        return x, (x0, t.log_snr)
