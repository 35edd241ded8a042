"""A transformer over the leaves of a joint state: each is cut into tokens, and all of them see each other.

    leaf of symbols     (batch, length)                     a row of a table for each
    leaf of numbers     (batch, length, channels)           a small network of each position
    leaf of a picture   (batch, channels, height, width)    patches, as in `DiT`

A token is what its leaf says at its place, plus a learned place, plus the noise level of its leaf: so every token knows
which of the others are clean, which are noise, and how much. The blocks are those of `DiT`, modulated by the mean of
the leaves' levels and by the condition. Each leaf has its own way out: logits or numbers.

A leaf of one number gets a hidden layer on its way in: laws of a single number have many modes, which a straight line
cannot tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .dit import TransformerBlock, sincos_positions
from .embeddings import Conditioning, FourierFeatures, check_positive, rms_norm, run, zeroed
from .unet import fold, unfold


class _Leaf(nn.Module):
    """One leaf's ways in and out: its tokens (batch, n, width), and its answer of theirs."""

    def __init__(
        self, width: int, *, shape: Sequence[int], symbols: int = 0, outputs: int = 0, patch: int = 1
    ):
        super().__init__()
        if len(shape) not in (1, 2, 3) or (symbols and len(shape) != 1) or (not symbols and len(shape) == 1):
            raise ValueError(
                f"a leaf is symbols (length,), numbers (length, channels) or a picture (channels, height, width), "
                f"not {shape} with {symbols} symbols"
            )
        self.shape, self.symbols, self.patch = tuple(shape), symbols, patch
        if symbols:
            self.tokens, inputs, answers = shape[0], symbols, outputs or symbols
            self.enter: nn.Module = nn.Embedding(symbols, width)
        else:
            if len(shape) == 3:
                if shape[1] % patch or shape[2] % patch:
                    raise ValueError(f"a patch of {patch} does not divide a picture of {shape[1:]}")
                self.tokens = shape[1] * shape[2] // patch**2
                inputs = answers = shape[0] * patch**2
            else:
                self.tokens, inputs = shape[0], shape[1]
                answers = inputs
            self.enter = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))
        picture = len(shape) == 3
        places = (
            sincos_positions(shape[1] // patch, shape[2] // patch, width)
            if picture
            else 0.02 * torch.randn(self.tokens, width)
        )
        self.position = nn.Parameter(places[None])
        self.out = zeroed(nn.Linear(width, answers))

    def forward(self, x: Tensor) -> Tensor:
        """The tokens of a state."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"this leaf was built for (batch, {self.shape}), got {tuple(x.shape)}")
        if len(self.shape) == 3:
            x = fold(x, self.patch).flatten(2).mT
        return self.enter(x) + self.position

    def answer(self, z: Tensor) -> Tensor:
        """The answer of tokens, of the shape of the state, or logits (batch, length, outputs)."""
        y = self.out(z)
        if len(self.shape) < 3:
            return y
        height, width = (side // self.patch for side in self.shape[1:])
        return unfold(y.mT.unflatten(2, (height, width)), self.patch)


class JointTransformer(nn.Module):
    """F({leaf: x}, {leaf: c}, condition) -> {leaf: answer}; see the file for shapes.

    Args:
        leaves: by name, {"shape": (...), "symbols": states of a symbol or 0, "outputs": kinds of symbols answered,
            "patch": of a picture}.
        width, depth, head, expansion: of the blocks. embedding: width of the global embedding.
        classes, text_dim, numbers: the condition's slots, see `Conditioning`. dropout, checkpointing: inside blocks.

    Raises ValueError for impossible arguments, and for a state with other leaves or shapes.
    """

    kind = "joint"

    def __init__(  # noqa: PLR0913 (all by keyword: a configuration)
        self,
        *,
        leaves: Mapping[str, Mapping[str, Any]],
        width: int = 128,
        depth: int = 4,
        head: int = 32,
        expansion: int = 4,
        embedding: int = 128,
        classes: int = 0,
        text_dim: int = 0,
        numbers: int = 0,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        check_positive(leaves=len(leaves), width=width, depth=depth, head=head, expansion=expansion)
        plain = {name: {**leaf, "shape": list(leaf["shape"])} for name, leaf in leaves.items()}
        self.config: dict[str, Any] = {**config, "leaves": plain}
        self.names = tuple(leaves)
        self.checkpointing = checkpointing
        # by number: a name may hold a dot, which a module's name cannot
        self.leaves = nn.ModuleList(
            _Leaf(width, **{**leaf, "shape": tuple(leaf["shape"])}) for leaf in leaves.values()
        )
        self.conditioning = Conditioning(embedding, classes=classes, text_dim=text_dim, numbers=numbers)
        self.position_level = nn.Sequential(FourierFeatures(64), nn.Linear(64, width))
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width, embedding, head=head, expansion=expansion, context=embedding if text_dim else 0,
                dropout=dropout,
            )
            for _ in range(depth)
        )  # fmt: skip
        self.modulation = zeroed(nn.Linear(embedding, 2 * width))

    def forward(
        self,
        x: Mapping[str, Tensor],
        noise_level: Mapping[str, Tensor],
        condition: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Answer for every leaf of every sample from that sample alone."""
        if set(x) != set(self.names):
            raise ValueError(f"this network was built for the leaves {list(self.names)}, got {list(x)}")
        levels = torch.stack([noise_level[name] for name in self.names], 1)  # (batch, leaves)
        told = self.position_level(levels.flatten()).unflatten(0, levels.shape)
        pieces = [
            leaf(x[name]) + told[:, k, None]
            for k, (name, leaf) in enumerate(zip(self.names, self.leaves, strict=True))
        ]
        embedding, context, mask = self.conditioning(levels.mean(1), condition)
        z = torch.cat(pieces, 1)
        for block in self.blocks:
            z = run(self.checkpointing, block, z, embedding, context, mask)
        scale, shift = self.modulation(embedding)[:, None, :].chunk(2, dim=2)
        z = rms_norm(z) * (1 + scale) + shift
        parts = z.split([piece.shape[1] for piece in pieces], 1)
        return {
            name: leaf.answer(part)  # type: ignore[operator]
            for name, leaf, part in zip(self.names, self.leaves, parts, strict=True)
        }
