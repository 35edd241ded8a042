"""Latent against pixel diffusion at equal wall-clock: when the latent run reaches the pixel run's final distance.

    python benchmarks/latent.py --source emoji --held-out test --channels 3 --minutes 60
    python benchmarks/latent.py --source fashion-mnist --channels 1 --minutes 20 --codec-minutes 10

A codec is trained first (factor 4, 8 times fewer numbers). Then the two diffusion models are trained in turns, a slice
of the clock each, so that a machine that is busy is busy for both; after each slice its averaged weights are judged:
Fréchet distance of samples from training pictures, the floor being that of held-out ones. Bar: the latent run is at the
pixel run's last distance in at most half the time. The codec's own time,
with that of making the latents once, is printed, and the ratio with it included.

Both networks are U-Nets of the same width whose arithmetic is at the same two resolutions, size / 4 and size / 8; the
pixel one has a finer level above them. Learning rates are constant, so that no end is better than another.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from pathlib import Path
from typing import Any

import torch

from sfumato.bundle import load_codec
from sfumato.evaluation.evaluate import Judge, Settings
from sfumato.evaluation.features import build_features
from sfumato.evaluation.receipts import machine, versions
from sfumato.recipes import recipe_from
from sfumato.recipes.bench import _Labelled, labels_like
from sfumato.recipes.codec import LatentData, write_codec
from sfumato.recipes.run import _about, read_data, train
from sfumato.training import Callback, Interrupted

NEVER = 10**9  # images: the clock ends these runs


class Until(Callback):
    """Ends a run after so many seconds of its own clock, as Ctrl-C would: saved, and to be gone on with."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.began: float | None = None

    def on_step(self, images: int, total: int, loss: float, speed: float, left: float) -> None:
        self.began = time.monotonic() if self.began is None else self.began
        if time.monotonic() - self.began >= self.seconds:
            self.seconds = float("inf")
            signal.raise_signal(signal.SIGINT)


def recipes(given: argparse.Namespace) -> dict[str, Any]:
    """The codec's recipe, the latent one and the pixel one."""
    data = {
        "source": given.source,
        "held_out": given.held_out,
        "size": given.size,
        "channels": given.channels,
        "crop": "center",
        "captions": "none",
    }
    training = {
        "images": NEVER, "batch": given.batch, "optimizer": "muon", "learning_rate": 1e-3, "warmup": 2_000,
        "ema": [0.1], "channels_last": True, "checkpoint_every": 0, "validate_every": 0, "log_every": 1_000,
        "precision": given.precision,
    }  # fmt: skip
    diffusion = {
        "data": data, "training": training,
        "objective": {"times": {"kind": "logit-normal", "mean": 0.0, "std": 1.0}},
        "sampling": {"steps": 12}, "evaluation": {"features": given.features},
    }  # fmt: skip
    width = given.width
    latent_channels = max(round(16 * given.channels / 8), 1)
    codec = {
        "name": "codec", "data": data, "training": {**training, "batch": min(given.batch, 32)},
        "network": {"kind": "autoencoder", "patch": 2, "width": width, "multipliers": [1, 2], "blocks": [1, 2],
                    "latent_channels": latent_channels},
        "objective": {"kind": "autoencoder", "losses": {"features": "random", "adversarial": given.adversarial}},
        "evaluation": {"features": given.features},
    }  # fmt: skip
    unet = {"kind": "unet", "width": width}
    return {
        "codec": codec,
        "latent": {"name": "latent", **diffusion, "codec": {"bundle": str(given.work / "codec" / "model")},
                   "network": {**unet, "patch": 1, "multipliers": [1, 2], "blocks": [2, 4]}},
        "pixel": {"name": "pixel", **diffusion,
                  "network": {**unet, "patch": 2, "multipliers": [1, 1, 2], "blocks": [1, 2, 4]}},
    }  # fmt: skip


def train_codec(given: argparse.Namespace, values: dict[str, Any]) -> float:
    """Train the codec by the clock and write its bundle; returns its seconds."""
    recipe = recipe_from(values)
    codec, result = train(
        recipe, given.work / "codec", resume=True, callbacks=[Until(60 * given.codec_minutes)]
    )
    if isinstance(result, Interrupted):
        data, held = read_data(recipe)
        write_codec(codec, recipe, _about(recipe, data, held, result), held, given.work / "codec")
    return result.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="fashion-mnist")
    parser.add_argument(
        "--held-out", default=0.1, type=lambda text: float(text) if text[0].isdigit() else text
    )
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--features", default="efficientnet-lite0")
    parser.add_argument("--minutes", type=float, default=20, help="of each of the two diffusion trainings")
    parser.add_argument("--codec-minutes", type=float, default=10)
    parser.add_argument("--slices", type=int, default=8, help="turns of each")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--adversarial", type=float, default=0.1)
    parser.add_argument("--work", type=Path, default=Path("benchmarks/results/latent"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/latent.json"))
    given = parser.parse_args()
    every = recipes(given)
    spent = train_codec(given, every.pop("codec"))
    train_data, held = read_data(recipe_from(every["pixel"]))
    began = time.monotonic()
    LatentData.of(train_data, load_codec(given.work / "codec" / "model"))
    encoding = time.monotonic() - began
    print(f"codec: {spent:.0f} s; making the latents once: {encoding:.0f} s")
    spent += encoding
    features = build_features(
        given.features, train=_Labelled(train_data), held=_Labelled(held), folder=given.work / "features"
    )
    judge = Judge(_Labelled(train_data), _Labelled(held), features, Settings(resamples=0))
    curves: dict[str, list[dict[str, float]]] = {name: [] for name in every}
    for turn in range(given.slices):
        # whoever goes first in one turn goes second in the next
        for name in list(every)[:: 1 if turn % 2 else -1]:
            until = Until(60 * given.minutes / given.slices)
            model, result = train(recipe_from(every[name]), given.work / name, resume=True, callbacks=[until])

            def draw(n: int, model: Any = model) -> tuple[torch.Tensor, Any]:
                labels = labels_like(train_data, n) if model.classes else None
                condition = None if labels is None else {"label": labels}
                return model.domain.decode(model.sample(n, condition=condition, batch=100)), labels

            (found,) = judge(draw, ["frechet"], given.samples)
            assert found.floor is not None
            point = {"seconds": result.seconds, "images": result.images, "frechet": found.value}
            curves[name].append(point | {"floor": found.floor})
            print(f"{name}: {result.seconds:.0f} s, {result.images} images, {found}", flush=True)
    last = curves["pixel"][-1]
    reached = next((p["seconds"] for p in curves["latent"] if p["frechet"] <= last["frechet"]), None)
    result = {
        "codec seconds": spent,
        "curves": curves,
        "reached": reached,
        "versions": versions(),
        "machine": machine(),
    }
    asked = {name: str(value) for name, value in vars(given).items() if name not in ("work", "out")}
    result |= {"settings": asked}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1))
    if reached is None:
        print(f"the latent run did not reach the pixel run's {last['frechet']:.4g}: missed")
        return
    ratio, whole = reached / last["seconds"], (reached + spent) / last["seconds"]
    print(
        f"reached after {ratio:.2f} of the pixel run's time (bar .5): {'reached' if ratio <= 0.5 else 'missed'}"
    )
    print(f"with the codec's own training: {whole:.2f}")


if __name__ == "__main__":
    main()
