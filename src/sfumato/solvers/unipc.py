"""UniPC: a predictor and a corrector that share their evaluations (Zhao et al. 2023, alg. 5-8), for x0.

In the half-log-SNR l the probability flow is an exponential integral of x0 (see `adams` and `dpm`). With m_i = x0 at
other levels, r_i = (l_i - l_t) / h and D_i = (m_i - m_t) / r_i, UniPC's update is

    x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^-h) m_t + alpha_s B(h) sum_i rho_i D_i,

where rho solves R rho = b so that polynomials of x0 in l are integrated exactly. Then B(h) cancels, and

* UniP-p, through p levels up to t, is exponential Adams-Bashforth of order p;
* UniC-p, through s as well, is exponential Adams-Moulton of order p + 1.

B(h) is felt only where there is one difference (UniP-2, UniC-1) and the paper takes rho = 1/2 without solving: then
B = h ("bh1") or B = 1 - e^-h ("bh2"), which agree to the order of the method. UniP-2 with bh2 is DPM-Solver++(2M).

The corrector needs x0 at s, which the next step asks for at the predicted x_s; it then makes x_s anew, and the next
step starts there. So a step costs one evaluation and the order is p + 1, while the last step, which nothing follows,
stays as predicted. The first step is made by UniP-1 and UniC-1, so its error is O(h^3), once. Steps from alpha = 0 and
to sigma = 0, where l is infinite, are Adams's in the flow frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..errors import SolverError, choose
from ..noise import Draws
from ..processes import Gaussian, Level
from .adams import Said, adams_step, adams_weights, ask, check_order
from .solver import Denoise, Solver

_FRAME = "x0-exponential"


@dataclass(frozen=True)
class UniPC(Solver):
    """UniP-p with UniC-p, p = predictor: order p + 1 at one evaluation a step. variant: B(h), "bh1" or "bh2".

    corrector = False leaves UniP-p alone, of order p. Its carry: where the last step began, and what was said before.
    """

    kind: ClassVar[str] = "unipc"
    predictor: int = 2
    variant: str = "bh2"
    corrector: bool = True

    def __post_init__(self) -> None:
        check_order(self.predictor, "predictor of UniPC", 1, 6)
        choose(self.variant, ("bh1", "bh2"), "variant of UniPC", SolverError)

    @property
    def order(self) -> int:  # type: ignore[override]
        return self.predictor + bool(self.corrector)

    @property
    def start_order(self) -> int:
        return min(self.order, 3 if self.corrector else 2)

    def step(
        self, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        said = (ask(_FRAME, denoise, process, x, t),)
        if carry is not None:
            last, x_last, before = carry
            said = (*said, *before)
            if self.corrector:
                x = self._move(process, x_last, last, t, said)
        said = said[: self.predictor]
        return self._move(process, x, t, s, said), (t, x, said)

    def _move(self, process: Gaussian, x: Tensor, t: Level, s: Level, said: Sequence[Said]) -> Tensor:
        return adams_step(_FRAME, process, x, t, s, said, self._weights)

    def _weights(self, nodes: Sequence[float], start: float, end: float, rate: float) -> list[float]:
        if rate == 0 or len(nodes) != 2 or start not in nodes:
            return adams_weights(nodes, start, end, rate)
        h, here = end - start, nodes.index(start)
        whole = -math.expm1(-h)
        half = 0.5 * (h if self.variant == "bh1" else whole) * h / (nodes[1 - here] - start)
        return [whole - half, half] if here == 0 else [half, whole - half]
