"""A model of small pictures on a larger one, and of short clips on a long one: overlapping windows, averaged.

Each window of the canvas is denoised as a state of its own; a place in several windows gets the mean of what they
say, which is the x_0 that is nearest to all of them in the sum of squares (Bar-Tal et al. 2023, MultiDiffusion, eq.
5):

    x_0(i) = sum over windows w at i of x_0^w(i) / number of windows at i.

Windows are evenly spread with an overlap of at least half their side, in space as in time, and all are evaluated in one
batch, so a canvas costs as many evaluations of the network as it has windows. What is far apart does not know of each
other but through what lies between.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..codec import IdentityCodec
from ..denoisers import Condition, Denoises
from ..denoisers.denoiser import rows
from ..errors import BundleError, SolverError
from ..noise import Noise
from ..processes import Level, Prediction
from ..solvers import Callback, sample


def _places(whole: int, window: int) -> list[int]:
    """Where windows begin: evenly spread, each overlapping the next by half or more."""
    count = 1 + math.ceil((whole - window) / max(window // 2, 1))
    return [round(k * (whole - window) / max(count - 1, 1)) for k in range(count)]


class Windows(nn.Module):
    """A denoiser of (channels, ...) states on a canvas at least as large in each of them. Raises SolverError for less.

    Of pictures the canvas is (channels, height, width), of clips (channels, frames, height, width).
    """

    def __init__(self, denoiser: Denoises, window: Sequence[int], canvas: Sequence[int]):
        super().__init__()
        window, canvas = tuple(window), tuple(canvas)
        small = len(canvas) != len(window) or any(c < w for c, w in zip(canvas, window, strict=True))
        if small or canvas[0] != window[0]:
            raise SolverError(
                f"this model makes states of {window}; a canvas is at least as large, not {canvas}"
            )
        self.denoiser, self.process = denoiser, denoiser.process
        each = [
            [slice(place, place + w) for place in _places(c, w)]
            for c, w in zip(canvas[1:], window[1:], strict=True)
        ]
        self.places = [(..., *where) for where in itertools.product(*each)]

    def forward(self, x_t: Tensor, t: float | Tensor | Level, condition: Condition = None) -> Prediction:
        level, count = self.process.level(t), len(self.places)
        pieces = torch.cat([x_t[place] for place in self.places])
        each = level
        if isinstance(level.sigma, Tensor) and level.sigma.ndim:
            each = Level(*(row.repeat(count) for row in rows(level, x_t)))
        given = condition and {
            name: value.repeat(count, *[1] * (value.ndim - 1)) for name, value in condition.items()
        }
        found = self.denoiser(pieces, each, given).x0.chunk(count)
        # added up by padding, which can be differentiated
        total, weight = torch.zeros_like(x_t), torch.zeros_like(x_t[:1])
        for place, x0 in zip(self.places, found, strict=True):
            sizes = x_t.shape[-len(place) + 1 :]
            around = [(cut.start, size - cut.stop) for cut, size in zip(place[1:], sizes, strict=True)]
            total = total + nn.functional.pad(x0, [n for pair in reversed(around) for n in pair])
            weight[place] += 1
        return Prediction(total / weight, "x0", x_t, level, self.process)


@torch.no_grad()
def sample_canvas(
    model: Any,
    canvas: Sequence[int],
    count: int = 1,
    *,
    condition: Mapping[str, Any] | None = None,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | str | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Samples 0 to count - 1 of a seed on a canvas larger than the model's states, (count, *canvas), by `Windows`.

    canvas: (channels, frames, height, width) of clips, (channels, height, width) of pictures. On the model's own shape
    it draws what `Model.sample` does, whose arguments the others are. Raises SolverError or BundleError for what does
    not fit, for data that larger states are none of, and for a model of latents or one that enlarges pictures.
    """
    if not model.domain.spreads:
        raise BundleError(
            f"a canvas is for pictures, clips and fields, and this model makes {model.domain.name}"
        )
    if model.base is not None or not isinstance(model.codec, IdentityCodec):
        raise BundleError("a canvas is for models that draw by themselves, without a codec or small pictures")
    plan = model.plan(steps=steps, guidance=guidance, conditional=bool(condition))
    weights = next(model.denoiser.parameters())
    noise = Noise(seed, count)
    given = model.conditions.tensors(condition, count, noise)
    given = given and {name: value.to(weights.device) for name, value in given.items()}
    denoiser = Windows(model.guided(plan.guidance), model.domain.shape, canvas)
    levels = plan.grid.levels(model.denoiser.process, plan.steps)
    return sample(
        denoiser, noise, tuple(canvas), like=weights, solver=plan.solver, levels=levels, condition=given,
        callback=callback,
    )  # fmt: skip
