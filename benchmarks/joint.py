"""One joint model against models of one conditional alone: `python benchmarks/joint.py --out FOLDER [--images N]`.

Four trainings of the recipe emoji-joint at an equal budget: the joint model, and for each of its leaves a model that is
always given the other two (`objective.given`). On held-out emoji each conditional is judged two ways:

    loss       the denoising loss of the leaf with the others clean, at the same times and noise for both models
    drawn      label: share drawn right; caption: cosine to the real vector; picture: Fréchet distance in 8 x 8 pixels
               to the held-out pictures

beside the trivial answers: the commonest label, the mean vector, pictures of the training set taken at random.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from sfumato import bundle
from sfumato.drawing import leaf_solvers
from sfumato.errors import BundleError
from sfumato.evaluation.captioned import small
from sfumato.evaluation.metrics import frechet_distance
from sfumato.evaluation.receipts import versions
from sfumato.files import write_json
from sfumato.noise import BatchNoise, Noise
from sfumato.objectives.joint import JointDenoising
from sfumato.recipes.bench import Bench
from sfumato.recipes.run import train
from sfumato.solvers import sample_joint

LEAVES = ("label", "caption", "picture")


def trained(out: Path, name: str, images: int, given: tuple[str, ...]) -> Path:
    """The bundle of one training, made now unless it is there."""
    folder = out / name
    try:
        bundle.load(folder / "model")
    except BundleError:
        words = [f"training.images={images}", f"objective.given={list(given)}"]
        resumed = (folder / "recipe.toml").is_file()
        said = lambda text: print(f"{name}: {text}", flush=True)  # noqa: E731
        train("emoji-joint", folder, overrides=() if resumed else words, resume=resumed, say=said)
    return folder / "model"


@torch.no_grad()
def loss_of(model: Any, data: Any, leaf: str, repeats: int = 20) -> float:
    """The held-out loss of one leaf with the others clean."""
    objective = JointDenoising(given=tuple(name for name in LEAVES if name != leaf))
    batch = data.batch(np.arange(len(data)))
    return float(
        np.mean([objective(model.denoiser, batch, BatchNoise(7, k))[0].mean() for k in range(repeats)])
    )


def drawn(model: Any, state: dict[str, torch.Tensor], leaf: str) -> torch.Tensor:
    """What a model draws of one leaf, given the others."""
    plan, given = model.sampling, {name: value for name, value in state.items() if name != leaf}
    made = sample_joint(
        model.denoiser, Noise(1, len(state[leaf])), {leaf: model.domain.shape[leaf]}, steps=plan.steps,
        solvers=leaf_solvers(model.denoiser.process, plan), grid=plan.grid, given=given,
    )  # fmt: skip
    return model.domain.decode(made)[leaf]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("joint"))
    parser.add_argument("--images", type=int, default=100_000)
    options = parser.parse_args()
    models = {"joint": trained(options.out, "joint", options.images, ())}
    for leaf in LEAVES:
        others = tuple(name for name in LEAVES if name != leaf)
        models[leaf] = trained(options.out, f"{leaf}-alone", options.images, others)
    bench = Bench(models["joint"])
    train_set, held = bench.train, bench.held
    known, real = train_set.domain.decode(train_set.tensor()), held.domain.decode(held.tensor())

    def judged(leaf: str, made: torch.Tensor) -> float:
        if leaf == "label":
            return float((made == real["label"]).float().mean())
        if leaf == "caption":
            return float(F.cosine_similarity(made, real["caption"], dim=1).mean())
        return frechet_distance(small(made).double(), small(real["picture"]).double())

    common = known["label"].mode().values.expand(len(held))
    trivial = {"label": common, "caption": known["caption"].mean(0, keepdim=True).expand(len(held), -1)}
    pick = torch.from_numpy(np.random.default_rng(0).permutation(len(train_set))[: len(held)])
    trivial["picture"] = known["picture"][pick]
    record: dict[str, Any] = {
        "kind": "sfumato-joint",
        "images": options.images,
        "held_out": len(held),
        "leaves": {},
    }
    state = held.tensor()
    for leaf in LEAVES:
        row: dict[str, Any] = {"trivial": judged(leaf, trivial[leaf])}
        for name in ("joint", leaf):
            model = bundle.load(models[name])
            made = drawn(model, state, leaf)
            kind = "joint" if name == "joint" else "alone"
            row[kind] = {
                "loss": loss_of(model, held, leaf),
                "drawn": judged(leaf, made),
                "model": model.info["sha256"],
            }
        row["ratio of losses"] = row["joint"]["loss"] / row["alone"]["loss"]
        record["leaves"][leaf] = row
        print(leaf, row, flush=True)
    write_json(options.out / "joint.json", record | {"versions": versions()})
    print(options.out / "joint.json")


if __name__ == "__main__":
    main()
