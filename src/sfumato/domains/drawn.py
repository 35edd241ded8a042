"""Data that are shown by drawing them: a domain gives a picture of each sample, and has sheets and film strips.

`lines` draws curves: time to the right, values upwards, a colour a channel; where a value is NaN nothing is drawn.
Drawn four times as large and reduced by the mean of 4x4 pixels, so that lines are smooth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from sfumato.domains import grids
from sfumato.domains.examples import Domain

COLOURS = ((140, 90, 43), (47, 111, 143), (184, 72, 63), (91, 125, 58), (122, 90, 158), (199, 138, 29))
PAPER, FAINT = (255, 255, 255), (221, 221, 221)
FINE = 4

if TYPE_CHECKING:
    Picture = Image.Image


class Drawn(Domain):
    """Base of the domains whose samples are drawn; a subclass gives `pixels`."""

    def pixels(self, samples: Any) -> np.ndarray:
        """A picture of each sample, uint8 (n, height, width, 3)."""
        raise NotImplementedError

    def picture(
        self, samples: Any, columns: int | None = None, rows: Sequence[str] | None = None, tile: int = 64
    ) -> Picture:
        """All samples in a grid."""
        return grids.grid(self.pixels(samples), columns=columns, rows=rows, tile=tile)

    def strip(self, batches: Sequence[Any], captions: Sequence[str] | None = None, tile: int = 64) -> Picture:
        """A column for each batch of the same samples."""
        return grids.strip([self.pixels(batch) for batch in batches], captions=captions, tile=tile)


def canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty picture, FINE times as large as it will be, and its pen."""
    paper = Image.new("RGB", (FINE * width, FINE * height), PAPER)
    return paper, ImageDraw.Draw(paper)


def reduced(paper: Image.Image) -> np.ndarray:
    """What was drawn, at its size, uint8 (height, width, 3)."""
    return np.asarray(paper.reduce(FINE))


def lines(curves: np.ndarray, low: float, high: float, width: int = 112, height: int = 72) -> np.ndarray:
    """Pictures uint8 (n, height, width, 3) of curves (n, length, channels), of which low..high is shown."""
    n, length, channels = curves.shape
    across = FINE * (2 + (width - 5) * np.arange(length) / max(length - 1, 1))
    up = FINE * (2 + (height - 5) * (1 - (np.clip(curves, low, high) - low) / (high - low)))
    found = np.empty((n, height, width, 3), np.uint8)
    for k in range(n):
        paper, pen = canvas(width, height)
        pen.rectangle((0, 0, FINE * width - 1, FINE * height - 1), outline=FAINT, width=FINE)
        for c in range(channels):
            kept = np.isfinite(up[k, :, c])
            points = [(float(x), float(y)) for x, y in zip(across[kept], up[k, kept, c], strict=True)]
            pen.line(points, fill=COLOURS[c % len(COLOURS)], width=FINE * 3 // 2, joint="curve")
        found[k] = reduced(paper)
    return found
