"""How sampled music compares with real music: what sounds together, how the voices move, and what is copied.

    pitch classes   total variation between the shares of the twelve pitch classes, of all that sounds
    harmonies       the same of what stands above the lowest voice: the set of intervals modulo the octave, at each step
    crossings       share of pairs of neighbouring voices, at each step, of which the lower one sounds higher
    dissonances     share of steps at which two voices are 1, 2 or 6 semitones apart, or those upside down
    onsets          share of what sounds that begins, and is not held on
    copied bars     share of bars (four quarter notes, all voices) that the training set has, note for note

Of the shares, crossings to onsets, what counts is the distance to the training set's own, |share - real|, and the floor
is that of held-out pieces; the shares themselves are in the details. The training set has its pieces in many keys, so a
bar that was copied in another key is found too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from sfumato.domains.music import BAR, FIRST
from sfumato.evaluation.measure import Measure, interval, share

RESAMPLES, SOME = 100, 4000
Figures = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _pitch_classes(rolls: np.ndarray, pitches: np.ndarray) -> np.ndarray:
    """How often each class sounds, (n, 12)."""
    return np.stack([((pitches % 12 == k) & (pitches > 0)).sum((1, 2)) for k in range(12)], 1)


def _harmonies(rolls: np.ndarray, pitches: np.ndarray) -> np.ndarray:
    """How often each set of intervals above the lowest voice sounds, (n, 4096)."""
    bass = np.where(pitches > 0, pitches, 1 << 10).min(-1, keepdims=True)
    bits = np.where(pitches > 0, 1 << ((pitches - bass) % 12), 0)
    sets = np.bitwise_or.reduce(bits, -1)
    return np.stack([np.bincount(row, minlength=4096) for row in sets])


def _pairs(pitches: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The intervals between voices k apart in the score, upper minus lower, and where both sound."""
    upper, lower = pitches[..., :-k], pitches[..., k:]
    return upper - lower, (upper > 0) & (lower > 0)


def _crossings(rolls: np.ndarray, pitches: np.ndarray) -> np.ndarray:
    apart, both = _pairs(pitches, 1)
    return np.stack([((apart < 0) & both).sum((1, 2)), both.sum((1, 2))], 1)


def _dissonances(rolls: np.ndarray, pitches: np.ndarray) -> np.ndarray:
    rough = np.zeros(pitches.shape[:2], bool)
    for k in range(1, pitches.shape[-1]):
        apart, both = _pairs(pitches, k)
        rough |= (np.isin(apart % 12, (1, 2, 6, 10, 11)) & both).any(-1)
    return np.stack([rough.sum(1), (pitches > 0).any(-1).sum(1)], 1)


def _onsets(rolls: np.ndarray, pitches: np.ndarray) -> np.ndarray:
    return np.stack([(rolls >= FIRST).sum((1, 2)), (pitches > 0).sum((1, 2))], 1)


SHARES: dict[str, tuple[Figures, str]] = {
    "crossings": (_crossings, "of pairs of neighbouring voices"),
    "dissonances": (_dissonances, "of steps"),
    "onsets": (_onsets, "of what sounds"),
}
LAWS: dict[str, Figures] = {"pitch classes": _pitch_classes, "harmonies": _harmonies}


def _law(counts: np.ndarray) -> np.ndarray:
    return counts.sum(0) / max(counts.sum(), 1)


def _ratio(counts: np.ndarray) -> float:
    return float(counts[:, 0].sum() / max(counts[:, 1].sum(), 1))


def bars(domain: Any, samples: Any) -> list[bytes]:
    """What sounds and begins in each bar of each sample, as it can be compared."""
    rolls, size = domain.rolls(samples), BAR * domain.beat
    pitches = domain.sounding(samples)
    begins = rolls != 1  # a hold at a bar's beginning is told from an onset
    whole = np.stack([pitches, begins], -1).astype(np.uint8)
    count = rolls.shape[1] // size
    return [row[k * size : (k + 1) * size].tobytes() for row in whole for k in range(count)]


def music_measures(domain: Any, samples: Any, train: Any, held: Any) -> list[Measure]:
    """The measures of samples (n, steps x voices) as states; train, held: `Examples` of the domain."""
    draw = np.random.default_rng(0)
    some = [np.asarray(part.take(np.sort(draw.permutation(len(part))[:SOME])).raw) for part in (train, held)]
    made, known, other = ((domain.rolls(x), domain.sounding(x)) for x in (samples, *some))
    n = len(made[0])
    picks = [draw.integers(0, n, n) for _ in range(RESAMPLES)]
    found = []
    for name, figures in LAWS.items():
        a, b, c = (figures(*x) for x in (made, known, other))

        def gap(x: np.ndarray, real: np.ndarray = b) -> float:
            return float(0.5 * np.abs(_law(x) - _law(real)).sum())

        low, high = interval(gap(a), [gap(a[pick]) for pick in picks], (0.0, 1.0))
        found.append(Measure(name, gap(a), low, high, n, "lower", gap(c), "total variation to real ones"))
    for name, (figures, of) in SHARES.items():
        a, b, c = (figures(*x) for x in (made, known, other))
        own, real, floor = _ratio(a), _ratio(b), _ratio(c)
        spread = [_ratio(a[pick]) for pick in picks]
        value, half = abs(own - real), 1.96 * float(np.std(spread, ddof=1))
        note = f"distance to real ones' share {of}: {own:.2%} here, {real:.2%} in training pieces"
        details = {"share": own, "training": real, "held out": floor}
        found.append(
            Measure(
                name,
                value,
                max(value - half, 0.0),
                value + half,
                n,
                "lower",
                abs(floor - real),
                note,
                details,
            )
        )
    return [*found, _copied(domain, samples, train, held)]


def _copied(domain: Any, samples: Any, train: Any, held: Any) -> Measure:
    known = set(bars(domain, train.raw))
    own, other = (Counter(bar in known for bar in bars(domain, x)) for x in (samples, held.raw))
    copied = share(
        "copied bars", own[True], own.total(), other[True] / other.total(), "exactly as in a training piece"
    )
    return Measure(**{**copied.to_json(), "better": "lower"})
