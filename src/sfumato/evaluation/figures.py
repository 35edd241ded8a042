"""The report's curves, as inline SVG that follows the page's colours, light or dark.

matplotlib draws with fixed colours; a page has two sets. So each role (ink, grid, first series, ...) is drawn in a
colour of its own that occurs nowhere else, and in the finished SVG that colour is replaced by a CSS variable:
one drawing, right on both backgrounds. Text stays text, in the page's own font. Namespaces and metadata are
dropped (HTML needs neither), so that no address of any kind is in the file.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sfumato.errors import DataError, MissingExtra

# Each role's stand-in colour, and the variable of the page that takes its place.
ROLES = {
    "ink": ("#010203", "var(--ink)"),
    "soft": ("#040506", "var(--soft)"),
    "line": ("#070809", "var(--line)"),
    "a": ("#0a0b0c", "var(--a)"),
    "b": ("#0d0e0f", "var(--b)"),
    "c": ("#101112", "var(--c)"),
    "floor": ("#131415", "var(--floor)"),
}
INK, SOFT, LINE, A, B, C, FLOOR = (stand_in for stand_in, _ in ROLES.values())
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sfumato",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}


@contextlib.contextmanager
def _drawing(ratio: float = 0.45) -> Iterator[tuple[Any, Any]]:
    """A figure made without pyplot (no global state, no display) and its axes, in the report's style."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", extra="report") from error
    style: Any = STYLE
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7.2, 7.2 * ratio), layout="constrained")
        axes = figure.subplots()
        axes.grid(visible=False, axis="x")
        yield figure, axes


