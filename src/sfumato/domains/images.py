"""Images as a domain: how pictures are read, become a model's tensors, and become pictures again.

A model sees x = u / 127.5 − 1, float32 in [−1, 1], channels first. Back: [0, 1] by (x + 1) / 2, clipped, and
u = round(255 (x + 1) / 2). Float32 keeps eight bits of pixel with fifteen to spare, so u → x → u is exact.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sfumato.domains import grids
from sfumato.domains.arrays import as_labels, as_pixels
from sfumato.domains.decode import decode, settle
from sfumato.domains.image_data import ImageData
from sfumato.domains.pictures import CROPS, RESAMPLES, Fit, as_picture
from sfumato.domains.readers import open_source
from sfumato.domains.source import Source
from sfumato.errors import DataError, choose
from sfumato.files import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Images:
    """Pictures of one size.

    size: (height, width), or one number for both; None takes that of the data, which must then all have one.
    channels: 1, 3 or 4; None likewise. classes: names, in the order of the labels; () takes those of the data.
    flip: mirror half of the pictures, at random, in training. crop: "none", "center" or "random", see `Fit`.
    resample: "lanczos" or "bicubic". background: what shows through transparency, 0..255 each.
    Raises DataError for values that are none of these.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    classes: tuple[str, ...] = ()
    flip: bool = False
    crop: str = "none"
    resample: str = "lanczos"
    background: tuple[int, int, int] = (255, 255, 255)
    name: ClassVar[str] = "images"
    spreads: ClassVar[bool] = True

    def __post_init__(self) -> None:
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        for key, value in (("size", size), ("classes", self.classes), ("background", self.background)):
            if isinstance(value, (list, tuple)):  # lists are what JSON and TOML give
                object.__setattr__(self, key, tuple(value))
            elif key != "size" or value is not None:
                raise DataError(f"{key} must be a list, not {value!r}")
        if self.size is not None and (
            len(self.size) != 2 or not all(_whole(n, 1, 65_535) for n in self.size)
        ):
            raise DataError(f"size must be a number of pixels or (height, width), not {size!r}")
        if self.channels not in (None, 1, 3, 4):
            raise DataError(
                f"channels must be 1 (grey), 3 (colour) or 4 (colour and alpha), not {self.channels!r}"
            )
        if len(set(self.classes)) < len(self.classes):
            raise DataError(f"classes must have different names: {', '.join(self.classes)}")
        choose(self.crop, CROPS, "crop", DataError)
        choose(self.resample, RESAMPLES, "resample", DataError)
        if len(self.background) != 3 or not all(_whole(n, 0, 255) for n in self.background):
            raise DataError(f"background must be three numbers in 0..255, not {self.background!r}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one picture. Raises DataError while they are left to data not yet read."""
        if self.size is None or self.channels is None:
            raise DataError("size and channels are taken from the data: read them first, or set both")
        return (self.channels, *self.size)

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of a picture as kept: with a margin if crops are random."""
        return (*self._fit().stored, self.shape[0])

    def _fit(self) -> Fit:
        channels, *size = self.shape
        return Fit((size[0], size[1]), channels, self.crop, self.resample, self.background)

    # Reading

    def read(self, source: Source | str | Path) -> ImageData:
        """The pictures at a source. A string is the name of a named source if it is one, else a path.

        Raises DataError in one line for whatever is wrong with them, naming the file and what to do.
        """
        place = as_source(source)
        found = open_source(place, self.classes)
        size, channels = settle(found, self.size, self.channels)
        domain = replace(self, size=size, channels=channels, classes=found.classes or self.classes)
        exact = (self.size is None, self.channels is None)
        done = decode(found, domain._fit(), exact=exact, skip_corrupt=place.skip_corrupt)
        about = dict(found.about)
        if done.corrupt:
            about["skipped_corrupt"] = [f"{title}: {reason}" for title, reason in done.corrupt]
        labels = None if found.labels is None else found.labels[done.rows]
        captions, groups = (
            tuple(texts[i] for i in done.rows) if texts else () for texts in (found.captions, found.groups)
        )
        name = about["sources"][0]
        return ImageData(
            domain, done.pixels, labels, captions=captions, groups=groups, name=name, about=about
        )

    def of(self, images: Any, labels: Any = None, name: str = "arrays") -> ImageData:
        """Data from arrays in memory: (n, h, w), (n, h, w, c) or (n, c, h, w); uint8, or floats as `as_pixels` says."""
        pixels = as_pixels(np.asarray(images), name)
        domain = replace(self, size=self.size or pixels.shape[1:3], channels=self.channels or pixels.shape[3])
        if labels is not None:
            labels = as_labels(np.asarray(labels), len(pixels), name)
            top = int(labels.max(initial=-1)) + 1
            domain = replace(domain, classes=self.classes or tuple(str(k) for k in range(top)))
        return ImageData(domain, pixels, labels, name=name, about={"sources": [name]})

    # Between pixels and tensors

    def encode(self, pixels: Any) -> Tensor:
        """x = u / 127.5 − 1: uint8 (n, h, w, c), array or tensor, to float32 (n, c, h, w) in [−1, 1]."""
        # torch warns of arrays it may not write to, as memory-mapped ones are; "W" copies those, and only those
        u = (
            pixels
            if isinstance(pixels, Tensor)
            else torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
        )
        if u.dtype != torch.uint8 or u.ndim != 4 or u.shape[3] != (self.channels or u.shape[3]):
            raise DataError(
                f"encode takes uint8 (n, h, w, {self.channels or 'c'}), not {u.dtype} {tuple(u.shape)}"
            )
        x = u.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return x.div_(127.5).sub_(1.0)

    def decode(self, x: Tensor) -> Tensor:
        """(x + 1) / 2 clipped to [0, 1]: float (n, c, h, w) to the same shape. NaN stays NaN."""
        return x.float().add(1.0).div_(2.0).clamp_(0.0, 1.0)

    def to_uint8(self, x: Tensor) -> np.ndarray:
        """round(255 (x + 1) / 2): float (n, c, h, w) to uint8 (n, h, w, c). Raises DataError for NaN, by sample."""
        if x.ndim != 4:
            raise DataError(f"samples are (n, c, h, w), not {tuple(x.shape)}")
        bad = torch.isnan(x).flatten(1).any(1)
        if bad.any():
            raise DataError(f"sample {int(bad.int().argmax())} of {len(x)} holds NaN: it cannot be a picture")
        u = self.decode(x.detach()).mul_(255.0).round_().to(torch.uint8)
        return u.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def pixels(self, samples: Any) -> np.ndarray:
        """uint8 (n, h, w, c) of samples: a float tensor (n, c, h, w) in [−1, 1], or uint8 (n, h, w, c) as it is."""
        if isinstance(samples, Tensor) and samples.dtype != torch.uint8:
            return self.to_uint8(samples)
        u = samples.cpu().numpy() if isinstance(samples, Tensor) else np.asarray(samples)
        if u.dtype != np.uint8 or u.ndim != 4 or u.shape[3] not in (1, 3, 4):
            raise DataError(
                f"samples are a float tensor (n, c, h, w) or uint8 (n, h, w, c), not {u.dtype} {u.shape}"
            )
        return u

    # Writing and showing

    def write(
        self,
        samples: Any,
        folder: str | Path,
        labels: Any = None,
        start: int = 0,
        prompts: Sequence[str] | None = None,
    ) -> list[Path]:
        """Write samples as PNG, each whole or not at all: `sample-00007.png`, or `sample-00007-label-3.png`.

        samples: see `pixels`. labels: (n,), where len(classes) means "no label". start: the number of the first.
        prompts: what each was asked for, of which its name keeps the first letters: `sample-00007-red-heart.png`.
        Raises DataError if the labels do not fit, or for NaN.
        """
        pixels = self.pixels(samples)
        folder = Path(folder)
        names = file_names(len(pixels), labels, len(self.classes), start, prompts, "png")
        folder.mkdir(parents=True, exist_ok=True)
        for picture, name in zip(pixels, names, strict=True):
            memory = io.BytesIO()
            as_picture(picture).save(memory, format="PNG")
            write_atomically(folder / name, memory.getvalue())
        return [folder / name for name in names]

    def picture(
        self, samples: Any, columns: int | None = None, rows: Sequence[str] | None = None, tile: int = 48
    ) -> Image:
        """One picture with all samples in a grid, left to right, then down. See `grids.grid`.

        rows: a caption for each row. tile: the least height of a sample, in pixels; small ones are enlarged by a
        whole number, pixel by pixel.
        """
        return grids.grid(self.pixels(samples), columns=columns, rows=rows, tile=tile)

    def strip(self, batches: Sequence[Any], captions: Sequence[str] | None = None, tile: int = 48) -> Image:
        """A film strip: a column for each batch of the same samples, so that each row shows one sample change.

        captions: one for each batch, above its column.
        """
        return grids.strip([self.pixels(batch) for batch in batches], captions=captions, tile=tile)

    # Keeping

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; inverse of `from_json`."""
        plain = {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }
        return {"kind": self.name, **plain}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Images:
        """The domain that `to_json` described. Raises DataError for names it does not know."""
        values = dict(values)
        if (kind := values.pop("kind", cls.name)) != cls.name:
            raise DataError(f"this describes a domain of kind {kind!r}, not {cls.name!r}")
        for key in values:
            choose(key, cls.__dataclass_fields__, "setting of images", DataError)
        return cls(**values)


def as_source(source: Source | str | Path) -> Source:
    """A `Source` from a short form: a named source's name, "hub:owner/name", or a path."""
    if isinstance(source, Source):
        return source
    from sfumato.domains.sources import SOURCES

    text = str(source)
    if text.startswith("hub:"):
        return Source(hub=text.removeprefix("hub:"))
    if isinstance(source, str) and text in SOURCES:
        return Source(name=text)
    if isinstance(source, Path) or "/" in text or Path(text).exists():
        return Source(path=text)
    choose(text, SOURCES, "data source (and no path that exists)", DataError)
    raise AssertionError("choose lets no other name pass")


def _whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def file_names(
    count: int, labels: Any, classes: int, start: int, prompts: Sequence[str] | None, suffix: str
) -> list[str]:
    """Names of files of samples, `sample-00007-red-heart-label-3.png`; see `Images.write`. Raises DataError."""
    marks = _marks(labels, count, classes)
    if prompts is not None:
        marks = [f"{_slug(text)}{mark}" for text, mark in zip(prompts, marks, strict=True)]
    return [f"sample-{number:05d}{mark}.{suffix}" for number, mark in enumerate(marks, start)]


def _slug(text: str, most: int = 40) -> str:
    """What a prompt adds to the name of a file: its letters and digits, the rest as single hyphens."""
    words = re.sub(r"\W+|_+", "-", text.lower()).strip("-")[:most].rstrip("-")
    return f"-{words}" if words else ""


def _marks(labels: Any, count: int, classes: int) -> list[str]:
    """What labels add to the names of files."""
    if labels is None:
        return [""] * count
    given = as_labels(np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels), count, "write")
    if classes and given.max(initial=0) > classes:
        raise DataError(f"label {given.max()} is out of range: there are {classes} classes")
    return ["" if classes and k == classes else f"-label-{k}" for k in given]
