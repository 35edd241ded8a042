"""A set of pictures ready to train on: an array, its labels, and batches that are functions of where training is.

Augmentation is keyed, not consumed. The picture at position p of training (the p-th seen since it began) is changed
by the bits of one 64-bit word, word(seed, p): word p mod 4 of block p div 4 of the counter-based generator
Philox-4x64-10 with the key (seed, stream) (Salmon et al., SC 2011). The top bit says whether it is mirrored, other
bits where a random crop lies. So a batch cut in two gives the same pictures, and a run resumed at `images_seen`
goes on as if it had never stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from sfumato.errors import DataError

if TYPE_CHECKING:
    from sfumato.domains.images import Images
    from sfumato.domains.text import Texts

_AUGMENT, _SPLIT, _CAPTION = (
    0x1A6E5,
    0x5917,
    0xCA97,
)  # streams: one seed may serve both without their draws being the same


def keyed_words(seed: int, stream: int, start: int, count: int) -> np.ndarray:
    """64-bit words `start` … `start + count − 1` of the sequence named (seed, stream), without making those before."""
    if not 0 <= seed < 1 << 64 or start < 0:
        raise DataError(
            f"a seed is a whole number from 0 to 2^64 - 1 and a position at least 0, not {seed}, {start}"
        )
    block, skip = divmod(start, 4)
    generator = np.random.Philox(key=seed | stream << 64, counter=block)
    return generator.random_raw(skip + count)[skip:]


def spread_rows(data: Sized, most: int) -> np.ndarray:
    """At most so many positions in the data, evenly from the first to the last."""
    return np.linspace(0, len(data) - 1, min(len(data), most)).astype(np.int64)


def split_rows(
    count: int, fraction: float, seed: int, groups: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """(train, held): rows 0 .. count - 1 with a random `fraction` held out; of groups, if any, whole ones."""
    if not 0 <= fraction < 1:
        raise DataError(f"the fraction held out must be in [0, 1), not {fraction}")
    kinds, which = np.unique(groups, return_inverse=True) if groups else (range(count), None)
    held = round(fraction * len(kinds))
    if held == len(kinds):
        raise DataError(f"holding out {fraction} of {count} examples leaves none to train on")
    order = np.argsort(keyed_words(seed, _SPLIT, 0, len(kinds)), kind="stable")
    if which is not None:
        out = np.isin(which, order[:held])
        return np.flatnonzero(~out), np.flatnonzero(out)
    return np.sort(order[held:]), np.sort(order[:held])


class Rows:
    """What a data set of rows answers alike, whatever is in a row: which are its own, splits, counts and captions.

    A subclass has `domain`, `labels`, `captions`, `groups`, `texts` and `rows`, a length, and `what`, the name of its
    rows in messages.
    """

    what: ClassVar[str] = "examples"
    domain: Any
    name: str
    labels: np.ndarray | None
    captions: tuple[tuple[str, ...], ...]
    groups: tuple[str, ...]
    texts: Texts | None
    rows: np.ndarray | None

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return self.domain.classes

    @property
    def targets(self) -> np.ndarray | None:
        """The labels of these rows, int64 (n,), or None."""
        return self.labels if self.labels is None or self.rows is None else self.labels[self.rows]

    def _rows(self, indices: Any) -> np.ndarray:
        chosen = np.asarray(indices, dtype=np.int64)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise DataError(
                f"indices run from {chosen.min()} to {chosen.max()}; there are {len(self)} {self.what}"
            )
        return chosen if self.rows is None else self.rows[chosen]

    def take(self, indices: Any) -> Self:
        """The rows at `indices` as data of their own, without copying."""
        return replace(self, rows=self._rows(indices))  # type: ignore[type-var]

    def spread(self, limit: int | None) -> Self:
        """So many of the rows, from their beginning to their end; all, if there are no more or `limit` is None."""
        if limit is None or limit >= len(self):
            return self
        return self.take(np.arange(limit) * len(self) // limit)

    def split(self, fraction: float, seed: int = 0) -> tuple[Self, Self]:
        """(train, held): a random `fraction` held out, the same for the same count and seed.

        Where rows have groups, of the groups: no group is in both.
        """
        names = [self.groups[row] for row in self._rows(np.arange(len(self)))] if self.groups else []
        kept, out = split_rows(len(self), fraction, seed, names)
        return self.take(kept), self.take(out)

    def prompts(self, indices: Any = None) -> list[str]:
        """The plainest caption of each row, or of those at `indices`; [] without captions."""
        rows = self._rows(np.arange(len(self)) if indices is None else indices)
        return [self.captions[row][0] for row in rows] if self.captions else []

    def encoded(self, progress: Callable[[int, int], None] | None = None) -> Self:
        """These data with the embeddings of their captions, which `batch` then gives as its condition.

        Raises DataError without captions, MissingExtra without the extra "text".
        """
        from sfumato.domains.text import embed  # what it needs is an extra

        if not self.captions:
            raise DataError(f"{self.name} has no captions")
        texts = embed([text for texts in self.captions for text in texts], None, progress)
        return replace(self, texts=texts)  # type: ignore[type-var]

    def _said(self, rows: np.ndarray, seed: int, images_seen: int) -> dict[str, Tensor]:
        """What `encoded` captions tell of some rows in training: word(seed, position) says which of each's is shown."""
        if self.texts is None:
            return {}
        draws = keyed_words(seed, _CAPTION, images_seen, len(rows))
        owned = [self.captions[row] for row in rows]
        return self.texts.batch(
            [texts[int(word) % len(texts)] for texts, word in zip(owned, draws, strict=True)]
        )

    def _check_captions(self, count: int) -> None:
        """Raise DataError unless captions and groups are there for all `count` stored rows or for none."""
        for what, given in (("captions", self.captions), ("groups", self.groups)):
            if given and len(given) != count:
                raise DataError(f"{count} {self.what} cannot have {len(given)} {what}")
        if not all(self.captions):
            one = self.what.removesuffix("s")
            raise DataError(f"{one} {self.captions.index(())} has no caption, and others have")

    def counts(self) -> dict[str, int]:
        """Rows of each class; empty without labels."""
        if (labels := self.targets) is None:
            return {}
        found = np.bincount(labels, minlength=len(self.classes))
        return {name: int(count) for name, count in zip(self.classes, found, strict=True)}


