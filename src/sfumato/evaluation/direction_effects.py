"""What a direction does to pictures, measured: plain attributes at several strengths, and if they move one way.

A sheet of pictures persuades too easily. So the same samples (same seed, same noise) are drawn at each strength, and
for each of some attributes that need no labels and no classifier, of the brightness b(i, j) in [0, 1] of one picture,

    brightness  mean b              across  (sum j b) / (sum b) / width        0 left, 1 right
    contrast    deviation of b      down    (sum i b) / (sum b) / height       0 top, 1 bottom
    detail      mean |difference of neighbours| / contrast

two numbers are said: the mean change from the lowest strength to the highest, in units of the attribute's deviation
among the plain samples; and the share of samples whose attribute rose (or fell) at every single step of strength.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from ..model import Model
from .directions import Directions, Steered

ATTRIBUTES = ("brightness", "contrast", "detail", "across", "down")


def attributes(pictures: Tensor) -> Tensor:
    """The attributes of pictures (n, c, h, w) in [-1, 1], (n, 5) in the order of `ATTRIBUTES`."""
    b = ((pictures.double().clamp(-1, 1) + 1) / 2).mean(1)
    height, width = b.shape[1:]
    spread = b.flatten(1).std(1)
    steps = b.diff(dim=1).abs().mean((1, 2)) + b.diff(dim=2).abs().mean((1, 2))
    weight = b / b.sum((1, 2), keepdim=True).clamp(min=1e-9)
    i, j = (torch.arange(n, dtype=b.dtype, device=b.device) / max(n - 1, 1) for n in (height, width))
    across, down = (weight * j).sum((1, 2)), (weight * i[:, None]).sum((1, 2))
    return torch.stack([b.mean((1, 2)), spread, steps / spread.clamp(min=1e-9), across, down], 1)


@dataclass(frozen=True)
class Effect:
    """What a direction does to an attribute.

    change: from the lowest strength to the highest, in deviations of the attribute among the plain samples. monotone:
    the share of samples in which it moved the way of `change` at every step of strength.
    """

    direction: int
    attribute: str
    change: float
    monotone: float


def sweep(
    model: Model,
    directions: Directions,
    strengths: Sequence[float],
    count: int,
    window: tuple[float, float] = (0.0, 1.0),
    **settings: Any,
) -> Tensor:
    """The same `count` samples along each direction at each strength, (directions, strengths, count, c, h, w).

    settings: as those of `Model.sample`. Raises DataError unless the strengths rise and 0 is among them.
    """
    if list(strengths) != sorted(set(strengths)) or len(strengths) < 2 or 0 not in strengths:
        raise DataError(f"strengths must rise, with 0 among them, not {tuple(strengths)}")
    plain = model.sample(count, **settings)
    rows = []
    for number in range(len(directions)):
        row = []
        for strength in strengths:
            if strength == 0:
                row.append(plain)
                continue
            steered: Any = Steered(
                model.denoiser, directions.step({number: strength}), directions.path, window
            )
            row.append(replace(model, denoiser=steered).sample(count, **settings))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def effects(swept: Tensor, strengths: Sequence[float]) -> list[list[Effect]]:
    """For each direction of a `sweep` its effects on all attributes, the largest change first."""
    found = []
    for number, row in enumerate(swept):
        values = torch.stack([attributes(pictures) for pictures in row])  # (strengths, count, attributes)
        unit = values[list(strengths).index(0)].std(0).clamp(min=1e-9)
        change = (values[-1] - values[0]).mean(0) / unit
        moves = values.diff(dim=0) * change.sign()
        share = (moves > 0).all(0).double().mean(0)
        told = [
            Effect(number, name, float(c), float(m))
            for name, c, m in zip(ATTRIBUTES, change, share, strict=True)
        ]
        found.append(sorted(told, key=lambda effect: -abs(effect.change)))
    return found
