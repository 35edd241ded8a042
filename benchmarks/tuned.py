"""Tuned solvers on problems with an exact denoiser, in variance-exploding coordinates."""

from __future__ import annotations

from collections.abc import Callable

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
