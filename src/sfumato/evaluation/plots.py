"""Pictures of measurements as PNG files, in one plain style: ink on white, few lines, named where they end."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

from ..errors import MissingExtra

INK, SOFT, LINE = "#2b2b2b", "#6b6b6b", "#dddddd"
COLOURS = ("#8c5a2b", "#2f6f8f", "#b8483f", "#5b7d3a", "#7a5a9e", "#c78a1d")
STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


@contextlib.contextmanager
def drawing(width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure in this style, made without pyplot: no global state, no display. Sizes in inches."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", extra="report") from error
    style: Any = STYLE
    with matplotlib.rc_context(style):
        yield Figure(figsize=(width, height), layout="constrained", facecolor="white")


def as_png(figure: Any, dpi: int = 130) -> bytes:
    """The figure as the bytes of a PNG file, with no date in it, so that the same numbers give the same file."""
    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=dpi, metadata={"Software": None})
    return memory.getvalue()
