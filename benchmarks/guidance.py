"""What guidance buys and costs: agreement with the asked class against variety, over weights and repairs.

    python benchmarks/guidance.py BUNDLE [--samples 1000] [--steps 8] [--weights 1 1.5 2] [--repairs 2:interval=0.2..3]
                                  [--json FILE] [--picture FILE]

Every guidance draws the same samples (seed, labels in the proportions of the training set) with the package's default
solver and grid, and is judged as `sfumato evaluate` judges: by features whose accuracy on held-out data is printed, in
comparison with the training set; the floor of each measure is that of as many held-out examples.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from sfumato.denoisers import Guidance, build_guidance
from sfumato.evaluation.receipts import versions
from sfumato.files import write_json
from sfumato.recipes.bench import Bench
from sfumato.solvers import AdamsMoulton, AngleGrid

MEASURES = ("agreement", "frechet", "precision", "recall", "density", "coverage")
WEIGHTS = ("1", "1.5", "2", "3", "5")
REPAIRS = ("3:interval=0.2..3", "3:rescale=0.7", "3:parallel=0,norm=5", "3:threshold=0.995")


def measured(bench: Bench, guidance: str, samples: int, steps: int) -> dict[str, Any]:
    settings = {"solver": AdamsMoulton(), "grid": AngleGrid(), "steps": steps, "seed": 1, "batch": 125}
    found = bench.quality(
        settings | {"guidance": build_guidance(guidance), "samples": samples, "measures": MEASURES}
    )
    row: dict[str, Any] = {"guidance": guidance}
    for m in found:
        row[m.name] = {"value": m.value, "low": m.low, "high": m.high, "floor": m.floor}
    said = "  ".join(f"{m.name} {m.value:.3f} ({m.low:.3f} … {m.high:.3f})" for m in found)
    print(f"{guidance:28s} {said}", flush=True)
    return row


def family(guidance: str) -> str:
    """The repairs of a guidance, whatever its weight."""
    built = build_guidance(guidance)
    return str(built).partition(":")[2] if isinstance(built, Guidance) else "weight alone"


def draw(rows: list[dict[str, Any]], accuracy: float | None, path: Path) -> None:
    """Variety and distance against agreement, one line for each kind of repair."""
    from matplotlib.figure import Figure

    lines = defaultdict(list)
    for row in rows:
        lines[family(row["guidance"])].append(row)
    figure = Figure(figsize=(9, 3.6), dpi=90, layout="constrained")
    for axis, name in zip(figure.subplots(1, 3), ("coverage", "recall", "frechet"), strict=True):
        for label, points in lines.items():
            x = [100 * row["agreement"]["value"] for row in points]
            y = [row[name]["value"] for row in points]
            error = [
                [row[name]["value"] - row[name]["low"] for row in points],
                [row[name]["high"] - row[name]["value"] for row in points],
            ]
            axis.errorbar(x, y, error, marker="o", markersize=4, linewidth=1, elinewidth=0.6, label=label)
            if label == "weight alone":
                for row, a, b in zip(points, x, y, strict=True):
                    axis.annotate(row["guidance"], (a, b), (4, 4), textcoords="offset points", fontsize=7)
        axis.axhline(rows[0][name]["floor"], color="grey", linestyle=":", linewidth=1)
        if accuracy is not None:
            axis.axvline(100 * accuracy, color="grey", linestyle="--", linewidth=0.8)
        axis.margins(x=0.1)
        axis.set_xlabel("agreement with the asked class, %")
        axis.set_title(name.replace("frechet", "Fréchet distance"), fontsize=10)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--weights", nargs="*", default=list(WEIGHTS))
    parser.add_argument("--repairs", nargs="*", default=list(REPAIRS))
    parser.add_argument(
        "--json", type=Path, help="kept after every row; a row that is there is not measured again"
    )
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    bench = Bench(given.bundle)
    settings = {
        "model": bench.model.info["sha256"],
        "data": bench.data_hash,
        "features": bench.features.card(),
        "samples": given.samples,
        "steps": given.steps,
        "solver": AdamsMoulton().to_json(),
        "grid": AngleGrid().to_json(),
        "seed": 1,
    }
    kept: dict[str, Any] = {}
    if given.json and given.json.exists():
        before = json.loads(given.json.read_text())
        if before["settings"] == json.loads(json.dumps(settings)):
            kept = {row["guidance"]: row for row in before["rows"]}
    accuracy = bench.features.accuracy
    print(f"judged by {bench.features.name}, accuracy on held-out data {accuracy}")
    rows: list[dict[str, Any]] = []
    for guidance in (*given.weights, *given.repairs):
        rows.append(kept.get(guidance) or measured(bench, guidance, given.samples, given.steps))
        if given.json:
            write_json(given.json, {"settings": settings, "rows": rows, "versions": versions()})
    print("floors: " + "  ".join(f"{name} {rows[0][name]['floor']:.3f}" for name in MEASURES))
    if given.picture:
        draw(rows, accuracy, given.picture)


if __name__ == "__main__":
    main()
