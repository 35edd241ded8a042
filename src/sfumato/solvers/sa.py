"""SA-Solver: a stochastic Adams method, predictor and corrector, on the reverse SDE in the log-SNR.

`sde_dpm` derives the step that is exact but for x_0 along the way. Here x_0 is continued by the polynomial through the
last levels, integrated exactly (Adams-Bashforth, Xue et al. 2023, eq. 14); and when the model has been asked at the new
level, that answer joins the polynomial and the same step is made again, with the same noise (Adams-Moulton, eq. 17):

    predict   x_s = F x_t + alpha_s sum_(j < p) w_j x_0(l_(t-j)) + deviation z
    correct   x_s = F x_t + alpha_s [w_+ x_0(x_s, l_s) + sum_(j < c) w_j x_0(l_(t-j))] + deviation z.

The model is not asked again at the corrected state, so that a step costs one evaluation (PEC mode): the corrector of
the step to t is applied when the model has been asked at t, at the start of the step from t. The step to clean data
needs none.

tau is the rate of renewal, called eta elsewhere: 0 is the probability flow, 1 the chain's. It may hold in an interval
of sigma / alpha only, as EDM's churn does. Each step takes the rate of the level it starts from.

**Order.** At tau = 0 it is min(p, c) + 1 with a corrector and p without; but the first steps, which have seen less,
leave an error of the third and second order. With noise the variance of what Gaussian data become has the second order,
but for p = 1 without a corrector, which has the first; so has any on one Brownian path.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import SolverError
from ..noise import Draws
from ..processes import Gaussian, Level
from .sde_dpm import Seen, follow, forget
from .solver import Denoise, Solver, between, upper_end


class Made(NamedTuple):
    """The last step: what was seen before it, its rate, where it began and ended, and F x_t + deviation z."""

    seen: Seen
    rate: float
    ends: tuple[Level, Level]
    rest: Tensor


@dataclass(frozen=True)
class SASolver(Solver):
    """Stochastic Adams. predictor, corrector: how many levels each looks back at (corrector 0: none).

    tau: rate of renewal between s_min and s_max of sigma / alpha, 0 outside; 0 deterministic, 1 the chain's.
    s_max None: no upper end, pure noise included.
    """

    kind: ClassVar[str] = "sa"
    predictor: int = 2
    corrector: int = 2
    tau: float = 1.0
    s_min: float = 0.0
    s_max: float | None = None

    def __post_init__(self) -> None:
        if not (self.predictor in (1, 2, 3) and self.corrector in (0, 1, 2, 3)):
            raise SolverError(
                f"SA-Solver looks at 1 to 3 levels to predict and 0 to 3 to correct, not {self.predictor!r} "
                f"and {self.corrector!r}"
            )
        object.__setattr__(self, "s_max", upper_end(self.kind, self.s_min, self.s_max))
        if not 0 <= self.tau < math.inf:
            raise SolverError(f"SA-Solver needs a finite tau >= 0, not {self.tau!r}")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.tau > 0

    @property
    def order(self) -> int:  # type: ignore[override]
        return min(self.predictor, self.corrector, 2) + 1 if self.corrector else min(self.predictor, 2)

    def init(self, x: Tensor) -> Any:
        return None

    def step(
        self, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        now = (t.log_snr, denoise(x, t).x0)
        seen: Seen = (now,)
        if carry is not None:
            seen = (now, *carry.seen[: max(self.predictor, self.corrector) - 1])
            if self.corrector and math.isfinite(carry.ends[0].log_snr):
                before, here = carry.ends
                x = follow(carry.rest, carry.rate, before, here, (now, *carry.seen[: self.corrector]))
        ratio = t.sigma / t.alpha if t.alpha > 0 else math.inf
        tau = self.tau if between(ratio, self.s_min, self.s_max) else 0.0
        factor, deviation = forget(tau, t, s)
        rest = factor * x
        if deviation > 0:
            rest = torch.add(rest, noise.normal(x), alpha=deviation)
        rate = 1 + tau * tau
        return follow(rest, rate, t, s, seen[: self.predictor]), Made(seen, rate, (t, s), rest)
