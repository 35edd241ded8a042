"""Fidelity and variety apart: precision & recall, density & coverage, over k-nearest-neighbour balls.

Around each real sample rⱼ lies a ball reaching to its k-th nearest other real sample, radius ρₖ(rⱼ).

    precision  share of generated samples inside at least one real ball            (Kynkäänniemi et al. 2019, eq. 1)
    recall     share of real samples inside at least one ball around a generated one            (same, eq. 2)
    density    1/(kn) Σᵢⱼ [gᵢ inside the ball of rⱼ]: real outliers count little; about 1 if equal (Naeem et al. 2020)
    coverage   share of real balls that hold at least one generated sample                     (same, eq. 4)

All four depend on the sizes of the two sets: compare at equal sizes, and read the floor.

**Intervals.** Resampling with replacement puts copies of a sample at distance 0 from each other and so shrinks
the balls: the plain bootstrap is wrong for nearest-neighbour statistics. Here the balls are held fixed and the
samples that are tested against them are the ones that vary: generated ones for precision and density, real ones
for recall and coverage. The intervals are thus conditional on the balls and somewhat too narrow.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sfumato.errors import DataError
from sfumato.evaluation.measure import Measure, as_pair, interval, resample, wilson
from sfumato.evaluation.metrics import CHUNK, RESAMPLES

NAMES = ("precision", "recall", "density", "coverage")


def distance_blocks(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Euclidean distances of x (n, d) to all of y (m, d) in blocks of rows: (first row, block (rows, m)).

    |x|² + |y|² − 2xᵀy cancels for near-equal points; what is below its rounding error is set to 0 exactly.
    """
    rows = max(1, CHUNK // len(y))
    norm_y = y.square().sum(1)
    rounding = x.shape[1] * torch.finfo(torch.float64).eps
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        scale = part.square().sum(1)[:, None] + norm_y
        squared = torch.addmm(scale, part, y.T, alpha=-2)
        squared[squared <= rounding * scale] = 0.0
        yield start, squared.sqrt_()


def radii(x: Tensor, k: int) -> Tensor:
    """Distance (n,) of each of x (n, d) to its k-th nearest other sample."""
    if not 1 <= k < len(x):
        raise DataError(f"k={k} neighbours need more than {k} samples, got {len(x)}")
    found = []
    for start, block in distance_blocks(x, x):
        here = torch.arange(len(block))
        block[here, here + start] = (
            torch.inf
        )  # itself, by position and not by distance: copies are neighbours
        found.append(block.topk(k, largest=False).values[:, -1])
    return torch.cat(found)


def nearest(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Distance (n,) and position (n,) in y of the nearest sample to each of x; the distance to full precision."""
    index = torch.cat([block.argmin(1) for _, block in distance_blocks(x, y)])
    return (x - y[index]).square().sum(1).sqrt(), index


def manifold(
    generated: object, reference: object, *, k: int = 5, resamples: int = RESAMPLES, seed: int = 0,
    floors: dict[str, float] | None = None,
) -> dict[str, Measure]:  # fmt: skip
    """Precision, recall, density and coverage of features (n, d) against (m, d), by name; n = m is wise."""
    x, y = as_pair(generated, reference)
    # A shift changes no distance, but the closer to 0 the less the products cancel.
    centre = y.mean(0)
    x, y = x - centre, y - centre
    real, fake = radii(y, k), radii(x, k)
    inside = torch.zeros(len(x), dtype=torch.float64)
    recalled = torch.zeros(len(y), dtype=torch.bool)
    covered = torch.zeros(len(y), dtype=torch.bool)
    for start, block in distance_blocks(x, y):
        within = block <= real
        inside[start : start + len(block)] = within.sum(1).double()
        covered |= within.any(0)
        recalled |= (block <= fake[start : start + len(block), None]).any(0)

    shares = {"precision": inside > 0, "recall": recalled, "coverage": covered}
    floors = floors or {}
    found = {}
    for name, hits in shares.items():
        low, high = wilson(float(hits.sum()), len(hits))
        value = float(hits.double().mean())
        found[name] = Measure(
            name, value, low, high, len(x), "higher", floors.get(name), f"k={k}, {len(y)} real"
        )
    value = float(inside.mean()) / k
    draws = [float(w @ inside) / (len(x) * k) for w in resample(len(x), resamples, seed)]
    low, high = interval(value, draws, (0.0, torch.inf)) if resamples else (None, None)
    note = f"k={k}, {len(y)} real; above 1 means crowded where real data are dense"
    found["density"] = Measure("density", value, low, high, len(x), "higher", floors.get("density"), note)
    return {name: found[name] for name in NAMES}
