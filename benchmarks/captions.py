"""How well a model draws what its caption says: `python benchmarks/captions.py BUNDLE [--out FOLDER]`.

Four questions, on real captions, with the settings that the bundle is sampled with:

    held-out captions   of groups (for emoji: base code points) that were never trained on: top-10 retrieval of 200
    training captions   the same, on captions that it was trained with
    distance            Fréchet, samples of all held-out captions against the held-out pictures, beside the floor: two
                        random halves of the real set, as many pictures each; and two halves that share no group
    near-copies         the share of samples closer to a training picture than all but 1 % of held-out pictures are

The judge of retrieval is trained on real pictures and kept in the cache; what it makes of real pictures, held out and
trained on, is printed beside each score, and no model can be expected to do better than they. FOLDER/captions.json has
all figures; captions-held.png and captions-training.png show, row by row, a real picture and a sample of its caption.

A model that learned from more pictures than it is asked for (`emoji-styles`) is measured with `--pictures emoji`: the
judge, training captions and floors are of those alone, and near-copies of all that it saw.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato.denoisers import build_guidance
from sfumato.domains.cache import cache_folder
from sfumato.domains.image_data import ImageData
from sfumato.evaluation.copying import copying
from sfumato.evaluation.features import Features, PixelFeatures, in_batches
from sfumato.evaluation.measure import Measure
from sfumato.evaluation.metrics import frechet_distance
from sfumato.evaluation.receipts import versions
from sfumato.evaluation.retrieval import RetrievalConfig, families, one_each, others_of, retrieval_judge
from sfumato.files import write_json
from sfumato.model import Model
from sfumato.recipes.bench import Bench
from sfumato.recipes.run import read_data


def draw(model: Model, prompts: list[str], seed: int) -> torch.Tensor:
    """Samples 0, 1, .. of a seed, one a prompt, in [0, 1]."""
    return model.domain.decode(model.sample(len(prompts), condition={"text": prompts}, seed=seed, batch=100))


def floors(features: torch.Tensor, groups: np.ndarray, count: int, repeats: int) -> dict[str, list[float]]:
    """Distances between two random sets of `count` real pictures, at random and sharing no group."""
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {"halves": [], "halves that share no group": []}
    for _ in range(repeats):
        order = rng.permutation(len(features))
        size = min(count, len(order) // 2)
        found["halves"].append(frechet_distance(features[order[:size]], features[order[size : 2 * size]]))
        first = rng.random(groups.max() + 1)[groups] < 0.5
        sides = [rng.permutation(np.flatnonzero(side)) for side in (first, ~first)]
        size = min(count, *(len(side) for side in sides))
        one, other = (features[side[:size]] for side in sides)
        found["halves that share no group"].append(frechet_distance(one, other))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, default=Path("captions"))
    parser.add_argument("--each", type=int, default=2, help="samples of each held-out caption")
    parser.add_argument("--train", type=int, default=300, help="training captions that are asked for")
    parser.add_argument("--repeats", type=int, default=5, help="halvings of the real set")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--judge-steps", type=int, default=RetrievalConfig.steps)
    parser.add_argument("--pictures", help="the source that is drawn, where more was learned from")
    parser.add_argument("--guidance", help="another guidance than the bundle's")
    options = parser.parse_args()
    began = time.monotonic()
    bench = Bench(options.bundle)
    model, seen, train, held = bench.model, bench.train, bench.train, bench.held
    if options.pictures is not None:
        data = bench.recipe.data.model_copy(update={"source": options.pictures})
        train, held = read_data(bench.recipe.model_copy(update={"data": data}), model.domain)
        if held.sha256() != bench.held.sha256():
            parser.error(f"{options.pictures} holds out other pictures than {bench.recipe.data.source}")
    if options.guidance is not None:
        model.sampling = model.sampling.with_(guidance=build_guidance(options.guidance))

    def told(done: int, total: int) -> None:
        if done % 200 == 0 or done == total:
            print(f"  training the judge: {done} of {total}", flush=True)

    config = RetrievalConfig(steps=options.judge_steps)
    judge = retrieval_judge(train, held, config, cache_folder() / "features", told)
    for split in ("held_out", "training"):
        share, low, high = judge.record[f"{split}_accuracy"], *judge.record[f"{split}_interval"]
        print(f"the judge on real {split.replace('_', '-')} pictures: {share:.3f} [{low:.3f}, {high:.3f}]")
    record: dict[str, Any] = {"judge": judge.record, "measures": {}}

    def note(name: str, measure: Measure) -> None:
        record["measures"][name] = measure.to_json()
        floor = "" if measure.floor is None else f", real pictures {measure.floor:.3f}"
        print(f"{name}: {measure.value:.3f} [{measure.low:.3f}, {measure.high:.3f}]{floor}. {measure.note}")

    drawn: dict[str, tuple[ImageData, np.ndarray, torch.Tensor]] = {}
    spread = np.random.default_rng(0).permutation(one_each(train))[: options.train]
    for name, data, chosen, others in (
        ("held-out captions", held, np.repeat(one_each(held), options.each), others_of(train, held)),
        ("training captions", train, np.sort(spread), train.prompts(one_each(train))),
    ):
        prompts = data.prompts(chosen)
        samples = draw(model, prompts, options.seed)
        drawn[name] = data, chosen, samples
        note(name, judge.measure(samples, prompts, others, data.images[chosen]))

    matched = draw(model, held.prompts(), options.seed + 1)
    pixels = PixelFeatures(model.domain.shape)
    kinds: list[Features] = [bench.features] if bench.features.name != "pixels" else []
    pictures = np.concatenate([train.images, held.images])
    groups = np.concatenate([families(train), families(held) + families(train).max() + 1])
    # 3,072 pixels would cost minutes a distance
    for features in [*kinds, PixelFeatures(model.domain.shape, 12)]:
        real, own = in_batches(features, held.images)[0], in_batches(features, matched)[0]
        value = frechet_distance(own, real)
        some = floors(in_batches(features, pictures)[0], groups, len(held), options.repeats)
        each = {name: float(np.mean(values)) for name, values in some.items()}
        record["measures"][f"frechet, {features.name}"] = {
            "value": value,
            "count": len(held),
            "floors": each,
            "each": some,
            "times_floor": {name: value / floor for name, floor in each.items()},
            "features": features.card(),
        }
        print(
            f"frechet over {features.name}, {len(held)} samples and held-out pictures: {value:.4g}; "
            + ", ".join(f"{name} {floor:.4g} (x{value / floor:.2f})" for name, floor in each.items())
        )
    own_train, own_held = (in_batches(pixels, data.images)[0] for data in (seen, held))
    for name, samples in (
        ("held-out captions", matched),
        ("training captions", drawn["training captions"][2]),
    ):
        note(f"near-copies, {name}", copying(in_batches(pixels, samples)[0], own_held, own_train).measure)

    options.out.mkdir(parents=True, exist_ok=True)
    for name, (data, chosen, samples) in drawn.items():
        first = np.unique(chosen, return_index=True)[1][:24]
        rows = [
            torch.cat([data.tensor(chosen[i : i + 1]), samples[i : i + 1] * 2 - 1]) for i in first.tolist()
        ]
        sheet = model.domain.picture(torch.cat(rows), 2, data.prompts(chosen[first]))
        sheet.save(options.out / f"captions-{name.partition('-')[0].partition(' ')[0]}.png")
    record |= {
        "kind": "sfumato-captions",
        "model": model.info["sha256"],
        "data": {"train": bench.data_hash, "asked_for": train.sha256(), "held_out": held.sha256()},
        "sampling": {**model.sampling.to_json(), "seed": options.seed},
        "arguments": {key: str(value) for key, value in vars(options).items()},
        "versions": versions(),
        "seconds": round(time.monotonic() - began, 1),
    }
    write_json(options.out / "captions.json", record)
    print(f"{options.out / 'captions.json'}, {record['seconds']:.0f} s")


if __name__ == "__main__":
    main()
