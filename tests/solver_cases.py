"""Solvers, schedules and a mixture that tests of solvers share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sfumato.denoisers import Denoiser, GaussianMixture
from sfumato.noise import Noise
from sfumato.processes import (
    EDM,
    VE,
    Cosine,
    Flow,
    Linear,
    Shifted,
    SubVP,
    ZeroTerminalSNR,
)
from sfumato.solvers import (
    DDIM,
    DEIS,
    PLMS,
    PNDM,
    Adams,
    AdamsMoulton,
    Ancestral,
    DPMpp2M,
    DPMpp3M,
    DPMppS,
    DPMSolver,
    EDMSolver,
    Euler,
    Heun,
    RungeKutta,
    UniPC,
    integrate,
)
from sfumato.solvers.solver import FRAMES

DETERMINISTIC = [
    *(DDIM(), *map(Euler, FRAMES), *map(Heun, FRAMES), DPMpp2M(), EDMSolver(churn=0.0)),
    *(
        Adams(4),
        Adams(2, "sigma"),
        Adams(3, "angle"),
        Adams(3, "x0-exponential"),
        Adams(3, "eps-exponential"),
    ),
    *(AdamsMoulton(2, 0), AdamsMoulton(2, 3), AdamsMoulton(4, 5), AdamsMoulton(3, 4, "flow")),
    *(DEIS(2), DPMSolver(2), DPMSolver(3), DPMppS(2), DPMppS(3), DPMpp3M()),
    *(UniPC(1, "bh1"), UniPC(2), UniPC(3), UniPC(3, corrector=False), PNDM(), PLMS()),
    *(
        RungeKutta("midpoint"),
        RungeKutta("ralston", "sigma"),
        RungeKutta("kutta3", "angle"),
        RungeKutta("rk4"),
    ),
]

STOCHASTIC = [DDIM(eta=1.0), DDIM(eta=0.5), Ancestral(), Ancestral("chain"), EDMSolver()]

SCHEDULES = [Flow(), Linear(), Cosine(), EDM(), ZeroTerminalSNR(), SubVP(), Shifted(VE(), 0.5)]


def name(part) -> str:
    return "-".join(str(value) for value in part.to_json().values())[:40]


each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


class Small(nn.Module):
    def __init__(self, classes: int = 3, out: int = 1):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first = nn.Parameter(0.4 * torch.randn(12, 32, generator=generator))
        self.last = nn.Parameter(0.3 * torch.randn(32, 12 * out, generator=generator))
        self.table = nn.Parameter(torch.randn(classes + 1, 12, generator=generator))

    def forward(self, x, noise_level, condition=None):
        flat = x.flatten(1)
        if condition is not None:
            flat = flat + self.table[condition["label"]]
        out = torch.tanh(flat @ self.first + noise_level[:, None]) @ self.last
        return out.reshape(len(x), -1, *x.shape[2:])


def hills(process):
    return GaussianMixture(
        process,
        torch.tensor([[-1.0, 0.4], [0.9, -0.2]]),
        torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.15, -0.05], [-0.05, 0.35]]]),
        torch.tensor([0.35, 0.65]),
    )


def run(solver, process, levels, parameterisation="v", dtype=torch.float64, seed=0):
    denoiser = Denoiser(Small().to(dtype), process, parameterisation)
    shape = torch.empty(5, 3, 2, 2, dtype=dtype)
    noise = Noise(seed, 5)
    return integrate(denoiser, solver, levels, process.prior(shape, noise, levels[0]), noise).detach()


def apart(a, b):
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))