@dataclass(frozen=True)
class ImageData(Rows):
    """Pictures of one size with their labels: what `Images.read` gives.

    domain: the `Images` they belong to, with size, channels and classes as found.
    stored: uint8 (n, H, W, c), memory-mapped if large; H and W exceed the size if crops are random.
    labels: int64 (n,) in 0 .. len(classes) − 1, or None. captions: one or several texts a picture, the plainest first;
    () for none. groups: what each picture is a variant of, or (). texts: the captions' embeddings, see `encoded`.
    rows: which rows of `stored` these data are; None: all.
    about: what the data card says of where they are from.
    Raises DataError if these do not fit each other.
    """

    what: ClassVar[str] = "pictures"
    domain: Images
    stored: np.ndarray
    labels: np.ndarray | None = None
    captions: tuple[tuple[str, ...], ...] = ()
    groups: tuple[str, ...] = ()
    texts: Texts | None = None
    rows: np.ndarray | None = None
    name: str = "images"
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.stored.dtype != np.uint8 or self.stored.ndim != 4:
            raise DataError(
                f"pictures must be uint8 (n, h, w, c), not {self.stored.dtype} {self.stored.shape}"
            )
        if self.stored.shape[1:] != self.domain.stored_shape:
            raise DataError(
                f"pictures are {self.stored.shape[1:]}; the domain's are {self.domain.stored_shape}"
            )
        if self.labels is not None:
            if self.labels.shape != (len(self.stored),):
                raise DataError(
                    f"{len(self.stored)} pictures cannot have labels of shape {self.labels.shape}"
                )
            top, classes = int(self.labels.max(initial=-1)), len(self.domain.classes)
            if int(self.labels.min(initial=0)) < 0 or top >= classes:
                raise DataError(f"labels must be in 0..{classes - 1}: found {self.labels.min()} to {top}")
        self._check_captions(len(self.stored))
        # A plain view: indexing a memmap object, as opposed to its memory, costs tens of microseconds a call.
        object.__setattr__(self, "stored", np.asarray(self.stored))

    def __len__(self) -> int:
        return len(self.stored) if self.rows is None else len(self.rows)

    @property
    def images(self) -> np.ndarray:
        """All pictures, uint8 (n, h, w, c), unaugmented: a view, or a copy if these data are part of others."""
        whole = self._middle(self.stored)
        return whole if self.rows is None else whole[self.rows]

    def _middle(self, pixels: np.ndarray) -> np.ndarray:
        height, width = self.domain.shape[1:]
        y, x = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
        return pixels[:, y : y + height, x : x + width]

    def batch(self, indices: Any, seed: int = 0, images_seen: int = 0) -> dict[str, Any]:
        """{"x": float32 (n, c, h, w) in [−1, 1], "condition": {"label": long (n,), "text": .., "text_mask": ..}}.

        The condition holds "label" with labels, and the two of text once captions are `encoded`. Row i is picture
        indices[i], mirrored and cropped by word(seed, images_seen + i) if the domain asks for it; another such word
        says which of its captions is shown.
        """
        domain, rows = self.domain, self._rows(indices)
        height, width = domain.shape[1:]
        words = None
        if domain.flip or domain.crop == "random":
            words = keyed_words(seed, _AUGMENT, images_seen, len(rows))
        if domain.crop == "random" and words is not None:
            # (bits × choices) >> 31 spreads 31 bits evenly over the offsets, without a division
            span_y, span_x = self.stored.shape[1] - height + 1, self.stored.shape[2] - width + 1
            bits = np.uint64(0x7FFFFFFF)
            y = ((words & bits) * np.uint64(span_y) >> np.uint64(31)).astype(np.int64)
            x = ((words >> np.uint64(31) & bits) * np.uint64(span_x) >> np.uint64(31)).astype(np.int64)
            across, down = x[:, None] + np.arange(width), y[:, None] + np.arange(height)
            pixels = self.stored[rows[:, None, None], down[:, :, None], across[:, None, :]]
        else:
            pixels = self._middle(self.stored)[rows]
        x0 = domain.encode(pixels)
        if domain.flip and words is not None and (mirrored := (words >> np.uint64(63)).astype(bool)).any():
            which = torch.from_numpy(np.flatnonzero(mirrored))
            x0[which] = x0[which].flip(3)
        condition: dict[str, Tensor] = {}
        if self.labels is not None:
            condition["label"] = torch.from_numpy(self.labels[rows])
        condition |= self._said(rows, seed, images_seen)
        return {"x": x0, "condition": condition} if condition else {"x": x0}

    def mirrored(self, count: int, seed: int = 0, images_seen: int = 0) -> np.ndarray:
        """Which of the `count` pictures of such a batch are mirrored, bool (count,)."""
        if not self.domain.flip:
            return np.zeros(count, dtype=bool)
        return (keyed_words(seed, _AUGMENT, images_seen, count) >> np.uint64(63)).astype(bool)

    def tensor(self, indices: Any = None) -> Tensor:
        """Pictures, float32 (n, c, h, w) in [−1, 1], unaugmented; all of them, or those at `indices`."""
        rows = self._rows(np.arange(len(self)) if indices is None else indices)
        return self.domain.encode(self._middle(self.stored)[rows])

    def sha256(self) -> str:
        """SHA-256 of the pixels that are trained on and their labels: the same data have the same, however kept."""
        digest = hashlib.sha256(repr((len(self), *self.stored.shape[1:])).encode())
        for start in range(0, len(self), 4096):
            part = self._rows(np.arange(start, min(start + 4096, len(self))))
            digest.update(self.stored[part].tobytes())
            if self.labels is not None:
                digest.update(self.labels[part].astype("<i8").tobytes())
            if self.captions:
                digest.update(json.dumps([self.captions[row] for row in part]).encode())
        return digest.hexdigest()

    def card(self) -> dict[str, Any]:
        """The data card, as plain values for JSON: what, how many, whose, on what terms, and a SHA-256 of it all."""
        return {
            "name": self.name,
            "count": len(self),
            "size": list(self.domain.shape[1:]),
            "channels": self.domain.shape[0],
            "classes": self.counts(),
            "captions": sum(len(self.captions[row]) for row in self._rows(np.arange(len(self))))
            if self.captions
            else 0,
            "licence": self.about.get("licence", "not stated"),
            "origin": self.about.get("origin", "not stated"),
            "citation": self.about.get("citation", "not stated"),
            "sources": list(self.about.get("sources", [])),
            "skipped_corrupt": list(self.about.get("skipped_corrupt", [])),
            "ignored": self.about.get("ignored", 0),
            "sha256": self.sha256(),
        }
