"""Operators that are not linear: whatever can be differentiated can be measured.

Rounding has no useful derivative; where something is rounded the derivative passes straight through it
(Bengio et al. 2013), so that a gradient says which way the picture should go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SolverError
from .operator import Operator


class Function(Operator):
    """Any differentiable function of a batch, sample by sample: (batch, *shape) to (batch, ...)."""

    def __init__(self, function: Callable[[Tensor], Tensor], shape: Sequence[int]):
        self.function, self.shape = function, tuple(shape)

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)


class Clip(Operator):
    """A saturated picture: y = gain x, cut off at low and high. Where it is cut off, y says nothing more of x."""

    def __init__(self, shape: Sequence[int], gain: float = 2.0, low: float = -1.0, high: float = 1.0):
        if not (gain > 0 and low < high):
            raise SolverError(f"a saturation needs gain > 0 and low < high, not {gain}, {low}, {high}")
        self.shape, self.gain, self.low, self.high = tuple(shape), gain, low, high

    def __call__(self, x: Tensor) -> Tensor:
        return (self.gain * x).clamp(self.low, self.high)


class Magnitude(Operator):
    """The sizes of the Fourier transform without its phases, |F x|, padded to `oversampling` times the sides.

    Pictures turned by half a circle or moved on the padding measure the same. The root is rounded off below 1e-6.
    """

    def __init__(self, shape: Sequence[int], oversampling: float = 2.0):
        if not oversampling >= 1:
            raise SolverError(f"oversampling must be at least 1, not {oversampling!r}")
        self.shape = tuple(shape)
        self.sides = tuple(math.ceil(oversampling * side) for side in self.shape[-2:])

    def __call__(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(x, s=self.sides, norm="ortho")
        return (spectrum.real.square() + spectrum.imag.square() + 1e-12).sqrt()


def _rounded(x: Tensor) -> Tensor:
    """round(x) with the derivative of x."""
    return x + (x.round() - x).detach()


class Quantise(Operator):
    """Every number rounded to the nearest of `levels` even ones from low to high."""

    def __init__(self, shape: Sequence[int], levels: int = 8, low: float = -1.0, high: float = 1.0):
        if levels < 2 or not low < high:
            raise SolverError(
                f"a quantisation needs 2 levels or more and low < high, not {levels}, {low}, {high}"
            )
        self.shape, self.low, self.step = tuple(shape), low, (high - low) / (levels - 1)
        self.levels = levels

    def __call__(self, x: Tensor) -> Tensor:
        place = ((x - self.low) / self.step).clamp(0, self.levels - 1)
        return self.low + self.step * _rounded(place)


class Jpeg(Operator):
    """What JPEG loses: the cosine transform of 8x8 blocks of each channel, rounded more coarsely for finer detail.

    quality: 1 to 100, scaled as by the Independent JPEG Group. The steps are 16 + 6 (i + j) at frequencies (i, j), a
    plane through the standard's table for brightness; colours are treated like brightness, and nothing is subsampled.
    """

    def __init__(self, shape: Sequence[int], quality: int = 20):
        if not 1 <= quality <= 100:
            raise SolverError(f"quality lies from 1 to 100, not {quality!r}")
        self.shape = tuple(shape)
        scale = (50 / quality if quality < 50 else 2 - quality / 50) / 127.5
        n = torch.arange(8, dtype=torch.float64)
        self.steps = (16 + 6 * (n[:, None] + n)) * max(scale, 1e-6)
        waves = torch.cos(math.pi * n[:, None] * (n + 0.5) / 8) * math.sqrt(2 / 8)
        waves[0] /= math.sqrt(2)
        self.waves = waves

    def __call__(self, x: Tensor) -> Tensor:
        height, width = self.shape[-2:]
        padded = F.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
        n, c, h, w = padded.shape
        blocks = padded.reshape(n, c, h // 8, 8, w // 8, 8).transpose(3, 4)
        waves, steps = self.waves.to(x), self.steps.to(x)
        kept = _rounded(waves @ blocks @ waves.mT / steps) * steps
        whole = (waves.mT @ kept @ waves).transpose(3, 4).reshape(n, c, h, w)
        return whole[..., :height, :width]


class Statistics(Operator):
    """Mean and standard deviation of each channel's detail at several scales, (batch, scales, channels, 2).

    Scale k is what the mean over 2^k pixels keeps and that over 2^(k + 1) loses; the last is what is left. They say how
    a picture looks and not what is where, as the statistics of a network's layers do (Huang & Belongie 2017).
    """

    def __init__(self, shape: Sequence[int], scales: int = 3):
        least = min(shape[-2:])
        if not 1 <= scales <= math.floor(math.log2(least)):
            raise SolverError(
                f"pictures of {least} pixels have 1 to {int(math.log2(least))} scales, not {scales}"
            )
        self.shape, self.scales = tuple(shape), scales

    def __call__(self, x: Tensor) -> Tensor:
        found = []
        for k in range(self.scales):
            coarse = F.avg_pool2d(x, 2)
            back = F.interpolate(coarse, size=x.shape[-2:])
            found.append(x if k == self.scales - 1 else x - back)
            x = coarse
        pairs = [torch.stack([d.mean((-2, -1)), (d.var((-2, -1)) + 1e-6).sqrt()], -1) for d in found]
        return torch.stack(pairs, 1)
