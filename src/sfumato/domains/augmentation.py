"""Augmentation that does not leak: pictures are changed, and the network is told how.

A model of few pictures learns them by heart: what it makes of noise at a picture it never saw stops improving long
before what it makes at those that it was trained on. Changed pictures are more pictures, but a model of them makes
changed pictures too. Karras et al. (2022, arXiv:2206.00364, appendix F.2, after Jun et al. 2020) tell the network the
parameters of the change, a row a that is 0 for a picture as it is: in training it learns p(x | a), of which sampling
asks for p(x | 0), and all that is alike under the changes, such as what an edge is, is learned from every one of them.

The changes are symmetries of the grid of pixels and of the cube of colours, so none resamples or leaves [-1, 1]:

    each with the chance p           parameters
    mirrored left to right           m = 1
    turned by k quarters             cos(k π/2) - 1, sin(k π/2)         k uniform in 1 .. 3
    moved, the border repeated       (down, right) / reach              each uniform in -reach .. reach, reach an eighth
    red and blue exchanged           s = 1
    colours moved on by k channels   cos(k 2π/3) - 1, sin(k 2π/3)       k uniform in 1, 2

The first two make the group of a square, the last two that of a triangle. Pictures that are no squares are turned by
half a turn alone; grey ones keep their colour. As all augmentation, it is keyed and not consumed (`image_data`): five
64-bit words belong to each position of training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.domains.image_data import keyed_words
from sfumato.errors import DataError

PARAMETERS = 8
_CHANGE, _WORDS = 0xA06, 5
_FREE = (1 << 32) - 1  # the lower half of a word says which change, the upper one whether


@dataclass(frozen=True)
class Change:
    """One picture mirrored, turned, moved, and its colours exchanged and moved on, in this order.

    quarters: of a turn. shift: pixels down and right. swap: red and blue. steps: by how many channels colours move on.
    A fourth channel, of alpha, stays as it is.
    """

    mirror: bool = False
    quarters: int = 0
    shift: tuple[int, int] = (0, 0)
    swap: bool = False
    steps: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """The picture x (channels, height, width), changed."""
        if self.mirror:
            x = x.flip(2)
        if self.quarters:
            x = x.rot90(self.quarters, (1, 2))
        if any(self.shift):
            down, right = self.shift
            height, width = x.shape[1:]
            pad = (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0))
            x = F.pad(x[None], pad, mode="replicate")[0]
            x = x[:, max(-down, 0) :, max(-right, 0) :][:, :height, :width]
        if self.swap or self.steps:
            order = [2, 1, 0] if self.swap else [0, 1, 2]
            x = torch.cat([x[[order[(i - self.steps) % 3] for i in range(3)]], x[3:]])
        return x

    def parameters(self, shape: Sequence[int]) -> list[float]:
        """What a network is told of this change of pictures of `shape` (channels, height, width): see the file."""
        turn, cycle = self.quarters * math.pi / 2, self.steps * 2 * math.pi / 3
        moved = [by / (side // 8) for by, side in zip(self.shift, shape[1:], strict=True)]
        return [
            float(self.mirror), math.cos(turn) - 1, math.sin(turn), *moved,
            float(self.swap), math.cos(cycle) - 1, math.sin(cycle),
        ]  # fmt: skip


@dataclass(frozen=True)
class Augmented:
    """Data of pictures, each changed in each way with the chance `share`, and the network told.

    data: an `ImageData`, or what wraps one and has no second picture in its condition. Raises DataError for a share
    out of [0, 1) or pictures too small to be moved.
    """

    data: Any
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise DataError(f"augment is the chance of each change, in [0, 1), not {self.share!r}")
        if min(self.data.domain.shape[1:]) < 8:
            raise DataError("augment moves pictures by an eighth, and needs 8 pixels a side")

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Any, seed: int = 0, images_seen: int = 0) -> dict[str, Any]:
        """As `ImageData.batch`, changed, with "augmentation" (n, 8) in the condition."""
        batch = self.data.batch(indices, seed, images_seen)
        x = batch["x"]
        words = keyed_words(seed, _CHANGE, images_seen * _WORDS, len(x) * _WORDS).reshape(-1, _WORDS)
        changes = [self._drawn(x.shape[1:], row) for row in words.tolist()]
        changed = torch.stack([change(picture) for change, picture in zip(changes, x, strict=True)])
        told = torch.tensor([change.parameters(x.shape[1:]) for change in changes])
        return batch | {"x": changed, "condition": {**batch.get("condition", {}), "augmentation": told}}

    def tensor(self, indices: Any = None) -> Tensor:
        """The pictures as they are."""
        return self.data.tensor(indices)

    def _drawn(self, shape: Sequence[int], words: Sequence[int]) -> Change:
        """The change that five words say, of pictures of `shape`: each way's is None where it is not to happen."""
        mirror, turn, move, swap, cycle = (
            word & _FREE if word >> 32 < self.share * 2**32 else None for word in words
        )
        channels, height, width = shape
        quarters = 0 if turn is None else turn * 3 // 2**32 + 1 if height == width else 2
        shift = (0, 0)
        if move is not None:
            shift = _spread(move >> 16, height // 8), _spread(move & 0xFFFF, width // 8)
        coloured = channels > 1
        steps = 0 if cycle is None or not coloured else cycle * 2 // 2**32 + 1
        return Change(mirror is not None, quarters, shift, coloured and swap is not None, steps)


def _spread(bits: int, reach: int) -> int:
    """A whole number in -reach .. reach from 16 bits."""
    return bits * (2 * reach + 1) // 2**16 - reach
