"""What a metric looks at: images turned into feature vectors, and class probabilities where there are any.

A Fréchet distance is a property of the features as much as of the images. So every `Features` has a name, a
hash of what computes it, and a card saying how it came to be, and all three travel with each score.

    pixels              the image itself, flattened, or averaged down to `size` first; no probabilities
    classifier          a small network trained by the project on the same training set (see `classifier`)
    efficientnet-lite0  an ImageNet classifier, 1280 features (see `efficientnet`); extra "efficientnet"

Scores over these are never called FID: that name belongs to one network, which needs torchvision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.errors import DataError, choose

KINDS = ("pixels", "classifier", "efficientnet-lite0")
BATCH = 256


@runtime_checkable
class Features(Protocol):
    """Maps images to feature vectors; each image's features depend on that image alone.

    `name` and `dim` say what they are, `hash` identifies what computes them, `accuracy` is the held-out accuracy
    of a classifier (None for others), and `card()` tells the rest as JSON values.
    """

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    @property
    def dim(self) -> int:
        """Number of features."""
        ...

    @property
    def hash(self) -> str:
        """SHA-256 of what computes them."""
        ...

    @property
    def accuracy(self) -> float | None:
        """Held-out accuracy, of a classifier."""
        ...

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images in [0, 1] (n, c, h, w) to features (n, dim) and probabilities (n, classes) or None."""
        ...

    def card(self) -> dict[str, Any]:
        """How the features came to be: JSON values for receipts and reports."""
        ...


class Labelled(Protocol):
    """Images with labels: uint8 `images` (n, h, w, c), `labels` (n,) or None, names of the `classes`."""

    images: Any
    labels: Any
    classes: Any


def to_unit(images: object) -> Tensor:
    """Float images (n, c, h, w) in [0, 1] from uint8 (n, h, w, c), or from floats that are so already.

    Anything else raises `DataError`; values in [−1, 1] are caught by their sign.
    """
    x = (
        images
        if isinstance(images, Tensor)
        else torch.from_numpy(np.require(images, requirements=["C", "W"]))
    )
    if x.ndim != 4:
        raise DataError(f"images must have 4 dimensions, got {tuple(x.shape)}")
    if x.dtype == torch.uint8:
        return x.permute(0, 3, 1, 2).float() / 255
    if not x.is_floating_point():
        raise DataError(f"images must be uint8 (n, h, w, c) or float (n, c, h, w), got {x.dtype}")
    if len(x) and (x.min() < -1e-3 or x.max() > 1 + 1e-3):
        raise DataError(
            f"float images must lie in [0, 1], got [{x.min():.3g}, {x.max():.3g}]: decode them first"
        )
    return x.float()


def in_batches(
    features: Features, images: Any, size: int = BATCH, progress: Callable[[int, int], None] | None = None
) -> tuple[Tensor, Tensor | None]:
    """Features and probabilities of any number of images, `size` at a time, on the CPU in float64."""
    total = len(images)
    found: list[Tensor] = []
    chances: list[Tensor] = []
    for start in range(0, total, size):
        f, p = features(to_unit(images[start : start + size]))
        found.append(f.detach().to("cpu", torch.float64))
        if p is not None:
            chances.append(p.detach().to("cpu", torch.float64))
        if progress is not None:
            progress(min(start + size, total), total)
    return torch.cat(found), torch.cat(chances) if chances else None


@dataclass(frozen=True)
class PixelFeatures:
    """The image itself: pixels in [0, 1], flattened. Distances are then plain Euclidean distances.

    `size` averages larger images down to at most size × size first, which bounds the dimension.
    """

    shape: tuple[int, int, int]
    size: int | None = None
    name: str = "pixels"
    accuracy: float | None = None

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1 or (self.size is not None and self.size < 1):
            raise DataError(
                f"pixels need a shape (channels, height, width), got {self.shape}, size {self.size}"
            )

    @property
    def _output(self) -> tuple[int, int, int]:
        c, h, w = self.shape
        limit = self.size or max(h, w)
        return c, min(h, limit), min(w, limit)

    @property
    def dim(self) -> int:
        """Number of features: channels × height × width after averaging."""
        return int(np.prod(self._output))

    @property
    def hash(self) -> str:
        """Identifies the map: it has no weights, so its shape says all."""
        return hashlib.sha256(f"pixels/{self.shape}/{self._output}".encode()).hexdigest()

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Flattened pixels (n, dim) and no probabilities."""
        if tuple(images.shape[1:]) != self.shape:
            raise DataError(f"pixels made for {self.shape} images cannot take {tuple(images.shape[1:])}")
        if self._output != self.shape:
            images = F.adaptive_avg_pool2d(images, self._output[1:])
        return images.flatten(1), None

    def card(self) -> dict[str, Any]:
        """Name, dimension, hash."""
        size = list(self._output[1:])
        return {"name": self.name, "dim": self.dim, "hash": self.hash, "accuracy": None, "averaged_to": size}


def build_features(
    kind: str,
    *,
    train: Labelled,
    held: Labelled | None = None,
    folder: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
    **config: Any,
) -> Features:
    """Features of one `KINDS`, ready to use.

    `train` is the recipe's training set and `held` its held-out part (the classifier's accuracy is measured
    there); `folder` is where a trained classifier is kept, keyed by data and configuration (None: not kept);
    `config` goes to the kind: `size` for pixels, `ClassifierConfig`'s fields for the classifier. Raises
    `DataError` for an unknown kind or for data that cannot serve it, `MissingExtra` for efficientnet.
    """
    choose(kind, KINDS, "features", DataError)
    if kind == "pixels":
        _, h, w, c = np.shape(train.images)
        return PixelFeatures((c, h, w), **config)
    if kind == "efficientnet-lite0":
        from sfumato.evaluation.efficientnet import EfficientNetFeatures

        return EfficientNetFeatures(**config)
    from sfumato.evaluation.classifier import ClassifierConfig, classifier_features

    if held is None:
        raise DataError("features 'classifier' need held-out data to state their accuracy")
    for key in config:
        choose(key, ClassifierConfig.__dataclass_fields__, "setting of the classifier", DataError)
    return classifier_features(train, held, ClassifierConfig(**config), folder, progress)
