"""The variational bound on -log p(x_0), with exact KL terms and a discretised decoder.

A chain of T steps at times i/T has, for p(x_s | x_t) = N(mean(x_t, x0^), V) built on the bridge (Ho et al., eq. 5),

    -log p(x_0) <= KL(q(x_1 | x_0) || p(x_1))                                  prior
                   + sum_{i=2}^T KL(q(x_s | x_t, x_0) || p(x_s | x_t))          one term a step
                   - log P(x_0 | x_{1/T})                                       decoder.

Every term is between Gaussians, hence exact given x_t; the decoder is a Gaussian integrated over the bin of each
8-bit value (width 2/255 in [-1, 1], open at both ends). The chain ends at x_0 itself: where a schedule keeps some
noise at t = 0 (VE, EDM), its last step goes to the clean data all the same. A network with learned variance
interpolates log V between the bounds of the reverse variance (Nichol & Dhariwal 2021, eq. 15): the lag of the bridge,
right when x_0 is known, and the chain's own sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2, right when x_0 is white noise.

How tight it is: where the noise is smaller than the data, a step of fixed variance loses (q - 1 - log q) / 2 nats a
dimension, q = SNR_s / SNR_t. With T the bound tightens only if every q comes to 1, as on `edm` and `ve`. Where sigma is
about t near the data (`flow`, `cosine`), q = 4 in the second step whatever T, and up to 1.9 bits remain; there a
learned variance is what closes the gap.

One random term times T estimates the sum without bias; all T terms give it exactly. Divided by dim log 2 it is bits
per dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Condition, Denoiser, Denoises
from ..errors import RecipeError
from ..noise import Draws
from ..processes import CLEAN, Gaussian, Level, Prediction
from .denoising import EPS, TIME, Batch, Denoising, drop_condition


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)


def gaussian_kl(mean1: Tensor, log_var1: Tensor, mean2: Tensor, log_var2: Tensor) -> Tensor:
    """KL(N(mean1, var1) || N(mean2, var2)) in nats, elementwise."""
    ratio = torch.exp(log_var1 - log_var2)
    return 0.5 * (log_var2 - log_var1 - 1 + ratio + (mean1 - mean2).square() * torch.exp(-log_var2))


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_var: Tensor, values: int = 256) -> Tensor:
    """log of a Gaussian's mass in the bin around x, elementwise: `values` even values in [-1, 1], end bins open."""
    half, dtype = 1.0 / (values - 1), x.dtype
    # float64: the gradient of log_ndtr(z) is exp(-z^2/2 - log_ndtr(z)), which in float32 overflows from |z| = 2e4 on
    x, mean = x.double(), mean.double()
    scale = torch.exp(-0.5 * log_var.double())
    upper, lower = (x + half - mean) * scale, (x - half - mean) * scale
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    # log(cdf(upper) - cdf(lower)); by symmetry take the side on which the two do not both round to 1
    flip = lower > 0
    big = torch.where(flip, torch.special.log_ndtr(-lower), log_upper)
    small = torch.where(flip, torch.special.log_ndtr(-upper), log_lower)
    inside = big + torch.log1p(-torch.exp((small - big).clamp(max=-1e-14)))
    low_end = torch.where(x < -1 + half, log_upper, inside)
    return torch.where(x > 1 - half, torch.special.log_ndtr(-lower), low_end).to(dtype)


def chain_levels(process: Any, steps: int, index: Tensor) -> tuple[Level, Level]:
    """Where step index (batch,) of a chain comes from and where it goes: i/T and (i - 1)/T, the last of them clean."""
    index = index.double()
    s = process.level((index - 1) / steps)
    ends = zip(s, CLEAN, strict=True)
    return process.level(index / steps), Level(*(torch.where(index == 1, end, row) for row, end in ends))


