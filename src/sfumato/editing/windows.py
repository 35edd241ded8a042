"""A model of small pictures on a larger one: overlapping windows whose predictions are averaged.

Each window of the canvas is denoised as a picture of its own; a pixel in several windows gets the mean of what they
say, which is the x_0 that is nearest to all of them in the sum of squares (Bar-Tal et al. 2023, MultiDiffusion, eq.
5):

    x_0(i) = sum over windows w at i of x_0^w(i) / number of windows at i.

Windows are evenly spread with an overlap of at least half their side, and all are evaluated in one batch, so a canvas
costs as many evaluations of the network as it has windows. What is far apart does not know of each other but through
what lies between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..denoisers import Condition, Denoises
from ..denoisers.denoiser import rows
from ..errors import SolverError
from ..processes import Level, Prediction


def _places(whole: int, window: int) -> list[int]:
    """Where windows begin: evenly spread, each overlapping the next by half or more."""
    count = 1 + math.ceil((whole - window) / max(window // 2, 1))
    return [round(k * (whole - window) / max(count - 1, 1)) for k in range(count)]


class Windows(nn.Module):
    """A denoiser of (channels, height, width) pictures on a canvas at least as large. Raises SolverError for less."""

    def __init__(self, denoiser: Denoises, window: Sequence[int], canvas: Sequence[int]):
        super().__init__()
        if len(canvas) != 3 or canvas[0] != window[0] or canvas[1] < window[1] or canvas[2] < window[2]:
            raise SolverError(
                f"this model makes pictures of {tuple(window)}; a canvas is at least as large, not {tuple(canvas)}"
            )
        self.denoiser, self.process = denoiser, denoiser.process
        self.window = tuple(window[1:])
        self.places = [(y, x) for y in _places(canvas[1], window[1]) for x in _places(canvas[2], window[2])]

    def forward(self, x_t: Tensor, t: float | Tensor | Level, condition: Condition = None) -> Prediction:
        level, (height, width), count = self.process.level(t), self.window, len(self.places)
        pieces = torch.cat([x_t[..., y : y + height, x : x + width] for y, x in self.places])
        each = level
        if isinstance(level.sigma, Tensor) and level.sigma.ndim:
            each = Level(*(row.repeat(count) for row in rows(level, x_t)))
        given = condition and {
            name: value.repeat(count, *[1] * (value.ndim - 1)) for name, value in condition.items()
        }
        found = self.denoiser(pieces, each, given).x0.chunk(count)
        # added up by padding, which can be differentiated
        total, weight = torch.zeros_like(x_t), torch.zeros_like(x_t[:1])
        right, down = x_t.shape[-1] - width, x_t.shape[-2] - height
        for (y, x), x0 in zip(self.places, found, strict=True):
            total = total + nn.functional.pad(x0, (x, right - x, y, down - y))
            weight[..., y : y + height, x : x + width] += 1
        return Prediction(total / weight, "x0", x_t, level, self.process)
