"""Molecules of a trained model: how many are stable and valid, and whether they have the property asked for.

    python benchmarks/molecules.py RUN [count] [--out FILE]          RUN: a run folder of the recipe qm9

The wishes are the property and the number of atoms of held-out molecules, or the property alone: then the model's
domain draws the number of atoms.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.evaluation.molecules import PropertyJudge, molecule_measures, property_error
from sfumato.evaluation.receipts import versions
from sfumato.files import write_json
from sfumato.recipes.bench import Bench


def main() -> None:
    """Print the measures of `count` samples, asked for nothing, and asked for each property."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("count", type=int, nargs="?", default=1000)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    count, figures = given.count, dict[str, Any]()
    bench = Bench(given.run / "model")
    model, domain = bench.model, bench.model.domain
    start = time.perf_counter()
    samples = model.sample(count, seed=1, batch=100)
    print(f"{count} samples, {(time.perf_counter() - start) / count * 1e3:.0f} ms each, asked for nothing")
    for measure in molecule_measures(domain, domain.molecules(samples), bench.train, bench.held):
        print(f"  {measure}  {measure.note}")
        figures[measure.name] = measure.to_json()
    rows = np.sort(np.random.default_rng(1).permutation(len(bench.held))[:count])
    stored = bench.held.at(rows)
    for k, name in enumerate(domain.properties):
        judge = PropertyJudge(domain, bench.train, bench.held, name)
        asked = np.asarray(stored["properties"], np.float64)[:, k]
        atoms = (np.asarray(stored["atoms"]) > 0).sum(1)
        for said, wish in (("", {}), (" and the number of atoms", {"atoms": atoms})):
            made = model.sample(len(rows), condition={name: asked, **wish}, seed=2, batch=100)
            print(f"asked for {name}{said}")
            print(f"  {(error := property_error(judge, domain.molecules(made), asked))}")
            print(f"  {error.note}: {error.value / error.details['random']:.2f} of it")
            figures[f"{name}{said}"] = error.to_json()
    if given.out:
        about = {"model": model.fingerprint, "data": bench.data_hash, "sampling": model.sampling.to_json()}
        write_json(given.out, {**about, "figures": figures, "versions": versions()})


if __name__ == "__main__":
    main()
