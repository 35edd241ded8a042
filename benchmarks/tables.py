"""Trained tables beside CTGAN and TVAE: `python benchmarks/tables.py BUNDLE... [--out tables.json] [--epochs 100]`.

For each bundle of the domain "table", on the same held-out rows: samples as many as its training rows (at most 20,000)
of our model, of CTGAN and of TVAE (package `ctgan`, of SDV) trained here and now on the same training rows, and of the
trivial model that draws every column alone. Each is judged by the measures of `evaluation.table`: columns, pairs,
utility (points of AUC, or of R^2, below trees that learned from as many real rows), closest record, copies. Seconds of
training are printed; ours are the bundle's.

A peer is left out, and named, where its package is not installed or its training fails.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato.domains.table import Table
from sfumato.evaluation.receipts import versions
from sfumato.evaluation.table import MOST, table_measures
from sfumato.files import write_json
from sfumato.recipes.bench import Bench


def shuffled(domain: Table, columns: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Rows whose columns are drawn one by one."""
    draw = np.random.default_rng(0)
    return {name: draw.choice(column, count) for name, column in columns.items()}


def peer(
    kind: str, domain: Table, columns: dict[str, np.ndarray], count: int, epochs: int
) -> dict[str, np.ndarray]:
    """Rows of a CTGAN or TVAE trained on the columns."""
    import ctgan  # pyright: ignore[reportMissingImports]
    import pandas  # pyright: ignore[reportMissingImports]

    table = pandas.DataFrame({name: np.asarray(column) for name, column in columns.items()})
    table = table.fillna(table.median(numeric_only=True))  # it takes no gaps
    names = [name for name, column in domain.leaves.items() if column["kind"] == "category"]
    torch.manual_seed(0)
    model = getattr(ctgan, kind)(epochs=epochs)
    model.fit(table, names)
    made = model.sample(count)
    return {name: made[name].to_numpy().astype(columns[name].dtype) for name in columns}


def rivals(bench: Bench, count: int, epochs: int) -> dict[str, Callable[[], Any]]:
    """What makes `count` rows, by name."""
    model, columns = bench.model, bench.train.raw
    return {
        "sfumato": lambda: model.domain.decode(model.sample(count, seed=1, batch=1000)),
        "columns alone": lambda: shuffled(model.domain, columns, count),
        "CTGAN": lambda: peer("CTGAN", model.domain, columns, count, epochs),
        "TVAE": lambda: peer("TVAE", model.domain, columns, count, epochs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("tables.json"))
    parser.add_argument("--epochs", type=int, default=100, help="of the peers; their own default is 300")
    options = parser.parse_args()
    record: dict[str, Any] = {"kind": "sfumato-tables", "epochs": options.epochs, "tables": {}}
    for folder in options.bundles:
        bench = Bench(folder)
        domain = bench.model.domain
        count = min(len(bench.train), MOST)
        ways = rivals(bench, count, options.epochs)
        rows: dict[str, Any] = {}
        for name, way in ways.items():
            began = time.monotonic()
            try:
                made = way()
            except Exception as problem:  # a peer's, of any class
                if name == "sfumato":
                    raise
                print(f"{name} left out: {type(problem).__name__}: {problem}")
                continue
            seconds = time.monotonic() - began
            if name == "sfumato":
                seconds = bench.model.info["training"]["seconds"]
            # measures take states
            found = table_measures(domain, domain.encode(made), None, bench.train, bench.held)
            rows[name] = {"seconds": round(seconds, 1), "measures": [measure.to_json() for measure in found]}
            short = ", ".join(f"{m.name} {m.value:.3f}" for m in found)
            print(f"{bench.recipe.data.source}, {name} ({seconds:.0f} s): {short}", flush=True)
        floors = ", ".join(f"{m.name} {m.floor:.3f}" for m in found if m.floor is not None)
        print(f"{bench.recipe.data.source}, real rows: {floors}", flush=True)
        record["tables"][bench.recipe.data.source] = {
            "model": bench.model.info["sha256"], "target": domain.target, "rows": count, "ways": rows,
        }  # fmt: skip
        write_json(options.out, record | {"versions": versions()})


if __name__ == "__main__":
    main()
