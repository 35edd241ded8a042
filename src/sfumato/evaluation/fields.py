"""How good sampled fields are: their spectra, their values and their slopes, against real ones.

The radial power spectrum of a tile x (height, width), windowed by a Hann window so that the edges do not leak,

    P(k) = mean over |q| in [k - 1/2, k + 1/2) of |DFT(w (x - mean x))_q|^2,     k = 1 .. min(height, width) / 2,

averaged over tiles, says how much there is of each size: on land and sea it falls as a power of k over all scales that
a tile has. "spectrum" is the largest |log10 ratio| to the training set's, "spectrum, mean" the mean over k.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sfumato.evaluation.measure import Measure, interval
from sfumato.evaluation.sequences import wasserstein

RESAMPLES = 100


def spectra(x: np.ndarray) -> np.ndarray:
    """Radial power spectra (n, k) of the first variable of fields (n, variables, height, width)."""
    field = x[:, 0].astype(np.float64)
    height, width = field.shape[1:]
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    power = np.abs(np.fft.fft2((field - field.mean((1, 2), keepdims=True)) * window)) ** 2
    down, across = np.fft.fftfreq(height) * height, np.fft.fftfreq(width) * width
    # wavenumbers of the longer side are brought to those of the shorter, so that a ring is a ring in space
    least = min(height, width)
    radius = np.hypot(down[:, None] * least / height, across[None] * least / width)
    rings = [np.abs(radius - k) < 0.5 for k in range(1, least // 2 + 1)]
    return np.stack([power[:, ring].mean(1) for ring in rings], 1)


def _gap(a: np.ndarray, b: np.ndarray, worst: bool) -> float:
    ratio = np.abs(np.log10(a.mean(0)) - np.log10(b.mean(0)))
    return float(ratio.max() if worst else ratio.mean())


def field_measures(domain: Any, samples: Any, train: Any, held: Any) -> list[Measure]:
    """The measures of samples (n, variables, height, width) as states; train, held: `Examples` of the domain."""
    wasserstein_distance = wasserstein()
    made = domain.decode(samples).numpy()
    draw = np.random.default_rng(0)
    some = train.take(np.sort(draw.permutation(len(train))[:2000]))
    known, other = (np.asarray(part.raw) for part in (some, held))
    p, q, r = spectra(made), spectra(known), spectra(other)
    found = []
    for name, worst in (("spectrum", True), ("spectrum, mean", False)):
        value = _gap(p, q, worst)
        spread = [_gap(p[draw.integers(0, len(p), len(p))], q, worst) for _ in range(RESAMPLES)]
        low, high = interval(value, spread, (0.0, np.inf))
        note = "largest" if worst else "mean"
        note += f" |log10 ratio| of powers over wavenumbers 1 to {p.shape[1]}; .08 is 20 %"
        found.append(Measure(name, value, low, high, len(p), "lower", _gap(r, q, worst), note))
    for name, part in (("values", lambda x: x), ("slopes", lambda x: np.diff(x, axis=-1))):
        a, b, c = (part(x[:, 0]).ravel()[:: max(x[:, 0].size // 100_000, 1)] for x in (made, known, other))
        scale = float(b.std()) or 1.0
        value = float(wasserstein_distance(a, b)) / scale
        floor = float(wasserstein_distance(c, b)) / scale
        note = "Wasserstein-1 distance over the deviation of real ones"
        found.append(Measure(name, value, None, None, len(made), "lower", floor, note))
    return found
