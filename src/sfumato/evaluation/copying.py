"""Does the model copy its training data? Nearest neighbours, judged against data it has never seen.

Let d(x) be the distance of x to its nearest training sample. Held-out real data give the distribution of d
without any copying. Let τ be the k-th smallest of m held-out distances, k = ⌊(m + 1)/100⌋ (at least 1): the first
percentile. If generated samples were fresh draws from the data, each would fall below τ with probability
k/(m + 1), exactly and whatever the distribution, since all orderings of exchangeable values are equally likely.
The number below among n is then beta-binomial,

    P(count = c) = C(n, c) B(c + k, n − c + m − k + 1) / B(k, m − k + 1)

and its upper tail is the p-value of "no more copying than held-out", the uncertainty of τ included. The variance
of count/n is then about q(1 − q)(1/n + 1/m), q = k/(m + 1), so the interval of the fraction is Wilson's for
nm/(n + m) trials: with n trials, as if τ were known, it would be too narrow.

**Data that come twice.** If a hundredth or more of the held-out samples are in the training set as they are, τ is 0,
and what is compared is exact copies: their share among the samples with that among held-out ones. Of z such among m
the next distance is above 0, and so the tail with k = z + 1 is no smaller than the p-value. If half of them are, the
two sets overlap, and nothing can be told.

What it cannot tell: blurred or very typical samples also lie close to the training data without being copies,
and mirrored or shifted copies lie far in pixels. Look at the closest pairs, which are part of the answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sfumato.errors import DataError
from sfumato.evaluation.manifold import nearest
from sfumato.evaluation.measure import Measure, as_pair, wilson

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
ALARM, DOUBT = 0.01, 0.05  # p-values below which the verdict warns, and hesitates
PAIRS = 16


@dataclass(frozen=True)
class Copying:
    """What the copying check found; the same, as JSON values, is in `measure.details`."""

    measure: Measure
    generated: dict[str, float]
    held: dict[str, float]
    p_value: float
    alarm: bool
    verdict: str
    pairs: tuple[tuple[int, int, float], ...]
    """(position among generated, position in the training set, distance), the closest first."""


def tail(count: int, n: int, k: int, m: int) -> float:
    """P(at least `count` of n fall below the k-th smallest of m) for exchangeable samples: beta-binomial."""

    def log_beta(a: float, b: float) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    def log_mass(c: int) -> float:
        ways = math.lgamma(n + 1) - math.lgamma(c + 1) - math.lgamma(n - c + 1)
        return ways + log_beta(c + k, n - c + m - k + 1) - log_beta(k, m - k + 1)

    return min(1.0, math.fsum(math.exp(log_mass(c)) for c in range(count, n + 1)))


def copying(generated: object, held: object, train: object) -> Copying:
    """Check generated features (n, d) for copies of `train` (N, d), with `held` (m, d) as the yardstick.

    All three in one space (pixels show copies best). `held` must not overlap `train`: its distances of exactly 0 raise
    `DataError` when they make up a half; see the file's head for fewer.
    """
    x, t = as_pair(generated, train, least=1)
    h, _ = as_pair(held, train, least=1)
    centre = t.mean(0)
    x, h, t = x - centre, h - centre, t - centre
    near, index = nearest(x, t)
    unseen = nearest(h, t)[0].numpy()
    distances = near.numpy()
    n, m = len(distances), len(unseen)
    k = max(1, (m + 1) // 100)
    threshold = float(np.sort(unseen)[k - 1])
    twice = int((unseen == 0).sum())
    if 2 * twice >= m:
        raise DataError(f"{twice} of {m} held-out samples are in the training set: split them anew")
    if threshold == 0.0:
        k, expected, count = twice + 1, twice / m, int((distances == 0).sum())
    else:
        expected, count = k / (m + 1), int((distances < threshold).sum())
    fraction = count / n
    trials = n * m / (n + m)
    low, high = wilson(fraction * trials, trials)
    p = tail(count, n, k, m)
    alarm = p < ALARM and fraction > expected
    exact = int((distances == 0).sum())
    near_to = "lie closer to the training data than" if threshold else "equal a training sample, as"
    shown = f"{fraction:.2%} of samples [{low:.2%}, {high:.2%}] {near_to} {expected:.2%} of held-out data do"
    shown += f" (p = {p:.2g})"
    if alarm:
        verdict = f"closer to the training data than held-out data are: look at the closest pairs; {shown}"
    elif p < DOUBT and fraction > expected:
        verdict = f"perhaps closer to the training data than held-out data are, judge more samples; {shown}"
    else:
        verdict = f"no more copying than held-out data show: {shown}"
    if exact:
        verdict += f"; {exact} exact cop{'y' if exact == 1 else 'ies'}"
    order = np.argsort(distances, kind="stable")[:PAIRS]
    pairs = tuple((int(i), int(index[i]), float(distances[i])) for i in order)
    quantiles = [
        {f"{q:g}": float(value) for q, value in zip(QUANTILES, np.quantile(d, QUANTILES), strict=True)}
        for d in (distances, unseen)
    ]
    details = {
        "quantiles": {"generated": quantiles[0], "held_out": quantiles[1]},
        "threshold": threshold,
        "p_value": p,
        "alarm": alarm,
        "exact_copies": exact,
        "verdict": verdict,
        "pairs": [list(pair) for pair in pairs],
    }
    measure = Measure("copying", fraction, low, high, n, "lower", expected, verdict, details)
    return Copying(measure, quantiles[0], quantiles[1], p, alarm, verdict, pairs)
