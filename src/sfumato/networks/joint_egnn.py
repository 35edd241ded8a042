"""The E(3)-equivariant network for molecules whose positions and elements are leaves with times of their own.

It is `EGNN`, with a point's features made of its symbol (hidden ones have one of their own) and of how noisy symbols
are, while its noise level is that of the positions. Its answer for positions is EGNN's, and of the features logits are
read. Where there is no point, positions are answered by 0 and the symbol is 0, "no atom", for certain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .egnn import EGNN
from .embeddings import FourierFeatures

_CERTAIN = 30.0  # a logit beside zeros


class JointEGNN(nn.Module):
    """F({leaf: x}, {leaf: c}, {"count": n}) -> {leaf: answer}: positions (batch, length, 3), elements' logits.

    Args:
        leaves: {"positions": {"shape": (length, 3)}, "elements": {"shape": (length,), "symbols": states of a symbol,
            "outputs": kinds of symbols answered}}, in this order.
        features: numbers that a symbol becomes. classes: taken for the sake of recipes, and must be 0.
        width, depth, head, pair, vectors, bumps, embedding, checkpointing: of the `EGNN`.

    Raises ValueError for other leaves, and for what `EGNN` refuses.
    """

    kind = "joint-egnn"

    def __init__(  # noqa: PLR0913 (all by keyword: a configuration)
        self,
        *,
        leaves: Mapping[str, Mapping[str, Any]],
        features: int = 32,
        width: int = 128,
        depth: int = 6,
        head: int = 16,
        pair: int = 32,
        vectors: int = 16,
        bumps: int = 24,
        embedding: int = 128,
        classes: int = 0,
        checkpointing: bool = False,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        if list(leaves) != ["positions", "elements"] or classes:
            raise ValueError(
                f"this network is of the leaves positions and elements without classes, not of {list(leaves)} with "
                f"{classes}"
            )
        length, symbols = leaves["positions"]["shape"][0], leaves["elements"]["symbols"]
        outputs = leaves["elements"].get("outputs") or symbols
        plain = {name: {**leaf, "shape": list(leaf["shape"])} for name, leaf in leaves.items()}
        self.config: dict[str, Any] = {**config, "leaves": plain}
        own = {
            name: config[name] for name in ("width", "depth", "head", "pair", "vectors", "bumps", "embedding")
        }
        self.points = EGNN(length=length, in_channels=3 + features, checkpointing=checkpointing, **own)
        self.symbol = nn.Embedding(symbols, features)
        self.level = nn.Sequential(FourierFeatures(64), nn.Linear(64, features))
        self.logits = nn.Linear(
            features, outputs
        )  # of answers that are zero at first: were it zero, too, both would stay

    def forward(
        self,
        x: Mapping[str, Tensor],
        noise_level: Mapping[str, Tensor],
        condition: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Answer for every leaf of every sample from that sample alone."""
        if set(x) != {"positions", "elements"}:
            raise ValueError(f"this network was built for positions and elements, got {list(x)}")
        held = self.points.mask(x["positions"], condition)
        features = self.symbol(x["elements"]) + self.level(noise_level["elements"])[:, None]
        state = torch.cat([x["positions"], features.to(x["positions"].dtype)], 2) * held[..., None]
        said = self.points(state, noise_level["positions"], condition)
        logits = self.logits(said[..., 3:])
        nothing = torch.zeros_like(logits)
        nothing[..., 0] = _CERTAIN
        return {"positions": said[..., :3], "elements": torch.where(held[..., None], logits, nothing)}
