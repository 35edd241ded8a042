"""From a picture file to the pixels a model sees: opened with suspicion, cropped, resized, given its channels.

The order is fixed: turn as the camera meant (EXIF), settle channels, then crop and resize in one step. A smaller
picture is a low-pass filtered one: each new pixel is a weighted mean over *all* the old ones under it (the kernel's
support grows with the reduction), so the mean brightness stays and nothing aliases. Pillow does this at 8 bits with
LANCZOS or BICUBIC; for large reductions it first averages whole blocks (`reducing_gap`), which only saves time.
Subsampling without the filter, as plain bilinear interpolation of a tensor does, changes every score that looks at
detail (Parmar et al., "On aliased resizing and surprising subtleties in GAN evaluation", CVPR 2022).

Transparency: for 1 or 3 channels a picture is laid over the background, out = a·picture + (1 − a)·background, before
it is resized; for 4 channels colours are resized multiplied by alpha, so that invisible pixels bleed no colour.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from sfumato.errors import DataError, choose

MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485
"""Pictures that declare more pixels than this are refused unread: a 60 kB file can unpack to gigabytes."""

CROPS = ("none", "center", "random")
RESAMPLES = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_CHANNELS = {
    "1": 1,
    "L": 1,
    "LA": 4,
    "La": 4,
    "I;16": 1,
    "I;16B": 1,
    "I;16L": 1,
    "I": 1,
    "RGBA": 4,
    "RGBa": 4,
}


@contextmanager
def bombs_are_ours() -> Iterator[None]:
    """Silence Pillow's warning about large pictures around a whole reading: we measure them ourselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def open_picture(source: Path | bytes) -> Image.Image:
    """The decoded picture, upright. Raises DataError with a short reason, without the file's name: the caller knows it.

    The first frame of an animation; 16-bit grey becomes 8-bit.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise DataError(f"declares {width}×{height} pixels, over the limit of {MAX_PIXELS}")
            picture.load()
            return _eight_bits(ImageOps.exif_transpose(picture))
    except (DataError, MemoryError):
        raise
    except Exception as problem:  # Pillow's parsers raise whatever a damaged file leads them into
        reason = (str(problem).splitlines() or [""])[0]
        if isinstance(problem, Image.DecompressionBombError):
            reason = f"declares more pixels than the limit of {MAX_PIXELS}"
        elif isinstance(problem, Image.UnidentifiedImageError):
            reason = (
                "not a picture"
                if len(source if isinstance(source, bytes) else source.read_bytes())
                else "empty"
            )
        raise DataError(reason or type(problem).__name__) from problem


def _eight_bits(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # Pillow's own conversion clips at 255 what runs to 65535
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"holds values from {values.min()} to {values.max()}: save it with 8 or 16 bits")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if picture.mode == "F":
        raise DataError("holds floats without a scale: save it with 8 or 16 bits")
    return picture


def channels_of(picture: Image.Image) -> int:
    """1, 3 or 4: the channels a picture needs to lose nothing (a palette or grey with transparency needs 4)."""
    if "transparency" in picture.info:
        return 4
    return _CHANNELS.get(picture.mode, 3)


@dataclass(frozen=True)
class Fit:
    """How any picture becomes pixels of one size.

    size: (height, width). channels: 1, 3 or 4. crop: "none" (the picture's shape must be that of `size`), "center"
    (the largest middle part of that shape) or "random" (as center with a margin of an eighth, of which training sees
    a window). background: what shows through transparency, 0..255.
    """

    size: tuple[int, int]
    channels: int
    crop: str = "none"
    resample: str = "lanczos"
    background: tuple[int, int, int] = (255, 255, 255)

    def __post_init__(self) -> None:
        choose(self.crop, CROPS, "crop")
        choose(self.resample, RESAMPLES, "resample")

    @property
    def stored(self) -> tuple[int, int]:
        """(height, width) of what is kept: `size`, and its margin if crops are to be random."""
        height, width = self.size
        margin = self.crop == "random"
        return (height + -(-height // 8), width + -(-width // 8)) if margin else (height, width)

    def pixels(self, picture: Image.Image) -> np.ndarray:
        """uint8 (height, width, channels) of a picture. Raises DataError if its shape would have to change."""
        height, width = self.stored
        box = self._box(picture.width, picture.height)
        picture = self._coloured(picture)
        if (picture.width, picture.height) != (width, height):
            method = RESAMPLES[self.resample]
            # resizing multiplies by alpha and divides again (Pillow does, for RGBA)
            picture = picture.resize((width, height), method, box=box, reducing_gap=3.0)
        return np.asarray(picture).reshape(height, width, self.channels)

    def _box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a width × height picture that is kept: left, upper, right, lower, in its pixels."""
        tall, wide = self.stored
        scale = min(width / wide, height / tall)
        keep_w, keep_h = min(scale * wide, width), min(scale * tall, height)  # rounding may exceed
        if self.crop == "none":
            # Rounding to whole pixels may have bent the shape by one pixel at the smaller of the two sizes.
            slack = max(1.0, scale)
            if width - keep_w > slack or height - keep_h > slack:
                raise DataError(
                    f"is {width}×{height}, another shape than {wide}×{tall}: set crop to 'center' or 'random'"
                )
            return (0, 0, width, height)
        left, upper = (width - keep_w) / 2, (height - keep_h) / 2
        return (left, upper, left + keep_w, upper + keep_h)

    def _coloured(self, picture: Image.Image) -> Image.Image:
        mode = MODES[self.channels]
        if self.channels < 4 and channels_of(picture) == 4:
            over = Image.new("RGBA", picture.size, (*self.background, 255))
            picture = Image.alpha_composite(over, picture.convert("RGBA"))
        return picture if picture.mode == mode else picture.convert(mode)


def as_picture(pixels: np.ndarray) -> Image.Image:
    """The Pillow picture of uint8 pixels (h, w, c)."""
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
