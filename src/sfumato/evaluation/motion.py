"""How good sampled motions are, and how much of them is remembered.

    values          Wasserstein-1 distance of each number, over its deviation, the mean of numbers
    velocity        mean |log10 ratio| of the spectra of differences from frame to frame, over frequencies and numbers
    acceleration    the same of differences of differences: jitter that hardly shows in a pose shows here
    unit            mean | |q| - 1 | of quaternions before they are made to be of unit length
    copies          share of samples nearer to a training window than that window's own nearest is, which is the same
                    motion a frame before or after

Distances of windows are those of states. What is held out are whole clips: of a few clips, the floors say how far one
motion is from others rather than what a good model would score, and samples like the training windows are below.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.domains.motion import QUATERNIONS
from sfumato.evaluation.manifold import distance_blocks, nearest
from sfumato.evaluation.measure import Measure, wilson
from sfumato.evaluation.series import gap, power_gap, spectra, value_gap


def own_nearest(y: Tensor, rows: Tensor) -> Tensor:
    """Distances of these rows of y (n, d) to the nearest other one; of a few rows, since n may be 100,000."""
    few, place = rows.unique(return_inverse=True)
    found = []
    for start, block in distance_blocks(y[few], y):
        here = torch.arange(len(block))
        block[here, few[start : start + len(block)]] = torch.inf
        found.append(block.amin(1))
    return torch.cat(found)[place]


def motion_measures(domain: Any, samples: Any, asked: Any, train: Any, held: Any) -> list[Measure]:
    """The measures of samples, as states; train, held: `Examples` of the domain."""
    made, real, unseen = (
        domain.encode(part).double()
        for part in (domain.decode(samples).numpy(), np.asarray(train.raw), np.asarray(held.raw))
    )
    arrays = (made.numpy(), real.numpy(), unseen.numpy())
    found = [gap("values", value_gap, arrays, "Wasserstein-1 distance in deviations")]
    for name, order in (("velocity", 1), ("acceleration", 2)):
        powers = [spectra(np.diff(part, n=order, axis=1)) for part in arrays]
        found.append(gap(name, power_gap, powers, "mean |log10 ratio| of powers; .1 is 26 %"))
    raw = samples.float().cpu() * torch.tensor(domain.std) + torch.tensor(domain.mean)
    off = torch.stack([raw[..., k : k + 4].norm(dim=-1) - 1 for k in QUATERNIONS]).abs().mean((0, 2)).numpy()
    half = 1.96 * float(off.std(ddof=1)) / len(off) ** 0.5 if len(off) > 1 else 0.0
    value = float(off.mean())
    found.append(Measure("unit", value, max(value - half, 0.0), value + half, len(off), "lower", 0.0))
    x, y, z = (part.flatten(1) for part in (made, real, unseen))
    (near, which), (far, other) = nearest(x, y), nearest(z, y)
    copied = int((near < own_nearest(y, which)).sum())
    floor = float((far < own_nearest(y, other)).double().mean())
    middle = (float(part.median()) for part in (near, far))
    note = "the nearest training window is {:.1f} away (of held-out windows {:.1f})".format(*middle)
    low, high = wilson(copied, len(x))
    found.append(Measure("copies", copied / len(x), low, high, len(x), "lower", floor, note))
    return found
