"""From a way to draw samples to a list of measures, each with an interval and a floor.

This file knows nothing of solvers, runs or bundles: a `sample_fn(n) -> (images in [0, 1], asked labels | None)` is
all it asks for, so that the command line, the trainer and a stranger's model are judged by the same code.

What is compared with what, for n generated samples:

    value   generated (n)             against a fixed subset of the training set
    floor   held-out (n, or all)      against the same subset

The floor is what perfection would score: data of the same kind that the model has never seen. Precision, recall,
density and coverage use n training samples on both sides; Fréchet and kernel up to `reference_limit`; the copying
check uses the whole training set, in pixels averaged down to at most 32 × 32. Where fewer than n held-out samples
exist the floor rests on fewer, and the note says so: a Fréchet floor is then too high.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.errors import DataError, choose
from sfumato.evaluation.copying import copying
from sfumato.evaluation.features import Features, PixelFeatures, in_batches, to_unit
from sfumato.evaluation.manifold import NAMES as MANIFOLD
from sfumato.evaluation.manifold import manifold
from sfumato.evaluation.measure import Measure, as_features
from sfumato.evaluation.metrics import (
    RESAMPLES,
    agreement,
    frechet,
    frechet_distance,
    inception_score,
    kernel,
    kernel_distance,
)

MEASURES = ("frechet", "kernel", "inception", *MANIFOLD, "agreement", "copying")
SampleFn = Callable[[int], tuple[Any, Any]]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """How to measure: neighbours `k`, bootstrap `resamples`, at most `reference_limit` training samples."""

    k: int = 5
    resamples: int = RESAMPLES
    reference_limit: int = 10_000
    pixels: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.k < 1 or self.reference_limit < 2 or self.pixels < 1:
            raise DataError(f"settings need k >= 1, reference_limit >= 2, pixels >= 1, got {self}")
        if self.resamples != 0 and self.resamples < 20:
            raise DataError(f"resamples must be 0 (no intervals) or at least 20, got {self.resamples}")


class Judge:
    """Measures sample after sample against one reference, whose features and floors are computed once.

    `train` and `held` are images (uint8 (n, h, w, c), or floats in [0, 1] (n, c, h, w)), or objects with
    `.images` and `.labels`. They must not overlap. Calling it gives the list of measures, in the order asked for.
    """

    def __init__(
        self, train: Any, held: Any, features: Features,
        settings: Settings | None = None, progress: Progress | None = None,
    ):  # fmt: skip
        self.settings = settings or Settings()
        self.features = features
        self._progress = progress
        self._train = getattr(train, "images", train)
        self._held = getattr(held, "images", held)
        self._held_labels = getattr(held, "labels", None)
        for what, images in (("training", self._train), ("held-out", self._held)):
            if len(images) < 2:
                raise DataError(f"judging needs at least two {what} images, got {len(images)}")
        # A random subset, in file order; the first n of a shuffled order, so that subsets are nested.
        rng = np.random.Generator(np.random.Philox(key=[self.settings.seed, 4]))
        self._train_order = rng.permutation(len(self._train))[: self.settings.reference_limit]
        self._held_order = rng.permutation(len(self._held))
        self._cache: dict[str, Any] = {}

    def __call__(
        self, sample_fn: SampleFn, measures: Sequence[str] | None = None, n: int = 1000
    ) -> list[Measure]:
        """Draw n samples and measure them; `measures=None` takes all that these features and labels allow.

        Raises `DataError` for an unknown measure, or one that needs probabilities or labels which are not there.
        """
        if n < 2:
            raise DataError(f"judging needs at least two samples, got n={n}")
        asked_for = (
            [choose(m, MEASURES, "measure", DataError) for m in measures] if measures is not None else None
        )
        self._tell("sample", 0, n)
        images, labels = sample_fn(n)
        images = to_unit(images)
        if len(images) != n:
            raise DataError(f"{n} samples were asked for, {len(images)} came")
        self._tell("sample", n, n)
        f, p = in_batches(self.features, images, progress=lambda i, k: self._tell("features", i, k))
        f = as_features(f, "generated")
        possible = [m for m in MEASURES if not (p is None and m in ("inception", "agreement"))]
        if labels is None and "agreement" in possible:
            possible.remove("agreement")
        wanted = possible if asked_for is None else asked_for
        for name in wanted:
            if name not in possible:
                raise DataError(f"{name!r} needs " + ("asked labels" if p is not None else "class probabilities"
                                f", which features {self.features.name!r} do not give"))  # fmt: skip
        found: dict[str, Measure] = {}
        for done, name in enumerate(wanted):
            self._tell(name, done, len(wanted))
            if name not in found:
                found |= self._measure(name, images, f, p, labels)
        self._tell("measured", len(wanted), len(wanted))
        return [found[name] for name in wanted]

    def _tell(self, what: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(what, done, total)

    def _measure(
        self, name: str, images: Tensor, f: Tensor, p: Tensor | None, labels: object
    ) -> dict[str, Measure]:
        n, s = len(images), self.settings
        if name == "copying":
            return {name: self._copying(images)}
        (train, _), (held, chances) = self._reference("train"), self._reference("held")
        held = held[:n]
        few = "" if len(held) == n else f"floor rests on {len(held)} held-out samples, not {n}"
        if name == "frechet":
            floor = self._once(f"{name}{n}", lambda: frechet_distance(held, train))
            found = {name: frechet(f, train, resamples=s.resamples, seed=s.seed, floor=floor)}
        elif name == "kernel":
            floor = self._once(f"{name}{n}", lambda: kernel_distance(held, train))
            found = {name: kernel(f, train, resamples=s.resamples, seed=s.seed, floor=floor)}
        elif name in MANIFOLD:
            # Equal sizes on both sides, in the floor as well: all four depend on them.
            floors = self._once(f"manifold{n}", lambda: {
                m.name: m.value for m in manifold(held, train[: len(held)], k=s.k, resamples=0).values()
            })  # fmt: skip
            found = manifold(f, train[:n], k=s.k, resamples=s.resamples, seed=s.seed, floors=floors)
        else:
            assert p is not None  # `possible` saw to it
            assert chances is not None
            chances = chances[:n]
            if name == "inception":
                floor = inception_score(chances, resamples=0).value
                found = {name: inception_score(p, resamples=s.resamples, seed=s.seed, floor=floor)}
            else:
                floor = None
                if self._held_labels is not None:
                    truth = np.asarray(self._held_labels)[self._held_order[:n]]
                    floor = agreement(chances, truth).value
                found = {name: agreement(p, labels, floor=floor)}
        return {m: replace(x, note="; ".join(filter(None, (x.note, few)))) for m, x in found.items()}

    def _once(self, key: str, compute: Callable[[], Any]) -> Any:
        if key not in self._cache:
            self._cache[key] = compute()
        return self._cache[key]

    def _reference(self, which: str) -> tuple[Tensor, Tensor | None]:
        """Features and probabilities of the reference in shuffled order, so that any first n are a fair subset."""
        images, order = (
            (self._train, self._train_order) if which == "train" else (self._held, self._held_order)
        )

        def compute() -> tuple[Tensor, Tensor | None]:
            def told(done: int, total: int) -> None:
                self._tell(f"features of {which}", done, total)

            return in_batches(self.features, _Picked(images, order), progress=told)

        return self._once(which, compute)

    def _copying(self, images: Tensor) -> Measure:
        """Copies are looked for in pixels: what a classifier's features ignore may be all that tells a copy."""
        pixels = PixelFeatures(tuple(images.shape[1:]), self.settings.pixels)  # type: ignore[arg-type]
        train = self._once("pixels train", lambda: in_batches(pixels, self._train)[0])
        held = self._once("pixels held", lambda: in_batches(pixels, self._held)[0])
        found = copying(in_batches(pixels, images)[0], held, train).measure
        return replace(found, note=f"{found.note}; distances in pixels, whatever the features")


class _Picked:
    """A lazily indexed subset: what `in_batches` needs of an array, without a copy of all images."""

    def __init__(self, images: Any, order: np.ndarray):
        self._images, self._order = images, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, part: slice) -> Any:
        chosen = self._order[part]
        return self._images[torch.from_numpy(chosen) if isinstance(self._images, Tensor) else chosen]


def evaluate(
    sample_fn: SampleFn,
    reference_train: object,
    reference_held: object,
    features: Features,
    *,
    measures: Sequence[str] | None = None,
    n: int = 1000,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> list[Measure]:
    """Judge n samples of `sample_fn` once: `Judge` for those who judge once. See there, and the file's head.

    `progress(what, done, total)` is told of every stage. Bootstrap and subsets are keyed on `settings.seed`;
    the samples themselves are `sample_fn`'s affair.
    """
    return Judge(reference_train, reference_held, features, settings, progress)(sample_fn, measures, n)
