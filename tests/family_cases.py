"""What tests of the families of solvers share."""

from __future__ import annotations

import torch

from sfumato.denoisers import GaussianMixture
from sfumato.noise import Noise
from sfumato.processes import Gaussian
from sfumato.solvers import (
    integrate,
)


def name(part) -> str:
    return "-".join(str(value) for value in part.to_json().values())


def hills(schedule):
    return GaussianMixture(
        Gaussian(schedule),
        torch.tensor([[-1.0, 0.4], [0.9, -0.2]]),
        torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.15, -0.05], [-0.05, 0.35]]]),
    )


def run(solver, model, levels, rows=5):
    x = model.process.prior(torch.empty(rows, 2, dtype=torch.float64), Noise(4, rows).at(0), levels[0])
    return integrate(model, solver, levels, x, Noise(4, rows))


def apart(a, b):
    return float((a - b).abs().max())
