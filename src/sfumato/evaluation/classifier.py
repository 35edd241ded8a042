"""Features from a small classifier that is trained on the recipe's own training set.

Without a download there is no Inception network, and for 28 × 28 pictures of clothes its features would be a
strange choice anyway. A network that tells the data's own classes apart has features that matter for these data.
What it costs: scores are comparable only over the same classifier, so its hash, its held-out accuracy and its
training are carried along and printed beside every score, and it is kept in a folder and used again.

Two things to know when reading a score. The classifier has seen the training set but not the held-out set, so
the floor (training against held-out) includes how far its features generalise; a generator that copies training
images can score *below* the floor, which the copying check would show. And everything it learns to ignore
(which is all that does not help to tell classes apart) no score over its features can see.

Each image is standardised by its own mean and deviation, and layers normalise within a sample (GroupNorm): the
features of an image do not depend on the batch it comes in.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from sfumato.errors import DataError
from sfumato.evaluation.features import BATCH, Labelled, to_unit
from sfumato.evaluation.measure import wilson
from sfumato.files import write_atomically

FORMAT = 1


@dataclass(frozen=True)
class ClassifierConfig:
    """How the classifier is built and trained; with the data's hash, the key under which it is kept.

    `steps=None` means five passes over the data, but at least 500 steps and at most 2500.
    """

    width: int = 16
    dim: int = 64
    steps: int | None = None
    batch: int = 128
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        if self.width < 4 or self.width % 4 or self.dim < 1 or self.batch < 1:
            raise DataError(f"the classifier needs width in fours, dim and batch of at least 1, got {self}")
        if (self.steps is not None and self.steps < 1) or self.learning_rate <= 0 or self.weight_decay < 0:
            raise DataError(
                f"the classifier needs steps >= 1, learning_rate > 0, weight_decay >= 0, got {self}"
            )

    def resolved_steps(self, n: int) -> int:
        """Number of optimiser steps for n training images."""
        return self.steps or min(max(5 * n // self.batch, 500), 2500)


class SmallNet(nn.Module):
    """Convolutions that halve the map down to at most 3 × 3, one hidden layer of `dim`, one of classes.

    `forward(images (n, c, h, w) in [0, 1])` gives the hidden layer's output (n, dim), which are the features,
    and logits (n, classes).
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, config: ClassifierConfig):
        super().__init__()
        channels, height, width = shape
        side, w = max(height, width), config.width
        # Pooling before the normalisation: a quarter of the work, and on two cores that is what a minute buys.
        large = side > 12
        layers: list[nn.Module] = [nn.Conv2d(channels, w, 3, 1, 1)]
        layers += [nn.MaxPool2d(2, ceil_mode=True)] if large else []
        layers += [nn.GroupNorm(4, w), nn.ReLU()]
        side = (side + 1) // 2 if large else side
        while side > 3 and w < 16 * config.width:
            layers += [nn.Conv2d(w, 2 * w, 3, 1, 1), nn.MaxPool2d(2, ceil_mode=min(height, width) < 8)]
            layers += [nn.GroupNorm(4, 2 * w), nn.ReLU()]
            w, side = 2 * w, side // 2
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(min(side, 3)), nn.Flatten())
        self.hidden = nn.Linear(w * min(side, 3) ** 2, config.dim)
        self.head = nn.Linear(config.dim, classes)
        # Set after training, so that features have a mean square of 1 on the training set: the kernel
        # (xᵀy/d + 1)³ is made for numbers of that size, and a Fréchet distance becomes readable.
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, dim), after the rectifier and scaled, and logits (n, classes)."""
        mean = images.mean((1, 2, 3), keepdim=True)
        # A blank image has no deviation: 0.01 keeps it blank instead of blowing up its rounding errors.
        x = (images - mean) / (images.std((1, 2, 3), keepdim=True) + 0.01)
        hidden = F.relu(self.hidden(self.body(x.contiguous(memory_format=torch.channels_last))))
        return hidden * self.scale, self.head(hidden)


class ClassifierFeatures:
    """A trained `SmallNet` as `Features`: the hidden layer (n, dim) and the class probabilities."""

    name = "classifier"

    def __init__(self, net: SmallNet, record: dict[str, Any]):
        self.net = net.eval().requires_grad_(False)
        self.record = record
        self.dim: int = net.hidden.out_features
        self.hash: str = record["hash"]
        self.accuracy: float | None = record["accuracy"]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (n, dim) and probabilities (n, classes) of images in [0, 1] (n, c, h, w)."""
        if list(images.shape[1:]) != self.record["shape"]:
            raise DataError(
                f"a classifier for {self.record['shape']} images cannot take {list(images.shape[1:])}"
            )
        features, logits = self.net(images)
        return features, logits.softmax(1)

    def card(self) -> dict[str, Any]:
        """Held-out accuracy with its interval, and how, on what and for how long it was trained."""
        return {"name": self.name, "dim": self.dim} | self.record


def labelled_hash(data: Labelled) -> str:
    """SHA-256 of images and labels with their shapes: equal data have equal hashes, whatever file they came from."""
    digest = hashlib.sha256(f"{np.shape(data.images)}".encode())
    for start in range(0, len(data.images), 4096):
        digest.update(np.ascontiguousarray(data.images[start : start + 4096]).tobytes())
    digest.update(np.ascontiguousarray(data.labels, dtype="<i8").tobytes())
    return digest.hexdigest()


