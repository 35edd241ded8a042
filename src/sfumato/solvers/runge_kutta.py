"""One- and two-stage solvers of the probability-flow ODE: Euler, Heun, and EDM's Heun with churn.

In a frame (see `solver`) the ODE is dy/du = g(y, u), and with h = u_s - u_t

    Euler   y_s = y_t + h g_t                                  order 1, one evaluation
    Heun    y_s = y_t + h (g_t + g(y_t + h g_t, u_s)) / 2      order 2, two evaluations

The last step, to sigma = 0, is Euler's: there is nothing left to evaluate at. EDM (Karras et al. 2022, alg. 2) first
raises the noise from sigma/alpha to (1 + gamma) sigma/alpha by adding fresh noise, then makes a Heun step down from
there; gamma = min(churn, sqrt(2) - 1) inside [s_min, s_max], where churn is Karras et al.'s S_churn / N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..errors import SolverError, choose
from ..noise import Draws
from ..processes import Gaussian, Level
from .solver import FRAMES, Denoise, Solver, euler_step, frame_at, frame_to


@dataclass(frozen=True)
class Euler(Solver):
    """Euler's method in a frame; in the flow and sigma frames it equals DDIM."""

    kind: ClassVar[str] = "euler"
    frame: str = "flow"

    def __post_init__(self) -> None:
        choose(self.frame, FRAMES, "frame", SolverError)

    def step(
        self, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        return euler_step(self.frame, denoise, process, x, t, s)[0], None


@dataclass(frozen=True)
class Heun(Solver):
    """Heun's method in a frame (the explicit trapezoidal rule)."""

    kind: ClassVar[str] = "heun"
    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 2
    frame: str = "flow"

    def __post_init__(self) -> None:
        choose(self.frame, FRAMES, "frame", SolverError)

    def step(
        self, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        return heun_step(self.frame, denoise, process, x, t, s), None


def heun_step(frame: str, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level) -> Tensor:
    """x_s by one Heun step in a frame, Euler's where s is clean."""
    frame = frame_to(frame, s)
    x_s, slope = euler_step(frame, denoise, process, x, t, s)
    if s.sigma == 0:
        return x_s
    c, u, _, _ = frame_at(frame, process, t)
    c_end, u_end, a, b = frame_at(frame, process, s)
    slope = 0.5 * (slope + denoise(x_s, s).combine(a, b))
    return (c_end / c) * x + (c_end * (u_end - u)) * slope


@dataclass(frozen=True)
class EDMSolver(Solver):
    """EDM's stochastic sampler. churn: share of noise renewed a step (S_churn / N); 0 is Heun in the sigma frame.

    s_min, s_max: the sigma / alpha between which noise is renewed. s_noise: inflation of the fresh noise.
    """

    kind: ClassVar[str] = "edm"
    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 2
    churn: float = 0.2
    s_min: float = 0.05
    s_max: float = 50.0
    s_noise: float = 1.003

    def __post_init__(self) -> None:
        if not (self.churn >= 0 and 0 <= self.s_min <= self.s_max and self.s_noise > 0):
            raise SolverError(
                f"EDM needs churn >= 0, 0 <= s_min <= s_max and s_noise > 0, not {self.to_json()}"
            )

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.churn > 0

    def step(
        self, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        if t.alpha == 0:  # the sigma frame does not reach infinity; DDIM's step does
            return euler_step("flow", denoise, process, x, t, s)[0], None
        ratio = t.sigma / t.alpha
        if self.churn > 0 and self.s_min <= ratio <= self.s_max:
            raised = process.schedule.level_at(-2 * math.log(ratio * (1 + min(self.churn, math.sqrt(2) - 1))))
            scale = raised.alpha / t.alpha
            added = math.sqrt(raised.sigma**2 - (scale * t.sigma) ** 2)
            x = scale * x + (self.s_noise * added) * noise.normal(x)
            t = raised
        return heun_step("sigma", denoise, process, x, t, s), None
