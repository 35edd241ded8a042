"""Quality of a trained bundle by sampler and number of evaluations, judged as its recipe says, with intervals.

    python benchmarks/samplers.py BUNDLE [--samples 5000] [--evaluations 8 16] [--json FILE]

Every deterministic solver is run at each number of evaluations on several grids, at the bundle's guidance, from the
same seeds; so is the bundle's tuned sampler where it holds one for that number. The distance of a sampler is to the
training set; the floor is that of as many held-out examples. The tuned sampler is then compared with each other one
by the difference of their distances, whose interval resamples the start points that both share, and the training set.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from sfumato.evaluation.features import in_batches, to_unit
from sfumato.evaluation.measure import interval, resample
from sfumato.evaluation.metrics import frechet_distance, gaussian_frechet, moments
from sfumato.recipes.bench import Bench, labels_like
from sfumato.solvers import SOLVERS, Driver, build_solver, steps_within

GRIDS = ("angle", "flow", "log-snr", "karras")
REFERENCE, RESAMPLES = 10_000, 200


class Judged:
    """The Fréchet distance of samplers of one bundle, each with its draws over the same resamples."""

    def __init__(self, bundle: Path, samples: int):
        self.bench, self.samples = Bench(bundle), samples
        train, held = self.bench.train, self.bench.held
        rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:REFERENCE].numpy()
        self.train, self.held = self.features(train.images[rows]), self.features(held.images[:samples])
        weights = list(resample(len(self.train), RESAMPLES, 0, 1))
        self.reference = moments(self.train)
        self.references = [moments(self.train, w) for w in weights]

    def features(self, images: object) -> Tensor:
        return in_batches(self.bench.features, to_unit(images))[0].double()

    def __call__(self, **settings: object) -> tuple[float, list[float]]:
        """The distance, and that of each resample."""
        model, labels = self.bench.model, None
        if model.classes:
            labels = {"label": labels_like(self.bench.train, self.samples)}
        seed = self.bench.recipe.evaluation.seed
        drawn = model.sample(self.samples, condition=labels, seed=seed, batch=250, **settings)  # type: ignore[arg-type]
        f = self.features(model.domain.decode(drawn))
        weights = resample(len(f), RESAMPLES, 0, 0)
        again = [gaussian_frechet(*moments(f, w), *r) for w, r in zip(weights, self.references, strict=True)]
        return gaussian_frechet(*moments(f), *self.reference), again


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
    judged = Judged(given.bundle, given.samples)
    model, rows, draws = judged.bench.model, [], {}
    floor = frechet_distance(judged.held, judged.train)

    def judge(evaluations: int, steps: int, solver: str | None, grid: str | None) -> None:
        value, again = judged(steps=steps, guidance=model.sampling.guidance, solver=solver, grid=grid)
        name = f"{solver}, {grid}" if solver else "tuned"
        low, high = interval(value, again, (0.0, float("inf")))
        row = {"sampler": name, "evaluations": evaluations, "samples": given.samples, "floor": floor}
        rows.append(row | {"frechet": value, "low": low, "high": high})
        draws[name, evaluations] = value, again
        print(f"{name:28s} {evaluations:3d} evaluations  {value:.3f} ({low:.3f} … {high:.3f})", flush=True)

    for evaluations in given.evaluations:
        if any(tuned.steps == evaluations for tuned in model.tuned):
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
    print(f"held-out examples: {floor:.3f}")
    for (_, cost), (own, again) in [entry for entry in draws.items() if entry[0][0] == "tuned"]:
        for row in rows:
            if row["sampler"] == "tuned":
                continue
            value, others = draws[row["sampler"], row["evaluations"]]
            low, high = interval(own - value, [a - b for a, b in zip(again, others, strict=True)])
            row[f"tuned at {cost} less this"] = [own - value, low, high]
            print(
                f"tuned at {cost} less {row['sampler']} at {row['evaluations']}: "
                f"{own - value:+.4f} ({low:+.4f} … {high:+.4f})"
            )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
