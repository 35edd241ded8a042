"""Many pictures on one sheet: a grid with captions for its rows, and a film strip with captions for its columns.

Small pictures are enlarged by a whole number, each pixel becoming a square (nearest neighbour): what is shown is
what the model made, and nothing smoother.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sfumato.domains.sheets import drawable
from sfumato.errors import DataError

_PAPER, _INK = (255, 255, 255), (40, 40, 40)
_GAP, _MARGIN, _TEXT = 2, 4, 12
MAX_SIDE = 65_000
"""The longest side of a sheet in pixels; PNG readers and Pillow's own bound on bombs stop not far above."""


def grid(
    pixels: np.ndarray, *, columns: int | None = None, rows: Sequence[str] | None = None, tile: int = 48
) -> Image.Image:
    """A sheet of pictures, left to right, then down.

    pixels: uint8 (n, h, w, c). columns: how many in a row; by default as square a sheet as can be, or what `rows`
    asks for. rows: a caption for each row, at its left. tile: the least height and width of a picture.
    Raises DataError for no pictures, or captions that are not one a row.
    """
    count = len(pixels)
    if count == 0:
        raise DataError("there are no samples to show")
    if columns is None:
        columns = int(np.ceil(count / len(rows))) if rows else int(np.ceil(np.sqrt(count)))
    if columns < 1:
        raise DataError(f"a grid needs at least one column, not {columns}")
    columns = min(columns, count)
    lines = -(-count // columns)
    if rows is not None and len(rows) != lines:
        raise DataError(
            f"{count} samples in {columns} columns make {lines} rows; {len(rows)} captions were given"
        )
    return _sheet(pixels, columns, rows or (), (), tile)


def strip(
    batches: Sequence[np.ndarray], *, captions: Sequence[str] | None = None, tile: int = 48
) -> Image.Image:
    """A column for each batch, a row for each sample. batches: uint8 (n, h, w, c) each, all of one shape."""
    if not batches or any(batch.shape != batches[0].shape for batch in batches):
        shapes = ", ".join(str(batch.shape) for batch in batches) or "none"
        raise DataError(f"a film strip needs batches of one shape, not {shapes}")
    if captions is not None and len(captions) != len(batches):
        raise DataError(f"{len(batches)} batches need as many captions, not {len(captions)}")
    if len(batches[0]) == 0:
        raise DataError("there are no samples to show")
    pixels = np.stack(batches, axis=1).reshape(-1, *batches[0].shape[1:])
    return _sheet(pixels, len(batches), (), captions or (), tile)


def _sheet(
    pixels: np.ndarray, columns: int, rows: Sequence[str], captions: Sequence[str], tile: int
) -> Image.Image:
    rows, captions = [drawable(text) for text in rows], [drawable(text) for text in captions]
    count, height, width = pixels.shape[:3]
    scale = max(1, -(-tile // min(height, width)))
    tall, wide = height * scale, width * scale
    lines = -(-count // columns)
    font = _font()
    left = _MARGIN + (
        max((_width(font, text) for text in rows), default=-2 * _MARGIN) + 2 * _MARGIN if rows else 0
    )
    top = _MARGIN + (_TEXT + _MARGIN if captions else 0)
    size = (
        left + columns * (wide + _GAP) - _GAP + _MARGIN,
        top + lines * (tall + _GAP) - _GAP + _MARGIN,
    )
    if max(size) > MAX_SIDE:
        raise DataError(
            f"the sheet would be {size[0]}×{size[1]} pixels: show fewer samples, or change columns"
        )
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, picture in enumerate(_on_paper(pixels)):
        line, column = divmod(number, columns)
        large = Image.fromarray(picture.repeat(scale, axis=0).repeat(scale, axis=1))
        sheet.paste(large, (left + column * (wide + _GAP), top + line * (tall + _GAP)))
    for line, text in enumerate(rows):
        y = top + line * (tall + _GAP) + tall // 2
        draw.text((left - 2 * _MARGIN, y), text, fill=_INK, font=font, anchor=_anchor(font, "rm"))
    for column, text in enumerate(captions):
        x = left + column * (wide + _GAP) + wide // 2
        draw.text(
            (x, _MARGIN + _TEXT // 2),
            _cut(font, text, wide),
            fill=_INK,
            font=font,
            anchor=_anchor(font, "mm"),
        )
    return sheet


def _on_paper(pixels: np.ndarray) -> np.ndarray:
    """RGB of pictures with 1, 3 or 4 channels; what is transparent shows the paper."""
    channels = pixels.shape[3]
    if channels == 3:
        return pixels
    if channels == 1:
        return np.repeat(pixels, 3, axis=3)
    alpha = pixels[..., 3:].astype(np.float32) / 255
    return np.rint(alpha * pixels[..., :3] + (1 - alpha) * np.array(_PAPER, np.float32)).astype(np.uint8)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=_TEXT - 1)  # Pillow carries it: the same on every machine


def _width(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> int:
    return int(np.ceil(font.getlength(text)))


def _anchor(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, anchor: str) -> str | None:
    return anchor if isinstance(font, ImageFont.FreeTypeFont) else None  # bitmap fonts have no anchors


def _cut(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str, room: int) -> str:
    """The text, shortened to fit over its column."""
    while len(text) > 1 and _width(font, text) > room:
        text = text[:-2] + "…" if len(text) > 2 else text[:1]
    return text
