"""One leaf of a molecule, given the other: `python benchmarks/joint_molecules.py RUN [COUNT] [--out JSON]`.

RUN is a run folder of `sfumato train qm9-joint`. On held-out molecules of QM9:

    elements     of real positions: share of atoms, and of molecules, whose elements are drawn right; beside those of a
                 training molecule of as many atoms, in the order of the file
    positions    of real elements: stable atoms and valid molecules, beside molecules of which nothing is given
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato.domains.bonds import smiles, stable_atoms
from sfumato.evaluation.measure import share
from sfumato.evaluation.receipts import versions
from sfumato.files import write_json
from sfumato.noise import Noise
from sfumato.recipes.bench import Bench


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("count", type=int, nargs="?", default=300)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    bench = Bench(options.run / "model")
    model, train, held = bench.model, bench.train, bench.held
    draw = np.random.default_rng(0)
    rows = np.sort(draw.permutation(len(held))[: options.count])
    real = held.tensor(rows)
    atoms, held_places = (real["elements"] > 0).sum(1), real["elements"] > 0
    sizes = (train.tensor(np.arange(min(20_000, len(train))))["elements"] > 0).sum(1)
    record: dict[str, Any] = {
        "kind": "sfumato-joint-molecules",
        "model": model.info["sha256"],
        "measures": {},
    }

    def note(name: str, hits: Any, total: int) -> None:
        measure = share(name, int(hits), total)
        record["measures"][name] = measure.to_json()
        print(f"{name}: {measure.value:.3f} [{measure.low:.3f}, {measure.high:.3f}] of {total}", flush=True)

    def judged(name: str, elements: torch.Tensor) -> None:
        right = elements == real["elements"]
        note(f"elements of positions, atoms right, {name}", right[held_places].sum(), int(held_places.sum()))
        note(
            f"elements of positions, molecules right, {name}", (right | ~held_places).all(1).sum(), len(rows)
        )

    # positions as they stand in the state, padded alike, with the number of atoms of each
    drawn = _given(model, {"positions": real["positions"]}, atoms)
    judged("drawn", drawn["elements"])
    pick = [
        int(draw.choice(np.flatnonzero((sizes == n).numpy()))) if bool((sizes == n).any()) else 0
        for n in atoms
    ]
    judged("of a training molecule", train.tensor(np.array(pick))["elements"])
    for name, given in (("real elements given", {"elements": real["elements"]}), ("nothing given", {})):
        found = model.domain.molecules(_given(model, given, atoms))
        stable = [stable_atoms(one) for one in found]
        note(f"atoms stable, {name}", sum(s.sum() for s in stable), sum(map(len, stable)))
        note(f"valid, {name}", sum(smiles(one) is not None for one in found), len(found))
    record["versions"] = versions()
    if options.out:
        write_json(options.out, record)


def _given(model: Any, leaves: dict[str, torch.Tensor], atoms: torch.Tensor, batch: int = 100) -> Any:
    """Samples with these leaves of the state held, each of its number of atoms."""
    from sfumato.drawing import draw, joined

    parts = []
    for begin in range(0, len(atoms), batch):
        own = slice(begin, begin + batch)
        condition = {**{name: leaf[own] for name, leaf in leaves.items()}, "count": atoms[own]}
        parts.append(
            draw(
                model.denoiser,
                Noise(1, range(begin, begin + len(atoms[own]))),
                model.domain.shape,
                model.sampling,
                condition=condition,
                like=next(model.denoiser.parameters()),
            )
        )
    return joined(parts)


if __name__ == "__main__":
    main()
