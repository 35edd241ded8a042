"""The order of every solver under every schedule, fitted on data whose probability flow is known in closed form.

    python benchmarks/convergence.py                     a table, for the docs
    python benchmarks/convergence.py --json orders.json  the numbers behind it as well

Deterministic solvers: the largest error on a three-dimensional Gaussian, between sigma / (alpha + sigma) = 0.9 and
0.1, at 16 to 256 steps; the order is the slope of log(error) over log(1/steps). A long memory is fitted at 96 to 384
steps after short first ones, as `check_solver` fits it; "equal steps" is what it states for a run without those.
Stochastic solvers: the same of the error of the output's deviation on a one-dimensional Gaussian, which is known
exactly too (weak order). EDM's churn is a share of noise renewed in each step: it is divided by the number of steps
here, as Karras et al. divide S_churn.
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
    DEIS,
    RATES,
    Adams,
    Ancestral,
    DPMppS,
    DPMSolver,
    EDMSolver,
    Euler,
    Heun,
    RungeKutta,
    Solver,
    UniPC,
)
from sfumato.solvers import SOLVERS as ALL
from sfumato.solvers.laws import fitted_order, fitting, gaussian_errors, interior_levels, output_law
from sfumato.solvers.solver import FRAMES

STEPS = (16, 32, 64, 128, 256)
VARIANTS: tuple[Solver, ...] = (
    *(Euler(frame) for frame in FRAMES if frame != "flow"),
    *(Heun(frame) for frame in FRAMES if frame != "flow"),
    *(RungeKutta(method) for method in ("midpoint", "ralston", "kutta3", "ralston3")),
    *(RungeKutta("rk4", frame) for frame in ("sigma", "angle")),
    *(Adams(order) for order in (2, 4, 5, 6)),
    *(Adams(order, frame) for frame in ("sigma", "angle", *RATES) for order in (2, 3, 4)),
    *(DEIS(degree, variable) for variable in ("time", "rho") for degree in (1, 2, 3)),
    *(DPMSolver(2), DPMppS(2)),
    *(UniPC(predictor, variant) for variant in ("bh1", "bh2") for predictor in (1, 2, 3)),
    *(EDMSolver(churn=0.0), Ancestral("chain"), DDIM(eta=0.5), EDMSolver(churn=10.0, s_noise=1.0)),
)


def label(solver: Solver) -> str:
    """Its name and what is not the default."""
    default = type(solver)().to_json()
    values = [f"{key} {value}" for key, value in solver.to_json().items() if value != default[key]]
    return " ".join([solver.kind, *values])


# every solver that there is, EDM's churn apart
SOLVERS: dict[str, Solver] = {
    label(solver): solver
    for solver in (*(cls() for kind, cls in ALL.items() if kind != "edm"), *VARIANTS)
    if Gaussian in solver.serves
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
    for named, solver in SOLVERS.items():
        grid, steps = fitting(solver)
        steps = STEPS if grid is interior_levels else steps
        for kind, schedule in schedules.items():
            errors = (
                deviation_errors(solver, schedule)
                if solver.stochastic
                else gaussian_errors(solver, schedule, steps, grid)
            )
            rows.append(
                {
                    "solver": named,
                    "config": solver.to_json(),
                    "schedule": kind,
                    "stated": solver.order,
                    "equal steps": solver.start_order,
                    "stochastic": bool(solver.stochastic),
                    "order": round(fitted_order(steps, errors), 4),
                    "steps": list(steps),
                    "errors": errors,
                }
            )
    return rows


def table(rows: list[dict]) -> str:
    """The fitted orders in Markdown, a solver a line."""
    kinds = list(dict.fromkeys(row["schedule"] for row in rows))
    lines = ["| solver | stated | equal steps | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 3) + "|"]
    for named in dict.fromkeys(row["solver"] for row in rows):
        own = {row["schedule"]: row for row in rows if row["solver"] == named}
        first = next(iter(own.values()))
        orders = " | ".join(f"{own[kind]['order']:.2f}" for kind in kinds)
        lines.append(f"| {named} | {first['stated']} | {first['equal steps']} | {orders} |")
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
