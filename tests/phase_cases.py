"""Laws of a Gaussian in phase space, which tests of its process and of its solvers share."""

from __future__ import annotations

import torch

from sfumato.denoisers import GaussianMixture, InPhase
from sfumato.processes import (
    Flow,
    Gaussian,
    Langevin,
)


def float64(*rows):
    return (torch.tensor(row, dtype=torch.float64) for row in rows)


def exact(mean=0.7, variance=0.3, process=None):
    """The exact phase-space denoiser of N(mean, variance)."""
    return InPhase(GaussianMixture(Gaussian(Flow()), *float64([[mean]], [[variance]])), process or Langevin())


def law(process, t, mean=0.0, variance=0.0):
    time = process.at(t)
    a = process.schedule.mean(time)
    return a * mean, process.schedule.covariance(time) + variance * a[:, None] * a
