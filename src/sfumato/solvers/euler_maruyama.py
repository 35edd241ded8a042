"""Euler-Maruyama: the reverse SDE in the schedule's own time, stepped as it stands.

For every eta the SDE, run backwards from t to s,

    dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw,        f = alpha'/alpha,   g^2 = 2 sigma (sigma' - f sigma),

has the right marginals (Song et al. 2021, eq. 6 at eta = 1, eq. 13 at eta = 0). With score = -eps / sigma and
f x + g^2 eps / 2 sigma = alpha' x_0 + sigma' eps, the flow's velocity, a step is

    x_s = x_t - (t - s) [alpha' x_0 + (sigma' + eta^2 g^2 / 2 sigma) eps] + eta g sqrt(t - s) z.

It is the reference for the other stochastic solvers, and the plainest: of order one (strongly, too, since the noise is
additive), with rates that are infinite at the ends of many schedules. Where they are, from alpha = 0 and to clean data
or beyond the schedule's own end, the step is the bridge's instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import SolverError
from ..noise import Draws
from ..processes import Gaussian, Level
from .solver import Denoise, Solver, frame_to


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """Euler-Maruyama of the reverse SDE. eta: 0 the probability flow (Euler in time), 1 Song et al.'s reverse SDE."""

    kind: ClassVar[str] = "euler-maruyama"
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise SolverError(f"eta of Euler-Maruyama lies in [0, 1], not {self.eta!r}")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0

    def step(
        self, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        prediction = denoise(x, t)
        if t.alpha == 0 or frame_to("time", t, s) != "time":
            return process.bridge(x, prediction, t, s, noise, self.eta), None
        span, (alpha_rate, sigma_rate) = t.time - s.time, process.rates(t)
        g2 = 2 * t.sigma * (sigma_rate - alpha_rate / t.alpha * t.sigma)
        slope = prediction.combine(alpha_rate, sigma_rate + self.eta**2 * g2 / (2 * t.sigma))
        x = torch.add(x, slope, alpha=-span)
        if self.eta > 0:
            x = torch.add(x, noise.normal(x), alpha=self.eta * math.sqrt(g2 * span))
        return x, None
