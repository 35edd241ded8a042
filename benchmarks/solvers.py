"""Solvers against exact answers: error at equal numbers of evaluations, ours beside other libraries'.

The data are Gaussian mixtures, whose denoiser is known exactly at every noise level; a solver starts at fixed points
and is compared with where the probability flow leads from them, found by DOP853 at a tolerance of 1e-10. What it gets
wrong is the solver's alone. Everything is in x / alpha, where a noise level is one number, sigma / alpha.

    python benchmarks/solvers.py                     on two mixtures of our own
    python benchmarks/solvers.py --exact FOLDER      on the problems of FOLDER/problems.py, beside FOLDER/peers-*.csv
    python benchmarks/solvers.py --names gm64-vp --evaluations 8 15
    python benchmarks/solvers.py --tuned             also solvers tuned to each problem (some minutes each)
    python benchmarks/solvers.py --all               every deterministic solver of ours too, each on three grids

Columns: evaluations of the denoiser, root mean square error over all start points, median over start points, and
their ratios to the best other sampler at that cost: the best of all combinations of sampler and grid, with hindsight,
for each column on its own. flips: start points off by more than half of the data's deviation, at another mode.

Other programs call `default(denoiser, x_T, (sigma_max, sigma_min), nfe) -> x_0` and `tune(denoiser, start, (sigma_max,
sigma_min), nfe) -> solve`, which is called like `default`; denoiser(x, sigma) is E[x_0 | x], start(n, seed) draws n
start points.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato import GaussianMixture, Noise
from sfumato.errors import SolverError
from sfumato.processes import VE, Gaussian, Prediction
from sfumato.solvers import (
    SOLVERS,
    AdamsMoulton,
    AngleGrid,
    Driver,
    Grid,
    KarrasGrid,
    LogSNRGrid,
    Solver,
    integrate,
    steps_within,
)
from sfumato.solvers.tuning import Effort
from sfumato.solvers.tuning import tune as fit

EVALUATIONS = (5, 8, 10, 15, 20, 30, 50)
TO_TUNE = (5, 8, 10)
TRAJECTORIES = 300


class Exact:
    """A function (x, sigma) -> E[x_0 | x_0 + sigma eps = x] as a denoiser that counts its calls."""

    def __init__(self, function: Callable[[Tensor, float], Tensor], sigma_range: tuple[float, float]):
        self.function, self.calls = function, 0
        self.process = Gaussian(VE(sigma_range[1], sigma_range[0]))

    def __call__(self, x_t: Tensor, t: Any, condition: Any = None) -> Prediction:
        self.calls += 1
        level = self.process.level(t)
        return Prediction(self.function(x_t, level.sigma), "x0", x_t, level, self.process)


def solve(
    function: Callable, x: Tensor, sigma_range: tuple[float, float], steps: int, solver: Solver, grid: Grid
) -> Tensor:
    """x at sigma_range[0] brought to clean data by a solver on a grid."""
    denoiser = Exact(function, sigma_range)
    return integrate(denoiser, solver, grid.levels(denoiser.process, steps), x, Noise(0, len(x)))


def default(denoiser: Callable, x_T: Tensor, sigma_range: tuple[float, float], nfe: int) -> Tensor:
    """The default of the package: Adams-Moulton on the angle grid, orders and nodes by the number of steps."""
    return solve(denoiser, x_T, sigma_range, nfe, AdamsMoulton(), AngleGrid())


def tune(
    denoiser: Callable, start: Callable[[int, int], Tensor], sigma_range: tuple[float, float], nfe: int
) -> Callable:
    """A solver tuned to a denoiser in 300 trajectories and at most 5 minutes, from start points of its own.

    Where it is no better than the default on trajectories held out of the 300, the default is returned.
    """
    exact = Exact(denoiser, sigma_range)
    levels = AngleGrid().levels(exact.process, nfe)
    found = fit(
        exact,
        start(TRAJECTORIES, 2026),
        nfe,
        rivals={"default": (AdamsMoulton(), levels)},
        effort=Effort(seconds=240, fine=100),
    )
    if not found.better:
        return default

    def tuned(function: Callable, x: Tensor, ends: tuple[float, float], evaluations: int) -> Tensor:
        return solve(function, x, ends, evaluations, found.solver, found.solver.grid)

    return tuned


@dataclass
class Problem:
    """Start points at sigma_max and where the exact flow leads from them."""

    name: str
    function: Callable[[Tensor, float], Tensor]
    sigma_range: tuple[float, float]
    x: Tensor
    end: Tensor
    start: Callable[[int, int], Tensor]  # (count, seed) -> other start points

    def errors(self, run: Callable, nfe: int) -> Tensor:
        """Root mean square error of each start point."""
        return (run(self.function, self.x, self.sigma_range, nfe) - self.end).square().mean(1).sqrt()


def own_problem(name: str) -> Problem:
    """A mixture of our own: "ring" (2 dimensions, 6 modes) or "valleys" (48 dimensions, 7 modes), range 80 to 0.002."""
    from scipy.integrate import solve_ivp

    sigma_range = (80.0, 0.002)
    process = Gaussian(VE(sigma_range[1], sigma_range[0]))
    if name == "ring":
        angle = torch.arange(6, dtype=torch.float64) * (math.pi / 3)
        means, covariances = 1.4 * torch.stack([angle.cos(), angle.sin()], 1), torch.full((6, 2), 0.012)
    else:
        draw = Noise(11, 7)
        means = 0.55 * draw.normal(torch.empty(7, 48, dtype=torch.float64))
        basis = torch.linalg.qr(draw.normal(torch.empty(7, 48, 48, dtype=torch.float64), 1))[0]
        scale = torch.logspace(0.15, -1.5, 48, dtype=torch.float64)
        covariances = (basis * scale.square()) @ basis.transpose(1, 2)
    mixture = GaussianMixture(process, means, covariances)

    def function(x: Tensor, sigma: float) -> Tensor:
        return mixture(x, process.schedule.level_at(-2 * math.log(sigma)) if sigma else 0.0).x0

    like = torch.empty(256, means.shape[1], dtype=torch.float64)
    x = mixture.sample(Noise(1, 256)) + sigma_range[0] * Noise(2, 256).normal(like)

    def slope(u: float, y: Any) -> Any:  # the flow frame, from u_0 to 0
        sigma = u / (1 - u)
        at = (1 + sigma) * torch.from_numpy(y).view(like.shape)
        return ((at - (guess := function(at, max(sigma, 1e-9)))) / max(sigma, 1e-9) - guess).ravel().numpy()

    u = sigma_range[0] / (1 + sigma_range[0])
    got = solve_ivp(
        slope, (u, 0.0), (x / (1 + sigma_range[0])).ravel().numpy(), "DOP853", rtol=1e-10, atol=1e-11
    )

    def start(count: int, seed: int) -> Tensor:
        noise = Noise(seed, range(1000, 1000 + count))
        at = noise.normal(like.new_empty(count, means.shape[1]), stream=3)
        return mixture.sample(noise) + sigma_range[0] * at

    return Problem(name, function, sigma_range, x, torch.from_numpy(got.y[:, -1]).view(like.shape), start)


def problem_in(folder: Path, name: str) -> Problem:
    """A problem of the folder's problems.py, by its data and range ("gm64-vp")."""
    spec = importlib.util.spec_from_file_location("problems", folder / "problems.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.Problem(*name.split("-"), NS=2000)

    def start(count: int, seed: int) -> Tensor:
        x0 = found.gm.sample(count, seed)
        generator = torch.Generator().manual_seed(seed + 1)
        return x0 + found.sigma_max * torch.randn(x0.shape, generator=generator, dtype=x0.dtype)

    return Problem(name, found.gm.D_, (found.sigma_max, found.sigma_min), found.x_T, found.ref["zero"], start)


def best_peers(folder: Path | None, name: str) -> dict[int, tuple[float, float]]:
    """{evaluations: (smallest RMS, smallest median)} of the folder's table, of those within the evaluations asked."""
    path = folder and folder / f"peers-{name}-ode.csv"
    if not path or not path.is_file():
        return {}
    best: dict[int, tuple[float, float]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            asked, used, found = int(row["nfe"]), int(row["used"]), (float(row["v1"]), float(row["v2"]))
            if 0 < used <= asked and all(map(math.isfinite, found)):
                best[asked] = tuple(map(min, found, best.get(asked, found)))  # type: ignore[assignment]
    return best


def contenders(everything: bool) -> dict[str, Callable]:
    """Names to functions like `default`."""
    runs: dict[str, Callable] = {"default": default}
    if everything:
        for kind, cls in SOLVERS.items():
            solver = cls()
            if solver.stochastic or isinstance(solver, Driver) or Gaussian not in solver.serves:
                continue
            for grid in (AngleGrid(), KarrasGrid(), LogSNRGrid()):

                def run(function, x, sigma_range, nfe, solver=solver, grid=grid):
                    steps = steps_within(solver, nfe)
                    return solve(function, x, sigma_range, steps, solver, grid)

                runs[f"{kind}, {grid.kind}"] = run
    return runs


def measure(
    names: list[str], evaluations: list[int], folder: Path | None, everything: bool, tuned: bool
) -> list[dict]:
    rows = []
    for name in names:
        problem, peers = problem_in(folder, name) if folder else own_problem(name), best_peers(folder, name)
        runs = [(label, run, nfe) for label, run in contenders(everything).items() for nfe in evaluations]
        runs += [("tuned", None, nfe) for nfe in evaluations if tuned and nfe in TO_TUNE]
        for label, run, nfe in runs:
            began = time.monotonic()
            try:
                run = run or tune(problem.function, problem.start, problem.sigma_range, nfe)
                seconds, errors = time.monotonic() - began, problem.errors(run, nfe)
            except SolverError as error:
                print(f"{name:9s} {label:24s} {nfe:3d}  {error}")
                continue
            rms, median = float(errors.square().mean().sqrt()), float(errors.median())
            row = {"problem": name, "solver": label, "evaluations": nfe, "rms": rms, "median": median}
            row |= {"seconds_to_tune": seconds} if label == "tuned" else {}
            row["flips"] = int((errors > 0.5).sum())
            if nfe in peers:
                row |= {"rms_over_best": rms / peers[nfe][0], "median_over_best": median / peers[nfe][1]}
            rows.append(row)
            print(line(row), flush=True)
    return rows


def line(row: dict) -> str:
    text = "{problem:9s} {solver:24s} {evaluations:3d}  rms {rms:.5f}  median {median:.6f}  flips {flips:2d}".format(
        **row
    )
    if "rms_over_best" in row:
        text += "  of the best peer's: rms {rms_over_best:.2f}, median {median_over_best:.2f}".format(**row)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--exact", type=Path, help="a folder with problems.py and tables of other libraries' errors"
    )
    parser.add_argument("--names", nargs="+", help="problems (default: all)")
    parser.add_argument("--evaluations", nargs="+", type=int, default=list(EVALUATIONS))
    parser.add_argument("--all", action="store_true", help="every deterministic solver, not only the default")
    parser.add_argument("--tuned", action="store_true", help="also tune to each problem, at 5, 8 and 10")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = given.names or (
        ["gm64-vp", "gm64-edm", "gm2-vp", "gm2-edm"] if given.exact else ["valleys", "ring"]
    )
    rows = measure(names, given.evaluations, given.exact, given.all, given.tuned)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
