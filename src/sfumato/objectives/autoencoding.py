"""What an autoencoder minimises: its reconstruction's error in pixels and features, against a critic, plus a KL.

    L = mean |x - x^|  +  w_p mean_l mean |phi_l(x) - phi_l(x^)|^2 / n_l  +  w_k KL / dim  +  [C(x^) - C(x)]

with phi_l(x) the maps of a fixed network and C the critic (networks/autoencoder.py). Each place of a map counts by
n_l = |phi_l(x)|^2 + (its mean over the map): features of all sizes count alike, as where vectors are scaled to length 1
(Zhang et al. 2018), but flat parts of a picture, whose features are nearly 0, do not turn the least error into a large
one.

*One optimiser for two players.* The critic lowers C(x^) - C(x), the autoencoder must raise C(x^). The reconstruction
reaches the two through `reverse`, which is the identity forwards and sends back, for each example,

    g = g_1 - share |g_1| g_2 / |g_2|,      g_1 from the errors, g_2 from the critic,

the critic's gradient reversed (Ganin & Lempitsky 2015) and always `share` as long as the other: the adaptive weight of
Esser et al. 2021 (eq. 7), at the picture instead of at the last layer and for each example alone, so that cutting a
batch changes nothing. A loss linear in C is what makes the reversal exact: where a logistic or hinge loss is reversed,
a critic that is sure leaves no gradient to its opponent.

The value that is reported is that of the first three terms, so that it falls, and can be compared with the held-out
loss, for which no noise is added and the critic is not asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RecipeError
from ..networks.autoencoder import AutoEncoder, PatchCritic
from ..noise import Draws
from .denoising import EPS, Batch


class Reversal(torch.autograd.Function):
    """x -> (x, x); see the file's docstring for what it sends back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> tuple[Tensor, Tensor]:
        ctx.share = share
        return x.view_as(x), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        own, judged = gradients
        size = _length(own) / _length(judged).clamp(min=torch.finfo(judged.dtype).tiny)
        return own - ctx.share * size * judged, None


def _length(x: Tensor) -> Tensor:
    """The length of each example, (batch, 1, ...)."""
    return x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))


def reverse(x: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """x twice: for the losses that are to be lowered through it, and for the critic whose loss is to be raised.

    The second's gradient comes back reversed, `share` times as long as the first's, for each example (batch, ...).
    """
    return Reversal.apply(x, share)  # type: ignore[return-value]


class Apprentice(nn.Module):
    """An autoencoder in training: `network`, with the `critic` that it learns against and fixed `features`, if any.

    features: (batch, c, h, w) in [-1, 1] -> a list of maps (batch, ...); always in evaluation mode, never trained.
    """

    def __init__(
        self, network: AutoEncoder, critic: PatchCritic | None = None, features: nn.Module | None = None
    ):
        super().__init__()
        self.network, self.critic = network, critic
        self.features = None if features is None else features.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Apprentice:
        super().train(mode)
        if self.features is not None:
            self.features.eval()
        return self


def perceptual(features: nn.Module, made: Tensor, x: Tensor) -> Tensor:
    """The mean over maps of |phi(x) - phi(made)|^2 / (|phi(x)|^2 + its mean over the map), (batch,)."""
    with torch.no_grad():
        true = features(x)
    found = []
    for a, b in zip(features(made), true, strict=True):
        energy = b.square().sum(1)
        size = energy + energy.mean((1, 2), keepdim=True) + 1e-6
        found.append(((a - b).square().sum(1) / size).flatten(1).mean(1))
    return torch.stack(found).mean(0)


@dataclass(frozen=True)
class Autoencoding:
    """The loss of an `Apprentice` for each example, (batch,); see the file's docstring.

    kl: weight of the KL of each number of the picture, in nats. perceptual: weight of the distance of features.
    adversarial: length of the critic's part of the gradient, as a share of all others'.
    Figures: "pixels" (mean absolute error), "perceptual", "kl", "critic". Raises RecipeError for weights out of range.
    """

    kl: float = 1e-3
    perceptual: float = 0.1
    adversarial: float = 0.0

    def __post_init__(self) -> None:
        for name in ("kl", "perceptual", "adversarial"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise RecipeError(
                    f"the weight {name} of an autoencoder's loss must be at least 0, not {getattr(self, name)!r}"
                )

    def __call__(self, module: Apprentice, batch: Batch, noise: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        x = batch["x"]
        learning = torch.is_grad_enabled()
        eps = None
        if learning:
            eps = noise.normal(x.new_empty(len(x), *module.network.latent_shape(x.shape[2:])), EPS)
        made, kl = module.network(x, eps)
        made = made.to(x.dtype)
        playing = learning and self.adversarial > 0 and module.critic is not None
        judged = made
        if playing:
            made, judged = reverse(made, self.adversarial)
        pixels = (made - x).abs().flatten(1).mean(1)
        figures = {"pixels": pixels, "kl": kl}
        loss = pixels + self.kl * kl / x[0].numel()
        if self.perceptual > 0 and module.features is not None:
            figures["perceptual"] = perceptual(module.features, made, x)
            loss = loss + self.perceptual * figures["perceptual"]
        if playing and module.critic is not None:
            fake, real = module.critic(torch.cat([judged, x])).chunk(2)
            figures["critic"] = fake - real
            loss = loss + (fake - real) - (fake - real).detach()  # a gradient, not a value
        return loss, {name: value.detach() for name, value in figures.items()}
