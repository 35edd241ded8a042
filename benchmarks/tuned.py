"""Tuned solvers on problems with an exact denoiser, in variance-exploding coordinates.

    python benchmarks/tuned.py FOLDER                     every problem, 5, 8 and 10 evaluations
    python benchmarks/tuned.py FOLDER gm64-vp --nfe 8     one of them

FOLDER holds `problems.py`, which defines them, and the peers' errors as `peers-*-ode.csv`. A solver is tuned to start
points drawn for that, and judged at the problem's own 512: root mean square and median, and both over the best peer's.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.noise import Noise
from sfumato.processes import EDM, Gaussian, Level, Prediction
from sfumato.solvers import Tuned, integrate
from sfumato.solvers.tuning import Effort, Progress, Tuning
from sfumato.solvers.tuning import tune as fit

TRAJECTORIES = 300
Exact = Callable[[Tensor, float], Tensor]


class Adapter:
    """denoiser(x, sigma) -> E[x_0 | x] as a denoiser of the variance-exploding process from sigma_max to sigma_min."""

    def __init__(self, exact: Exact, sigma_max: float, sigma_min: float):
        self.exact = exact
        self.process = Gaussian(EDM(sigma_min=sigma_min, sigma_max=sigma_max))

    def __call__(self, x_t: Tensor, t: float | Tensor | Level, condition: object = None) -> Prediction:
        level = self.process.level(t)
        return Prediction(self.exact(x_t, float(level.sigma)), "x0", x_t, level, self.process)


def run(solver: Tuned, denoiser: Exact, x: Tensor, ends: tuple[float, float]) -> Tensor:
    """Clean data from x at sigma_max."""
    adapter = Adapter(denoiser, *ends)
    levels = solver.grid.levels(adapter.process, solver.steps)
    with torch.no_grad():
        return integrate(adapter, solver, levels, x, Noise(0, len(x)))


def tuning(
    denoiser: Exact,
    start: Callable[[int, int], Tensor],
    ends: tuple[float, float],
    nfe: int,
    *,
    seed: int = 2026,
    effort: Effort | None = None,
    progress: Progress | None = None,
) -> Tuning:
    """What tuning finds on a problem; start(n, seed) draws n start points at sigma_max."""
    x = start(TRAJECTORIES, seed)
    return fit(Adapter(denoiser, *ends), x, nfe, effort=effort, progress=progress)


def tune(
    denoiser: Exact, start: Callable[[int, int], Tensor], ends: tuple[float, float], nfe: int
) -> Callable[[Exact, Tensor, tuple[float, float], int], Tensor]:
    """Tune to a denoiser in at most 300 trajectories and 5 minutes; start(n, seed) draws start points at sigma_max.

    Returns solve(denoiser, x_T, (sigma_max, sigma_min), nfe) -> x_end, which makes the nfe evaluations tuned to.
    """
    found = tuning(denoiser, start, ends, nfe, effort=Effort(seconds=240, fine=100))
    solver = found.solver if found.better else found.untuned

    def solve(denoiser: Exact, x: Tensor, ends: tuple[float, float], nfe: int) -> Tensor:
        return run(solver, denoiser, x, ends)

    return solve


def drawn(problem: Any) -> Callable[[int, int], Tensor]:
    """start(n, seed) of a problem: draws from the exact marginal at sigma_max."""

    def start(n: int, seed: int) -> Tensor:
        x0 = problem.gm.sample(n, seed)
        generator = torch.Generator().manual_seed(seed + 1)
        return x0 + problem.sigma_max * torch.randn(x0.shape, generator=generator, dtype=x0.dtype)

    return start


def best_peers(folder: Path, name: str, nfe: int) -> tuple[float, float]:
    """The smallest root mean square and the smallest median of all peers at this cost."""
    with open(folder / f"peers-{name}-ode.csv") as file:
        rows = [row for row in csv.DictReader(file) if int(row["nfe"]) == nfe >= int(row["used"])]
    return min(float(row["v1"]) for row in rows), min(float(row["v2"]) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("problems", nargs="*", default=["gm64-vp", "gm64-edm", "gm2-vp", "gm2-edm"])
    parser.add_argument("--nfe", type=int, nargs="+", default=[5, 8, 10])
    given = parser.parse_args()
    sys.path.insert(0, str(given.folder))
    from problems import Problem  # type: ignore[import-not-found]

    print(
        "| problem | evaluations | RMS | median | of the best peer's | seconds |\n| --- "
        + "| ---: " * 5
        + "|"
    )
    for name in given.problems:
        problem = Problem(*name.split("-"))
        for nfe in given.nfe:
            began = time.monotonic()
            solve = tune(problem.gm.D_, drawn(problem), (problem.sigma_max, problem.sigma_min), nfe)
            seconds = time.monotonic() - began
            (rms, used), (median, _) = problem.score_ode(solve, nfe), problem.score_ode_median(solve, nfe)
            peers = best_peers(given.folder, name, nfe)
            print(
                f"| {name} | {used} | {rms:.4f} | {median:.5f} | {rms / peers[0]:.2f}, {median / peers[1]:.3f} "
                f"| {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
