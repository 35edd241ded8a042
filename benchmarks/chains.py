"""How far samplers of symbols are from the right law, exactly, on a table of correlated sequences.

Three positions of three symbols, neighbours agreeing more often than not. The law of a whole run is computed by
carrying the vector of chances of all states through every step's kernel: no sampling, no error bars. What is printed is
its total variation to the table's law at several numbers of steps on a uniform grid, and the fitted order.

    python benchmarks/chains.py [--json chains.json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from sfumato.processes import Categorical, MaskedChain, UniformChain
from sfumato.solvers import Ancestral, Remasking, Solver, TauLeaping, Unmasking, chain_errors
from sfumato.solvers.laws import fitted_order

STEPS = (3, 6, 12, 24, 48, 96)
SOLVERS: dict[str, Solver] = {
    "ancestral": Ancestral(),
    "tau-leaping": TauLeaping(),
    "remasking:renewals=1": Remasking(1.0),
    "remasking:renewals=4": Remasking(4.0),
    "remasking:renewals=16": Remasking(16.0),
    "unmasking": Unmasking(),
    "unmasking:by=drawn": Unmasking("drawn"),
}
CHAINS: tuple[Categorical, ...] = (MaskedChain(3), UniformChain(3))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(f"| chain | solver | {' | '.join(map(str, STEPS))} | order |")
    print("|---|---|" + "---|" * (len(STEPS) + 1))
    for chain in CHAINS:
        for name, solver in SOLVERS.items():
            if not isinstance(chain, tuple(solver.serves)):
                continue
            errors = chain_errors(solver, chain, STEPS)
            order = fitted_order(STEPS[2:], errors[2:]) if min(errors) > 1e-12 else None
            rows.append({"chain": chain.law, "solver": name, "steps": STEPS, "tv": errors, "order": order})
            cells = " | ".join(f"{error:.4f}" for error in errors)
            print(f"| {chain.law} | `{name}` | {cells} | {'–' if order is None else f'{order:.2f}'} |")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
