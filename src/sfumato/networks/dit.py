"""A diffusion transformer (DiT): the picture as a sequence of patches, told the noise level at every block.

Patches of p x p pixels become tokens of `width` numbers (a fold and one linear layer), a position is
added, `depth` blocks follow, and the last linear layer writes each token's p x p pixels. A block is two
residual branches (three with text), each modulated by the embedding e of noise level and condition and
started at zero (adaLN-Zero, Peebles & Xie 2022, arXiv:2212.09748, section 3.2):

    z <- z + g1 * attention((1 + a1) * norm(z) + b1)
    z <- z + g3 * cross_attention(norm(z), text)                  only with a text slot
    z <- z + g2 * mlp((1 + a2) * norm(z) + b2),         (a, b, g) = W e + w,  W = w = 0

so that at initialisation every block is the identity and the answer is 0 everywhere.

Positions are the sines and cosines of both coordinates (their table starts there and is then learned):
tokens of one row or column can find each other from the first step. Nothing in the network prefers
near pixels, which costs data that a U-Net does not need, and buys long range and plain matrix
products, the shape every accelerator likes best. Arithmetic grows with tokens^2 = (h w / p^2)^2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embeddings import Attention, Conditioning, check_positive, pair, rms_norm, run, zeroed
from .unet import fold, unfold


def sincos_positions(rows: int, columns: int, width: int) -> Tensor:
    """Return the table [sin w_k i, cos w_k i, sin w_k j, cos w_k j] of every (i, j): (rows columns, width).

    w_k = 10000^(-k / (width / 4)). Raises ValueError unless 4 divides `width`.
    Source: Vaswani et al. 2017, section 3.5, over two axes as in MAE (arXiv:2111.06377).
    """
    if width % 4:
        raise ValueError(f"positions in two dimensions need a width that 4 divides, got {width}")
    frequencies = 10000.0 ** (-torch.arange(width // 4) / (width // 4))
    i, j = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [axis.flatten()[:, None] * frequencies for axis in (i, j)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention where there is text, and an MLP: (batch, tokens, width) -> same."""

    def __init__(
        self,
        width: int,
        embedding: int,
        *,
        head: int,
        expansion: int,
        context: int = 0,
        dropout: float = 0.0,
        rotary: bool = False,
    ) -> None:
        super().__init__()
        self.attention = Attention(width, head, rotary=rotary)
        self.words = Attention(width, head, context) if context else None
        self.mlp = nn.Sequential(
            nn.Linear(width, expansion * width),
            nn.GELU(approximate="tanh"),
            nn.Dropout(dropout),
            nn.Linear(expansion * width, width),
        )
        self.modulation = zeroed(nn.Linear(embedding, (7 if context else 6) * width))

    def forward(self, z: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """Apply the block; `context` and `mask` are those of `Conditioning`."""
        a1, b1, g1, a2, b2, g2, *g3 = self.modulation(embedding)[:, None, :].split(z.shape[2], dim=2)
        z = z + g1 * self.attention(rms_norm(z) * (1 + a1) + b1)
        if self.words is not None:
            z = z + g3[0] * self.words(rms_norm(z), context, mask)
        return z + g2 * self.mlp(rms_norm(z) * (1 + a2) + b2)


class DiT(nn.Module):
    """Diffusion transformer F(x, c, condition): (batch, in_channels, h, w) -> (batch, out_channels, h, w).

    Args:
        in_channels, out_channels: of the state and of the answer (default: the same; twice as many when
            a variance is learned too).
        size: (height, width) of the state, or one number for both; padded inside where `patch` does not
            divide it.
        patch: pixels on a token's side.
        width, depth: numbers in a token; number of blocks.
        head: numbers in one attention head; divides `width`, which 4 must divide too.
        expansion: hidden width of the MLP over `width`.
        embedding: width of the global embedding.
        classes, text_dim, image_channels, numbers, augmented: the condition's slots, see `Conditioning`; 0 means none.
        dropout: probability, inside the MLPs.
        checkpointing: recompute each block in the backward pass instead of storing it: less memory, the
            same gradients, about a third more time.

    `forward(x, noise_level, condition)`: `noise_level` is (batch,), about -2.5 ... 2.5, by sfumato's
    convention -log_snr / 8. Raises ValueError for impossible arguments and for an `x` of another shape.
    Source: Peebles & Xie 2022, arXiv:2212.09748.
    """

    kind = "dit"

    def __init__(  # noqa: PLR0913 (all by keyword: a configuration)
        self,
        *,
        in_channels: int,
        size: int | Sequence[int],
        out_channels: int | None = None,
        patch: int = 2,
        width: int = 192,
        depth: int = 6,
        head: int = 32,
        expansion: int = 4,
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
        check_positive(
            in_channels=in_channels, out_channels=out_channels, patch=patch, width=width, depth=depth
        )
        check_positive(head=head, expansion=expansion, embedding=embedding)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        height, breadth = self.size = pair(size)
        self.config: dict[str, Any] = {**config, "out_channels": out_channels, "size": list(self.size)}
        self.in_channels, self.patch, self.checkpointing = in_channels, patch, checkpointing
        # (left, right, top, bottom), as torch's `pad` wants it
        self.padding = (0, -breadth % patch, 0, -height % patch)
        self.grid = (math.ceil(height / patch), math.ceil(breadth / patch))
        self.conditioning = Conditioning(
            embedding,
            classes=classes,
            text_dim=text_dim,
            image_channels=image_channels,
            numbers=numbers,
            augmented=augmented,
        )
        self.stem = nn.Linear((in_channels + image_channels) * patch**2, width)
        self.position = nn.Parameter(sincos_positions(*self.grid, width))
        context = embedding if text_dim else 0
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width, embedding, head=head, expansion=expansion, context=context, dropout=dropout
            )
            for _ in range(depth)
        )
        self.modulation = zeroed(nn.Linear(embedding, 2 * width))
        self.out = zeroed(nn.Linear(width, out_channels * patch**2))

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
        z = self.stem(fold(h, self.patch).flatten(2).mT) + self.position
        for block in self.blocks:
            z = run(self.checkpointing, block, z, embedding, context, mask)
        scale, shift = self.modulation(embedding)[:, None, :].chunk(2, dim=2)
        z = self.out(rms_norm(z) * (1 + scale) + shift)
        h = unfold(z.mT.unflatten(2, self.grid), self.patch)
        return h[:, :, : self.size[0], : self.size[1]]