@dataclass(frozen=True)
class Bound:
    """The variational bound of a T-step chain, as an objective (one random term an example) or exactly.

    steps: T. values: how many levels the data were quantised to.
    """

    steps: int = 1000
    values: int = 256

    def __post_init__(self) -> None:
        if self.steps < 2 or self.values < 2:
            raise RecipeError(
                f"a bound needs at least 2 steps and 2 values, not {self.steps} and {self.values}"
            )

    def prior(self, process: Gaussian, x0: Tensor) -> Tensor:
        """KL(q(x_1 | x_0) || p(x_1)) / dim in nats, (batch,)."""
        end = process.level(1.0)
        own, known = end.sigma**2 + (end.alpha * process.sigma_data) ** 2, end.sigma**2
        log_own, log_known = x0.new_tensor(own).log(), x0.new_tensor(known).log()
        return _flat(gaussian_kl(end.alpha * x0, log_known, torch.zeros_like(x0), log_own))

    def levels(self, process: Gaussian, index: Tensor) -> tuple[Level, Level]:
        """Where step index (batch,) comes from and where it goes: i/T and (i - 1)/T, the last of them clean."""
        return chain_levels(process, self.steps, index)

    def reverse_log_variance(self, prediction: Prediction, t: Any, s: Any) -> Tensor:
        """log V of p(x_s | x_t): between the bridge's lag (the fixed choice) and the chain's variance."""
        process, x = prediction.process, prediction.x_t
        lag = process.lag(t, s)
        chain = (t.sigma**2 - (t.alpha / s.alpha) ** 2 * s.sigma**2).clamp(min=1e-20)
        # the bridge into x_0 itself has no width: the decoder takes that of the step before (Nichol & Dhariwal)
        first = (
            process.level(torch.full_like(t.time, 2 / self.steps)),
            process.level(torch.full_like(t.time, 1 / self.steps)),
        )
        lag = torch.where(s.sigma > 0, lag, process.lag(*first)).clamp(min=1e-20)
        shape = (-1, *[1] * (x.ndim - 1))
        low, high = (value.log().to(x.dtype).reshape(shape) for value in (lag, chain))
        if prediction.variance is None:
            return torch.where(s.sigma.reshape(shape) > 0, low, high).expand_as(x)
        weight = (prediction.variance + 1) / 2
        return weight * high + (1 - weight) * low

    def term(
        self, denoiser: Denoises, x0: Tensor, condition: Condition, index: Tensor, eps: Tensor
    ) -> tuple[Tensor, Prediction]:
        """The term of step index (batch,), 1 being the decoder, in nats per dimension, and the prediction it used."""
        process = denoiser.process
        t, s = self.levels(process, index)
        x_t = process.corrupt(x0, t, eps)
        prediction = denoiser(x_t, t, condition)
        return self._term(prediction, x0, x_t, t, s), prediction

    def _term(self, prediction: Prediction, x0: Tensor, x_t: Tensor, t: Any, s: Any) -> Tensor:
        process = prediction.process
        shape = (-1, *[1] * (x0.ndim - 1))
        log_var = self.reverse_log_variance(prediction, t, s)
        lag = process.lag(t, s)
        # mean = (alpha_s - r alpha_t) x0 + r x_t, r = sqrt(sigma_s^2 - v) / sigma_t
        r = (s.sigma**2 - lag).clamp(min=0).sqrt() / t.sigma
        share, r = ((s.alpha - r * t.alpha).to(x0.dtype).reshape(shape), r.to(x0.dtype).reshape(shape))
        true_mean, mean = share * x0 + r * x_t, share * prediction.x0 + r * x_t
        log_lag = lag.clamp(min=1e-20).log().to(x0.dtype).reshape(shape)
        kl = _flat(gaussian_kl(true_mean, log_lag, mean, log_var))
        # where it is not asked for it is given what it can do, so that no gradient of it overflows there
        clean = (s.sigma == 0).reshape(shape)
        mean, log_var = torch.where(clean, mean, x0), torch.where(clean, log_var, torch.zeros_like(log_var))
        decoder = -_flat(discretised_log_likelihood(x0, mean, log_var, self.values))
        return torch.where(s.sigma > 0, kl, decoder.to(kl.dtype))

    def __call__(self, denoiser: Denoiser, batch: Batch, noise: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        x0 = batch["x"]
        index = 1 + (noise.uniform(x0.new_empty(len(x0)), TIME) * self.steps).long().clamp(max=self.steps - 1)
        term, prediction = self.term(denoiser, x0, batch.get("condition"), index, noise.normal(x0, EPS))
        figures = {"log_snr": prediction.level.log_snr, "error": term.detach()}
        return self.steps * term + self.prior(denoiser.process, x0), figures

    @torch.no_grad()
    def bits_per_dimension(
        self,
        denoiser: Denoises,
        x0: Tensor,
        noise: Any,
        condition: Condition = None,
        terms: int | None = None,
    ) -> Tensor:
        """The bound in bits per dimension, (batch,): exact over all steps, or from `terms` strata of them.

        noise: a `Noise` for this batch. With fewer terms than steps, each stratum contributes one random step times
        its size: unbiased, at `terms` evaluations an example.
        """
        terms = min(terms or self.steps, self.steps)
        total = self.prior(denoiser.process, x0).double()
        edges = torch.linspace(0, self.steps, terms + 1).round().long().tolist()
        for k, (low, high) in enumerate(pairwise(edges)):
            draws = noise.at(k)
            offset = (
                (draws.uniform(x0.new_empty(len(x0), 1), TIME)[:, 0] * (high - low))
                .long()
                .clamp(max=high - low - 1)
            )
            term, _ = self.term(denoiser, x0, condition, 1 + low + offset, draws.normal(x0, EPS))
            total += (high - low) * term.double()
        return total / math.log(2)


@dataclass(frozen=True)
class Hybrid:
    """L_simple + weight T L_term: the denoising loss trains the mean, the bound the variance alone.

    The bound's mean is detached, so that its noisy gradient reaches only the learned variance (Nichol & Dhariwal 2021,
    eq. 16; weight 0.001). Needs a denoiser with learned variance.
    """

    denoising: Denoising = field(default_factory=Denoising)
    bound: Bound = field(default_factory=Bound)
    weight: float = 0.001

    def __call__(self, denoiser: Denoiser, batch: Batch, noise: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        if not denoiser.learned_variance:
            raise RecipeError(
                "the hybrid objective trains a learned variance: set denoiser.learned_variance = true"
            )
        x0, process = batch["x"], denoiser.process
        t = self.denoising.times.sample(x0, process.schedule, noise, TIME)
        index = (t * self.bound.steps).ceil().clamp(1, self.bound.steps)
        level, s = self.bound.levels(process, index)
        eps = noise.normal(x0, EPS)
        x_t = process.corrupt(x0, level, eps)
        condition = drop_condition(batch.get("condition"), self.denoising.drop, self.denoising.classes, noise)
        prediction = denoiser(x_t, level, condition)
        squared = Denoising.error(prediction, x0, eps)
        simple = self.denoising.weighting.in_row(prediction.kind, level, process).to(squared.dtype) * squared
        frozen = Prediction(
            prediction.value.detach(), prediction.kind, x_t, level, process, prediction.variance
        )
        term = self.bound._term(frozen, x0, x_t, level, s)
        gain = process.gain(prediction.kind, "v", level)
        figures = {
            "log_snr": level.log_snr,
            "error": squared.detach() * (gain * gain).to(squared.dtype),
            "bound": term.detach(),
        }
        return simple + self.weight * self.bound.steps * term, figures
