"""How good sampled fields are: their spectra, their values and their slopes, against real ones.

The radial power spectrum of a tile x (height, width), windowed by a Hann window so that the edges do not leak,

    P(k) = mean over |q| in [k - 1/2, k + 1/2) of |DFT(w (x - mean x))_q|^2,     k = 1 .. min(height, width) / 2,

averaged over tiles, says how much there is of each size: on land and sea it falls as a power of k over all scales that
a tile has. "spectrum" is the largest |log10 ratio| to the training set's over k and variables, "spectrum, mean" the
mean over them. "values" and "slopes" (differences of neighbours along x) are Wasserstein-1 distances over the deviation
of real ones, the mean of variables.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sfumato.errors import DataError
from sfumato.evaluation.measure import Measure, interval
from sfumato.evaluation.sequences import wasserstein

RESAMPLES = 100
VALUES = 200_000  # of a variable that distances are of


def spectra(x: np.ndarray, variable: int = 0) -> np.ndarray:
    """Radial power spectra (n, k) of one variable of fields (n, variables, height, width)."""
    field = x[:, variable].astype(np.float64)
    height, width = field.shape[1:]
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    power = np.abs(np.fft.fft2((field - field.mean((1, 2), keepdims=True)) * window)) ** 2
    down, across = np.fft.fftfreq(height) * height, np.fft.fftfreq(width) * width
    # wavenumbers of the longer side are brought to those of the shorter, so that a ring is a ring in space
    least = min(height, width)
    radius = np.hypot(down[:, None] * least / height, across[None] * least / width)
    rings = [np.abs(radius - k) < 0.5 for k in range(1, least // 2 + 1)]
    return np.stack([power[:, ring].mean(1) for ring in rings], 1)


def some_values(x: np.ndarray) -> np.ndarray:
    """Values (at most `VALUES`, variables) of fields (n, variables, height, width), at places of them all."""
    places = (len(x), *x.shape[2:])
    count = int(np.prod(places))
    # drawn, since a stride that divides the width would see some columns only
    rows = np.arange(count) if count <= VALUES else np.random.default_rng(0).integers(0, count, VALUES)
    field, row, column = np.unravel_index(rows, places)
    return x[field, :, row, column]


def _value_gap(a: np.ndarray, b: np.ndarray) -> float:
    """Wasserstein-1 distance of values (n, variables) over the deviation of b, the mean of variables."""
    distance = wasserstein()
    each = zip(a.T, b.T, strict=True)
    return float(np.mean([distance(x, y) / (float(y.std()) or 1.0) for x, y in each]))


def _gap(a: np.ndarray, b: np.ndarray, worst: bool) -> float:
    tiny = 1e-12 * b.mean()  # samples may hold no power at all
    ratio = np.abs(np.log10(a.mean(0) + tiny) - np.log10(b.mean(0) + tiny))
    return float(ratio.max() if worst else ratio.mean())


def field_measures(domain: Any, samples: Any, train: Any, held: Any) -> list[Measure]:
    """The measures of samples (n, variables, height, width) as states; train, held: `Examples` of the domain."""
    made = domain.decode(samples).numpy()
    draw = np.random.default_rng(0)
    some = train.take(np.sort(draw.permutation(len(train))[:2000]))
    known, other = (np.asarray(part.raw) for part in (some, held))
    # a variable that is one value everywhere has no spectrum
    varied = [c for c in range(known.shape[1]) if np.ptp(known[:, c]) > 0 and np.ptp(other[:, c]) > 0]
    if not varied:
        raise DataError("no variable of these fields varies, so there is nothing to judge")
    made, known, other = (x[:, varied] for x in (made, known, other))
    p, q, r = (
        np.concatenate([spectra(x, c) for c in range(x.shape[1])], 1) for x in (made, known, other)
    )  # (n, k of all variables)
    found = []
    for name, worst in (("spectrum", True), ("spectrum, mean", False)):
        value = _gap(p, q, worst)
        spread = [_gap(p[draw.integers(0, len(p), len(p))], q, worst) for _ in range(RESAMPLES)]
        low, high = interval(value, spread, (0.0, np.inf))
        note = "largest" if worst else "mean"
        note += f" |log10 ratio| of powers over wavenumbers 1 to {p.shape[1] // made.shape[1]}; .08 is 20 %"
        found.append(Measure(name, value, low, high, len(p), "lower", _gap(r, q, worst), note))
    for name, part in (("values", lambda x: x), ("slopes", lambda x: np.diff(x, axis=-1))):
        a, b, c = (some_values(part(x)) for x in (made, known, other))
        note = "Wasserstein-1 distance over the deviation of real ones"
        found.append(Measure(name, _value_gap(a, b), None, None, len(made), "lower", _value_gap(c, b), note))
    return found
