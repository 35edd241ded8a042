"""The order of every solver under every schedule, fitted on data whose probability flow is known in closed form.

    python benchmarks/convergence.py                     a table, for the docs
    python benchmarks/convergence.py --json orders.json  the numbers behind it as well

Deterministic solvers: the largest error on a three-dimensional Gaussian, between sigma / (alpha + sigma) = 0.9 and 0.1,
at 16 to 256 steps; the order is the slope of log(error) over log(1/steps). Stochastic solvers: the same of the error of
the output's deviation on a one-dimensional Gaussian, which is known exactly too (weak order). EDM's churn is a share of
noise renewed in each step: it is divided by the number of steps here, as Karras et al. divide S_churn.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import torch

from sfumato.denoisers import GaussianMixture
from sfumato.processes import SCHEDULES, Gaussian, Schedule, ZeroTerminalSNR
from sfumato.solvers import (
    DDIM,
    Ancestral,
    DPMpp2M,
    EDMSolver,
    Euler,
    EulerMaruyama,
    Heun,
    SASolver,
    SDEDPMpp,
    Solver,
)
from sfumato.solvers.laws import fitted_order, gaussian_errors, interior_levels, output_law
from sfumato.solvers.solver import FRAMES

STEPS = (16, 32, 64, 128, 256)
SOLVERS: dict[str, Solver] = {
    "ddim": DDIM(),
    **{f"euler {frame}": Euler(frame) for frame in FRAMES},
    **{f"heun {frame}": Heun(frame) for frame in FRAMES},
    "dpm++2m": DPMpp2M(),
    "edm, no churn": EDMSolver(churn=0.0),
    "ancestral": Ancestral(),
    "ancestral, chain": Ancestral("chain"),
    "ddim, eta 0.5": DDIM(eta=0.5),
    "edm, S_churn 10": EDMSolver(churn=10.0, s_noise=1.0),
    "sa, tau 0": SASolver(tau=0.0),
    "sa": SASolver(),
    "sde-dpm++": SDEDPMpp(),
    "euler-maruyama": EulerMaruyama(),
}


def deviation_errors(solver: Solver, schedule: Schedule) -> list[float]:
    """The relative error of a stochastic solver's output deviation on N(0.6, 0.3)."""
    process, mean, variance = Gaussian(schedule), 0.6, 0.3
    model = GaussianMixture(process, *torch.tensor([[[mean]], [[variance]]], dtype=torch.float64))
    errors = []
    for steps in STEPS:
        levels = interior_levels(process, steps)
        ends = [(row.alpha * mean, row.alpha**2 * variance + row.sigma**2) for row in (levels[0], levels[-1])]
        run = replace(solver, churn=solver.churn / steps) if isinstance(solver, EDMSolver) else solver
        errors.append(abs(math.sqrt(output_law(run, model, levels, *ends[0])[1] / ends[1][1]) - 1))
    return errors


def measure() -> list[dict]:
    rows = []
    schedules = {kind: cls() for kind, cls in SCHEDULES.items()}
    schedules["zero-terminal-snr"] = ZeroTerminalSNR()
    for label, solver in SOLVERS.items():
        for kind, schedule in schedules.items():
            errors = (deviation_errors if solver.stochastic else gaussian_errors)(
                solver, schedule, *([] if solver.stochastic else [STEPS])
            )
            rows.append(
                {
                    "solver": label,
                    "config": solver.to_json(),
                    "schedule": kind,
                    "stated": solver.order,
                    "stochastic": bool(solver.stochastic),
                    "order": round(fitted_order(STEPS, errors), 4),
                    "steps": list(STEPS),
                    "errors": errors,
                }
            )
    return rows


def table(rows: list[dict]) -> str:
    """The fitted orders in Markdown, a solver a line."""
    kinds = list(dict.fromkeys(row["schedule"] for row in rows))
    lines = ["| solver | stated | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 2) + "|"]
    for label in dict.fromkeys(row["solver"] for row in rows):
        own = {row["schedule"]: row for row in rows if row["solver"] == label}
        stated = next(iter(own.values()))["stated"]
        lines.append(
            f"| {label} | {stated} | " + " | ".join(f"{own[kind]['order']:.2f}" for kind in kinds) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are tiny
    rows = measure()
    print(table(rows))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
