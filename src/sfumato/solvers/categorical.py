"""Samplers of symbols. `Ancestral` is one, since it is made of the bridge; these are the others.

**Tau-leaping** freezes the rates of the reversed chain over a step and lets every position jump by them, with hazard
H_y = (t - s) beta(t) R_yx sum_x0 w(x_0) q_t(y | x_0) to y,

    P(x_s = y) = (1 - e^-H) H_y / H,   H = sum_y H_y       (Campbell et al. 2022, alg. 1),

the first jump of a step being made and further ones, whose order would mean nothing for symbols, not. From pure noise,
where the clock may be infinitely fast, and to clean data the step is the bridge.

**Remasking.** What is drawn jointly in one step, as if positions were independent, may not fit together, and the masked
chain never takes anything back. Noising the predicted x_0 anew leads to the marginal at s whatever x_t was, so any
mixture of that with the bridge does,

    p(x_s | x_t) = sum_x0 p(x_0 | x_t) [(1 - r) q(x_s | x_t, x_0) + r q(x_s | x_0)],     r = 1 - e^{-renewals (t - s)}.

For the mask it is the family of Wang et al. 2025 (eq. 6) with its sigma_t = r (1 - alpha_s): what is seen is hidden
again with that chance. Their rules for sigma_t are a share r or a cap of each step, and correct more the more steps
there are, without end and with an error of order r that does not fall; here r is a rate, `renewals` the times that a
position is drawn anew on the way from 1 to 0, so that the error falls with the steps. Under the uniform chain the same
mixture renews noise.

**Unmasking by confidence** (MaskGIT, Chang et al. 2022) shows at every step as many positions as the schedule wants,
but the surest ones. With n hidden at the start, at level t_0, floor(n (1 - alpha_s) / (1 - alpha_t0)) stay.

    by = "drawn"       a position is as sure as the symbol drawn for it is likely: MaskGIT's way, which prefers likely
                       symbols and so distorts the law even one position at a time
    by = "certainty"   as sure as its likeliest symbol is, whatever was drawn. One position at a time this is the chain
                       rule in an order that depends on what is seen: the law is exact

To the log-chances comes Gumbel noise times `temperature` (1 - alpha_s), falling as the hidden share does; a large
temperature is a random order.

Sources: Campbell et al. 2022 (arXiv 2205.14987); Wang et al. 2025 (2503.00307, ReMDM); Chang et al. 2022 (2202.04200).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import SolverError, choose
from ..noise import Draws, symbols
from ..processes import Categorical, CategoricalPrediction, Level, MaskedChain
from .solver import Solver


@dataclass(frozen=True)
class PositionWise(Solver):
    """Base of the samplers that draw every position alone, given what the denoiser says: they give its chances."""

    stochastic: ClassVar[bool] = True
    serves: ClassVar[tuple[type, ...]] = (Categorical,)

    def chances(self, prediction: CategoricalPrediction, s: Level) -> Tensor:
        """p(x_s) of each position, (batch, ..., states), at a level s cleaner than the prediction's."""
        raise NotImplementedError

    def step(
        self, denoise: Any, process: Categorical, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        return symbols(self.chances(denoise(x, t), s), noise), None


@dataclass(frozen=True)
class TauLeaping(PositionWise):
    """Jumps at the reverse rates of the step's start: P(x_s = y) = (1 - e^-H) H_y / H. Order 1.

    Source: Campbell et al. 2022 (arXiv 2205.14987), alg. 1.
    """

    kind: ClassVar[str] = "tau-leaping"

    def chances(self, prediction: CategoricalPrediction, s: Level) -> Tensor:
        process, t, own = prediction.process, prediction.level, prediction.x_t[..., None]
        if s.sigma == 0 or t.alpha == 0:
            return process.reverse(prediction, s)
        hazard = process.reverse_rates(prediction) * ((t.time - s.time) * process.rate(t))
        whole = hazard.sum(-1, keepdim=True)
        leave = -torch.expm1(-whole)
        share = torch.where(whole > 0, leave / whole.clamp(min=torch.finfo(whole.dtype).tiny), 0.0)
        return (hazard * share).scatter(-1, own, 1 - leave)


@dataclass(frozen=True)
class Remasking(PositionWise):
    """The bridge, mixed with noising x_0 anew: sum_x0 p(x_0 | x_t) [(1 - r) q(x_s | x_t, x_0) + r q(x_s | x_0)].

    renewals: how often a position is drawn anew over all time, r = 1 - e^{-renewals (t - s)}; 0 is `Ancestral`. Order
    1. Raises SolverError for a negative or infinite number. Source: Wang et al. 2025 (arXiv 2503.00307), eq. 6.
    """

    kind: ClassVar[str] = "remasking"
    renewals: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.renewals < math.inf:
            raise SolverError(f"renewals of the remasking solver are 0 or more, not {self.renewals!r}")

    def chances(self, prediction: CategoricalPrediction, s: Level) -> Tensor:
        process, t = prediction.process, prediction.level
        renewed = -math.expm1(-self.renewals * (t.time - s.time))
        return (1 - renewed) * process.reverse(prediction, s) + renewed * process.push(prediction.chances, s)


@dataclass(frozen=True)
class Unmasking(Solver):
    """The surest hidden positions are shown, as many as the schedule wants; masked chains only.

    by: "certainty", whose law is exact one position at a time, or "drawn", MaskGIT's. temperature: of the Gumbel noise
    on log-chances. The carry is how many were hidden at the start, over the hidden share there, (batch,).
    Raises SolverError for values out of range. Source: Chang et al. 2022 (arXiv 2202.04200), section 3.2.
    """

    kind: ClassVar[str] = "unmasking"
    stochastic: ClassVar[bool] = True
    serves: ClassVar[tuple[type, ...]] = (MaskedChain,)
    by: str = "certainty"
    temperature: float = 0.0

    def __post_init__(self) -> None:
        choose(self.by, ("certainty", "drawn"), "order of unmasking", SolverError)
        if not 0 <= self.temperature < math.inf:
            raise SolverError(f"temperature of the unmasking solver is 0 or more, not {self.temperature!r}")

    def step(
        self, denoise: Any, process: MaskedChain, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        prediction: CategoricalPrediction = denoise(x, t)
        hidden = (x == process.mask).flatten(1)
        whole = hidden.sum(1).double() / (1 - t.alpha) if carry is None else carry
        left = (whole * (1 - s.alpha) + 1e-6).floor() if s.sigma > 0 else torch.zeros_like(whole)
        drawn = symbols(prediction.chances, noise)
        sure = prediction.value.max(-1).values
        if self.by == "drawn":
            sure = prediction.value.gather(-1, drawn[..., None])[..., 0]
        if self.temperature > 0:
            u = noise.uniform(sure, 1).clamp(min=2.0**-25)  # 0 is a draw of which the logarithm is none
            sure = sure - self.temperature * (1 - s.alpha) * torch.log(-torch.log(u))
        # stable, so that ties fall alike in every batch
        sure = torch.where(hidden, sure.flatten(1), torch.inf)
        rank = sure.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
        stays = (hidden & (rank < left[:, None])).reshape(x.shape)
        return torch.where(stays | (x != process.mask), x, drawn), whole
