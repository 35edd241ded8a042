"""An adapter: what was learned beside a network's weights, and which weights those were.

Of three kinds, any of them alone or together:

    updates    layer -> (A, B), which adds (alpha / r) B A to the layer's weight (see `layers`)
    classes    name -> a row (width,) for the network's table of labels
    words      name -> tokens (tokens, text_dim) for the network's text slot (see `words`)

It is a difference, and means nothing beside other weights than those it was learned beside. So it names them by their
SHA-256, and a network with any other is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..errors import BundleError


@dataclass(frozen=True)
class Adapter:
    """What was learned beside weights with the SHA-256 `base` (`Model.fingerprint`).

    updates: layer -> (down (r, in, ...), up (out, r)), all of one rank r; alpha: they are added times alpha / r.
    classes: name -> (width,). words: name -> (tokens, text_dim). about: what a folder's record says besides.
    Raises BundleError if it holds nothing, or tensors that are not finite or do not fit each other.
    """

    base: str
    updates: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    alpha: float = 1.0
    classes: Mapping[str, Tensor] = field(default_factory=dict)
    words: Mapping[str, Tensor] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.updates or self.classes or self.words):
            raise BundleError("an adapter must hold something: updates of layers, new classes or words")
        if not math.isfinite(self.alpha) or self.alpha <= 0:
            raise BundleError(f"an adapter's alpha must be positive and finite, not {self.alpha!r}")
        for name, (down, up) in self.updates.items():
            if up.ndim != 2 or down.ndim not in (2, 4) or len(down) != up.shape[1] or len(down) != self.rank:
                raise BundleError(
                    f"the update of {name} is {tuple(up.shape)} times {tuple(down.shape)}, which is none of rank "
                    f"{self.rank}"
                )
        for what, named, dimensions in (("class", self.classes, 1), ("word", self.words, 2)):
            for name, value in named.items():
                if value.ndim != dimensions:
                    raise BundleError(f"the {what} {name!r} has {value.ndim} dimensions, not {dimensions}")
        for name, value in self.tensors().items():
            if not value.isfinite().all():
                raise BundleError(f"the adapter's {name} is not finite")

    @property
    def rank(self) -> int:
        """r, 0 for an adapter that updates no layer."""
        return next((len(down) for down, _ in self.updates.values()), 0)

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.alpha / max(self.rank, 1)

    @property
    def parameters(self) -> int:
        """Numbers that it holds."""
        return sum(value.numel() for value in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, as files hold it: "layer.down", "layer.up", "class/name", "word/name"."""
        found = {}
        for name, (down, up) in self.updates.items():
            found |= {f"{name}.down": down, f"{name}.up": up}
        found |= {f"class/{name}": row for name, row in self.classes.items()}
        return found | {f"word/{name}": word for name, word in self.words.items()}
