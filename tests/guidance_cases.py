"""What tests of guidance share."""

from __future__ import annotations

import torch

from sfumato.noise import Noise


def points(seed: int = 0, rows: int = 5, dim: int = 2, scale: float = 1.5) -> torch.Tensor:
    return scale * Noise(seed, rows).normal(torch.empty(rows, dim, dtype=torch.float64))
