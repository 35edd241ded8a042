"""A study in words and as a picture: which part of the error is worth working on."""

from __future__ import annotations

from collections.abc import Sequence

from .measure import Measure
from .plots import COLOURS, SOFT, as_png, drawing
from .study import END, SCORE, START


def verdict(measures: Sequence[Measure], steps: int) -> str:
    """In words, what would help most at a number of steps (the nearest that was studied)."""
    parts = {m.name: m for m in measures}
    curve = [m for m in measures if "steps" in m.details]
    at = min(curve, key=lambda m: abs(m.details["steps"] - steps))
    rest = max((parts[name] for name in (SCORE, START, END)), key=lambda m: m.value)
    n, size = at.details["steps"], f"{at.value:.2g} against {rest.value:.2g}"
    if at.value > 2 * rest.value:
        return f"At {n} steps the steps cost most ({size} of {rest.name}): more steps, or a better solver, will help"
    if 2 * at.value < rest.value:
        better = "a better model" if rest.name == SCORE else "a schedule that reaches further"
        size = f"{rest.value:.2g} against {at.value:.2g} of the steps"
        return f"At {n} steps {rest.name} costs most ({size}): {better} will help, more steps will not"
    return f"At {n} steps the steps and {rest.name} cost about the same ({size})"


def picture(measures: Sequence[Measure], title: str = "") -> bytes:
    """A study as a PNG: the error of the steps against their number beside the other parts, and the score by noise.

    Raises MissingExtra without matplotlib.
    """
    parts = {m.name: m for m in measures}
    curve = [m for m in measures if "steps" in m.details]
    with drawing(9.6, 4.3) as figure:
        if title:
            figure.suptitle(title, x=0.012, ha="left", fontsize=11.5)
        left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
        n = [m.details["evaluations"] for m in curve]
        order = curve[0].details["order"]
        left.fill_between(
            n, [m.low for m in curve], [m.high for m in curve], color=COLOURS[0], alpha=0.15, linewidth=0
        )
        named = "the steps" if order is None else f"the steps (order {order:.2f})"
        left.plot(n, [m.value for m in curve], color=COLOURS[0], marker="o", markersize=4, label=named)
        left.plot(
            n,
            [m.details["median"] for m in curve],
            color=COLOURS[0],
            linewidth=1,
            linestyle=":",
            label="their median",
        )
        for name, label, colour in (
            (SCORE, "the score", COLOURS[2]),
            (START, "the start", COLOURS[1]),
            (END, "the end", COLOURS[3]),
        ):
            m = parts[name]
            if m.value > 0:
                left.axhspan(m.low or m.value, m.high or m.value, color=colour, alpha=0.12, linewidth=0)
                left.axhline(m.value, color=colour, label=f"{label} ({m.value:.2g})")
            else:
                left.plot([], [], color=colour, label=f"{label} (none)")
        left.set_xscale("log", base=2)
        left.set_xticks(n, [str(k) for k in n])
        left.set_yscale("log")
        left.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        left.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if f"{y:e}"[0] in "25" else "")
        left.set_xlabel("evaluations of the model")
        left.set_title("How far a sample is moved by …  (RMS)")
        left.legend(loc="best")
        rows = parts[SCORE].details["by_noise"]
        x = [row["log_snr"] for row in rows]
        right.fill_between(
            x,
            [row["low"] for row in rows],
            [row["high"] for row in rows],
            color=COLOURS[2],
            alpha=0.15,
            linewidth=0,
        )
        right.plot(
            x, [row["rms"] for row in rows], color=COLOURS[2], marker="o", markersize=3, label="error of x̂0"
        )
        right.plot(
            x,
            [row["moves"] for row in rows],
            color=SOFT,
            linestyle=":",
            label="as far as it reaches the sample",
        )
        right.invert_xaxis()
        right.set_ylim(bottom=0)
        right.set_xlabel("log-SNR  (clean  →  noise)")
        right.set_title("The score's error by noise level  (RMS)")
        right.legend(loc="best")
        return as_png(figure)
