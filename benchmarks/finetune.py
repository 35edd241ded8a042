"""What a few pictures teach a model, and what it forgets: a low-rank adapter against all weights, at equal images.

    python benchmarks/finetune.py BUNDLE [--images 1600] [--samples 200] [--pictures 16] [--digit 3] [--json FILE]

BUNDLE is a model of Fashion-MNIST; it is taught a handwritten digit (of the `digits` source, made 28 x 28) as a new
class, from so many pictures of it. In the table, with 95 % intervals:

    new         kernel distance of samples of the new class to the held-out pictures of that digit, over pixels. Its
                floor is that of the pictures it was taught by; "before" is what the model draws for "no label"
    old         kernel distance of samples of the ten old classes to test pictures, over the recipe's classifier
    agreement   share of those samples that the classifier takes for the class that was asked
    forgetting  loss on fresh samples of the model before, less that model's own (see sfumato.recipes.finetune)
    images/s    of the training, in seconds of the processor, so that a busy machine does not count
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from sfumato.conditions import spread_labels
from sfumato.domains.images import Images
from sfumato.evaluation.features import build_features, in_batches, to_unit
from sfumato.evaluation.metrics import agreement, kernel
from sfumato.model import Model
from sfumato.recipes.bench import Bench
from sfumato.recipes.finetune import finetune, finetune_recipe
from sfumato.training import Callback

CONTENDERS: dict[str, dict] = {
    "adapter, rank 8": {},
    "all weights": {"full": True},
    "adapter, half of what is shown old": {"prior": 0.5, "prior_from": "data"},
    "all weights, half old": {"full": True, "prior": 0.5, "prior_from": "data"},
}


class Clock(Callback):
    """Seconds of the processor between the first and the last step."""

    def __init__(self):
        self.times: list[tuple[float, int]] = []

    def on_step(self, images, total, loss, images_per_second, seconds_left):
        self.times.append((time.process_time(), images))

    @property
    def rate(self) -> float:
        (began, first), (ended, last) = self.times[0], self.times[-1]
        return (last - first) / max(ended - began, 1e-9)


class Judge:
    """Distances of samples of a model, with what they are compared with."""

    def __init__(self, bench: Bench, new: torch.Tensor, samples: int):
        self.bench, self.samples = bench, samples
        self.pixels = build_features("pixels", train=bench.held)
        self.new = in_batches(self.pixels, to_unit(new))[0]
        rows = np.linspace(0, len(bench.held) - 1, 1000).astype(int)
        self.old = in_batches(bench.features, to_unit(bench.held.images[rows]))[0]

    def distance(self, pictures: torch.Tensor) -> dict:
        return brief(kernel(in_batches(self.pixels, to_unit(pictures))[0], self.new))

    def __call__(self, model: Model, new: bool) -> dict:
        classes = len(self.bench.model.classes)
        labels = spread_labels(self.samples, classes)
        settings = {"seed": 1, "guidance": 1.0, "steps": 8, "batch": 100}
        old = model.domain.decode(model.sample(self.samples, condition={"label": labels}, **settings))
        f, p = in_batches(self.bench.features, to_unit(old))
        asked = {"label": [classes] * self.samples} if new else None
        drawn = model.domain.decode(model.sample(self.samples, condition=asked, **settings))
        return {
            "new": self.distance(drawn),
            "old": brief(kernel(f, self.old)),
            "agreement": brief(agreement(p, labels)),
        }


def brief(measure) -> dict:
    return {"value": measure.value, "low": measure.low, "high": measure.high}


def size_of(folder: Path) -> int:
    return (folder / "weights.safetensors").stat().st_size


def shown(figure: dict | None) -> str:
    if figure is None:
        return "–"
    return f"{figure['value']:.3f} ({figure['low']:.3f} … {figure['high']:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=int, default=1600)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--digit", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--set", nargs="*", default=[], help="overrides, as training.learning_rate=1e-3")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    bench = Bench(given.bundle)
    digits = Images(size=28, channels=1).read("digits")
    rows = np.flatnonzero(digits.targets == given.digit)
    rows = np.random.Generator(np.random.Philox(0)).permutation(rows)
    taught, held = rows[: given.pictures], rows[given.pictures :]
    judge = Judge(bench, digits.domain.decode(digits.tensor(held)), given.samples)
    base = bench.model
    table = [
        {"name": "the pictures it is taught by", "new": judge.distance(digits.domain.decode(digits.tensor(taught)))},
        {"name": "before", "bytes": size_of(given.bundle), **judge(base, new=False)},
    ]  # fmt: skip
    print_row(table[0])
    print_row(table[1])
    with tempfile.TemporaryDirectory() as work:
        digits.domain.write(digits.tensor(taught), Path(work) / "pictures")
        for number, name in enumerate(given.only):
            out, clock = Path(work) / str(number), Clock()
            recipe = finetune_recipe(
                given.bundle,
                Path(work) / "pictures",
                model=base,
                label=f"digit {given.digit}",
                overrides=[f"training.images={given.images}", *given.set],
                **CONTENDERS[name],
            )
            model, _ = finetune(recipe, out, model=base, callbacks=[clock])
            lost = json.loads(
                (out / ("model/bundle.json" if recipe.finetune.full else "adapter/adapter.json")).read_text()
            )["training"]["forgetting"]
            row = {"name": name, "bytes": size_of(out / ("model" if recipe.finetune.full else "adapter"))}
            row |= {"images_per_second": clock.rate, **judge(model, new=True)}
            row["forgetting"] = {"value": lost["difference"], "low": lost["low"], "high": lost["high"]}
            row["learning_rate"] = recipe.training.learning_rate
            table.append(row)
            print_row(row)
            if given.json:
                about = {"images": given.images, "samples": given.samples, "pictures": given.pictures}
                given.json.write_text(json.dumps({**about, "rows": table}, indent=1))


def print_row(row: dict) -> None:
    if row["name"].startswith("the pictures"):
        print("| | new | old | agreement | forgetting | bytes | images/s |\n|---|---|---|---|---|---|---|")
    rate = row.get("images_per_second")
    cells = [shown(row.get(key)) for key in ("new", "old", "agreement", "forgetting")]
    cells += [f"{row['bytes']:,}" if "bytes" in row else "–", f"{rate:.0f}" if rate else "–"]
    print(f"| {row['name']} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
