"""What every step sees: which examples, which noise. All of it a function of (seed, images seen), none of it
consumed.

Position p of the run is example perm(seed, epoch)[p mod n] with epoch = p div n, where perm is a permutation
keyed by (seed, epoch). A batch is the positions [images, images + batch): it runs across the end of an epoch,
so every batch is full, and the cursor of the data is the count of images, which the checkpoint keeps anyway.

Micro-batches and ranks are rows of that one batch. `Rows` draws the noise of the whole batch and hands out
its rows, so how the batch is cut — for memory, or over devices — changes neither examples nor noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sfumato.noise import Draws, Noise


class TrainingData(Protocol):
    """Examples by index. `batch` may augment, keyed by (seed, images_seen + row): the same call gives the
    same batch.

    Returns {"x": (n, ...) float tensor, "condition": dict of tensors (n, ...) or absent}.
    """

    def __len__(self) -> int: ...
    def batch(self, indices: np.ndarray, seed: int, images_seen: int) -> dict[str, Any]: ...


def mixed(seed: int, *words: int) -> int:
    """A 63-bit key from a seed and what it is for; different words give unrelated keys."""
    return int(np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass
class Order:
    """The order in which `count` examples are shown: a permutation for each epoch, keyed by (seed, epoch).

    rank, world_size: this process shows rows [rank · batch / world_size, (rank + 1) · batch / world_size) of
    each batch.
    """

    count: int
    seed: int
    rank: int = 0
    world_size: int = 1
    _kept: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError("there are no examples to train on")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} is not one of {self.world_size} processes")

    def permutation(self, epoch: int) -> np.ndarray:
        """The examples in the order of that epoch, (count,)."""
        if epoch not in self._kept:
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, 1, epoch])))
            self._kept = {e: p for e, p in self._kept.items() if e == epoch - 1}
            self._kept[epoch] = generator.permutation(self.count)
        return self._kept[epoch]

    def span(self, batch: int) -> tuple[int, int]:
        """The rows of a batch that are this process's: start and count."""
        if batch % self.world_size:
            raise ValueError(f"a batch of {batch} cannot be shared equally by {self.world_size} processes")
        share = batch // self.world_size
        return self.rank * share, share

    def indices(self, images_seen: int, batch: int) -> np.ndarray:
        """The examples this process shows when `images_seen` have been shown by all, (batch /
        world_size,)."""
        start, count = self.span(batch)
        positions = images_seen + start + np.arange(count)
        epochs = positions // self.count
        parts = [self.permutation(int(e))[positions[epochs == e] % self.count] for e in np.unique(epochs)]
        return np.concatenate(parts)


@dataclass
class Rows:
    """Rows [start, start + n) of the draws of a batch of `total`, where n is the batch of the tensor asked
    for.

    An objective that stratifies over the batch takes `strata`, which knows the rows it does not see.
    """

    noise: Draws
    start: int
    total: int

    def _rows(self, draw: Callable[..., Tensor], like: Tensor, stream: int) -> Tensor:
        count = like.shape[0]
        if count == self.total:
            return draw(like, stream=stream)
        whole = like.new_empty(()).expand(self.total, *like.shape[1:])  # a shape, not memory
        return draw(whole, stream=stream)[self.start : self.start + count]

    def normal(self, like: Tensor, stream: int = 0) -> Tensor:
        """Standard normals shaped like `like`."""
        return self._rows(self.noise.normal, like, stream)

    def uniform(self, like: Tensor, stream: int = 0) -> Tensor:
        """Uniforms in [0, 1) shaped like `like`."""
        return self._rows(self.noise.uniform, like, stream)

    def strata(self, like: Tensor, stream: int = 0) -> Tensor:
        """Uniforms (n,), spread evenly over the *whole* batch; uses streams `stream` and `stream + 1`."""
        whole = like.new_empty(()).expand(self.total)
        return spread(self.noise, whole, stream)[self.start : self.start + like.shape[0]]


def spread(noise: Draws, like: Tensor, stream: int) -> Tensor:
    """One uniform a row, spread evenly over the rows: u_i = (u_0 + pi(i) / n) mod 1, (n,) in `like`'s dtype."""
    u = noise.uniform(like, stream=stream)
    even = (u[0] + torch.arange(len(u), dtype=u.dtype, device=u.device) / len(u)) % 1.0
    return even[
        noise.uniform(like, stream=stream + 1).argsort()
    ]  # their order must not follow that of the data


@dataclass(frozen=True)
class Stratified:
    """Noise for a held-out measurement: draws of one number an example are spread evenly, all others are
    ordinary.

    Of `total` examples, the one in row i gets the uniform (pi(i) + 1/2) / total, where pi is a permutation
    keyed by (seed, stream), and the normal Phi^-1 of that. So whatever an objective makes of one number — a
    time, a log-SNR — covers its law evenly, and the loss moves with the weights rather than with luck. All
    draws depend on the example's row only, so a measurement does not depend on the batches it was made in.
    """

    seed: int
    start: int
    total: int

    def _strata(self, like: Tensor, stream: int) -> Tensor:
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, 2, stream])))
        order = generator.permutation(self.total)[self.start : self.start + like.shape[0]]
        return torch.from_numpy((order + 0.5) / self.total)

    def strata(self, like: Tensor, stream: int = 0) -> Tensor:
        """Uniforms (n,), spread evenly over all examples of the measurement."""
        return self._strata(like, stream).to(like)

    def _noise(self, like: Tensor) -> Noise:
        return Noise(mixed(self.seed, 3), range(self.start, self.start + like.shape[0]))

    def normal(self, like: Tensor, stream: int = 0) -> Tensor:
        """Standard normals shaped like `like`, evenly spread if `like` holds one number an example."""
        if like.numel() == like.shape[0]:
            return torch.special.ndtri(self._strata(like, stream)).reshape(like.shape).to(like)
        return self._noise(like).normal(like, stream=stream)

    def uniform(self, like: Tensor, stream: int = 0) -> Tensor:
        """Uniforms in [0, 1) shaped like `like`, evenly spread if `like` holds one number an example."""
        if like.numel() == like.shape[0]:
            return self._strata(like, stream).reshape(like.shape).to(like)
        return self._noise(like).uniform(like, stream=stream)


def moved(batch: Mapping[str, Any], device: torch.device, channels_last: bool = False) -> dict[str, Any]:
    """The batch on a device; images (4 dimensions) with channels innermost if asked."""
    out: dict[str, Any] = {}
    for name, value in batch.items():
        if isinstance(value, Mapping):
            out[name] = moved(value, device)
        elif isinstance(value, Tensor):
            value = value.to(device, non_blocking=True)
            images = channels_last and name == "x" and value.ndim == 4
            out[name] = value.contiguous(memory_format=torch.channels_last) if images else value
        else:
            out[name] = value
    return out


def count_of(batch: Mapping[str, Any]) -> int:
    """The number of examples in a batch, whose state may have several leaves."""
    x = batch["x"]
    return len(next(iter(x.values()))) if isinstance(x, Mapping) else len(x)


def rows_of(batch: Mapping[str, Any], start: int, count: int) -> dict[str, Any]:
    """Rows [start, start + count) of every tensor of a batch."""
    return {
        name: rows_of(value, start, count)
        if isinstance(value, Mapping)
        else (value[start : start + count] if isinstance(value, Tensor) else value)
        for name, value in batch.items()
    }
