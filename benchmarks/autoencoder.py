"""How much a codec loses: held-out pictures that it gives back, against the floor between real pictures.

    python benchmarks/autoencoder.py runs/emoji-codec-128/model

Reconstructions of held-out pictures, and these pictures themselves, are each compared with the same training pictures;
their ratio is the figure (bar: 1.3, at 8 times fewer numbers). The other floor is between two random halves of the
training pictures, cut to as many as are held out. Distances are Fréchet's over EfficientNet-Lite0's last features, and
over pixels averaged to at most 16×16, which no loss was trained by.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from sfumato.evaluation.efficientnet import EfficientNetFeatures
from sfumato.evaluation.features import PixelFeatures, in_batches
from sfumato.evaluation.metrics import frechet_distance
from sfumato.evaluation.receipts import machine, versions
from sfumato.recipes.codec import compression, part_of, reconstruction
from sfumato.recipes.judge_codec import CodecBench

BAR, FEWER = 1.3, 8


def halves(images: np.ndarray, features: object, count: int) -> float:
    """The distance between two random halves of some pictures, `count` of each at most."""
    order = np.random.default_rng(1).permutation(len(images))
    half = min(len(images) // 2, count)
    a, b = (in_batches(features, images[part])[0] for part in (order[:half], order[half : 2 * half]))
    return frechet_distance(a, b)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--samples", type=int, default=2000, help="held-out pictures at most")
    parser.add_argument("--reference", type=int, default=5000, help="training pictures at most")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/autoencoder.json"))
    given = parser.parse_args()
    bench = CodecBench(given.bundle)
    codec, domain = bench.model.codec, bench.model.domain
    held, reference = part_of(bench.held, given.samples), part_of(bench.train, given.reference)
    fewer = compression(codec, domain)
    result: dict[str, object] = {
        "bundle": bench.model.info["sha256"], "data": bench.data_hash, "times fewer numbers": fewer,
        "held out": len(held), "reference": len(reference), "losses": bench.recipe.objective.losses.model_dump(),
        "versions": versions(), "machine": machine(),
    }  # fmt: skip
    print(f"{fewer:.3g} times fewer numbers, {len(held)} held-out pictures against {len(reference)}")
    channels, height, width = domain.shape
    for features in (EfficientNetFeatures(), PixelFeatures((channels, height, width), 16)):
        figures = {m.name: m for m in reconstruction(codec, held, reference, features)}
        found = figures["frechet"]
        assert found.floor is not None
        between = halves(reference.images, features, len(held))
        ratio = found.value / found.floor
        result[features.name] = {
            "measures": [m.to_json() for m in figures.values()],
            "halves": between,
            "ratio": ratio,
        }
        print(f"{features.name}: {found}; between halves {between:.4g}; {ratio:.3f} times the floor")
        if features.name == "efficientnet-lite0":
            print(f"{figures['PSNR']}; {figures['absolute error']}")
            met = ratio <= BAR and fewer >= FEWER
            print(f"bar: {BAR} times the floor at {FEWER} times fewer: {'reached' if met else 'missed'}")
            if result["losses"]["features"] == "efficientnet-lite0":  # type: ignore[index]
                print("note: the codec was trained by early features of this network, which flatter it here")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
