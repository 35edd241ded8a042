"""An autoencoder: pictures to fewer numbers that say nearly the same, and back. Diffusion then runs on those.

*Sizes.* The factor is f = patch * 2^(levels - 1): (c, h, w) becomes (latent_channels, ceil(h / f), ceil(w / f)), which
is c f^2 / latent_channels times fewer numbers. Folding, levels and padding are those of unet.py; what f does not
divide is padded by repeating the last row and column, and cropped in the end. All layers are 3 x 3 and 1 x 1
convolutions and norms over a pixel's channels, so a picture of any size will do, and each output pixel depends on a
window of latents only: `halo` latents in every direction, counted from the layers. So a large picture can be decoded
tile by tile, with exactly the result of decoding it whole, in the memory of one tile.

*Bottleneck.* Latents must be bounded and smooth, or noise cannot be added to them sensibly.

    kl     q(z | x) = N(m(x), s^2(x)),  z = m + s eps,  KL(q || N(0, 1)) = 1/2 sum(m^2 + s^2 - 1 - 2 log s)
    fsq    z = round(tanh(h(x))) on `levels` values evenly spread in [-1, 1], gradients as if not rounded

(Kingma & Welling 2014, appendix B; Rombach et al. 2022, who quantise by a learned codebook.) Finite scalar quantisation
(Mentzer et al. 2024, arXiv:2309.15505) was chosen before a codebook: it has no entries that can die, no commitment
loss, no moving averages, and levels^latent_channels codes without storing one. `decode` rounds what it is given, so
small errors of a diffusion model over fsq latents vanish.

*Scale.* `encode` answers (z - shift) / scale with one shift and scale a channel, which `set_scale` takes from data, so
that latents have mean 0 and deviation 1; `decode` undoes it. They are buffers: saved and hashed with the weights.

*Critic.* Absolute errors are least for the median of all pictures that a latent could mean, which is blurred. A patch
critic (Isola et al. 2017) learns to tell windows of pictures from windows of reconstructions. Its filters are scaled to
length 1 in use, which bounds its slope, so that its loss may be linear in its answers and never saturates.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embeddings import check_positive, pair, rms_norm, zeroed
from .unet import fold, unfold

BOTTLENECKS = ("kl", "fsq")


class PlainBlock(nn.Module):
    """x + conv2(silu(norm(conv1(silu(norm(x)))))), the identity at first; (batch, width, h, w) -> same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = zeroed(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(rms_norm(x, 1)))
        return x + self.conv2(F.silu(rms_norm(h, 1)))


def gaussian_kl_to_standard(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(m, s^2) || N(0, 1)) = 1/2 sum(m^2 + s^2 - 1 - log s^2) of each example, (batch, ...) -> (batch,)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)


def quantise(z: Tensor, levels: int) -> Tensor:
    """Round to the nearest of `levels` values evenly spread in [-1, 1]; the gradient is that of clamping alone."""
    z = z.clamp(-1, 1)
    step = 2 / (levels - 1)
    return z + (((z + 1) / step).round() * step - 1 - z).detach()


