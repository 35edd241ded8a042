"""DPM-Solver++(2M): a two-step exponential integrator in the log-SNR.

With l = lambda / 2 = log(alpha / sigma) the probability-flow ODE has the exact solution (Lu et al. 2022b, eq. 8)

    x_s = (sigma_s / sigma_t) x_t + sigma_s  int_{l_t}^{l_s}  e^l x0(x_l) dl.

Keeping x0 fixed over the step gives DDIM, x_s = (sigma_s/sigma_t) x_t - alpha_s (e^-h - 1) x0_t with h = l_s - l_t.
A line in l through x0 here and at the last level gives the second order at no further evaluation (alg. 2):

    D = (1 + 1 / 2r) x0_t - 1 / 2r x0_last,     r = h_last / h,     x_s = (sigma_s/sigma_t) x_t - alpha_s (e^-h - 1) D.

Both ends take care of themselves: from alpha = 0, h is infinite and e^-h = 0; after it r is infinite and the line is
flat; and the step to sigma = 0, where the line would be followed to infinity, keeps x0 fixed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..noise import Draws
from ..processes import Gaussian, Level
from .solver import Denoise, Solver


@dataclass(frozen=True)
class DPMpp2M(Solver):
    """DPM-Solver++ multistep of order 2; its carry is the last x0 and the log-SNR it was seen at."""

    kind: ClassVar[str] = "dpm++2m"
    order: ClassVar[int] = 2
    multistep: ClassVar[bool] = True

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
