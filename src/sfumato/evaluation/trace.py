"""What happens on the way: the size of everything at each step of sampling, and where its energy goes.

A `Recorder` is a callback of `integrate`, `sample` and `Model.sample`. After each step it has the state x and the
step's last prediction, at a level (alpha, sigma), and notes for each sample, as root mean squares over its elements,

    x        the state after the step              eps     the predicted noise, 1 if the model were told nothing
    x0       the predicted data                    score   eps / sigma, the size of grad log p(x_t)
    change   x0 less that of the step before       moved   x less the state before the step

For pictures, the mean square of x0 is split by spatial frequency. With F the two-dimensional Fourier transform of an
h x w channel, Parseval's identity mean |x|^2 = sum |F|^2 / (h w)^2 lets each frequency have its part; parts are added
up over rings of whole cycles per picture, 0, 1, 2, 3-4, 5-8, ... , the last with the corners. Coarse rings reach the
energy they will have at the end long before fine ones: noise hides fine detail first, so sampling finds it last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..processes import Prediction
from .plots import COLOURS, INK, SOFT, as_png, drawing

if TYPE_CHECKING:
    from ..model import Model

SIZES = ("x", "x0", "eps", "score", "change", "moved")


def rings(height: int, width: int) -> list[tuple[int, int]]:
    """The rings of spatial frequency of an h x w picture, (first, last) in cycles per picture; the last is open."""
    half = max(min(height, width) // 2, 1)
    found, low = [(0, 0)], 1
    while low <= half:
        high = max(2 * (low - 1), low)
        found.append((low, high))
        low = high + 1
    return found


def energy(x: Tensor) -> Tensor:
    """The mean square of pictures (n, c, h, w) by ring of spatial frequency, (n, rings), which adds up to it."""
    height, width = x.shape[-2:]
    power = torch.fft.fft2(x.double()).abs().square() / (height * width) ** 2
    cycles = [torch.fft.fftfreq(n, dtype=torch.float64, device=x.device) * n for n in (height, width)]
    # of a picture that is not square, cycles along the shorter side
    scale = [min(height, width) / n for n in (height, width)]
    radius = torch.hypot(cycles[0][:, None] * scale[0], cycles[1] * scale[1]).round()
    shares = power.mean(1).flatten(1)
    ends = torch.tensor([high for _, high in rings(height, width)][:-1], device=x.device)
    place = torch.bucketize(radius.flatten(), ends.double())
    return shares.new_zeros(len(x), len(ends) + 1).index_add(1, place, shares)


def _size(x: Tensor) -> Tensor:
    return x.double().square().flatten(1).mean(1).sqrt()


@dataclass
class Recorder:
    """A callback that keeps what each step did. keep: of how many samples the predicted data are kept whole.

    After the run: `steps`, one dictionary a step, and `shots`, the kept predictions (keep, ...), the last being the
    samples themselves. Every number is {"mean", "low", "high"} over the samples, low and high holding four fifths of
    them; None where there is none, as for the first step's change.
    """

    keep: int = 0
    steps: list[dict[str, Any]] = field(default_factory=list)
    shots: list[Tensor] = field(default_factory=list)
    rings: list[tuple[int, int]] | None = None
    _last: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def __call__(self, done: int, total: int, x: Tensor, prediction: Prediction | None) -> None:
        """Note a step."""
        if prediction is None:
            raise DataError("a step without a prediction has nothing to show")
        if done != len(self.steps) + 1:
            raise DataError("a recorder follows one run: draw all its samples in one batch")
        level, x0 = prediction.level, prediction.x0
        eps = _size(prediction.eps)
        values: dict[str, Tensor | None] = {
            "x": _size(x),
            "x0": _size(x0),
            "eps": eps,
            "score": eps / level.sigma,
            "change": None if self._last is None else _size(x0 - self._last[1]),
            "moved": None if self._last is None else _size(x - self._last[0]),
        }
        snr = level.log_snr if math.isfinite(level.log_snr) else None  # JSON knows no infinity
        row: dict[str, Any] = {"step": done, "time": level.time, "log_snr": snr, "sigma": level.sigma}
        row |= {name: None if value is None else _spread(value) for name, value in values.items()}
        if x0.ndim == 4:
            self.rings = rings(*x0.shape[-2:])
            row["energy"] = energy(x0).mean(0).tolist()
        if done == total and x0.ndim == 4:
            row["energy_of_samples"] = energy(x).mean(0).tolist()
        self.steps.append(row)
        self._last = (x, x0)
        if self.keep:
            self.shots.append((x if done == total else x0)[: self.keep].clone())


def _spread(values: Tensor) -> dict[str, float]:
    low, high = torch.quantile(
        values, torch.tensor([0.1, 0.9], dtype=values.dtype, device=values.device)
    ).tolist()
    return {"mean": float(values.mean()), "low": low, "high": high}


def trace(model: Model, count: int, keep: int = 3, **settings: Any) -> Recorder:
    """Draw `count` samples of a model in one batch and record each step; settings as those of `Model.sample`."""
    recorder = Recorder(min(keep, count))
    number = None if settings.get("indices") is not None else count
    model.sample(number, callback=recorder, batch=count, **settings)
    return recorder


def record(recorder: Recorder) -> dict[str, Any]:
    """A recording as JSON values."""
    return {"rings": recorder.rings, "trace": recorder.steps}


def picture(recorder: Recorder, pixels: Any = None, title: str = "") -> bytes:
    """A recording as a PNG: what the samples looked like, the sizes, the changes, the score and the energy by ring.

    pixels: turns kept predictions into uint8 (n, h, w, c), as a domain's `pixels` does; without it no film is drawn.
    Raises MissingExtra without matplotlib.
    """
    if not recorder.steps:
        raise DataError("nothing was recorded: pass the recorder as the callback of a sampling")
    film = bool(pixels and recorder.shots)
    tall = 0.72 * recorder.keep + 0.35 if film else 0.0
    with drawing(9.6, 6.1 + tall) as figure:
        if film:
            above, below = figure.subfigures(2, 1, height_ratios=[tall, 6.1])
            _film(above.subplots(), recorder, pixels)
        else:
            below = figure
        if title:
            figure.suptitle(title, x=0.012, ha="left", fontsize=11.5, color=INK)
        axes = below.subplots(2, 2, sharex=True).flatten()
        _lines(axes[0], recorder, ("x", "x0", "eps"), ("state x", "predicted data x̂0", "predicted noise ε̂"))
        axes[0].set_title("How large things are  (root mean square)")
        _lines(axes[1], recorder, ("change", "moved"), ("x̂0 changes", "x moves"))
        axes[1].set_title("What each step does")
        _lines(axes[2], recorder, ("score",), ("|score|",))
        number = [row["step"] for row in recorder.steps]
        axes[2].plot(number, [1 / row["sigma"] for row in recorder.steps], color=SOFT, linewidth=1, linestyle=":",
                     label="1 / σ, if all of x were noise")  # fmt: skip
        axes[2].legend(loc="upper left")
        axes[2].set_title("Size of the score")
        _energies(axes[3], recorder)
        for axis in axes[2:]:
            axis.set_xlabel("step, and the time t of its last evaluation")
        ticks = sorted({round(tick) for tick in np.linspace(1, len(number), min(len(number), 8))})
        axes[3].set_xticks(ticks, [f"{n}\n{recorder.steps[n - 1]['time']:.2f}" for n in ticks])
        return as_png(figure)


def _film(axes: Any, recorder: Recorder, pixels: Any) -> None:
    """Rows of what each sample was taken to become, left to right."""
    shown = min(len(recorder.shots), 13)
    chosen = [round(k) for k in np.linspace(0, len(recorder.shots) - 1, shown)]
    parts = np.stack([pixels(recorder.shots[k]) for k in chosen], 1)  # (keep, shown, h, w, c)
    keep, _, height, width, channels = parts.shape
    gap = max(1, round(0.06 * height))
    sheet = np.full((keep * (height + gap) - gap, shown * (width + gap) - gap, channels), 255, np.uint8)
    for row in range(keep):
        for column in range(shown):
            y, x = row * (height + gap), column * (width + gap)
            sheet[y : y + height, x : x + width] = parts[row, column]
    axes.imshow(
        sheet[..., 0] if channels == 1 else sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest"
    )
    axes.set_xticks([(width + gap) * k + width / 2 for k in range(shown)],
                    ["sample" if k == len(recorder.shots) - 1 else str(k + 1) for k in chosen])  # fmt: skip
    axes.set_yticks([])
    axes.xaxis.tick_top()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _lines(axes: Any, recorder: Recorder, names: tuple[str, ...], labels: tuple[str, ...]) -> None:
    """Means over steps with the band that holds four fifths of the samples; logarithmic where they span decades."""
    values = []
    for name, label, colour in zip(names, labels, COLOURS, strict=False):
        rows = [row for row in recorder.steps if row[name] is not None]
        number = [row["step"] for row in rows]
        mean, low, high = ([row[name][key] for row in rows] for key in ("mean", "low", "high"))
        values += mean
        axes.fill_between(number, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(number, mean, color=colour, label=label, marker="o", markersize=2.5)
    if values and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.legend(loc="best")


def _energies(axes: Any, recorder: Recorder) -> None:
    """For each ring, the share of the samples' own energy that x0 holds already."""
    axes.set_title("Where the energy goes  (x̂0's, as a share of the samples')")
    if recorder.rings is None:
        axes.text(
            0.5,
            0.5,
            "not pictures: no spatial frequencies",
            ha="center",
            transform=axes.transAxes,
            color=SOFT,
        )
        axes.grid(visible=False)
        return
    import matplotlib

    final = recorder.steps[-1]["energy_of_samples"]
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.88, len(recorder.rings)))
    number = [row["step"] for row in recorder.steps]
    for k, (ring, colour) in enumerate(zip(recorder.rings, colours, strict=True)):
        if final[k] <= 0:
            continue
        share = [row["energy"][k] / final[k] for row in recorder.steps]
        axes.plot(number, share, color=colour, label=_named(ring, k == len(recorder.rings) - 1))
    axes.axhline(1, color=SOFT, linewidth=0.8, linestyle=":")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right", title="cycles per picture", title_fontsize=8.5)


def _named(ring: tuple[int, int], last: bool) -> str:
    low, high = ring
    return (
        "0 (mean)"
        if high == 0
        else f"{low} and more"
        if last
        else f"{low}"
        if low == high
        else f"{low}–{high}"
    )