class AutoEncoder(nn.Module):
    """Autoencoder: (batch, in_channels, h, w) -> (batch, latent_channels, ceil(h / f), ceil(w / f)) -> back.

    Args:
        in_channels, size: of the pictures, size (height, width) or one number for both; others may be encoded too.
        latent_channels: numbers at each place of the latents.
        patch, width, multipliers, blocks: as those of `UNet`; f = patch * 2^(levels - 1).
        bottleneck: "kl" or "fsq"; see the file's docstring. levels: values of a number under fsq.

    `forward(x, eps)` trains: it answers (reconstruction, KL an example), with z drawn by `eps`, normals in the shape of
    the latents; None draws nothing. Raises ValueError for impossible arguments and shapes.
    """

    kind = "autoencoder"
    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        *,
        in_channels: int,
        size: int | Sequence[int],
        latent_channels: int = 4,
        patch: int = 2,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2),
        blocks: int | Sequence[int] = (1, 2),
        bottleneck: str = "kl",
        levels: int = 8,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, latent_channels=latent_channels, patch=patch, width=width)
        check_positive(levels=levels, multipliers=len(multipliers))
        self.size = pair(size)
        depths = [blocks] * len(multipliers) if isinstance(blocks, int) else list(blocks)
        if len(depths) != len(multipliers):
            raise ValueError(f"blocks must be one number, or one a level ({len(multipliers)}), got {blocks}")
        for depth, multiplier in zip(depths, multipliers, strict=True):
            check_positive(blocks=depth, multipliers=multiplier)
        if bottleneck not in BOTTLENECKS:
            raise ValueError(f"bottleneck must be one of {', '.join(BOTTLENECKS)}, got {bottleneck!r}")
        if levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}")
        self.config: dict[str, Any] = {
            "in_channels": in_channels, "size": list(self.size), "latent_channels": latent_channels, "patch": patch,
            "width": width, "multipliers": list(multipliers), "blocks": depths, "bottleneck": bottleneck,
            "levels": levels,
        }  # fmt: skip
        self.in_channels, self.latent_channels, self.patch = in_channels, latent_channels, patch
        self.bottleneck, self.levels, self.depths = bottleneck, levels, depths
        self.factor = patch * 2 ** (len(depths) - 1)
        widths = [width * multiplier for multiplier in multipliers]

        def stage(level: int) -> nn.Sequential:
            return nn.Sequential(*(PlainBlock(widths[level]) for _ in range(depths[level])))

        numbers = latent_channels * (2 if bottleneck == "kl" else 1)
        self.stem = nn.Conv2d(in_channels * patch**2, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(stage(level) for level in range(len(depths)))
        self.down = nn.ModuleList(nn.Conv2d(4 * a, b, 1) for a, b in itertools.pairwise(widths))
        self.to_latent = nn.Conv2d(widths[-1], numbers, 3, padding=1)
        self.from_latent = nn.Conv2d(latent_channels, widths[-1], 3, padding=1)
        self.decoder = nn.ModuleList(stage(level) for level in range(len(depths)))
        self.up = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in itertools.pairwise(widths))
        self.out = zeroed(nn.Conv2d(widths[0], in_channels * patch**2, 3, padding=1))
        self.register_buffer("shift", torch.zeros(latent_channels))
        self.register_buffer("scale", torch.ones(latent_channels))

    @property
    def halo(self) -> int:
        """How many latents beyond its own, in every direction, a decoded pixel depends on."""
        need = 1  # the last convolution's, in pixels of the finest level
        for level, depth in enumerate(self.depths):
            need = (math.ceil(need / 2) if level else need) + 2 * depth
        return need + 1

    def latent_shape(self, size: int | Sequence[int] | None = None) -> tuple[int, int, int]:
        """(latent_channels, height, width) of the latents of pictures of a size; None: of the size it was built for."""
        height, width = self.size if size is None else pair(size)
        return self.latent_channels, math.ceil(height / self.factor), math.ceil(width / self.factor)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(mean, log variance) of q(z | x) before scaling; under fsq (the rounded z, None)."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"this autoencoder takes (batch, {self.in_channels}, h, w), got {tuple(x.shape)}"
            )
        right, below = -x.shape[3] % self.factor, -x.shape[2] % self.factor
        if right or below:
            x = F.pad(x, (0, right, 0, below), mode="replicate")
        h = self.encoder[0](self.stem(fold(x, self.patch)))
        for down, stage in zip(self.down, list(self.encoder)[1:], strict=True):
            h = stage(down(fold(h, 2)))
        h = self.to_latent(F.silu(rms_norm(h, 1)))
        if self.bottleneck == "fsq":
            return quantise(h.tanh(), self.levels), None
        mean, log_variance = h.chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 10)

    def _pictures(self, z: Tensor) -> Tensor:
        """The decoder itself: unscaled latents (batch, c, h, w) -> (batch, in_channels, f h, f w)."""
        h = self.decoder[-1](self.from_latent(z))
        for level in reversed(range(len(self.up))):
            h = self.decoder[level](unfold(self.up[level](h), 2))
        return unfold(self.out(F.silu(rms_norm(h, 1))), self.patch)

    def forward(self, x: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_variance = self.moments(x)
        if log_variance is None:
            kl = z.new_zeros(len(z))
        else:
            kl = gaussian_kl_to_standard(z, log_variance)
            z = z if eps is None else z + (log_variance / 2).exp() * eps
        return self._pictures(z)[:, :, : x.shape[2], : x.shape[3]], kl

    def encode(self, x: Tensor) -> Tensor:
        """The latents of pictures, of unit scale: (m - shift) / scale; see the class for shapes."""
        return (self.moments(x)[0] - _channels(self.shift)) / _channels(self.scale)

    def decode(self, z: Tensor, tile: int | None = None, overlap: int | None = None) -> Tensor:
        """The pictures of latents (batch, latent_channels, h, w), f times as large, or `size` if z has its latents.

        tile: decode squares of so many latents one after another, each with `overlap` more on every side that are
        thrown away. With overlap >= halo, which is the default, the result is that of decoding all at once; with less
        it may differ near the seams. Raises ValueError for latents of another network, or such a tile.
        """
        if z.ndim != 4 or z.shape[1] != self.latent_channels:
            raise ValueError(
                f"this autoencoder decodes (batch, {self.latent_channels}, h, w), got {tuple(z.shape)}"
            )
        own = tuple(z.shape[1:]) == self.latent_shape()
        z = z * _channels(self.scale) + _channels(self.shift)
        if self.bottleneck == "fsq":
            z = quantise(z, self.levels)
        if tile is None:
            x = self._pictures(z)
        else:
            x = self._in_tiles(z, tile, self.halo if overlap is None else overlap)
        height, width = self.size if own else x.shape[2:]
        return x[:, :, :height, :width]

    def _in_tiles(self, z: Tensor, tile: int, overlap: int) -> Tensor:
        check_positive(tile=tile, overlap=overlap + 1)
        f, (rows, columns) = self.factor, z.shape[2:]
        x = z.new_empty(len(z), self.in_channels, f * rows, f * columns)
        for top, bottom in _spans(rows, tile):
            for left, right in _spans(columns, tile):
                above, before = max(top - overlap, 0), max(left - overlap, 0)
                part = self._pictures(z[:, :, above : bottom + overlap, before : right + overlap])
                part = part[:, :, f * (top - above) : f * (bottom - above)]
                part = part[:, :, :, f * (left - before) : f * (right - before)]
                x[:, :, f * top : f * bottom, f * left : f * right] = part
        return x

    @torch.no_grad()
    def set_scale(self, mean: Tensor, std: Tensor) -> None:
        """Set shift and scale to the mean and deviation (latent_channels,) of unscaled latents; a dead one keeps 1."""
        self.shift.copy_(mean)
        self.scale.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))


