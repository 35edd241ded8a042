"""A U-Net for pictures and other grids: residual convolutions, told the noise level at every block.

*Folding.* Pixels are folded p x p into channels before anything else, (c, h, w) -> (c p^2, h/p, w/p),
and unfolded at the end. Neighbouring pixels are nearly copies of each other, so the finest level of a
classical U-Net spends most of the arithmetic on the least information; folding removes that level for
no loss, because it is a permutation.

*A block* is a residual branch that starts as zero (adaLN-Zero, Peebles & Xie 2022, arXiv:2212.09748):

    x <- x + g * conv2(silu((1 + a) * norm(conv1(silu(norm(x)))) + b)),     (a, b, g) = W e + w,  W = w = 0

with e the embedding of noise level and condition (embeddings.py). At initialisation every block is the
identity, and the last convolution is zero, so the whole network answers 0 everywhere: the loss starts
at its trivial value instead of far above it. `norm` is RMS over a pixel's channels, not GroupNorm: in
channels_last memory it is one pass that a compiler fuses with its neighbours.

*Levels.* Going down halves the resolution (fold 2 x 2, then a 1 x 1 convolution); going up is the
mirror image, and each level adds what it had on the way down. Level i has `width * multipliers[i]`
channels and `blocks[i]` blocks on either way; the last level is the middle and is walked once. A level
named in `attention` also attends over all its pixels after each block, and there to the text, if any.

*Odd sizes.* Whatever folding and halving do not divide is padded with zeros at the right and bottom
inside, and cropped at the end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embeddings import Attention, Conditioning, check_positive, pair, rms_norm, run, zeroed


def fold(x: Tensor, patch: int) -> Tensor:
    """Move p x p pixels into channels: (batch, c, h, w) -> (batch, c p^2, h/p, w/p). A permutation."""
    return x if patch == 1 else F.pixel_unshuffle(x, patch)


def unfold(x: Tensor, patch: int) -> Tensor:
    """Undo `fold`: (batch, c p^2, h, w) -> (batch, c, h p, w p)."""
    return x if patch == 1 else F.pixel_shuffle(x, patch)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions on a residual branch, modulated by the embedding; (b, width, h, w) -> same."""

    def __init__(self, width: int, embedding: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.modulation = zeroed(nn.Linear(embedding, 3 * width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Apply the block; `embedding` is (b, embedding)."""
        scale, shift, gate = self.modulation(embedding)[:, :, None, None].chunk(3, dim=1)
        h = self.conv1(F.silu(rms_norm(x, 1)))
        h = F.silu(rms_norm(h, 1) * (1 + scale) + shift)
        return x + gate * self.conv2(self.dropout(h))


class AttentionBlock(nn.Module):
    """Every pixel attends to every pixel, then, if there is text, to the text; (b, width, h, w) -> same."""

    def __init__(self, width: int, embedding: int, head: int, context: int = 0) -> None:
        super().__init__()
        self.pixels = Attention(width, head)
        self.words = Attention(width, head, context) if context else None
        self.modulation = zeroed(nn.Linear(embedding, (4 if context else 3) * width))

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """Apply the block; `context` and `mask` are those of `Conditioning`."""
        # Pixels as tokens: in channels_last memory this changes the shape and copies nothing.
        h = x.permute(0, 2, 3, 1).flatten(1, 2)
        scale, shift, gate, *word_gate = self.modulation(embedding)[:, None, :].split(x.shape[1], dim=2)
        h = h + gate * self.pixels(rms_norm(h) * (1 + scale) + shift)
        if self.words is not None:
            h = h + word_gate[0] * self.words(rms_norm(h), context, mask)
        return h.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class Stage(nn.Module):
    """The blocks of one level on one way: residual blocks, each followed by attention where asked for."""

    def __init__(
        self,
        width: int,
        blocks: int,
        embedding: int,
        *,
        head: int,
        context: int,
        dropout: float,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.residual = nn.ModuleList(ResidualBlock(width, embedding, dropout) for _ in range(blocks))
        self.attention = nn.ModuleList(
            AttentionBlock(width, embedding, head, context) for _ in range(blocks if head else 0)
        )

    def forward(self, h: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """Apply all blocks in turn."""
        for i, block in enumerate(self.residual):
            h = run(self.checkpointing, block, h, embedding)
            if self.attention:
                h = run(self.checkpointing, self.attention[i], h, embedding, context, mask)
        return h


class UNet(nn.Module):
    """U-Net F(x, c, condition): (batch, in_channels, h, w) -> (batch, out_channels, h, w).

    Args:
        in_channels, out_channels: of the state and of the answer (default: the same; twice as many when
            a variance is learned too).
        size: (height, width) of the state, or one number for both.
        patch: fold patch x patch pixels into channels; 1 folds nothing.
        width, multipliers: level i has `width * multipliers[i]` channels, and half the resolution of i - 1.
        blocks: residual blocks a level and way; one number for all levels, or one a level.
        attention: the levels that attend, e.g. `(1,)`; with text the last one always does.
        head: channels of one attention head.
        embedding: width of the global embedding.
        classes, text_dim, image_channels, numbers, augmented: the condition's slots, see `Conditioning`; 0 means none.
        dropout: probability, inside residual blocks.
        checkpointing: recompute each block in the backward pass instead of storing it: less memory, the
            same gradients, about a third more time.

    `forward(x, noise_level, condition)`: `noise_level` is (batch,), about -2.5 ... 2.5, by sfumato's
    convention -log_snr / 8. Raises ValueError for impossible arguments and for an `x` of another shape.
    Source: Ronneberger et al. 2015 (arXiv:1505.04597), Ho et al. 2020 (arXiv:2006.11239), with the
    changes that the file's docstring derives.
    """

    kind = "unet"

    def __init__(  # noqa: PLR0913 (all by keyword: a configuration)
        self,
        *,
        in_channels: int,
        size: int | Sequence[int],
        out_channels: int | None = None,
        patch: int = 2,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2),
        blocks: int | Sequence[int] = (1, 5),
        attention: Sequence[int] = (),
        head: int = 32,
        embedding: int = 128,
        classes: int = 0,
        text_dim: int = 0,
        numbers: int = 0,
        augmented: int = 0,
        image_channels: int = 0,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        check_positive(in_channels=in_channels, out_channels=out_channels, patch=patch, width=width)
        check_positive(head=head, embedding=embedding, levels=len(multipliers))
        height, breadth = self.size = pair(size)
        depths = [blocks] * len(multipliers) if isinstance(blocks, int) else list(blocks)
        if len(depths) != len(multipliers):
            raise ValueError(
                f"blocks must be one number, or one a level ({len(multipliers)} of them), got {blocks}"
            )
        for depth, multiplier in zip(depths, multipliers, strict=True):
            check_positive(blocks=depth, multipliers=multiplier)
        wrong = [level for level in attention if level not in range(len(depths))]
        if wrong:
            raise ValueError(f"attention at level {wrong[0]!r}, but the levels are 0 to {len(depths) - 1}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        stride = patch * 2 ** (len(depths) - 1)
        if min(height, breadth) < stride:
            raise ValueError(
                f"size {self.size} is smaller than patch * 2^(levels - 1) = {stride}: nothing would be left at "
                "the lowest level; use a smaller patch or fewer multipliers"
            )
        self.config: dict[str, Any] = {
            **config,
            "out_channels": out_channels,
            "size": list(self.size),
            "multipliers": list(multipliers),
            "blocks": depths,
            "attention": list(attention),
        }
        self.in_channels, self.patch = in_channels, patch
        # (left, right, top, bottom), as torch's `pad` wants it
        self.padding = (0, -breadth % stride, 0, -height % stride)
        self.conditioning = Conditioning(
            embedding,
            classes=classes,
            text_dim=text_dim,
            image_channels=image_channels,
            numbers=numbers,
            augmented=augmented,
        )
        widths = [width * multiplier for multiplier in multipliers]
        last = len(widths) - 1
        context = embedding if text_dim else 0

        def stage(level: int) -> Stage:
            attends = level in attention or (level == last and text_dim > 0)
            return Stage(
                widths[level], depths[level], embedding, head=head if attends else 0, context=context,
                dropout=dropout, checkpointing=checkpointing,
            )  # fmt: skip

        self.stem = nn.Conv2d((in_channels + image_channels) * patch**2, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(stage(level) for level in range(last))
        self.down = nn.ModuleList(nn.Conv2d(4 * a, b, 1) for a, b in itertools.pairwise(widths))
        # Where a pixel is: convolutions learn it from the borders only, attention not at all.
        rows, columns = math.ceil(height / stride), math.ceil(breadth / stride)
        self.position = nn.Parameter(torch.zeros(1, widths[last], rows, columns))
        self.middle = stage(last)
        self.up = nn.ModuleList(nn.Conv2d(b, 4 * a, 1) for a, b in itertools.pairwise(widths))
        self.decoder = nn.ModuleList(stage(level) for level in range(last))
        self.modulation = zeroed(nn.Linear(embedding, 2 * widths[0]))
        self.out = zeroed(nn.Conv2d(widths[0], out_channels * patch**2, 3, padding=1))

    def forward(
        self, x: Tensor, noise_level: Tensor, condition: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Answer for every sample from that sample alone; see the class for shapes."""
        if x.ndim != 4 or tuple(x.shape[1:]) != (self.in_channels, *self.size):
            raise ValueError(
                f"this network was built for x of (batch, {self.in_channels}, {self.size[0]}, {self.size[1]}), "
                f"got {tuple(x.shape)}"
            )
        embedding, context, mask = self.conditioning(noise_level, condition)
        h = self.conditioning.join_image(x, condition)
        if any(self.padding):
            h = F.pad(h, self.padding)
        h = self.stem(fold(h, self.patch))
        kept = []
        for stage, down in zip(self.encoder, self.down, strict=True):
            h = stage(h, embedding, context, mask)
            kept.append(h)
            h = down(fold(h, 2))
        h = self.middle(h + self.position, embedding, context, mask)
        for level in reversed(range(len(kept))):
            h = unfold(self.up[level](h), 2) + kept[level]
            h = self.decoder[level](h, embedding, context, mask)
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = unfold(self.out(F.silu(rms_norm(h, 1) * (1 + scale) + shift)), self.patch)
        return h[:, :, : self.size[0], : self.size[1]]