def _checked(data: Labelled, what: str) -> int:
    """Number of classes of labelled data; `DataError` if they cannot train or test a classifier."""
    if data.labels is None:
        raise DataError(
            f"the {what} data have no labels: take features 'pixels' or 'efficientnet-lite0' instead"
        )
    labels, classes = np.asarray(data.labels), len(data.classes) or int(np.max(data.labels)) + 1
    if labels.shape != (len(data.images),) or not len(labels) or labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"{what}: {len(data.images)} images need as many labels in [0, {classes})")
    if classes < 2:
        raise DataError(
            f"a classifier needs two classes, the {what} data have {classes}: take features 'pixels'"
        )
    return classes


def _fit(
    net: SmallNet, train: Labelled, config: ClassifierConfig, progress: Callable[[int, int], None] | None
) -> None:
    """AdamW on cross-entropy with a one-cycle rate; order of the images keyed on the seed; the images in uint8."""
    n, steps = len(train.images), config.resolved_steps(len(train.images))
    labels = torch.from_numpy(np.asarray(train.labels, dtype=np.int64))
    optimiser = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.learning_rate, total_steps=steps + 1, pct_start=0.2
    )
    rng = np.random.Generator(np.random.Philox(key=[config.seed, 3]))
    order = np.empty(0, dtype=np.int64)
    net.train()
    for step in range(steps):
        while len(order) < min(config.batch, n):
            order = np.concatenate([order, rng.permutation(n)])
        # Sorted: a memory-mapped file is read forwards; within a batch the order is of no account.
        chosen, order = np.sort(order[: config.batch]), order[config.batch :]
        _, logits = net(to_unit(np.asarray(train.images[chosen])))
        loss = F.cross_entropy(logits, labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
        if progress is not None:
            progress(step + 1, steps)


def train_classifier(
    train: Labelled,
    held: Labelled,
    config: ClassifierConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ClassifierFeatures:
    """Train on `train`, measure on `held`. The caller's random state is left as it was.

    Deterministic for a given seed, machine and number of threads. Raises `DataError` for unlabelled data.
    """
    config = config or ClassifierConfig()
    classes = max(_checked(train, "training"), _checked(held, "held-out"))
    n, h, w, c = np.shape(train.images)
    began = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = SmallNet((c, h, w), classes, config)
    with torch.enable_grad():
        _fit(net, train, config, progress)
    net.eval()
    with torch.no_grad():
        some = net(to_unit(np.asarray(train.images[: 4 * BATCH])))[0]
        net.get_buffer("scale").copy_(1 / some.square().mean().sqrt().clamp(min=1e-6))
        guessed = torch.cat(
            [
                net(to_unit(np.asarray(held.images[i : i + BATCH])))[1].argmax(1)
                for i in range(0, len(held.images), BATCH)
            ]
        )
    hits = int((guessed.numpy() == np.asarray(held.labels)).sum())
    record = {
        "format": FORMAT,
        "hash": hashlib.sha256(_weights(net)).hexdigest(),
        "accuracy": hits / len(held.images),
        "accuracy_interval": list(wilson(hits, len(held.images))),
        "held_out": len(held.images),
        "trained_on": n,
        "data": labelled_hash(train),
        "shape": [c, h, w],
        "classes": classes,
        "config": asdict(config) | {"steps": config.resolved_steps(n)},
        "parameters": sum(p.numel() for p in net.parameters()),
        "seconds": round(time.perf_counter() - began, 2),
        "torch": torch.__version__,
    }
    return ClassifierFeatures(net, record)


def _weights(net: nn.Module) -> bytes:
    return save({name: value.contiguous() for name, value in net.state_dict().items()})


def classifier_features(
    train: Labelled,
    held: Labelled,
    config: ClassifierConfig | None = None,
    folder: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ClassifierFeatures:
    """The classifier for these data and this configuration: from `folder` if kept there, else trained and kept.

    Files `classifier-<key>.safetensors` and `.json`; the key is a hash of both data sets, the configuration and
    the format. A file that is damaged or does not belong raises `DataError`; it is never silently trained anew.
    """
    config = config or ClassifierConfig()
    if folder is None:
        return train_classifier(train, held, config, progress)
    for data, what in ((train, "training"), (held, "held-out")):
        _checked(data, what)
    identity = {
        "format": FORMAT,
        "train": labelled_hash(train),
        "held": labelled_hash(held),
        "config": asdict(config),
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    path = Path(folder) / f"classifier-{key}.safetensors"
    if path.exists() and path.with_suffix(".json").exists():
        return _read(path)
    features = train_classifier(train, held, config, progress)
    write_atomically(path, _weights(features.net))
    write_atomically(path.with_suffix(".json"), json.dumps(features.record | {"key": key}, indent=2).encode())
    return features


def _read(path: Path) -> ClassifierFeatures:
    remedy = f"delete {path.name} to train it anew"
    try:
        record = json.loads(path.with_suffix(".json").read_text())
        raw = path.read_bytes()
        if hashlib.sha256(raw).hexdigest() != record["hash"]:
            raise DataError(f"{path}: the weights are not the ones its record describes; {remedy}")
        config = ClassifierConfig(**record["config"])
        net = SmallNet(tuple(record["shape"]), record["classes"], config)
        net.load_state_dict(load(raw))
    except (KeyError, TypeError, json.JSONDecodeError, SafetensorError, RuntimeError) as error:
        raise DataError(f"{path}: a damaged classifier ({type(error).__name__}); {remedy}") from error
    return ClassifierFeatures(net, record)
