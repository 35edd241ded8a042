"""Critically-damped Langevin diffusion beside a Gaussian process, on a mixture whose answer is known.

    python benchmarks/cld.py                     train both for 4,000 steps, print the table
    python benchmarks/cld.py --steps 8000        longer

Data: nine bumps of deviation 0.15 on a 3 x 3 lattice in the plane, weights 1 to 9. Two multilayer perceptrons,
equal but for the width of their input, see the same number of batches of 512 under Adam: one under rectified flow
(row v), one in phase space (hybrid score matching, row mixed). Each is sampled with solvers of its process at equal
evaluations of the network, and so is the exact denoiser, which shows what of the distance is the solver's. "in
phase" is the first network, sampled in phase space through `InPhase`, without any further training.

Distance: sliced Wasserstein-2 over 64 directions between 2,000 samples and 2,000 of the data, mean and standard
deviation over three seeds; the floor is that between data and data.
"""

from __future__ import annotations

import argparse
import itertools
import math

import torch
from torch import Tensor, nn

from sfumato.denoisers import Denoiser, GaussianMixture, InPhase
from sfumato.networks import FourierFeatures
from sfumato.noise import BatchNoise, Noise
from sfumato.objectives import Denoising, LogitNormal, PhaseScoreMatching, Plain
from sfumato.processes import Flow, Gaussian, Langevin
from sfumato.solvers import SSCS, DPMpp2M, FlowGrid, Heun, PhaseBridge, PhaseEuler, PhaseHeun, Solver, sample
from sfumato.solvers.ancestral import Ancestral

EVALUATIONS = (8, 16, 32, 64)
SAMPLES, SEEDS = 2000, 3


class Perceptron(nn.Module):
    """Three hidden layers of 128 on the state and the noise level."""

    def __init__(self, inputs: int):
        super().__init__()
        self.level = FourierFeatures(32)
        sizes = [inputs + 32, 128, 128, 128]
        layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.SiLU())]
        self.body = nn.Sequential(*layers, nn.Linear(128, 2))

    def forward(self, x: Tensor, noise_level: Tensor, condition: object = None) -> Tensor:
        return self.body(torch.cat([x, self.level(noise_level)], 1))


def lattice(process: Gaussian) -> GaussianMixture:
    at = torch.tensor([-1.2, 0.0, 1.2], dtype=torch.float64)
    means = torch.cartesian_prod(at, at)
    return GaussianMixture(process, means, torch.full((9, 2), 0.15**2), torch.arange(1.0, 10.0))


def train(denoiser: Denoiser, objective: Denoising, data: Tensor, steps: int) -> Denoiser:
    """Adam with a cosine rate; the batch of step k is keyed by k, the same for both."""
    optimiser = torch.optim.Adam(denoiser.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        rows = torch.randint(len(data), (512,), generator=torch.Generator().manual_seed(step))
        loss = objective(denoiser, {"x": data[rows]}, BatchNoise(0, step))[0].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return denoiser.eval().requires_grad_(False)


def sliced(x: Tensor, y: Tensor) -> float:
    """Sliced Wasserstein-2 over 64 even directions."""
    angles = torch.arange(64, dtype=torch.float64) * math.pi / 64
    directions = torch.stack([angles.cos(), angles.sin()])
    gap = (x.double() @ directions).sort(0).values - (y.double() @ directions).sort(0).values
    return float(gap.square().mean().sqrt())


def distance(denoiser: object, solver: Solver, evaluations: int, mixture: GaussianMixture) -> str:
    levels = FlowGrid().levels(denoiser.process, evaluations // solver.evaluations)
    found = torch.tensor(
        [
            sliced(
                sample(denoiser, Noise(seed, SAMPLES), (2,), solver=solver, levels=levels),
                mixture.sample(Noise(100 + seed, SAMPLES)),
            )
            for seed in range(SEEDS)
        ]
    )
    return f"{found.mean():.4f} ± {found.std():.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=4000, help="training steps of either network")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mixture = lattice(Gaussian(Flow()))
    data = mixture.sample(Noise(1, 50_000)).float()
    size = float(data.square().mean().sqrt())
    flow, phase = Gaussian(Flow(), size), Langevin(sigma_data=size)
    exact = lattice(flow)
    gaussian = Denoiser(Perceptron(2), flow, "v")
    train(gaussian, Denoising(Plain("v"), LogitNormal()), data, given.steps)
    langevin = Denoiser(Perceptron(4), phase, "mixed")
    train(langevin, PhaseScoreMatching(Plain("v"), LogitNormal(-1.5)), data, given.steps)
    plain = (DPMpp2M(), Heun(), Ancestral())
    moving = (SSCS(), SSCS(midpoint=True), PhaseEuler(), PhaseHeun(), PhaseBridge())
    rows = [
        *(("flow", gaussian, solver) for solver in plain),
        *(("cld", langevin, solver) for solver in moving),
        *(("in phase", InPhase(gaussian, phase), solver) for solver in moving),
        *(("flow, exact", exact, solver) for solver in plain),
        *(("cld, exact", InPhase(exact, phase), solver) for solver in moving),
    ]
    print("| model | solver | " + " | ".join(map(str, EVALUATIONS)) + " |")
    print("|---" * (len(EVALUATIONS) + 2) + "|")
    for label, denoiser, solver in rows:
        name = solver.kind + (", midpoint" if getattr(solver, "midpoint", False) else "")
        cells = [distance(denoiser, solver, count, mixture) for count in EVALUATIONS]
        print(f"| {label} | {name} | " + " | ".join(cells) + " |", flush=True)
    floors = [
        sliced(mixture.sample(Noise(200 + k, SAMPLES)), mixture.sample(Noise(100 + k, SAMPLES)))
        for k in range(SEEDS)
    ]
    print(f"floor, data against data: {sum(floors) / SEEDS:.4f}")


if __name__ == "__main__":
    main()
