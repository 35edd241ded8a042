"""Quality of a trained bundle by sampler and number of evaluations, judged as its recipe says, with intervals.

    python benchmarks/samplers.py BUNDLE [--samples 5000] [--evaluations 8 16] [--json FILE]

Every deterministic solver is run at each number of evaluations on several grids, at the bundle's guidance, from the
same seeds; so is the bundle's tuned sampler where it holds one for that number. The distance of a sampler is to the
training set; the floor is that of as many held-out examples.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sfumato.recipes.bench import Bench
from sfumato.solvers import SOLVERS, Driver, build_solver, steps_within

GRIDS = ("angle", "flow", "log-snr", "karras")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--evaluations", type=int, nargs="+", default=[8, 16])
    parser.add_argument(
        "--solvers", nargs="+", help="only these, with values if need be: adams-moulton:frame=flow"
    )
    parser.add_argument("--grids", nargs="+", default=list(GRIDS))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    bench, rows = Bench(given.bundle), []

    def judge(evaluations: int, steps: int, solver: str | None, grid: str | None) -> None:
        settings = {
            "seed": bench.recipe.evaluation.seed,
            "steps": steps,
            "guidance": bench.model.sampling.guidance,
            "solver": solver,
            "grid": grid,
            "batch": 250,
            "measures": ["frechet"],
            "samples": given.samples,
        }
        found = bench.quality(settings)[0]
        name = f"{solver}, {grid}" if solver else "tuned"
        row = {"sampler": name, "evaluations": evaluations, "samples": given.samples}
        row |= {"frechet": found.value, "low": found.low, "high": found.high, "floor": found.floor}
        rows.append(row)
        print(
            f"{name:28s} {evaluations:3d} evaluations  {found.value:.3f} ({found.low:.3f} … {found.high:.3f})",
            flush=True,
        )
        if given.json:
            given.json.write_text(json.dumps(rows, indent=1) + "\n")

    for evaluations in given.evaluations:
        if any(tuned.steps == evaluations for tuned in bench.model.tuned):
            judge(evaluations, evaluations, None, None)
        for kind in given.solvers or SOLVERS:
            solver = build_solver(kind)
            if (
                solver.stochastic
                or isinstance(solver, Driver)
                or solver.cost(solver.least_steps) > evaluations
            ):
                continue
            for grid in given.grids:
                judge(evaluations, steps_within(solver, evaluations), kind, grid)
    if rows:
        print(f"held-out examples: {rows[0]['floor']:.3f}")


if __name__ == "__main__":
    main()
