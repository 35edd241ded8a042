"""Randomness that is keyed, not consumed.

A generator that is consumed makes a sample depend on whatever was drawn before it: on the batch it sat in,
on the thread, on how many samples were asked for. Here a draw is a *function* of what it is for,

    bits(sample, step, stream) = Philox(key = (seed, index), counter = (0, 0, stream, step)),

where Philox-4x64-10 is a counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011): each key and counter names its own stream of 2^128 blocks, and no state needs to be kept. So sample 7 of
100 equals sample 7 drawn alone, a resumed run is the same run, and two threads cannot disturb each other.

Two 32-bit words make two standard normals (Box & Muller, 1958):

    r = sqrt(-2 log u),  z1 = r cos(2 pi v),  z2 = r sin(2 pi v),   u = (k + 1/2) / 2^32, v = l / 2^32

Draws are made in float32 on the CPU and then moved, so that they do not depend on the device either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

_WORD = np.uint64(0xFFFFFFFFFFFFFFFF)


class Draws(Protocol):
    """What solvers and objectives ask of randomness: normals and uniforms shaped like a tensor."""

    def normal(self, like: Tensor, stream: int = 0) -> Tensor: ...
    def uniform(self, like: Tensor, stream: int = 0) -> Tensor: ...


@runtime_checkable
class Strata(Draws, Protocol):
    """Draws that know the whole batch of which they serve a part, and so its low-discrepancy uniforms."""

    def strata(self, like: Tensor, stream: int = 0) -> Tensor: ...


def _words(keys: Sequence[tuple[int, int]], step: int, stream: int, count: int) -> np.ndarray:
    """`count` 32-bit words for each key, (len(keys), count)."""
    generator = np.random.Philox(0)
    state = generator.state
    inner = state["state"]
    inner["counter"] = (0, 0, stream, step)
    words = np.empty((len(keys), (count + 1) // 2), dtype=np.uint64)
    for row, inner["key"] in zip(words, keys, strict=True):
        generator.state = state
        row[:] = generator.random_raw(len(row))
    return words.view(np.uint32)[:, :count]


def _normals(words: np.ndarray) -> np.ndarray:
    """Box–Muller: (n, 2m) words to (n, 2m) standard normals in float32."""
    half = words.shape[1] // 2
    # in place, since allocating costs as much as computing at these sizes
    # + 1/2 keeps the logarithm finite; the largest radius, at k = 0, is 6.7 standard deviations.
    radius = words[:, :half].astype(np.float32)
    radius += np.float32(0.5)
    radius *= np.float32(2.0**-32)
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    np.sqrt(radius, out=radius)
    angle = words[:, half:].astype(np.float32)
    angle *= np.float32(2 * np.pi * 2.0**-32)
    values = np.empty(words.shape, dtype=np.float32)
    np.multiply(radius, np.cos(angle), out=values[:, :half])
    np.multiply(radius, np.sin(angle, out=angle), out=values[:, half:])
    return values


def _uint64(value: int, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value <= int(_WORD):
        raise ValueError(f"{what} must be a whole number from 0 to 2^64 - 1, not {value!r}")
    return int(value)


@dataclass(frozen=True)
class Noise:
    """Keyed randomness for a batch of samples: row i of every draw depends on (seed, indices[i], step, stream) alone.

    seed: the user's seed. indices: which samples of that seed the rows of a batch are.
    Raises ValueError for a negative seed or index, or a tensor whose batch is not len(indices).
    """

    seed: int
    indices: tuple[int, ...]

    def __init__(self, seed: int, indices: int | Sequence[int]):
        # a count says samples 0 to count - 1; range(-3) would quietly be no samples at all
        rows = (
            range(_uint64(indices, "a number of samples"))
            if isinstance(indices, (int, np.integer))
            else indices
        )
        object.__setattr__(self, "seed", _uint64(seed, "seed"))
        object.__setattr__(self, "indices", tuple(_uint64(i, "a sample's index") for i in rows))

    def _draw(self, like: Tensor, step: int, stream: int, normal: bool) -> Tensor:
        if like.shape[0] != len(self.indices):
            raise ValueError(f"a batch of {like.shape[0]} was asked of noise for {len(self.indices)} samples")
        size = like[0].numel() if len(self.indices) else 0
        even = size + size % 2
        step, stream = _uint64(step, "step"), _uint64(stream, "stream")
        words = _words([(self.seed, i) for i in self.indices], step, stream, even)
        values = _normals(words) if normal else (words >> 8).astype(np.float32) * np.float32(2.0**-24)
        return torch.from_numpy(values[:, :size]).reshape(like.shape).to(like)

    def normal(self, like: Tensor, step: int = 0, stream: int = 0) -> Tensor:
        """Standard normals shaped like `like`, (batch, ...), on its device and in its dtype."""
        return self._draw(like, step, stream, normal=True)

    def uniform(self, like: Tensor, step: int = 0, stream: int = 0) -> Tensor:
        """Uniforms in [0, 1) shaped like `like`, (batch, ...), in steps of 2^-24."""
        return self._draw(like, step, stream, normal=False)

    def at(self, step: int) -> StepNoise:
        """The draws of one step, as a solver sees them."""
        return StepNoise(self, step)


@dataclass(frozen=True)
class StepNoise:
    """The draws of one step of a `Noise`; streams tell several draws of the same step apart."""

    noise: Noise
    step: int

    def normal(self, like: Tensor, stream: int = 0) -> Tensor:
        return self.noise.normal(like, self.step, stream)

    def uniform(self, like: Tensor, stream: int = 0) -> Tensor:
        return self.noise.uniform(like, self.step, stream)


@dataclass(frozen=True)
class BatchNoise:
    """Keyed randomness for training, where a batch, not a sample, is the unit: a function of (seed, step, stream).

    It uses the generator of the tensor's own device, so it is as fast as `torch.randn`; the same on the same device.
    """

    seed: int
    step: int

    def __post_init__(self) -> None:
        _uint64(self.seed, "seed")
        _uint64(self.step, "step")

    def _generator(self, like: Tensor, stream: int) -> torch.Generator:
        mixed = np.random.SeedSequence([self.seed, self.step, stream]).generate_state(1, np.uint64)[0]
        return torch.Generator(device=like.device).manual_seed(int(mixed >> np.uint64(1)))

    def normal(self, like: Tensor, stream: int = 0) -> Tensor:
        """Standard normals shaped like `like`."""
        generator = self._generator(like, stream)
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)

    def uniform(self, like: Tensor, stream: int = 0) -> Tensor:
        """Uniforms in [0, 1) shaped like `like`."""
        generator = self._generator(like, stream)
        return torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype)
