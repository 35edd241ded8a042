"""What a run comes to, and what is kept of one that stopped being finite."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sfumato.files import folder_atomically, opened

from .config import TrainingConfig
from .order import Order, TrainingData
from .step import NonFinite
from .tensors import write_safetensors


@dataclass(frozen=True)
class TrainingResult:
    """What a run came to.

    images, seconds: over all sessions of the run. held_out: the last held-out loss, if measured. checkpoint:
    the last one. best: the one with the lowest held-out loss. weights: the denoiser's state dict with the
    first average in it.
    """

    images: int
    seconds: float
    held_out: float | None
    checkpoint: Path
    best: Path | None
    weights: dict[str, Tensor] = field(repr=False)


@dataclass(frozen=True)
class Interrupted(TrainingResult):
    """The result of a run that SIGINT or SIGTERM ended early, after saving a checkpoint."""

    signal: str = "SIGINT"


def save_offender(
    folder: Path, trouble: NonFinite, data: TrainingData, order: Order, config: TrainingConfig
) -> Path:
    """Write the batch of a step that was not finite, with the key of its noise; returns where. Raises
    OSError.

    The batch is made anew: it is a function of its key, and so is the noise, BatchNoise(seed, step), of which
    rows [start, start + n) of `total` were used.
    """
    start, _ = order.span(config.batch)
    indices = order.indices(trouble.images, config.batch)
    batch = data.batch(indices, config.seed, trouble.images + start)
    condition = {f"condition/{name}": t for name, t in (batch.get("condition") or {}).items()}
    noise = {"seed": config.seed, "step": trouble.images, "start": start, "total": config.batch}
    about = {
        "images_seen": trouble.images,
        "loss": str(trouble.loss),
        "grad_norm": str(trouble.norm),
        "noise": noise,
    }
    path = folder / f"{trouble.images:09d}"
    with folder_atomically(path) as aside:
        with opened(aside / "batch.safetensors") as file:
            x = batch["x"]
            state = {f"x/{name}": leaf for name, leaf in x.items()} if isinstance(x, Mapping) else {"x": x}
            write_safetensors(file, {**state, "indices": torch.from_numpy(indices), **condition})
        with opened(aside / "batch.json") as file:
            file.write(json.dumps(about, indent=1).encode())
    return path
