"""Captions told loosely: in training some examples are shown under fewer words than they have, or a neighbour's.

A model of few captioned examples learns by heart which caption is whose. What it was never asked it then draws as a
mixture of pictures, since nothing taught it that a caption may stand for several, of which one is to be drawn. So in a
share of what is shown the caption is one that stands for more than one example:

    with words left out     each word kept with the chance .6; one at least is kept, and one at least goes
    a neighbour's           the plainest caption of one of the nearest examples of other groups, by its vector

Which they are is settled once for each example, so that they are embedded once; most of the time a caption is that of
its example. Leaving words out is the word dropout of Bowman et al. (2016, arXiv:1511.06349); captions that are thinned
or exchanged also keep models from copying their data (Somepalli et al. 2023, arXiv:2305.20086).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from sfumato.errors import DataError

KEPT, THINNED, NEAR = 0.6, 5, 3
"""The chance that a word is kept; captions with words left out, and neighbours' captions, of one example."""


def thinned(text: str, rng: np.random.Generator) -> str:
    """A caption with words left out, in their order: one at least is kept, and one at least goes if there are two."""
    words = text.split()
    if len(words) < 2:
        return text
    kept = rng.random(len(words)) < KEPT
    if kept.all():
        kept[rng.integers(len(words))] = False
    if not kept.any():
        kept[rng.integers(len(words))] = True
    return " ".join(word for word, there in zip(words, kept, strict=True) if there).rstrip(",:;")


def neighbours(vectors: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """(n, count): the rows of other groups whose vectors, (n, dim) of length 1, are nearest to each row's."""
    found = np.empty((len(vectors), count), np.int64)
    for start in range(0, len(vectors), 1024):  # n x n numbers would be too many
        rows = slice(start, start + 1024)
        near = vectors[rows] @ vectors.T
        near[groups[rows, None] == groups] = -np.inf
        found[rows] = np.argpartition(-near, count - 1, 1)[:, :count]
    return found


def loosened(
    data: Any, share: float, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> Any:
    """Data with embedded captions, about a `share` of what is shown told loosely; of that, 5 in 8 with words left out.

    Raises DataError without captions, for a share out of [0, 1), or for too few groups to have neighbours.
    """
    if not 0 <= share < 1:
        raise DataError(f"the share of captions told loosely is in [0, 1), not {share!r}")
    if not data.captions:
        raise DataError(f"{data.name} has no captions to tell loosely")
    if not share:
        return data.encoded(progress)
    plain, rows = data.prompts(), data._rows(np.arange(len(data)))
    names = [data.groups[row] if data.groups else str(row) for row in rows]
    kinds, groups = np.unique(names, return_inverse=True)
    if len(kinds) <= NEAR:
        raise DataError(f"captions of {len(kinds)} groups are too few to have {NEAR} neighbours")
    near = neighbours(data.encoded(progress).texts.sentences(plain).numpy(), groups, NEAR)
    rng = np.random.default_rng(seed)
    captions = list(data.captions)
    for place, row in enumerate(rows):
        own = data.captions[row]
        often = max(1, round((THINNED + NEAR) * (1 - share) / share / len(own)))
        fewer = (thinned(own[k % len(own)], rng) for k in range(THINNED))
        captions[row] = (*own * often, *fewer, *(plain[k] for k in near[place]))
    return replace(data, captions=tuple(captions)).encoded(progress)
