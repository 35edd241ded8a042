"""Score matching: learning the score of the noisy data without being told the noise that was mixed in.

For a score s(x) of a density p(x), integration by parts turns the error against a score that nobody knows into what
can be computed (Hyvarinen 2005, eq. 4):

    1/2 E |s - grad log p|^2  =  E [ 1/2 |s|^2 + tr ds/dx ] + constant          implicit
                              =  E [ 1/2 |s|^2 + v . (ds/dx) v ] + constant     sliced, E[v v^T] = I  (Song et al. 2019)
                              =  1/2 E |s + eps / sigma|^2 + constant           denoising, x = alpha x_0 + sigma eps
                                                                                            (Vincent 2011, eq. 11)

(sliced in its form of reduced variance, eq. 8 there: |s|^2 is exact, only the trace is sampled). All three act here on
the density of x_t at random levels. With s = -eps^ / sigma the middle two, weighted by 2 sigma^2 / dim as NCSN weights
them and with 1 = E |eps|^2 / dim added, are

    l = ( |eps^|^2 - 2 sigma v . (d eps^ / dx) v ) / dim + 1,          E l = E |eps^ - eps|^2 / dim,

the denoising loss of weight 1 in eps, in expectation and hence in gradient, for every network, level and
parameterisation. So **denoising score matching is `Denoising`**: weighted by sigma^2 it is `Plain("eps")`, unweighted
`Plain("score")`; and any weighting of that loss weighs this one by the same conversion. What differs is the variance
of the gradient and the price: a backward pass through the network for each projection, or each dimension, which the
optimiser's own pass then differentiates again. Noise that has an unknown law, or none, is what they are good for;
with known noise `Denoising` is the better estimate of the same thing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..denoisers import Denoiser
from ..errors import RecipeError
from ..noise import Draws
from .denoising import DROP, EPS, TIME, Batch, Denoising, drop_condition
from .times import Times, Uniform
from .weighting import Plain, Weighting

PROJECTIONS = DROP + 1  # the first stream of the projections
MOST_DIMENSIONS = 256  # of an exact trace, which costs a backward pass each


def slopes(values: Tensor, x: Tensor, directions: Iterable[Tensor], create_graph: bool) -> Tensor:
    """The mean over directions of v . (d values / dx) v, (batch,).

    values and each v shaped like x (batch, ...); a row of values must be a function of its own row of x alone.
    """
    found = []
    for v in directions:
        (back,) = torch.autograd.grad(values, x, v, retain_graph=True, create_graph=create_graph)
        found.append((back * v).flatten(1).sum(1))
    return torch.stack(found).mean(0)


@dataclass(frozen=True)
class SlicedScoreMatching:
    """Sliced score matching of the noisy densities: ( |eps^|^2 - 2 sigma v . (d eps^/dx) v ) / dim + 1, weighted.

    weighting, times, drop, classes: as for `Denoising`, whose loss this is in expectation; the default weighting is
    NCSN's sigma^2 on the score. projections: how many v of random signs, keyed like all noise, are averaged.
    Costs a backward pass a projection and differentiates it: a network must be twice differentiable and uncompiled.
    Figures as those of `Denoising`. Raises RecipeError for values out of range.
    Source: Song, Garg, Shi & Ermon 2019 (arXiv 1905.07088), eq. 8.
    """

    weighting: Weighting = field(default_factory=Plain)
    times: Times = field(default_factory=Uniform)
    drop: float = 0.0
    classes: int = 0
    projections: int = 1

    def __post_init__(self) -> None:
        Denoising(self.weighting, self.times, self.drop, self.classes)  # the same values, checked there
        if self.projections < 1:
            raise RecipeError(
                f"sliced score matching needs at least one projection, not {self.projections!r}"
            )

    def directions(self, x: Tensor, noise: Draws) -> Iterable[Tensor]:
        """The v, shaped like x, of which the mean of v v^T is the identity in expectation."""
        for k in range(self.projections):
            yield 2.0 * (noise.uniform(x, PROJECTIONS + k) < 0.5).to(x.dtype) - 1

    def __call__(self, denoiser: Denoiser, batch: Batch, noise: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        x0, process = batch["x"], denoiser.process
        level = process.level(self.times.sample(x0, process.schedule, noise, TIME))
        eps = noise.normal(x0, EPS)
        condition = drop_condition(batch.get("condition"), self.drop, self.classes, noise)
        learning = torch.is_grad_enabled()
        # derivatives by x_t are needed where none by the weights are (validation), and twice over in training, for
        # which only the plain form of attention has them
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            x_t = process.corrupt(x0, level, eps).detach().requires_grad_()
            prediction = denoiser(x_t, level, condition)
            said = prediction.eps
            slope = slopes(said, x_t, self.directions(x_t, noise), learning)
        size, sigma = x0[0].numel(), level.sigma.to(slope.dtype)
        loss = said.square().flatten(1).mean(1) - 2 / size * sigma * slope + 1
        loss = self.weighting.in_row("eps", level, process).to(loss.dtype) * loss
        gain = process.gain(prediction.kind, "v", level)
        error = Denoising.error(prediction, x0, eps).detach()
        figures = {"log_snr": level.log_snr.detach(), "error": error * (gain * gain).to(error.dtype)}
        return loss if learning else loss.detach(), figures


@dataclass(frozen=True)
class ImplicitScoreMatching(SlicedScoreMatching):
    """Score matching with the exact trace: `SlicedScoreMatching` along every axis, for data of few dimensions.

    Raises RecipeError for data of more than 256 dimensions, each of which costs a backward pass.
    Source: Hyvarinen 2005, JMLR 6, eq. 4.
    """

    def directions(self, x: Tensor, noise: Draws) -> Iterable[Tensor]:
        size = x[0].numel()
        if size > MOST_DIMENSIONS:
            raise RecipeError(
                f"implicit score matching costs a backward pass a dimension and takes at most {MOST_DIMENSIONS}, "
                f"not {size}: use 'sliced'"
            )
        for k in range(size):
            v = torch.zeros_like(x).flatten(1)
            v[:, k] = size**0.5  # so that the mean over axes is the trace
            yield v.reshape(x.shape)
