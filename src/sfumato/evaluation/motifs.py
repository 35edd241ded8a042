"""Whether DNA that was asked for a motif has it.

    recovery     share of sequences asked for motif m whose best window scores S_m(x) >= T_m (`domains.motifs`)

on the strand that is written. T_m is the 5th percentile of the scores of real training sequences of m, so about 95 % of
real held-out ones pass: the floor. How many held-out sequences of other motifs pass by chance is said beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sfumato.domains.motifs import best_log_odds, motif_matrices
from sfumato.domains.sources import fetch
from sfumato.evaluation.measure import Measure, share

LEAST = 0.05
"""Share of real sequences that a threshold leaves out."""


def has_motifs(data: Any) -> bool:
    """Whether these are the data whose motifs are known."""
    return data.about.get("sources", [""])[0].startswith("jaspar/") and data.targets is not None


def motif_recovery(domain: Any, texts: Sequence[str], asked: np.ndarray, train: Any, held: Any) -> Measure:
    """The recovery of sampled `texts`, with the label asked of each; train, held: `Examples` that `has_motifs`."""
    matrices = motif_matrices(fetch("jaspar"))
    known, other = domain.text(train.raw), domain.text(held.raw)
    found, floor, chance, each = 0, [], [], {}
    for label, name in enumerate(domain.classes):
        f = matrices[name]
        real = best_log_odds([known[int(k)] for k in np.flatnonzero(train.targets == label)], f)
        passes = best_log_odds(other, f) >= (threshold := float(np.quantile(real, LEAST)))
        floor += passes[held.targets == label].tolist()
        chance += passes[held.targets != label].tolist()
        own = best_log_odds([texts[int(k)] for k in np.flatnonzero(asked == label)], f) >= threshold
        found += int(own.sum())
        each[name] = float(own.mean()) if len(own) else None
    note = f"of the motif asked for, by chance in {np.mean(chance):.1%} of real sequences of other motifs"
    return share("recovery", found, len(texts), float(np.mean(floor)), note, each)
