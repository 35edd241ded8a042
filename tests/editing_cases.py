"""What tests of editing share."""

from __future__ import annotations

import torch

from sfumato import Noise
from sfumato.denoisers import GaussianMixture
from sfumato.processes import Flow, Gaussian

FLOW = Gaussian(Flow())


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return Noise(seed, shape[0]).normal(torch.empty(shape, dtype=torch.float64))


def one_gaussian(process: Gaussian, dim: int = 4) -> GaussianMixture:
    basis = torch.linalg.qr(normal(dim, dim, seed=1))[0]
    return GaussianMixture(
        process,
        normal(1, dim, seed=2),
        ((basis * torch.tensor([1.0, 0.5, 0.2, 0.05]).double()) @ basis.mT)[None],
    )
