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

**Symbols** come from the inverse of their cumulative chances at a keyed uniform: symbol k where

    sum_{j < k} p_j <= u sum_j p_j < sum_{j <= k} p_j,

one number a symbol whatever the size of the alphabet, and a chance of 0 is never met. Uniforms fall on a lattice of
2^-24, so a chance is kept to 6e-8; sums are float64. (Adding Gumbel noise to log-chances in float32, the other common
way, cuts the noise's tail and so lowers the temperature: Zheng et al. 2024, arXiv 2409.02908.)

**Brownian paths.** A solver that draws anew for each step sees another path on every grid. A path that is the same on
all grids is a function W(q), and its value at any q >= 0 comes from a tree of keyed normals, after Lévy: between two
places a < b where W is known,

    W(m) = W(a) + (m - a)/(b - a) (W(b) - W(a)) + sqrt((m - a)(b - m)/(b - a)) z(node),      z ~ N(0, 1).

The tree halves k in q = (k / (1 - k))^8 from (0, 1) on, which is (0, infinity) for q, `depth` times; the normal of the
leaf that q falls into then serves at q itself. So no tree is stored, nothing depends on what was asked before, and
increments add up. Nodes are exact, and so is the law of any number of places of which no two share a leaf (a leaf's own
bridge has the right variance everywhere, and is independent of the others'); about q = 1 a leaf of depth 12 is 0.8 % of
q. Places within one leaf are refused. What was met on the way to the last place is kept, since the next is near it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from .errors import SolverError

_WORD = np.uint64(0xFFFFFFFFFFFFFFFF)


class Draws(Protocol):
    """What solvers and objectives ask of randomness: normals and uniforms shaped like a tensor."""

    def normal(self, like: Tensor, stream: int = 0) -> Tensor: ...
    def uniform(self, like: Tensor, stream: int = 0) -> Tensor: ...


class Keyed(Protocol):
    """What the sampling loop asks of randomness: which samples it is for, and the draws of each step."""

    @property
    def indices(self) -> tuple[int, ...]: ...
    def at(self, step: int) -> Draws: ...


@runtime_checkable
class Strata(Draws, Protocol):
    """Draws that know the whole batch of which they serve a part, and so its low-discrepancy uniforms."""

    def strata(self, like: Tensor, stream: int = 0) -> Tensor: ...


@dataclass(frozen=True)
class Apart:
    """The draws of one step with every stream moved by `offset`, so that parts of a state share no numbers."""

    draws: Draws
    offset: int

    def normal(self, like: Tensor, stream: int = 0) -> Tensor:
        return self.draws.normal(like, stream + self.offset)

    def uniform(self, like: Tensor, stream: int = 0) -> Tensor:
        return self.draws.uniform(like, stream + self.offset)


def symbols(chances: Tensor, noise: Draws, stream: int = 0) -> Tensor:
    """A symbol (batch, ...) in int64 for each row of chances (batch, ..., symbols), which need not add up to one.

    The k with sum_{j < k} p_j <= u sum_j p_j < sum_{j <= k} p_j at a uniform u.
    Raises SolverError for chances that are not finite, or all 0.
    """
    heap = chances.double().cumsum(-1)
    whole = heap[..., -1]
    if not bool(((whole > 0) & (whole < math.inf)).all()):
        raise SolverError("the chances of a symbol must be finite and not all 0; does the model say NaN?")
    # below the whole, also where u = 1 - 2^-53 rounds up to it: else a chance of 0 behind it would be met
    at = torch.minimum(noise.uniform(whole, stream) * whole, whole.nextafter(torch.zeros_like(whole)))
    return torch.searchsorted(heap, at[..., None], right=True)[..., 0]


def _words(keys: Sequence[tuple[int, int]], step: int, stream: int, count: int) -> np.ndarray:
    """`count` 32-bit words for each key, (len(keys), count)."""
    generator = np.random.Philox(0)
    state = generator.state
    inner = state["state"]
    inner["counter"] = np.array([0, 0, stream, step], dtype=np.uint64)
    words = np.empty((len(keys), (count + 1) // 2), dtype=np.uint64)
    for row, key in zip(words, np.array(keys, dtype=np.uint64).reshape(-1, 2), strict=True):
        inner["key"] = key
        generator.state = state
        row[:] = generator.random_raw(len(row))
    return words.view(np.uint32)[:, :count]


def _normals(words: np.ndarray) -> np.ndarray:
    """Box–Muller: (n, 2m) words to (n, 2m) standard normals in float32, in the words' place.

    In place throughout, since at the size of a batch of images allocating costs as much as computing.
    """
    half = words.shape[1] // 2
    # + 1/2 keeps the logarithm finite; the largest radius, at k = 0, is 6.7 standard deviations.
    radius = words[:, :half].astype(np.float32)
    radius += np.float32(0.5)
    radius *= np.float32(2.0**-32)
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    np.sqrt(radius, out=radius)
    angle = words[:, half:].astype(np.float32)
    angle *= np.float32(2 * np.pi * 2.0**-32)
    values = words.view(np.float32)
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


_TREE = 1 << 63  # streams from here on are those of Brownian trees


def _place(node: int, level: int) -> float:
    """Where in q the node of a level splits its interval."""
    twice = 2 * (node - (1 << level)) + 1  # k = twice / 2^(level + 1)
    return (twice / ((2 << level) - twice)) ** 8


@dataclass(frozen=True)
class Brownian:
    """A Brownian motion W(q), q >= 0, W(0) = 0, for each sample: a function of (seed, index, stream, depth) and q.

    depth: how often the tree halves; places closer than one of its leaves are refused.
    Raises ValueError for a depth or a place out of range, and for an increment within one leaf.
    """

    noise: Noise
    depth: int = 12
    stream: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.depth <= 40:
            raise ValueError(f"depth of a Brownian tree lies from 1 to 40, not {self.depth!r}")
        object.__setattr__(self, "_last", {})

    def leaf(self, q: float) -> int:
        """The leaf that q falls into."""
        if not 0 <= q < math.inf:
            raise ValueError(f"a Brownian path is known at places from 0 to below infinity, not {q!r}")
        node = 1
        for level in range(self.depth):
            node = 2 * node + (q >= _place(node, level))
        return node

    def at(self, like: Tensor, q: float) -> Tensor:
        """W(q), shaped like `like`, (batch, ...)."""
        leaf = self.leaf(q)
        met: dict[Any, Tensor] = {}
        value = torch.zeros_like(like)
        a, b = (0.0, value), (math.inf, value)
        for level in range(self.depth + 1):
            node = leaf >> (self.depth - level)
            m = q if node == leaf else _place(node, level)
            key = (node, m, like.shape, like.dtype, like.device)
            known = self._last.get(key)  # type: ignore[attr-defined]
            if known is None:
                z = self.noise.normal(like, node, _TREE + self.stream)
                w = (m - a[0]) / (b[0] - a[0])  # 0 where b is infinite, and the rest holds there, too
                known = torch.lerp(a[1], b[1], w).add_(z, alpha=math.sqrt(max((m - a[0]) * (1 - w), 0.0)))
            met[key] = value = known
            a, b = (a, (m, value)) if q < m else ((m, value), b)
        # replaced whole: threads that share a path may make a value twice, but never see half a way
        object.__setattr__(self, "_last", met)
        return value

    def increment(self, like: Tensor, start: float, stop: float) -> Tensor:
        """W(stop) - W(start), shaped like `like`: normal with variance stop - start."""
        if self.leaf(start) == self.leaf(stop):
            raise ValueError(
                f"from {start:.6g} to {stop:.6g} is within one leaf of a Brownian tree of depth {self.depth}: "
                "take a greater depth"
            )
        first = self.at(like, start)
        return self.at(like, stop) - first


@dataclass(frozen=True)
class Path:
    """In place of a `Noise`: step i of a run sees the increment of one Brownian path from times[i - 1] to times[i].

    It is divided by sqrt(times[i] - times[i - 1]), so that a solver finds the standard normals it asks for. Further
    streams are further paths. Step 0 (the prior), uniforms, and a step to infinity, which is independent of all the
    others, are the noise's own. Raises ValueError unless the times rise, each into another leaf of the tree.
    """

    noise: Noise
    times: tuple[float, ...]
    depth: int = 12

    def __post_init__(self) -> None:
        tree, times = Brownian(self.noise, self.depth), [q for q in self.times if q < math.inf]
        for start, stop in pairwise(times):
            if not tree.leaf(start) < tree.leaf(stop):
                raise ValueError(
                    f"the times of a path must rise, each into another leaf of its tree; from {start:.6g} to "
                    f"{stop:.6g} they do not at depth {self.depth}"
                )
        object.__setattr__(self, "_trees", {0: tree})

    @property
    def indices(self) -> tuple[int, ...]:
        return self.noise.indices

    def at(self, step: int) -> Draws:
        """The draws of one step."""
        return PathStep(self, step) if step else self.noise.at(0)


@dataclass(frozen=True)
class PathStep:
    """The draws of one step of a `Path`."""

    path: Path
    step: int

    def normal(self, like: Tensor, stream: int = 0) -> Tensor:
        start, stop = self.path.times[self.step - 1 : self.step + 1]
        if stop == math.inf:
            return self.path.noise.normal(like, self.step, stream)
        trees = self.path._trees  # type: ignore[attr-defined]
        tree = trees.setdefault(stream, Brownian(self.path.noise, self.path.depth, stream))
        return tree.increment(like, start, stop) / math.sqrt(stop - start)

    def uniform(self, like: Tensor, stream: int = 0) -> Tensor:
        return self.path.noise.uniform(like, self.step, stream)


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
