"""How good sampled point clouds are, by the distance of Chamfer between sets of points a and b,

    d(a, b) = mean over i of min over j |a_i - b_j|^2 + mean over j of min over i |a_i - b_j|^2.

    coverage    share of held-out shapes that are the nearest of some sample
    distance    mean over held-out shapes of the distance to their nearest sample ("minimum matching distance")
    neighbour   share of samples and held-out shapes whose nearest other is of their own kind ("1-NN accuracy"): .5 if
                they cannot be told apart, 1 if they always can

as many samples as held-out shapes (Achlioptas et al. 2018, arXiv:1707.02392; Yang et al. 2019, arXiv:1906.12320,
sections 5.2). Each held-out mesh counts once, by its first draw of points. The floor is as many training shapes in
place of the samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.evaluation.measure import Measure, interval, wilson

MOST = 200  # shapes of each kind: the distances grow with its square
RESAMPLES = 200


def chamfer(a: Tensor, b: Tensor) -> Tensor:
    """Distances (n, m) between clouds a (n, p, 3) and b (m, q, 3)."""
    a, b = a.float(), b.float()
    size = b.square().sum(2)[:, None, :]
    found = torch.empty(len(a), len(b))
    for k, one in enumerate(a):
        squares = (one.square().sum(1)[None, :, None] + size - 2 * one @ b.mT).clamp(min=0)
        found[k] = squares.amin(2).mean(1) + squares.amin(1).mean(1)
    return found


def firsts(data: Any, most: int = MOST) -> Tensor:
    """The first cloud of each mesh of `Examples`, of at most so many meshes evenly spread, (n, points, 3)."""
    names = [data.groups[row] for row in data._rows(np.arange(len(data)))]
    first = sorted({name: k for k, name in reversed(list(enumerate(names)))}.values())
    count = min(most, len(first))
    return data.tensor([first[k * len(first) // count] for k in range(count)])


def compared(made: Tensor, real: Tensor) -> dict[str, Any]:
    """The three figures of clouds `made` against as many `real` ones, and the distances that they rest on."""
    between, own, other = chamfer(made, real), chamfer(made, made), chamfer(real, real)
    for square in (own, other):
        square.fill_diagonal_(float("inf"))
    right = (own.amin(1) < between.amin(1)).sum() + (other.amin(1) < between.amin(0)).sum()
    nearest = between.amin(0).numpy()
    return {
        "covered": len(set(between.argmin(1).tolist())),
        "nearest": nearest,
        "right": int(right),
    }


def shape_measures(domain: Any, samples: Any, asked: Any, train: Any, held: Any) -> list[Measure]:
    """The measures of samples (n, points, 3); train, held: `Examples` of the domain."""
    real = firsts(held)
    count = min(len(real), len(samples))
    made, real = samples[:count].float().cpu(), real[:count]
    got, best = compared(made, real), compared(firsts(train, count), real)
    draw = np.random.default_rng(0)
    value = float(got["nearest"].mean())
    spread = [float(draw.choice(got["nearest"], count).mean()) for _ in range(RESAMPLES)]
    low, high = interval(value, spread, (0.0, np.inf))
    note = f"{count} samples against {count} held-out shapes, by Chamfer's distance"
    return [
        Measure(
            "coverage", got["covered"] / count, *wilson(got["covered"], count), count, "higher",
            best["covered"] / count, note,
        ),
        Measure("distance", value, low, high, count, "lower", float(best["nearest"].mean()), note),
        Measure(
            "neighbour", got["right"] / (2 * count), *wilson(got["right"], 2 * count), count, "lower",
            best["right"] / (2 * count), note + "; .5 is best",
        ),
    ]  # fmt: skip
