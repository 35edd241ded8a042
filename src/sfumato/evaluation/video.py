"""How good sampled clips are: their frames, how much they move, whether time runs through them, and whose they are.

    frames     Fréchet distance of single frames, over the mean colour and the deviation inside each of 8 x 8 cells, to
               those of the training set: what the frames show, and how sharp and clean, whatever their order
    motion     Wasserstein-1 distance of how much a clip moves, m = mean |x_{t+1} - x_t| in 0..255, to the training set
    order      share of the clips that move at all whose frames make a shorter way, sum over t of |x_{t+1} - x_t|_2, in
               their own order than in each of 19 shuffles: a twentieth of clips without an order, all smooth ones
    copying    share of clips that lie closer to a training clip than held-out clips do; see `copying`

The first two and a clip's copy do not know the order of frames, or where a loop was begun: a distance from training
clips is the least over all their beginnings. Frames of one clip are nearly one picture, so intervals come from
resampling clips and not frames.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.evaluation.copying import copying
from sfumato.evaluation.measure import Measure, interval, resample
from sfumato.evaluation.metrics import gaussian_frechet, moments
from sfumato.evaluation.sequences import share, wasserstein

SIDE, SHUFFLES, RESAMPLES, MOST = 8, 19, 50, 1_000
"""Pixels of a frame's side in distances; shuffles; resamples; training clips that copies are looked for among."""


def small(clips: np.ndarray, side: int = SIDE) -> Tensor:
    """Frames averaged to side x side, in [0, 1]: uint8 (n, frames, h, w, 3) -> float64 (n, frames, 3 side side)."""
    x = torch.from_numpy(clips.reshape(-1, *clips.shape[2:]).copy()).permute(0, 3, 1, 2).double() / 255
    return torch.nn.functional.adaptive_avg_pool2d(x, side).flatten(1).unflatten(0, clips.shape[:2])


def look(clips: np.ndarray) -> Tensor:
    """Means and deviations of the cells of each frame, float64 (n frames, 4 side side)."""
    x = small(clips).flatten(0, 1)
    whole = torch.from_numpy(clips.reshape(-1, *clips.shape[2:]).copy()).permute(0, 3, 1, 2).double() / 255
    square = torch.nn.functional.adaptive_avg_pool2d(whole.square(), SIDE).flatten(1)
    apart = (square - x.square()).clamp(min=0).sqrt().unflatten(1, (3, -1)).mean(1)
    return torch.cat([x, apart], 1)


def motion(clips: np.ndarray) -> np.ndarray:
    """How much each clip moves, (n,): mean |x_{t+1} - x_t| in 0..255."""
    return np.array([np.abs(np.diff(clip.astype(np.int16), axis=0)).mean() for clip in clips])


def in_order(clips: np.ndarray, seed: int = 0) -> tuple[int, int]:
    """(clips whose own order makes a shorter way than each of 19 shuffles, clips that move at all)."""
    count = clips.shape[1]
    draw = np.random.default_rng(seed)
    shuffled = np.stack([draw.permutation(count) for _ in range(SHUFFLES)])
    shorter = moving = 0
    for x in small(clips, min(clips.shape[2], 32)):
        apart = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").numpy()
        own = apart[np.arange(count - 1), np.arange(1, count)].sum()
        moving += bool(own > 0)
        shorter += bool((own < apart[shuffled[:, :-1], shuffled[:, 1:]].sum(1)).all())
    return shorter, moving


def turned(x: Tensor) -> Tensor:
    """Clips (n, frames, d) begun at each of their frames, as rows: (n frames, frames d)."""
    return torch.cat([x.roll(k, 1).flatten(1) for k in range(x.shape[1])])


def video_measures(domain: Any, samples: Any, train: Any, held: Any) -> list[Measure]:
    """The measures of samples (n, 3, frames, height, width) as states; train, held: `Examples` of the domain."""
    wasserstein_distance = wasserstein()
    made, known, other = domain.clips(samples), np.asarray(train.raw), np.asarray(held.raw)
    real, frames, count = moments(look(known)), look(made), made.shape[1]
    value = gaussian_frechet(*moments(frames), *real)
    spread = [
        gaussian_frechet(*moments(frames, w.repeat_interleave(count)), *real)
        for w in resample(len(made), RESAMPLES, 0)
    ]
    low, high = interval(value, spread, (0.0, np.inf))
    floor = gaussian_frechet(*moments(look(other)), *real)
    note = f"means and deviations of {SIDE}×{SIDE} cells; biased upwards: the floor is of {len(other)} clips"
    found = [Measure("frames", value, low, high, len(made), "lower", floor, note)]

    p, q, r = motion(made), motion(known), motion(other)
    value, draw = float(wasserstein_distance(p, q)), np.random.default_rng(0)
    spread = [wasserstein_distance(draw.choice(p, len(p)), q) for _ in range(RESAMPLES)]
    low, high = interval(value, spread, (0.0, np.inf))
    floor, note = (
        float(wasserstein_distance(r, q)),
        f"means {p.mean():.2f}, of real clips {q.mean():.2f} of 255",
    )
    found.append(Measure("motion", value, low, high, len(p), "lower", floor, note))

    (shorter, moving), (held_shorter, held_moving) = in_order(made), in_order(other)
    floor = held_shorter / held_moving if held_moving else None
    found.append(share("order", shorter, moving, floor, f"of {moving} of {len(made)} clips that move"))
    some = np.sort(np.random.default_rng(0).permutation(len(known))[:MOST])
    a, b, c = small(made), small(known[some]), small(other)
    found.append(copying(a.flatten(1), c.flatten(1), turned(b)).measure)
    return found
