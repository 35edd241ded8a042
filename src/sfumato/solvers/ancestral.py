"""Solvers made of the bridge alone: DDIM and ancestral sampling.

Both put the predicted x_0 into q(x_s | x_t, x_0) and draw (Ho et al. 2020, alg. 2; Song et al. 2021, eq. 12):

    x_s = alpha_s x_0 + sqrt(sigma_s^2 - eta^2 v) eps + eta sqrt(v) z,     v = sigma_s^2 (1 - exp(lambda_t - lambda_s)).

eta = 0 is DDIM, a first-order solver of the probability-flow ODE: it is exact when x_0 does not change along the way.
eta = 1 is the chain's posterior. The chain may also be run with the larger variance sigma_t^2 - (alpha_t/alpha_s)^2
sigma_s^2 (DDPM's "fixed large"), or with the one that the network learned; then the mean stays and the noise changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..errors import SolverError, choose
from ..noise import Draws
from ..processes import Categorical, Gaussian, Level, Prediction
from .solver import Denoise, Solver


@dataclass(frozen=True)
class DDIM(Solver):
    """The bridge with a chosen share of noise. eta: 0 deterministic (order 1) to 1 ancestral."""

    kind: ClassVar[str] = "ddim"
    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise SolverError(f"eta of DDIM lies in [0, 1], not {self.eta!r}")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0

    def step(
        self, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        return process.bridge(x, denoise(x, t), t, s, noise, self.eta), None


@dataclass(frozen=True)
class Ancestral(Solver):
    """The reverse chain of DDPM. variance: "lag" (right for known x_0), "chain" (right for white x_0), "learned".

    With "lag" it is the bridge alone, and serves categorical processes too (D3PM, MDLM).
    """

    kind: ClassVar[str] = "ancestral"
    stochastic: ClassVar[bool] = True
    variance: str = "lag"

    def __post_init__(self) -> None:
        choose(self.variance, ("lag", "chain", "learned"), "variance of ancestral sampling", SolverError)

    @property
    def serves(self) -> tuple[type, ...]:  # type: ignore[override]
        return (Gaussian, Categorical) if self.variance == "lag" else (Gaussian,)

    def step(
        self, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        prediction = denoise(x, t)
        if self.variance == "lag" or s.sigma == 0:
            return process.bridge(x, prediction, t, s, noise), None
        lag = process.lag(t, s)
        mean = s.alpha * prediction.x0 + math.sqrt(max(s.sigma**2 - lag, 0.0)) * prediction.eps
        return mean + self._deviation(prediction, lag, t, s) * noise.normal(mean), None

    def _deviation(self, prediction: Prediction, lag: float, t: Level, s: Level) -> Any:
        chain = t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2
        if self.variance == "chain":
            return math.sqrt(chain)
        if prediction.variance is None:
            raise SolverError("this model has no learned variance: use variance 'lag' or 'chain'")
        weight = (prediction.variance + 1) / 2
        return (0.5 * (weight * math.log(chain) + (1 - weight) * math.log(lag))).exp()
