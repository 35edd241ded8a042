"""Which letter is spoken when: sounds and their texts put beside each other, from nothing but many of both.

A text is a path of letters that a sound walks along, each frame on the letter of the frame before or on the next. A
letter says what its frames look like, a normal law N(m_l, s_l^2) in each band, and the best path of a sound of T
frames is

    D(t, j) = log N(x_t; m_l(j), s_l(j)^2) + max(D(t - 1, j), D(t - 1, j - 1)),         path of the largest D(T, last)

(Viterbi 1967). Laws and paths are found in turn, from paths that give all letters the same time: a hidden Markov
model of one state a letter, trained by its best paths, as recognisers are begun with (Young et al., The HTK Book,
section 1.5). Each round makes the sum of D no smaller. Letters are no phonemes, and many say nothing; those get one
frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def even(letters: int, frames: int) -> np.ndarray:
    """The path (frames,) that gives all letters the same time."""
    return np.arange(frames) * letters // max(frames, 1)


def best_path(scores: np.ndarray) -> np.ndarray:
    """The path (frames,) with the largest sum through scores (frames, letters); frames are no fewer than letters."""
    frames, letters = scores.shape
    total = np.full(letters, -np.inf)
    total[0] = scores[0, 0]
    stayed = np.zeros((frames, letters), bool)
    for t in range(1, frames):
        moved = np.concatenate([[-np.inf], total[:-1]])
        stayed[t] = total >= moved
        total = np.maximum(total, moved) + scores[t]
    path = np.full(frames, letters - 1)
    for t in range(frames - 1, 0, -1):
        path[t - 1] = path[t] - (not stayed[t, path[t]])
    return path


def align(
    sounds: Sequence[np.ndarray], texts: Sequence[np.ndarray], symbols: int, rounds: int = 8
) -> list[np.ndarray]:
    """For each sound (frames, bands) and its text (letters,) of numbers below `symbols`, the letter's place at each
    frame.

    Every sound needs at least as many frames as its text has letters.
    """
    paths = [even(len(text), len(sound)) for sound, text in zip(sounds, texts, strict=True)]
    whole = np.concatenate(sounds).astype(np.float64)
    overall, spread = whole.mean(0), whole.var(0) + 1e-6
    for _ in range(rounds):
        said = np.concatenate([text[path] for text, path in zip(texts, paths, strict=True)])
        count = np.bincount(said, minlength=symbols)[:, None]
        sums = np.stack([whole[said == k].sum(0) for k in range(symbols)])
        squares = np.stack([np.square(whole[said == k]).sum(0) for k in range(symbols)])
        # ten frames of all speech besides: a letter that is rare says little
        mean = (sums + 10 * overall) / (count + 10)
        variance = (squares + 10 * (spread + overall**2)) / (count + 10) - mean**2 + 0.01 * spread
        paths = []
        for sound, text in zip(sounds, texts, strict=True):
            own, inverse = sound.astype(np.float64), 1 / variance
            far = own**2 @ inverse.T - 2 * own @ (mean * inverse).T + (mean**2 * inverse).sum(1)
            scores = -0.5 * (far + np.log(variance).sum(1))
            paths.append(best_path(scores[:, text]))
    return paths
