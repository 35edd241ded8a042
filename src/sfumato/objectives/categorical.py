"""The variational bound on -log p(x_0) of a categorical chain: in T steps, or in none, all time being one.

**T steps**, at times i/T, as of any chain, with p(x_s | x_t) = sum_x0 p(x_0 | x_t) q(x_s | x_t, x_0) at each position:

    -log p(x_0) <= KL(q(x_1 | x_0) || pi) + sum_i KL(q(x_s | x_t, x_0) || p(x_s | x_t)).

The last term, at s = 0 where q knows x_0, is -log p(x_0 | x_t) by itself: data are symbols, no decoder is needed.

**Continuous time.** As T grows a step is a jump or none, and the sum becomes an integral over the difference of jump
rates: the true ones a, given x_0, and the model's b, given p(x_0 | x_t) (Campbell et al. 2022, prop. 2; with ratios of
chances in the place of b it is Lou et al. 2024, eq. 10),

    integral over t of beta(t) E sum_{y != x_t} [a log(a / b) - a + b],      a, b: `reverse_rates` of `processes`.

For the mask a jumps to x_0 alone, at alpha / (1 - alpha), and the b add up to as much, so what is left is the weighted
cross-entropy of what is hidden (Sahoo et al. 2024, eq. 10; Shi et al. 2024, prop. 1),

    integral over t of -alpha'(t) / (1 - alpha(t)) E sum_{hidden} -log p(x_0 | x_t),

the same for every schedule: alpha is only a way to draw how much is hidden.

**How tight.** Let p(x_0 | x_t) be exact. In continuous time positions never jump together, the model's path is the
data's path reversed, and the mean of the bound over data is their entropy. In T steps positions that jump in one step
are drawn independently; the mean exceeds the entropy by what they know of each other, which falls as 1/T.

A model whose p(x_0 | x_t) does not come to x_t as t -> 0 has no finite integral on a chain without a mask: from x_t =
x_0 its rates b grow as 1/t. Denoisers put in what x_t says of itself (`denoisers.categorical`), and are safe.

A random time (or step) times all of them estimates the sum without bias; times of a batch are stratified. Everything
is divided by the number of positions: nats a symbol.

Sources: Austin et al. 2021 (arXiv 2107.03006); Campbell et al. 2022 (2205.14987); Lou et al. 2024 (2310.16834); Sahoo
et al. 2024 (2406.07524); Shi et al. 2024 (2406.04329).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..denoisers import Condition, Denoises
from ..errors import RecipeError
from ..noise import Apart, Draws
from ..processes import Categorical, CategoricalPrediction, Level, MaskedChain
from .bound import chain_levels
from .denoising import TIME, Batch, drop_condition
from .times import EDGE, Uniform

CORRUPT = 1 << 20  # where the streams begin that a state is corrupted by


def _relative(true: Tensor, model: Tensor) -> Tensor:
    """true log(true / model), elementwise, 0 where true is."""
    return torch.xlogy(true, true) - torch.xlogy(true, torch.where(true > 0, model, 1.0))


def _mean(x: Tensor) -> Tensor:
    """The mean over positions (batch, ...), (batch,)."""
    return x.reshape(len(x), -1).mean(1)


@dataclass(frozen=True)
class CategoricalBound:
    """The bound on -log p(x_0) in nats a symbol, (batch,), as an objective (a random time an example) or in bits.

    steps: T, None for continuous time, from 1e-5 to 1 - 1e-5. drop, classes: as for `Denoising`.
    Raises RecipeError for values out of range, a process without symbols, or one that ends with data under no mask,
    whose bound is infinite.
    """

    steps: int | None = None
    drop: float = 0.0
    classes: int = 0

    def __post_init__(self) -> None:
        if self.steps is not None and (isinstance(self.steps, bool) or not self.steps >= 1):
            raise RecipeError(
                f"a bound needs at least 1 step, or None for continuous time, not {self.steps!r}"
            )
        if not 0 <= self.drop <= 1:
            raise RecipeError(f"the share of dropped conditions must lie in [0, 1], not {self.drop!r}")

    def prior(self, process: Categorical, x0: Tensor) -> Tensor:
        """KL(q(x_1 | x_0) || pi) a symbol, (batch,) in float64."""
        end = process.push(F.one_hot(x0, process.symbols).double(), process.level(1.0))
        cost = _relative(end, process.stationary.to(x0.device)).sum(-1)
        if not bool(cost.isfinite().all()):
            raise RecipeError(
                f"under the {process.schedule.kind} schedule {process.level(1.0).alpha:.2g} of the data are still "
                "seen at t = 1, where sampling begins with masks: take one that ends at 0, such as 'flow'"
            )
        return _mean(cost)

    @staticmethod
    def rate(prediction: CategoricalPrediction, x0: Tensor) -> Tensor:
        """What the integral gathers in a unit of time at the prediction's level, a symbol, (batch,)."""
        process, level, x_t = prediction.process, prediction.level, prediction.x_t
        beta = torch.as_tensor(process.rate(level), dtype=torch.float64, device=x_t.device)
        if isinstance(process, MaskedChain):
            odds = beta * level.alpha / (1 - level.alpha)
            cross = -prediction.value.gather(-1, x0[..., None])[..., 0]
            return odds * _mean(torch.where(x_t == process.mask, cross, 0.0))
        own, model = _both(prediction, x0)
        a, b = process.reverse_rates(own), process.reverse_rates(model)
        return beta * _mean((_relative(a, b) - a + b).sum(-1))

    @staticmethod
    def divergence(prediction: CategoricalPrediction, x0: Tensor, s: Level) -> Tensor:
        """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) of a step from the prediction's level to s, a symbol, (batch,)."""
        own, model = (prediction.process.reverse(known, s) for known in _both(prediction, x0))
        return _mean(_relative(own, model).sum(-1))

    def at(
        self, denoiser: Denoises, x0: Tensor, u: Tensor, condition: Condition, noise: Draws
    ) -> tuple[Tensor, Any]:
        """The bound's estimate from one place u in [0, 1) of the way (batch,), and the prediction it used."""
        process = denoiser.process
        if self.steps is None:
            t, s = process.level(u.double().clamp(EDGE, 1 - EDGE)), None
        else:
            index = 1 + (u * self.steps).long().clamp(max=self.steps - 1)
            t, s = chain_levels(process, self.steps, index)
        x_t = process.corrupt(x0, t, Apart(noise, CORRUPT))
        prediction: Any = denoiser(x_t, t, condition)
        if s is None:
            return self.rate(prediction, x0), prediction
        return (self.steps or 1) * self.divergence(prediction, x0, s), prediction

    def __call__(self, denoiser: Any, batch: Batch, noise: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        x0, process = batch["x"], denoiser.process
        if not isinstance(process, Categorical):
            raise RecipeError(f"this bound is of a categorical process, not of {type(process).__name__}")
        u = Uniform().sample(x0, process.schedule, noise, TIME)
        condition = drop_condition(batch.get("condition"), self.drop, self.classes, noise)
        loss, prediction = self.at(denoiser, x0, u, condition, noise)
        cross = -prediction.value.detach().gather(-1, x0[..., None])[..., 0]
        figures = {"log_snr": prediction.level.log_snr, "error": _mean(cross)}
        return (loss + self.prior(process, x0)).to(prediction.value.dtype), figures

    @torch.no_grad()
    def bits_per_symbol(
        self, denoiser: Denoises, x0: Tensor, noise: Any, condition: Condition = None, terms: int = 64
    ) -> Tensor:
        """The bound in bits a symbol, (batch,) in float64, from `terms` strata of the way, an evaluation each.

        noise: a `Noise` for this batch. Unbiased whatever the terms.
        """
        total = self.prior(denoiser.process, x0)
        for k in range(terms):
            draws = noise.at(k)
            within = draws.uniform(x0.new_empty(len(x0), 1, dtype=torch.float64), TIME)[:, 0]
            total += self.at(denoiser, x0, (k + within) / terms, condition, draws)[0] / terms
        return total / math.log(2)


def _both(
    prediction: CategoricalPrediction, x0: Tensor
) -> tuple[CategoricalPrediction, CategoricalPrediction]:
    """Who knows x_0 and the model, in float64, where rates that hardly differ can be compared."""
    process, level, x_t = prediction.process, prediction.level, prediction.x_t
    model = CategoricalPrediction(prediction.value.double(), x_t, level, process)
    return process.certain(x0, x_t, level, torch.float64), model
