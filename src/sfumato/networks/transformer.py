"""A transformer over positions that hold a symbol, or numbers: sequences, sets and the columns of tables.

The blocks are those of `DiT`. What goes in is a symbol's row of a table, or a linear layer of a position's numbers;
what comes out are logits or numbers for each position. Positions of a sequence start as sines and cosines of their
index and are learned, and with `rotary` attention also knows how far two are apart (`embeddings.rotated`): a pattern
learned in one place is then known in all. Elements of a set (`ordered=False`) all get the same, so
that what is said of one does not depend on where it stands:

    F(x_pi) = F(x)_pi        for every permutation pi.

A long series is cut into patches of p positions, each one token: the arithmetic of attention falls by p^2, of all else
by p.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .dit import TransformerBlock, sincos_positions
from .embeddings import Conditioning, check_positive, rms_norm, run, zeroed


class Transformer(nn.Module):
    """F(x, c, condition) of positions: symbols (batch, length) -> logits (batch, length, outputs), or numbers alike.

    Args:
        length: positions of the state.
        symbols: how many states a symbol has; x is int64 (batch, length). 0: x is (batch, length, in_channels).
        outputs: numbers answered for each position (default: in_channels).
        width, depth, head, expansion: of the blocks. ordered: whether positions have an order.
        rotary: whether attention goes by distances, which sequences should; off, as models before it are.
        patch: positions of numbers in a token; divides length.
        embedding: width of the global embedding. classes, text_dim, numbers: the condition's slots, see `Conditioning`.
        dropout: probability, inside blocks. checkpointing: recompute blocks in the backward pass.

    Raises ValueError for impossible arguments and for an x of another shape.
    """

    kind = "transformer"

    def __init__(  # noqa: PLR0913 (all by keyword: a configuration)
        self,
        *,
        length: int,
        symbols: int = 0,
        in_channels: int = 0,
        outputs: int | None = None,
        width: int = 128,
        depth: int = 4,
        head: int = 32,
        expansion: int = 4,
        ordered: bool = True,
        rotary: bool = False,
        patch: int = 1,
        embedding: int = 128,
        classes: int = 0,
        text_dim: int = 0,
        numbers: int = 0,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        check_positive(length=length, width=width, depth=depth, head=head, expansion=expansion, patch=patch)
        if (symbols > 0) == (in_channels > 0):
            raise ValueError("a transformer takes symbols or numbers: set one of symbols and in_channels")
        if rotary and not ordered:
            raise ValueError("rotary positions are of an order: a set (ordered=False) has none")
        if patch > 1 and (symbols or not ordered or length % patch):
            raise ValueError(f"a patch of {patch} is of numbers in their order, and must divide {length}")
        outputs = outputs or in_channels or symbols
        self.config: dict[str, Any] = {**config, "outputs": outputs}
        self.length, self.symbols, self.in_channels = length, symbols, in_channels
        self.patch, self.checkpointing = patch, checkpointing
        self.conditioning = Conditioning(embedding, classes=classes, text_dim=text_dim, numbers=numbers)
        self.enter: nn.Module = (
            nn.Embedding(symbols, width) if symbols else nn.Linear(patch * in_channels, width)
        )
        table = sincos_positions(1, length // patch, width)[None] if ordered else torch.zeros(1, 1, width)
        self.position = nn.Parameter(table)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width, embedding, head=head, expansion=expansion, context=embedding if text_dim else 0,
                dropout=dropout, rotary=rotary,
            )
            for _ in range(depth)
        )  # fmt: skip
        self.modulation = zeroed(nn.Linear(embedding, 2 * width))
        self.out = zeroed(nn.Linear(width, patch * outputs))

    def forward(
        self, x: Tensor, noise_level: Tensor, condition: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Answer for every sample from that sample alone; see the class for shapes."""
        wanted = (self.length,) if self.symbols else (self.length, self.in_channels)
        if tuple(x.shape[1:]) != wanted:
            raise ValueError(
                f"this network was built for x of (batch, {', '.join(map(str, wanted))}), got {tuple(x.shape)}"
            )
        embedding, context, mask = self.conditioning(noise_level, condition)
        tokens = x.unflatten(1, (-1, self.patch)).flatten(2) if self.patch > 1 else x
        z = self.enter(tokens) + self.position
        for block in self.blocks:
            z = run(self.checkpointing, block, z, embedding, context, mask)
        scale, shift = self.modulation(embedding)[:, None, :].chunk(2, dim=2)
        out = self.out(rms_norm(z) * (1 + scale) + shift)
        return out.unflatten(2, (self.patch, -1)).flatten(1, 2) if self.patch > 1 else out
