"""Directions in the bottleneck of a trained model: do they change something, one way, and is the picture still one?

    python benchmarks/directions.py BUNDLE      a minute or two; the first time longer, for the classifier

The same samples are drawn at five strengths along each of a few directions, found by each method, and along random ones
of the same lengths, for comparison. For each: the attribute that changes most and by how much (in its deviations among
the plain samples), in how many samples it moves one way at every step, and, by the recipe's own classifier, the mean
probability of the class that was asked for, at the lowest strength, at none, and at the highest.
"""

from __future__ import annotations

import argparse
import dataclasses

import torch

from sfumato.evaluation.direction_effects import effects, sweep
from sfumato.evaluation.directions import find_directions
from sfumato.noise import Noise
from sfumato.recipes.bench import Bench

STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("bundle")
    words.add_argument("--samples", type=int, default=64, help="to find directions from")
    words.add_argument("--shown", type=int, default=20, help="to try them on")
    words.add_argument("--steps", type=int, default=8)
    words.add_argument("--count", type=int, default=3)
    words.add_argument("--rounds", type=int, default=8, help="of the power iteration")
    given = words.parse_args()
    bench = Bench(given.bundle)
    model, classifier = bench.model, bench.features

    def asked(count):
        return {"label": [k % len(model.classes) for k in range(count)]}

    settings = {"solver": "dpm++2m", "steps": given.steps, "guidance": 1.0}
    x0 = model.sample(given.samples, condition=asked(given.samples), **settings)
    condition = model.conditions.tensors(asked(given.samples), given.samples)
    few = min(given.samples, 12)  # a Jacobian costs much more than features
    part = {name: value[:few] for name, value in condition.items()}
    pca = find_directions(model.denoiser, x0, given.count, method="pca", condition=condition)
    steep = find_directions(model.denoiser, x0[:few], given.count, condition=part, rounds=given.rounds)
    draws = Noise(1, given.count).normal(pca.vectors).flatten(1)
    chance = torch.linalg.qr(draws.mT)[0].mT.reshape(pca.vectors.shape)
    # a length of one deviation along a direction that features hardly move along is hardly a step
    every = {
        "pca": pca,
        "jacobian": steep,
        "jacobian, pca's lengths": dataclasses.replace(steep, deviations=pca.deviations),
        "random, pca's lengths": dataclasses.replace(pca, vectors=chance),
    }
    print(f"classifier: {classifier.accuracy:.1%} of held-out pictures right")
    print(f"pca: {pca.about}; jacobian: {steep.about}, singular values {[f'{v:.3f}' for v in steep.values]}")
    print("| method | direction | length | attribute | change | moves one way in | p(class) at -1, 0, 1 |")
    print("| --- | ---: | ---: | --- | ---: | ---: | --- |")
    for name, found in every.items():
        swept = sweep(model, found, STRENGTHS, given.shown, condition=asked(given.shown), **settings)
        for row, told in zip(swept, effects(swept, STRENGTHS), strict=True):
            first = told[0]
            labels = torch.tensor(asked(given.shown)["label"])
            each = [classifier(model.domain.decode(row[k]))[1] for k in (0, 2, 4)]
            shares = ", ".join(f"{p.gather(1, labels[:, None]).mean():.2f}" for p in each)
            length = float(found.deviations[first.direction])
            print(
                f"| {name} | {first.direction} | {length:.1f} | {first.attribute} | {first.change:+.2f} | "
                f"{first.monotone:.0%} | {shares} |"
            )


if __name__ == "__main__":
    main()
