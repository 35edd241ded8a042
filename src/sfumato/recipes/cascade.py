"""Training a model that enlarges another's pictures.

    sfumato train emoji-32 --out runs/emoji-32
    sfumato train emoji-cascade --out runs/emoji-cascade         the packaged recipe names the first one's bundle

The trainer is shown pairs, made as it goes: a picture, and in its condition the same picture shrunken and noised
(`sfumato.cascade`). Which time and which noise follow from the seed and the place in training, as all augmentation
does. The base itself is not asked in training: that is what the noise is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import bundle
from ..cascade import Base, enlarged
from ..domains.image_data import ImageData, keyed_words
from ..errors import RecipeError, RunError
from ..noise import Noise
from ..processes import Gaussian
from ..training.order import mixed
from .recipe import Recipe

_TIME, _NOISE = 0xCA5C, 0xCA5D  # streams


@dataclass(frozen=True)
class Pairs:
    """Data whose condition holds each picture shrunken to `small` (height, width), noised to a time up to `most`."""

    data: ImageData
    small: Sequence[int]
    process: Gaussian
    most: float

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Any, seed: int = 0, images_seen: int = 0) -> dict[str, Any]:
        """As `ImageData.batch`, with "image" (n, c + 1, h, w) in the condition."""
        batch = self.data.batch(indices, seed, images_seen)
        x = batch["x"]
        words = keyed_words(seed, _TIME, images_seen, len(x)) >> np.uint64(11)
        u = self.most * torch.from_numpy(words.astype(np.float64) / 2**53)
        noise = Noise(mixed(seed, _NOISE), range(images_seen, images_seen + len(x))).at(0)
        low = F.interpolate(x, size=tuple(self.small), mode="bicubic", antialias=True, align_corners=False)
        image = enlarged(low.clamp(-1, 1), x.shape[2:], self.process, u, noise)
        return batch | {"condition": {**batch.get("condition", {}), "image": image}}

    def tensor(self, indices: Any = None) -> Tensor:
        """The pictures themselves."""
        return self.data.tensor(indices)


def base_of(recipe: Recipe, out: Path | None = None) -> Base | None:
    """What a recipe's model enlarges, None without [cascade]; `out`: the run folder that keeps a copy.

    Raises RecipeError for a base that cannot be had, RunError where the run was begun with another.
    """
    asked = recipe.cascade
    if asked.bundle is None:
        return None
    place, kept = Path(asked.bundle), None if out is None else out / "base"
    own = bundle.load(kept) if kept is not None and (kept / "bundle.json").is_file() else None
    if not (place / "bundle.json").is_file():
        if own is not None:
            return Base(own, asked.level)
        raise RecipeError(
            f"cascade.bundle = {str(place)!r}: there is no such bundle; train it first "
            f"(sfumato train {asked.recipe or 'A-RECIPE'} --out {place.parent}), or give another"
        )
    found = bundle.load(place)
    if own is not None and own.fingerprint != found.fingerprint:
        raise RunError(
            f"{out} was begun with the base {own.fingerprint[:12]}, and {place} holds {found.fingerprint[:12]}: start "
            "another run"
        )
    return Base(own or found, asked.level)


def keep_base(base: Base | None, out: Path) -> None:
    """Put a copy of a base into a run folder."""
    if base is not None and not (out / "base" / "bundle.json").is_file():
        bundle.save_again(base.model, out / "base")
