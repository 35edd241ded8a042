"""Adams-Moulton: a multistep predictor and corrector at one evaluation a step, the solver to start with.

In a frame (see `solver`) the probability flow is dy/du = g(y, u). Through the last slopes g_i, g_{i-1}, .. goes one
polynomial in u, and a step is its integral (Hairer, Norsett & Wanner 1993, ch. III.1), on whatever nodes there are:

    predict   y*_{i+1} = y_i + int_{u_i}^{u_{i+1}} P(u) du,    P through g_i .. g_{i-p+1}             Adams-Bashforth
    evaluate  g_{i+1} = g(y*_{i+1}, u_{i+1})
    correct   y_{i+1} = y_i + int_{u_i}^{u_{i+1}} Q(u) du,     Q through g_{i+1} .. g_{i-q+2}         Adams-Moulton

The evaluation that corrects a step is the one that predicts the next, so the corrector costs nothing; the last
step, to clean data, stays as predicted. The first steps have fewer slopes behind them and use lower orders.

**Frame.** `mixed`: the flow's scale y = x / (alpha + sigma), whose slope is the flow velocity, over the angle
u = atan(sigma / alpha). The velocity hardly changes in it while there is much noise, and it is finite at both ends,
zero terminal SNR included. Which frame and nodes are used matters more than the order: see `benchmarks/solvers.py`.

**Order.** min(p + 1, q), or p without corrector, once there are so many slopes. The first steps have fewer: the very
first, a trapezoid after Euler's, leaves an error O(h^3) of its own, which is small where it is short or, as on the
`angle` grid, made where the velocity is nearly constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

from torch import Tensor

from ..errors import SolverError, choose
from ..noise import Draws
from ..processes import Gaussian, Level
from .adams import MOST, adams_weights
from .solver import FRAMES, Denoise, Solver, frame_at

MANY = 1000  # steps: a run that does not say how many it has


@lru_cache(4096)  # a run asks for the same ones batch after batch
def _weights(nodes: tuple[float, ...], start: float, end: float) -> tuple[float, ...]:
    return tuple(adams_weights(nodes, start, end))


@dataclass(frozen=True)
class AdamsMoulton(Solver):
    """Adams-Bashforth predictor and Adams-Moulton corrector. predictor, corrector: how many slopes each goes through.

    corrector 0: none, which is Adams-Bashforth. Both None: by the number of steps, (2, 0) up to 6, (2, 3) up to 13 and
    (4, 5) beyond, chosen by the errors on Gaussian mixtures.
    """

    kind: ClassVar[str] = "adams-moulton"
    predictor: int | None = None
    corrector: int | None = None
    frame: str = "mixed"

    def __post_init__(self) -> None:
        choose(self.frame, [frame for frame in FRAMES if frame != "time"], "frame", SolverError)
        if (self.predictor is None) != (self.corrector is None):
            raise SolverError("give both orders of Adams-Moulton, predictor and corrector, or neither")
        if self.predictor is not None and not 1 <= self.predictor <= MOST:
            raise SolverError(f"the predictor takes 1 to {MOST} slopes, not {self.predictor!r}")
        if self.corrector is not None and not (self.corrector == 0 or 2 <= self.corrector <= MOST):
            raise SolverError(
                f"the corrector takes 2 to {MOST} slopes, or 0 for none, not {self.corrector!r}"
            )

    @property
    def order(self) -> int:  # type: ignore[override]
        predictor, corrector = self._orders(MANY)
        return min(predictor + 1, corrector) if corrector else predictor

    @property
    def start_order(self) -> int:
        return min(self.order, 2)

    def within(self, steps: int) -> AdamsMoulton:
        predictor, corrector = self._orders(steps)
        return replace(self, predictor=predictor, corrector=corrector)

    def _orders(self, steps: int) -> tuple[int, int]:
        if self.predictor is not None and self.corrector is not None:
            return self.predictor, self.corrector
        return (2, 0) if steps <= 6 else (2, 3) if steps <= 13 else (4, 5)

    def step(
        self, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        predictor, corrector = self._orders(MANY)
        c, u, a, b = frame_at(self.frame, process, t)
        c_end, u_end, *_ = frame_at(self.frame, process, s)
        past, corrected = carry or ((), x)
        slopes = ((u, denoise(x, t).combine(a, b)), *past)
        y = (1 / c) * x
        if past and corrector:
            y = _add(corrected, slopes[:corrector], past[0][0], u)
        slopes = slopes[: max(predictor, corrector - 1)]
        return c_end * _add(y, slopes[:predictor], u, u_end), (slopes, y)


def _add(y: Tensor, slopes: Sequence[tuple[float, Tensor]], start: float, end: float) -> Tensor:
    """y and the integral from start to end of the polynomial through the slopes."""
    weights = _weights(tuple(u for u, _ in slopes), start, end)
    # the first sum is a new tensor, which the others may be added to in place: half the time of a chain of new ones
    total = y.add(slopes[0][1], alpha=weights[0])
    for weight, (_, slope) in zip(weights[1:], slopes[1:], strict=True):
        total = total.add(slope, alpha=weight) if total.requires_grad else total.add_(slope, alpha=weight)
    return total
