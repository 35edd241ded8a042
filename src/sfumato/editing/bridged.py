"""Replacement and RePaint: ordinary sampling whose state is made to agree with the measurement after every step.

What was measured is noised to the level that a step arrives at, and takes the place of what the step said of it
(Song et al. 2021, app. I.2, for a mask). The noise of a state is the same in every pixel, and that of what A measures
of it has the covariance A A*, so it is drawn as pixels and measured, too; and since y has noise of its own, A+ is
damped by how much of it there is beside the state's,

    x_s <- x_s + A* (A A* + alpha_s^2 sigma_y^2 / sigma_s^2)^-1 (alpha_s y + sigma_s A z - A x_s),      z ~ N(0, I).

At sigma_y = 0 it is A+, and all that was measured is imposed; where A passes next to nothing (the high frequencies of
a blur) next to nothing is. No gradient; one evaluation a step.

What was not measured has been drawn without knowing what is put beside it, so the two need not fit. RePaint (Lugmayr
et al. 2022) lets them grow together: it noises x_s forward to x_t again and repeats the step,

    x_t = (alpha_t / alpha_s) x_s + sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2) z,

`repeats` evaluations a step. Here each step is repeated, which is their jump length of 1.

Neither samples the posterior, whatever the number of steps (measured in `benchmarks/posterior.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..errors import SolverError
from ..noise import Draws
from ..processes import Gaussian, Level
from ..solvers import Driver, Solver
from ..solvers.solver import Denoise
from .operator import Measurement

MEASURED, AGAIN = 1 << 42, (1 << 42) + 1  # streams that no solver uses


@dataclass(frozen=True, eq=False)
class Replacing(Solver):
    """A solver whose every step is made to agree with a measurement, `repeats` times over.

    base: the solver. It must make its steps on its own: a multistep one would extrapolate from states that were
    replaced. Raises SolverError for a driver, or repeats below 1.
    """

    kind: ClassVar[str] = "replacing"
    stochastic: ClassVar[bool] = True
    base: Solver
    measurement: Measurement
    repeats: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.base, Driver):
            raise SolverError(
                f"replacement needs the steps of a grid, which {self.base.kind} does not take: choose another"
            )
        if isinstance(self.repeats, bool) or not isinstance(self.repeats, int) or self.repeats < 1:
            raise SolverError(f"repeats must be a whole number from 1 on, not {self.repeats!r}")
        self.measurement.linear  # noqa: B018 (refuses what it is not)

    def cost(self, steps: int) -> int:
        return self.base.cost(steps) * self.repeats

    def step(
        self, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        x_s = x
        for turn in range(self.repeats):
            streams = _Offset(noise, turn << 20)
            x_s, _ = self.base.step(denoise, process, x, t, s, self.base.init(x), streams)
            x_s = self._replace(x_s, s, streams)
            if turn + 1 < self.repeats:
                ratio = t.alpha / s.alpha
                spread = math.sqrt(max(t.sigma**2 - (ratio * s.sigma) ** 2, 0.0))
                x = ratio * x_s + spread * streams.normal(x_s, AGAIN)
        return x_s, None

    def _replace(self, x: Tensor, s: Level, noise: Draws) -> Tensor:
        own = self.measurement
        if s.sigma == 0 < own.sigma:
            return x  # clean, beside a measurement that is not
        damping = (s.alpha * own.sigma / s.sigma) ** 2 if own.sigma else 0.0
        z = s.sigma * noise.normal(x, MEASURED)
        return x + own.linear.inverse(s.alpha * own.y.to(x) + own.operator(z) - own.operator(x), damping)


@dataclass(frozen=True)
class _Offset:
    """The draws of one turn: streams of their own."""

    noise: Draws
    offset: int

    def normal(self, like: Tensor, stream: int = 0) -> Tensor:
        return self.noise.normal(like, stream + self.offset)

    def uniform(self, like: Tensor, stream: int = 0) -> Tensor:
        return self.noise.uniform(like, stream + self.offset)
