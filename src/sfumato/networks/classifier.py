"""A classifier's network: the way down of the U-Net (`unet`), then the mean over pixels and one linear layer.

It sees the noise level as the U-Net does and no condition: what it answers is what the condition might be.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embeddings import Conditioning, check_positive, pair, rms_norm, zeroed
from .unet import Stage, fold


class NoiseClassifier(nn.Module):
    """Logits F(x, c): (batch, in_channels, h, w), (batch,) -> (batch, classes).

    Args: `size` of the picture, (height, width) or one number; `patch`, `width`, `multipliers`, `embedding` and
    `dropout` as of `UNet`; `blocks`: residual blocks at every level. Raises ValueError for impossible arguments.
    """

    kind = "classifier"

    def __init__(
        self,
        *,
        in_channels: int,
        size: int | Sequence[int],
        classes: int,
        patch: int = 2,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        blocks: int = 1,
        embedding: int = 64,
        dropout: float = 0.0,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        check_positive(in_channels=in_channels, classes=classes, patch=patch, width=width, blocks=blocks)
        check_positive(levels=len(multipliers), embedding=embedding)
        height, breadth = pair(size)
        self.config: dict[str, Any] = {**config, "size": [height, breadth], "multipliers": list(multipliers)}
        stride = patch * 2 ** (len(multipliers) - 1)
        self.patch, self.padding = patch, (0, -breadth % stride, 0, -height % stride)
        self.conditioning = Conditioning(embedding)
        widths = [width * multiplier for multiplier in multipliers]
        self.stem = nn.Conv2d(in_channels * patch**2, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            Stage(w, blocks, embedding, head=0, context=0, dropout=dropout, checkpointing=False)
            for w in widths
        )
        self.down = nn.ModuleList(nn.Conv2d(4 * a, b, 1) for a, b in itertools.pairwise(widths))
        self.position = nn.Parameter(torch.zeros(1, widths[-1], -(-height // stride), -(-breadth // stride)))
        self.out = zeroed(nn.Linear(widths[-1], classes))

    def forward(
        self, x: Tensor, noise_level: Tensor, condition: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Logits of every sample from that sample alone."""
        embedding = self.conditioning(noise_level)[0]
        h = self.stem(fold(F.pad(x, self.padding), self.patch))
        for level, stage in enumerate(self.stages):
            h = h + self.position if level == len(self.down) else h
            h = stage(h, embedding, None, None)
            h = self.down[level](fold(h, 2)) if level < len(self.down) else h
        return self.out(F.silu(rms_norm(h, 1)).mean((2, 3)))