def _svg(figure: Any, title: str) -> str:
    """The figure as an SVG element with a title for screen readers, in the page's colours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", text, count=1)
    for stand_in, variable in ROLES.values():
        text = text.replace(stand_in, variable)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--sans)", text)
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _numbers(values: Sequence[Any], what: str) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0:
        raise DataError(f"{what} must be a list of numbers, got shape {x.shape}")
    return x


def figure_quality_vs_steps(
    rows: Sequence[Mapping[str, Any]], floor: float | None = None, label: str = "Fréchet distance"
) -> str:
    """Quality against the number of steps, one line a solver, with intervals and a line where perfection lies.

    Rows have "steps" and "value", and may have "low", "high", "solver". Steps are on a logarithmic axis; values too
    when they span more than a factor of ten. Gives an SVG element.
    """
    if not rows or any("steps" not in row or "value" not in row for row in rows):
        raise DataError("quality against steps needs rows with 'steps' and 'value'")
    with _drawing() as (figure, axes):
        names = list(dict.fromkeys(str(row.get("solver", "")) for row in rows))
        if len(names) > 3:
            raise DataError(f"one figure holds at most 3 solvers, got {', '.join(names)}: make two figures")
        everything: list[float] = [] if floor is None else [floor]
        for name, colour, marker in zip(names, (A, B, C), "os^", strict=False):
            mine = sorted((r for r in rows if str(r.get("solver", "")) == name), key=lambda r: r["steps"])
            steps = _numbers([r["steps"] for r in mine], "steps")
            value = _numbers([r["value"] for r in mine], "values")
            everything += value.tolist()
            if all(r.get("low") is not None and r.get("high") is not None for r in mine):
                low, high = (
                    _numbers([r["low"] for r in mine], "low"),
                    _numbers([r["high"] for r in mine], "high"),
                )
                axes.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)
            axes.plot(steps, value, color=colour, marker=marker, markersize=5.5, label=name)
        if floor is not None:
            axes.axhline(floor, color=FLOOR, linewidth=1.4, linestyle=(0, (4, 3)))
            axes.annotate(
                "held-out real data", (0, floor), xycoords=("axes fraction", "data"), xytext=(4, 4),
                textcoords="offset points", ha="left", va="bottom", color=FLOOR, fontsize=9.5,
            )  # fmt: skip
        ticks = sorted({int(row["steps"]) for row in rows})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(t) for t in ticks], minor=False)
        axes.set_xticks([], minor=True)
        if min(everything) > 0 and max(everything) / min(everything) > 10:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        else:
            axes.set_ylim(bottom=min(0.0, *everything))
        axes.set_xlabel("denoiser calls per sample")
        axes.set_ylabel(label)
        if names != [""]:
            axes.legend(loc="upper right", labelcolor=INK)
        return _svg(figure, f"{label} against steps")


def figure_loss_by_noise(log_snr: Sequence[float], error: Sequence[float], bins: int = 24) -> str:
    """Mean error in bins of log-SNR, with the band of ±2 standard errors. Gives an SVG element.

    `log_snr` and `error` are one number per example. Noise grows to the right, as time does in sampling reversed.
    """
    x, y = _numbers(log_snr, "log_snr"), _numbers(error, "error")
    if len(x) != len(y):
        raise DataError(f"{len(x)} noise levels cannot go with {len(y)} errors")
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    if len(x) < 2:
        raise DataError("loss by noise level needs at least two finite points")
    # Equally filled bins: the ends of the range hold few examples and would be all noise.
    # Points as few as bins are means already, and stay what they are.
    number = len(x) if len(x) <= bins else min(bins, max(2, len(x) // 8))
    edges = np.unique(np.quantile(x, np.linspace(0, 1, number + 1)))
    place = (
        np.clip(np.searchsorted(edges, x, side="right") - 1, 0, len(edges) - 2) if len(edges) > 1 else x * 0
    )
    groups = [place == i for i in np.unique(place)]
    centre = np.array([x[g].mean() for g in groups])
    mean = np.array([y[g].mean() for g in groups])
    error_of_mean = np.array([y[g].std(ddof=1) / np.sqrt(g.sum()) if g.sum() > 1 else 0.0 for g in groups])
    with _drawing() as (figure, axes):
        axes.fill_between(
            centre, mean - 2 * error_of_mean, mean + 2 * error_of_mean, color=A, alpha=0.16, linewidth=0
        )
        axes.plot(centre, mean, color=A, marker="o", markersize=4)
        axes.invert_xaxis()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("log-SNR  (clean  →  noise)")
        axes.set_ylabel("mean squared error")
        return _svg(figure, "Error by noise level")


def figure_training(
    rows: Sequence[Mapping[str, Any]], x: str = "images", y: str = "loss", held: str = "held_loss"
) -> str:
    """Training loss against images seen: single values faint, their running mean strong; held-out loss if logged.

    `rows` are those of a training log; rows without the keys are passed over. Gives an SVG element.
    """
    mine = [row for row in rows if x in row and y in row]
    if not mine:
        raise DataError(f"no row of the log has both {x!r} and {y!r}")
    seen, loss = _numbers([r[x] for r in mine], x), _numbers([r[y] for r in mine], y)
    with _drawing() as (figure, axes):
        axes.plot(seen, loss, color=A, alpha=0.25, linewidth=1)
        window = max(1, len(loss) // 25)
        smooth = np.convolve(
            np.pad(loss, (window - 1, 0), mode="edge"), np.ones(window) / window, mode="valid"
        )
        axes.plot(seen, smooth, color=A, label="training, running mean")
        tested = [row for row in rows if x in row and row.get(held) is not None]
        if tested:
            where, value = [r[x] for r in tested], [r[held] for r in tested]
            axes.plot(where, value, color=B, marker="s", markersize=4.5, label="held-out")
            axes.legend(loc="upper right", labelcolor=INK)
        positive = loss[loss > 0]
        if len(positive) == len(loss) and np.quantile(loss, 0.98) / np.quantile(loss, 0.02) > 5:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
            axes.yaxis.set_minor_formatter(lambda v, _: "")
        axes.xaxis.set_major_formatter(lambda v, _: _short(v))
        axes.set_xlabel(f"{x} seen" if x == "images" else x)
        axes.set_ylabel(y)
        return _svg(figure, f"{y} during training")


def _short(value: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
