"""One stochastic default beside the peers, on mixtures whose denoiser is exact: how far samples are from the data.

`stochastic(denoiser, x_T, (sigma_max, sigma_min), nfe)` solves in variance-exploding coordinates, x = x_0 + sigma eps,
where denoiser(x, sigma) is E[x_0 | x]. It knows nothing of the problem: SA-Solver with two levels to predict and two to
correct, a renewal rate tau of 0.3, on levels even in u = sigma / (1 + sigma), at one evaluation a step.

    python benchmarks/solvers_sde.py FOLDER [--dist gm64 gm2] [--seeds 5] [--nfe 10 20 50] [--peers]

FOLDER holds the problems (problems.py, whose `Problem(dist, range).score_sde(solve, nfe, seed)` gives the sliced
Wasserstein and the energy distance of 2,000 samples) and the peers' tables (peers-DIST-RANGE-sde.csv). A table's best
is the least of a hundred single runs. What that luck is worth is shown in two ways: by the distances of 2,000 true
samples to the data, and, with --peers, by the same peers run again with several seeds (peers.py of that folder, which
needs their packages). What follows ± is the deviation over seeds.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import statistics
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch

from sfumato.noise import Noise
from sfumato.processes import VE, Gaussian, Level, Prediction
from sfumato.solvers import FlowGrid, SASolver, Solver, integrate

DEFAULT = SASolver(predictor=2, corrector=2, tau=0.3)


class Exact:
    """A denoiser D(x, sigma) in variance-exploding coordinates as one of ours: alpha is 1, sigma the level's."""

    def __init__(self, denoiser: Callable, sigma_min: float, sigma_max: float):
        self.denoiser, self.process = denoiser, Gaussian(VE(sigma_min, sigma_max))

    def __call__(self, x_t: torch.Tensor, t: Level, condition: None = None) -> Prediction:
        return Prediction(self.denoiser(x_t, t.sigma), "x0", x_t, t, self.process)


def stochastic(
    denoiser: Callable,
    x_T: torch.Tensor,
    ends: tuple[float, float],
    nfe: int,
    seed: int = 0,
    solver: Solver = DEFAULT,
) -> torch.Tensor:
    """Samples at sigma = 0 from x_T at sigma_max, at nfe evaluations; sample i draws from (seed, i)."""
    model = Exact(denoiser, ends[1], ends[0])
    levels = FlowGrid().levels(model.process, nfe)
    return integrate(model, solver, levels, x_T, Noise(seed, len(x_T)))


def stored(table: Path, nfe: int) -> list[tuple[float, tuple[str, str, str]]]:
    """(sliced-W2, peer) of all in a table that kept to the evaluations, best first."""
    with table.open() as lines:
        rows = [
            row for row in csv.DictReader(lines) if int(row["nfe"]) == nfe and 0 < int(row["used"]) <= nfe
        ]
    return sorted((float(row["v1"]), (row["lib"], row["name"], row["variant"])) for row in rows)


def told(values: Iterable[float]) -> str:
    values = list(values)
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values) if len(values) > 1 else 0:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dist", nargs="+", default=["gm64"])
    parser.add_argument("--range", nargs="+", default=["vp", "edm"])
    parser.add_argument("--nfe", nargs="+", type=int, default=[10, 20, 50])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--peers", action="store_true", help="run the two best peers of each cell again")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, str(given.folder))
    problems = importlib.import_module("problems")
    registry = importlib.import_module("peers").REG if given.peers else []
    print(
        "| problem | evaluations | true samples | ours, sliced-W2 | ours, energy | best stored peer | peers again |"
    )
    print("|---" * 7 + "|")
    for dist in given.dist:
        for ends in given.range:
            problem = problems.Problem(dist, ends, NS=2000)
            floor = told(problem.sw2(problem.gm.sample(2000, 1000 + i)) for i in range(20))
            for nfe in given.nfe:
                runs = [problem.score_sde(partial(stochastic, seed=i), nfe) for i in range(given.seeds)]
                if any(used > nfe for *_, used in runs):
                    raise SystemExit("more evaluations than asked")
                row = [
                    f"{dist}-{ends}",
                    str(nfe),
                    floor,
                    told(run[0] for run in runs),
                    told(run[1] for run in runs),
                ]
                table = given.folder / f"peers-{dist}-{ends}-sde.csv"
                best = stored(table, nfe) if table.is_file() else []
                row.append(f"{best[0][0]:.4f} {' '.join(best[0][1])}" if best else "–")
                again = []
                for _, peer in best[:2] if given.peers else []:
                    solve = next(
                        entry["solve"]
                        for entry in registry
                        if (entry["lib"], entry["name"], entry["variant"]) == peer
                    )
                    values = [problem.score_sde(solve, nfe, i)[0] for i in range(given.seeds)]
                    again.append(f"{' '.join(peer[1:])}: {told(values)}")
                print("| " + " | ".join([*row, "; ".join(again) or "–"]) + " |", flush=True)


if __name__ == "__main__":
    main()
