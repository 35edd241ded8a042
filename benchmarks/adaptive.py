"""Adaptive SDE stepping against 1000 steps of Euler–Maruyama, and the adaptive flow against fixed steps.

    python benchmarks/adaptive.py                                     on a mixture of its own
    python benchmarks/adaptive.py --problems FOLDER --samples 800     also on that of FOLDER/problems.py

Euler–Maruyama is that of the reverse SDE under `linear`, even in time from 1 to 0.001 and then to x0, as in Song et
al. 2021. All start at the exact marginal at t = 1. The distance is the sliced Wasserstein distance of order 2 over 256
directions to 20,000 draws of the data; "data" is that of as many fresh draws, the least that can be reached. A ratio
is of the means over the seeds, with the 95 % interval of their paired differences.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from sfumato.denoisers import GaussianMixture
from sfumato.noise import Noise
from sfumato.processes import CLEAN, Gaussian, Linear
from sfumato.solvers import AdaptiveODE, AdaptiveSDE, FlowGrid, Heun, integrate

Distance = Callable[[Tensor], float]


def own_mixture(process: Gaussian, dim: int = 64, components: int = 10, seed: int = 5) -> GaussianMixture:
    """Components of deviations from 1.5 to 0.03 in turned axes, spread over the space."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(normal(components, dim, dim))[0]
    deviation = torch.exp(torch.linspace(math.log(1.5), math.log(0.03), dim) + 0.2 * normal(components, dim))
    covariances = (basis * deviation[:, None] ** 2) @ basis.mT
    return GaussianMixture(process, 0.6 * normal(components, dim), covariances)


def problem_mixture(folder: Path, process: Gaussian) -> GaussianMixture:
    """The 64-dimensional mixture of a folder's problems.py."""
    sys.path.insert(0, str(folder))
    from problems import Mixture  # type: ignore[import-not-found]

    mixture = Mixture("gm64")
    return GaussianMixture(process, mixture.mu, mixture.C, mixture.w)


def sliced(model: GaussianMixture, count: int, draws: int = 20_000) -> Distance:
    """The distance of `count` samples to the model's data."""
    generator = torch.Generator().manual_seed(5)
    directions = torch.randn(model.means.shape[1], 256, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=0)
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    truth = torch.quantile(model.sample(Noise(1001, draws)) @ directions, places, dim=0)
    return lambda x: float(((x @ directions).sort(0).values - truth).square().mean().sqrt())


def start(model: GaussianMixture, count: int, seed: int) -> Tensor:
    first, noise = model.process.level(1.0), Noise(2000 + seed, count)
    x = model.sample(noise)
    return first.alpha * x + first.sigma * noise.normal(x, 7)


def euler_maruyama(model: GaussianMixture, x: Tensor, seed: int, steps: int = 1000) -> Tensor:
    process, generator = model.process, torch.Generator().manual_seed(seed)
    times = torch.linspace(1, 1e-3, steps + 1, dtype=torch.float64).tolist()
    for t, s in pairwise(times):
        f, g, h = process.drift(t), process.diffusion(t), t - s
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = x - h * (f * x - g * g * model(x, t).to("score")) + g * math.sqrt(h) * z
    return model(x, times[-1]).x0


def compare_sde(model: GaussianMixture, count: int, seeds: int, name: str) -> None:
    distance, noises = sliced(model, count), range(seeds)
    rows: dict[str, list[tuple[float, float, float]]] = {"data": []}
    for seed in noises:
        rows["data"].append((0, 0, distance(model.sample(Noise(3000 + seed, count)))))
        x = start(model, count, seed)
        for tolerance, relative in ((0.03, 0.05), (0.0078, 0.05), (0.0078, 0.02)):
            solver = AdaptiveSDE(tolerance, relative=relative)
            run = solver.solve(model, model.process.level(1.0), CLEAN, x, Noise(seed, count))
            cost = run.evaluations.double()
            row = float(cost.mean()), float(cost.max()), distance(run.x)
            rows.setdefault(f"adaptive-sde, {tolerance:g} / {relative:g}", []).append(row)
        row = 1000, 1000, distance(euler_maruyama(model, x, seed))
        rows.setdefault("Euler–Maruyama", []).append(row)
    print(f"\n{name}: {count} samples, {seeds} seeds\n")
    print(
        "| solver | evaluations | most | sliced W2 | against Euler–Maruyama | by seed |\n|---|---|---|---|---|---|"
    )
    base = [row[2] for row in rows["Euler–Maruyama"]]
    for label, found in rows.items():
        cost, most, values = (list(column) for column in zip(*found, strict=True))
        mean, whole = statistics.mean(values), statistics.mean(base)
        gaps = [
            value - own for value, own in zip(values, base, strict=True)
        ]  # of runs from the same start points
        half = 1.96 * statistics.stdev(gaps) / seeds**0.5 / whole if seeds > 1 else math.nan
        spread = statistics.stdev(values) if seeds > 1 else 0.0
        ratios = " ".join(f"{gap / own:+.0%}" for gap, own in zip(gaps, base, strict=True))
        row = f"| {label} | {statistics.mean(cost):.0f} | {max(most):.0f} | {mean:.4f} ± {spread:.4f} "
        row += f"| {mean / whole - 1:+.1%} ± {half:.1%} | {ratios} |"
        print(row, flush=True)


def compare_flow(model: GaussianMixture, name: str, count: int = 48) -> None:
    x, first, noise = start(model, count, 0), model.process.level(1.0), Noise(0, count)
    finest = AdaptiveODE(1e-9, sigma_min=0.002).solve(model, first, CLEAN, x, noise).x
    rows = []
    for pair in ("bogacki-shampine", "dormand-prince"):
        for tolerance in (1e-2, 1e-3, 1e-4):
            run = AdaptiveODE(tolerance, pair=pair).solve(model, first, CLEAN, x, noise)
            rows.append((f"adaptive {pair}, {tolerance:g}", float(run.evaluations.double().mean()), run.x))
    for steps in (8, 16, 32, 64):
        levels = FlowGrid().levels(model.process, steps)
        rows.append((f"heun, {steps} steps", 2 * steps - 1, integrate(model, Heun(), levels, x, noise)))
    print(f"\n{name}: error of the flow's end, {count} samples\n")
    print("| solver | evaluations, mean | error, RMS | median over samples |\n|---|---|---|---|")
    for label, cost, end in rows:
        error = (end - finest).square().mean(1).sqrt()
        print(
            f"| {label} | {cost:.0f} | {float(error.square().mean().sqrt()):.5f} | {float(error.median()):.5f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", type=Path, help="a folder with problems.py")
    parser.add_argument("--samples", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=("sde", "flow"))
    options = parser.parse_args()
    process = Gaussian(Linear())
    models = {"own 64-D mixture": own_mixture(process)}
    if options.problems:
        models["64-D mixture of problems.py"] = problem_mixture(options.problems, process)
    for name, model in models.items():
        if options.only != "sde":
            compare_flow(model, name)
        if options.only != "flow":
            compare_sde(model, options.samples, options.seeds, name)


if __name__ == "__main__":
    main()
