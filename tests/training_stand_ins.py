"""Tiny stand-ins for tests of training: network with dropout, objective, data; and a run in a process of its own."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sfumato.training import Callback, Trainer, TrainingConfig


class TinyDenoiser(nn.Module):
    """A convolution, dropout, a gain and a buffer, under the name `network` as a denoiser has it."""

    def __init__(self, width: int = 8, dropout: float = 0.1):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.network = nn.Sequential(
                nn.Conv2d(1, width, 3, padding=1), nn.GroupNorm(2, width), nn.SiLU(), nn.Dropout(dropout),
                nn.Conv2d(width, 1, 3, padding=1),
            )  # fmt: skip
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x, t):
        return self.network(x * self.scale) * t.reshape(-1, 1, 1, 1)


class TinyObjective:
    """Guess the noise at a uniform time; `poison` makes the loss nan from so many calls on."""

    def __init__(self, poison: int | None = None):
        self.poison, self.calls = poison, 0

    def __call__(self, denoiser, batch, noise):
        x = batch["x"]
        t = noise.uniform(x[:, 0, 0, 0], stream=0)
        eps = noise.normal(x, stream=2)
        guess = denoiser(x + t.reshape(-1, 1, 1, 1) * eps, t)
        error = (guess - eps).square().mean(dim=(1, 2, 3))
        self.calls += 1
        if self.poison is not None and self.calls > self.poison:
            error = error * torch.nan
        return error, {"log_snr": -4 * torch.logit(t.clamp(0.01, 0.99)), "error": error}


class TinyData:
    """Images whose flips are keyed on their position in the run."""

    def __init__(self, count: int = 50, size: int = 6):
        self.x = torch.from_numpy(
            np.random.default_rng(3).standard_normal((count, 1, size, size)).astype(np.float32)
        )

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices, seed, images_seen):
        positions = images_seen + np.arange(len(indices))
        flips = torch.from_numpy((positions * 2654435761 + seed) % 97 < 48)
        x = self.x[torch.from_numpy(indices)]
        x = torch.where(flips.reshape(-1, 1, 1, 1), x.flip(-1), x)
        return {"x": x, "condition": {"label": torch.from_numpy(np.asarray(indices) % 3)}}


class Told(Callback):
    """Keeps what it is told."""

    def __init__(self):
        self.messages, self.records, self.paths, self.steps, self.held = [], [], [], [], []

    def on_message(self, text):
        self.messages.append(text)

    def on_log(self, record):
        self.records.append(record)

    def on_checkpoint(self, path):
        self.paths.append(path)

    def on_step(self, *figures):
        self.steps.append(figures)

    def on_validate(self, held_out):
        self.held.append(held_out)


SMALL = {
    "images": 640,
    "batch": 16,
    "warmup": 64,
    "checkpoint_every": 64,
    "validate_every": 160,
    "log_every": 48,
}


def small(**changes) -> TrainingConfig:
    return TrainingConfig(**(SMALL | changes))


def trainer(
    folder: Path, config: TrainingConfig | None = None, *, objective=None, dropout=0.1, **more
) -> Trainer:
    return Trainer(TinyDenoiser(dropout=dropout), objective or TinyObjective(), TinyData(), config or small(), folder,
                   held_out=TinyData(20), **more)  # fmt: skip


class Slow(Callback):
    def on_step(self, *figures):
        time.sleep(0.01)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("ready", flush=True)
    result = trainer(Path(sys.argv[1]), callbacks=[Slow()]).fit()
    print(type(result).__name__, result.images, flush=True)
