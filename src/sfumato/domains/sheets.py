"""Text as a picture: one line a sample, so that a report can show what is read and not looked at."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from sfumato.errors import DataError

_PAPER, _INK, _FAINT = (255, 255, 255), (40, 40, 40), (120, 120, 120)
_MARGIN, _SIZE, _LINES, _LETTERS = 8, 13, 400, 160


@lru_cache(4096)
def _glyph(letter: str) -> bytes:
    cell = Image.new("L", (3 * _SIZE, 2 * _SIZE))
    ImageDraw.Draw(cell).text((_SIZE, 0), letter, 255, ImageFont.load_default(size=_SIZE))
    return cell.tobytes()


def _plain(letter: str) -> str:
    if letter.isspace() or _glyph(letter) != _glyph("\U0010ffff"):  # the box of a letter that the font lacks
        return letter
    like = unicodedata.normalize("NFKD", letter)
    return "".join(c for c in like if c.isascii() and c.isprintable()) or "?"


def drawable(text: str) -> str:
    """A text in the letters that Pillow's own font has: "Åland" as "Aland", a sign that it lacks as "?"."""
    return "".join(map(_plain, unicodedata.normalize("NFC", text)))


def sheet(texts: Sequence[str], captions: Sequence[str] | None = None) -> Image.Image:
    """Lines of text on paper, each with a caption before it where there are any; what is too long ends in "…".

    Raises DataError for no lines, or captions that are not one a line.
    """
    if not texts:
        raise DataError("there are no samples to show")
    if captions is not None and len(captions) != len(texts):
        raise DataError(f"{len(texts)} lines need as many captions, not {len(captions)}")
    font = ImageFont.load_default(size=_SIZE)
    texts, captions = [drawable(t) for t in texts[:_LINES]], captions and [drawable(c) for c in captions]
    lines = [text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}…" for text in texts]
    names = [
        f"{name}  " if k == 0 or captions is None or captions[k - 1] != name else ""
        for k, name in enumerate((captions or [""] * len(lines))[: len(lines)])
    ]
    left = max(font.getlength(name) for name in names)
    width = int(left + max(font.getlength(line) for line in lines)) + 2 * _MARGIN
    height = (_SIZE + 4) * len(lines) + 2 * _MARGIN
    paper = Image.new("RGB", (max(width, 40), height), _PAPER)
    pen = ImageDraw.Draw(paper)
    for k, (name, line) in enumerate(zip(names, lines, strict=True)):
        y = _MARGIN + k * (_SIZE + 4)
        pen.text((_MARGIN + left, y), line, _INK, font)
        pen.text((_MARGIN, y), name, _FAINT, font)
    return paper