def _channels(value: Tensor) -> Tensor:
    return value[:, None, None]


def _spans(total: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, size):
        yield start, min(start + size, total)


class UnitConv(nn.Module):
    """A convolution whose filters are scaled to length sqrt(2) in use: its slope is bounded whatever is learned."""

    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, side, side))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        norm = self.weight.square().sum((1, 2, 3), keepdim=True)
        weight = self.weight * torch.rsqrt(norm / 2 + 1e-12)
        return F.conv2d(x, weight, self.bias, padding=self.weight.shape[-1] // 2)


class PatchCritic(nn.Module):
    """How real each window of a picture looks, averaged: (batch, in_channels, h, w) -> (batch,).

    levels: how often 2 x 2 places are folded into one before a 3 x 3 convolution; a window is 2 (2^(levels + 1) - 1)
    pixels wide. Source: Isola et al. 2017 (arXiv:1611.07004), section 3.2.2.
    """

    def __init__(self, in_channels: int, width: int = 32, levels: int = 2) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, width=width, levels=levels)
        widths = [in_channels, *(width * 2**level for level in range(levels))]
        self.layers = nn.ModuleList(UnitConv(4 * a, b, 3) for a, b in itertools.pairwise(widths))
        self.out = UnitConv(widths[-1], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            right, below = x.shape[3] % 2, x.shape[2] % 2
            x = F.leaky_relu(layer(fold(F.pad(x, (0, right, 0, below)), 2)), 0.2)
        return self.out(x).flatten(1).mean(1)


class RandomFeatures(nn.Module):
    """Fixed random filters, the same in every process: [(batch, width 2^k, h / 2^k, w / 2^k) for k = 0, 1, 2].

    They know nothing of pictures, but neighbouring pixels are seen together, at three scales, and that is enough for a
    distance that minds edges more than levels of grey. They are not saved, since they follow from the arguments.
    """

    name = "random"

    def __init__(self, in_channels: int, width: int = 32, levels: int = 3) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, width=width, levels=levels)
        generator = torch.Generator().manual_seed(0)
        widths = [in_channels, *(width * 2**level for level in range(levels))]
        for level, (a, b) in enumerate(itertools.pairwise(widths)):
            filters = torch.randn(b, a, 3, 3, generator=generator)
            filters = (
                filters - filters.mean((2, 3), keepdim=True) if not level else filters
            )  # edges, not greys
            self.register_buffer(f"filters{level}", filters / math.sqrt(9 * a / 2), persistent=False)
        self.depth = levels

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for level in range(self.depth):
            x = F.avg_pool2d(x, 2) if level and min(x.shape[2:]) > 1 else x
            x = F.relu(F.conv2d(x, self.get_buffer(f"filters{level}"), padding=1))
            found.append(x)
        return found
