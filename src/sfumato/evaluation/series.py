"""How good sampled series are, by the standards of those who work with them.

    agreement          share that a classifier, trained on real series, takes for the class that was asked for
    train on samples   share of held-out real series that such a classifier, trained on samples, is right about
    values             Wasserstein-1 distance of all values, over the deviation of real ones, the mean of channels
    autocorrelation    mean |difference| of r_k over lags k = 1 .. length / 2 and channels
    spectrum           mean |log10 ratio| of the power over frequencies and channels
    length             of series that may end: Wasserstein-1 distance of lengths, in times
    copying            see `copying`, over the values of a series

with r_k = sum_t (x_t - m)(x_t+k - m) / sum_t (x_t - m)^2, averaged over series. All but "length" are of series brought
to the length of the longest by straight lines between their values, which changes nothing where all have one length.

The classifier is a logistic regression over 32 values of each channel, the logarithms of 16 powers, and the length. On
held-out series its own accuracy is the floor of both shares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sfumato.errors import MissingExtra
from sfumato.evaluation.copying import copying
from sfumato.evaluation.measure import Measure, interval
from sfumato.evaluation.sequences import share, wasserstein

RESAMPLES = 40
POINTS, POWERS = 32, 16
_LEAST = 1e-8


def stretched(values: np.ndarray, length: int) -> np.ndarray:
    """Series (n, times, channels), NaN behind their ends, each brought to `length` times by straight lines."""
    found = np.empty((len(values), length, values.shape[2]))
    for row, one in zip(found, values, strict=True):
        one = one[np.isfinite(one[:, 0])]
        at = np.linspace(0, len(one) - 1, length)
        row[:] = np.stack([np.interp(at, np.arange(len(one)), column) for column in one.T], 1)
    return found


def spectra(x: np.ndarray) -> np.ndarray:
    """Powers (n, frequencies 1 .. length / 2, channels) of series (n, length, channels) about their means."""
    return np.abs(np.fft.rfft(x - x.mean(1, keepdims=True), axis=1)[:, 1:]) ** 2 / x.shape[1]


def autocorrelations(x: np.ndarray) -> np.ndarray:
    """r_k, (n, lags 1 .. length / 2, channels), of series (n, length, channels); 0 of one that never changes."""
    x = x - x.mean(1, keepdims=True)
    power = np.abs(np.fft.rfft(x, 2 * x.shape[1], axis=1)) ** 2  # twice as long, so that the ends do not meet
    sums = np.fft.irfft(power, axis=1)
    return sums[:, 1 : x.shape[1] // 2 + 1] / np.maximum(sums[:, :1], _LEAST)


def features(values: np.ndarray) -> np.ndarray:
    """What the classifier sees of series (n, times, channels), NaN behind their ends: (n, numbers)."""
    power = spectra(stretched(values, 2 * POINTS))[:, :POWERS]
    lasts = np.isfinite(values[..., 0]).sum(1)[:, None] / values.shape[1]
    parts = (stretched(values, POINTS), np.log10(power + 1e-4))
    return np.concatenate([*(part.reshape(len(values), -1) for part in parts), lasts], 1)


def _classifier(values: np.ndarray, labels: Any) -> Any:
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise MissingExtra("scikit-learn", "sequences") from None
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(
        features(values), labels
    )


def gap(
    name: str,
    of: Callable[[np.ndarray, np.ndarray], float],
    parts: Sequence[np.ndarray],
    note: str,
) -> Measure:
    """The distance of what was made to what is known, its spread over the samples, and that of held-out data.

    parts: what was made, what is known, what was held out.
    """
    made, known, other = parts
    draw = np.random.default_rng(0)
    value = of(made, known)
    spread = [of(made[draw.integers(0, len(made), len(made))], known) for _ in range(RESAMPLES)]
    low, high = interval(value, spread, (0.0, np.inf))
    return Measure(name, value, low, high, len(made), "lower", of(other, known), note)


def mean_gap(a: np.ndarray, b: np.ndarray) -> float:
    """Mean |difference| of the means over samples."""
    return float(np.abs(a.mean(0) - b.mean(0)).mean())


def power_gap(a: np.ndarray, b: np.ndarray) -> float:
    """Mean |log10 ratio| of the means over samples."""
    return float(np.abs(np.log10(a.mean(0) + _LEAST) - np.log10(b.mean(0) + _LEAST)).mean())


def value_gap(a: np.ndarray, b: np.ndarray) -> float:
    """Wasserstein-1 distance of values (n, length, channels) over the deviation of b, the mean of channels."""
    distance = wasserstein()
    # whole samples are left out, never times: a stride that divides a day would see some hours only
    x, y = (part[:: max(part[..., 0].size // 10_000, 1)] for part in (a, b))
    scale = np.maximum(y.std((0, 1)), _LEAST)
    return float(np.mean([distance(x[..., c].ravel(), y[..., c].ravel()) / s for c, s in enumerate(scale)]))


def series_measures(
    domain: Any, samples: Any, asked: np.ndarray | None, train: Any, held: Any
) -> list[Measure]:
    """The measures of samples, as states. asked: the label of each, or None. train, held: `Examples` of the domain."""
    values = domain.decode(samples).numpy()
    known, other = (np.asarray(part.raw, np.float64) for part in (train, held))
    made, real, unseen = (stretched(part, domain.length) for part in (values, known, other))
    found = []
    if asked is not None and train.targets is not None:
        judge = _classifier(known, train.targets)
        right = float((judge.predict(features(other)) == held.targets).mean())
        note = f"a classifier that is right on {right:.1%} of held-out series"
        agreed = int((judge.predict(features(values)) == asked).sum())
        found.append(share("agreement", agreed, len(values), right, note))
        if len(set(asked.tolist())) > 1:
            pupil = int((_classifier(values, asked).predict(features(other)) == held.targets).sum())
            note = f"of {len(other)} held-out series; trained on as many samples as were drawn"
            found.append(share("train on samples", pupil, len(other), right, note))
    parts = (made, real, unseen)
    found.append(gap("values", value_gap, parts, "Wasserstein-1 distance in deviations"))
    for name, of, distance, note in (
        ("autocorrelation", autocorrelations, mean_gap, "mean |difference| over lags and channels"),
        ("spectrum", spectra, power_gap, "mean |log10 ratio| of powers; .1 is 26 %"),
    ):
        found.append(gap(name, distance, [of(part) for part in parts], note))
    if domain.ragged:
        counts = [np.isfinite(part[..., 0]).sum(1).astype(float) for part in (values, known, other)]
        found.append(gap("length", wasserstein(), counts, "in times"))
    scale = np.array(domain.std)
    rows = [(part / scale).reshape(len(part), -1) for part in (made, unseen, real)]
    return [*found, copying(*rows).measure]
