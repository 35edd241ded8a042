"""Remembering: old pictures mixed in while a model is taught new ones, and what it forgot all the same.

Nothing in the loss of the new pictures says that the old ones should stay as they are. Prior preservation (DreamBooth,
Ruiz et al. 2022, arXiv:2208.12242, eq. 2) adds the old loss, on samples that the model drew before, or on its own
training data. Here a share p of all that is shown is old, which is eq. 2 with lambda = p / (1 - p). What was forgotten
is measured, whatever p: the loss on fresh samples of the old model, of the new model less of the old one, in pairs with
the same noise.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..domains.captions import TABLES
from ..domains.image_data import ImageData, keyed_words
from ..domains.source import Source
from ..errors import DataError
from ..files import write_atomically
from ..model import Model
from ..objectives import Objective
from ..training.order import Stratified, mixed
from .recipe import recipe_from
from .run import read_data

if TYPE_CHECKING:
    from .finetune import Finetuning

_PRIOR = 0x9810  # a stream of the keyed words
MEASURED = 64  # samples of the old model that forgetting is measured on


@dataclass(frozen=True)
class Mixed:
    """Training data of which a share is other data: rows are own or prior by one keyed word a position."""

    own: Any
    prior: Any
    share: float

    def __len__(self) -> int:
        return len(self.own)

    def batch(self, indices: Any, seed: int = 0, images_seen: int = 0) -> dict[str, Any]:
        """As `ImageData.batch`; row i is one of `prior` if word(seed, images_seen + i) says so."""
        batch = self.own.batch(indices, seed, images_seen)
        words = keyed_words(seed, _PRIOR, images_seen, len(indices))
        rows = np.flatnonzero((words >> np.uint64(32)).astype(np.float64) < self.share * 2.0**32)
        low = words[rows] & np.uint64(0xFFFFFFFF)
        other = self.prior.batch(
            (low * np.uint64(len(self.prior)) >> np.uint64(32)).astype(np.int64), seed, images_seen
        )
        where = torch.from_numpy(rows)
        batch["x"][where] = other["x"]
        if "condition" in batch:
            batch["condition"] = {name: value.clone() for name, value in batch["condition"].items()}
            for name, value in batch["condition"].items():
                value[where] = other["condition"][name]
        return batch


def prior_data(parts: Finetuning, out: Path, say: Callable[[str], None]) -> ImageData | None:
    """What is mixed in so that the model remembers: its samples, drawn once and kept in the run, or its own data."""
    asked = parts.recipe.finetune
    if asked is None or not asked.prior:
        return None
    model, domain = parts.model, parts.data.domain
    if asked.prior_from == "data":
        if not (kept := model.info.get("recipe")):
            raise DataError("the model does not say what it was trained on: take prior_from = 'samples'")
        found = read_data(recipe_from(kept, "the model's recipe"), model.domain)[0]
    else:
        folder = out / "prior"
        told = parts.data.texts is None or (folder / TABLES[0]).is_file()  # written when all pictures are
        if not told or len(list(folder.glob("*.png"))) < asked.prior_count:
            say(f"drawing {asked.prior_count} samples of the model as it is")
            x, condition = drawn(model, asked.prior_count, mixed(parts.recipe.training.seed, 7))
            files = model.domain.write(x, folder, condition.get("label"))
            if texts := condition.get("text"):
                rows = (
                    {"file_name": file.name, "text": text} for file, text in zip(files, texts, strict=True)
                )
                write_atomically(folder / TABLES[0], "".join(json.dumps(row) + "\n" for row in rows).encode())
        found = replace(model.domain, crop="none").read(
            Source(path=folder, labels="auto" if model.classes else "none")
        )
    if parts.data.texts is not None:
        found = found.encoded()
    return replace(found, domain=replace(domain, crop=found.domain.crop))


def drawn(model: Model, count: int, seed: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """Unguided samples of a model, of what it shows itself by in turn (`Conditions.in_turn`), and what was asked."""
    condition = model.conditions.in_turn(count) or {}
    return model.sample(count, condition=condition or None, seed=seed, guidance=1.0), condition


@torch.no_grad()
def forgetting(before: Model, after: Model, objective: Objective, seed: int = 0) -> dict[str, float]:
    """What a model lost of what it knew: its loss on fresh samples of the model before, less that model's own loss.

    Pairs with the same noise at evenly spread levels; "low" and "high" are the ends of the 95 % interval of the mean
    difference.
    """
    x, condition = drawn(before, MEASURED, mixed(seed, 8))
    x = before.codec.encode(x)
    asked = before.conditions.tensors(condition, len(x)) if condition else None
    batch: dict[str, Any] = {"x": x}
    if asked:
        batch["condition"] = {name: value.to(x.device) for name, value in asked.items()}
    noise = Stratified(mixed(seed, 9), 0, len(x))
    old, new = (objective(model.denoiser, batch, noise)[0].double() for model in (before, after))
    mean, error = float((new - old).mean()), float((new - old).std()) / len(x) ** 0.5
    return {
        "before": float(old.mean()),
        "after": float(new.mean()),
        "difference": mean,
        "low": mean - 1.96 * error,
        "high": mean + 1.96 * error,
        "samples": len(x),
    }
