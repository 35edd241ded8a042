"""The held-out loss: the same examples, the same noise, evenly spread noise levels, averaged weights.

What moves between two measurements is then the weights alone. Its standard error over examples says what of a
change to believe. Memory that runs out here halves the batch, which does not change the result, and never
ends the training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from .config import TrainingConfig
from .logbook import Bins
from .order import Stratified, TrainingData, mixed, moved
from .step import Objective, Precision, out_of_memory


@dataclass(frozen=True)
class HeldOut:
    """A measurement: mean loss an example, its standard error, examples, and the error by noise level
    (`Bins.rows`)."""

    images: int
    loss: float
    error: float
    count: int
    by_noise: list[dict[str, float | None]]

    def record(self) -> dict[str, Any]:
        """As a line of the log."""
        return {
            "images": self.images,
            "held_out": {
                "loss": self.loss,
                "error": self.error,
                "count": self.count,
                "by_noise": self.by_noise,
            },
        }


@torch.no_grad()
def held_out_loss(
    denoiser: nn.Module,
    objective: Objective,
    data: TrainingData,
    config: TrainingConfig,
    device: torch.device,
    images: int = 0,
) -> HeldOut:
    """Measure a denoiser (in evaluation mode) on held-out data: the first `validate_images` of a keyed
    permutation.

    Raises what the network raises, also if memory runs out for a single example.
    """
    count = min(config.validate_images, len(data))
    seed = mixed(config.seed, 5)
    chosen = np.sort(np.random.Generator(np.random.Philox(seed)).permutation(len(data))[:count])
    size = min(config.micro_batch or config.batch, count)
    while True:
        try:
            return _measure(
                denoiser,
                objective,
                data,
                chosen,
                size,
                seed,
                Precision(config.precision, device),
                device,
                images,
            )
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not out_of_memory(error):
                raise
            size = math.ceil(size / 2)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _measure(
    denoiser: nn.Module,
    objective: Objective,
    data: TrainingData,
    chosen: np.ndarray,
    size: int,
    seed: int,
    precision: Precision,
    device: torch.device,
    images: int,
) -> HeldOut:
    bins = Bins(device)
    losses: list[torch.Tensor] = []
    for start in range(0, len(chosen), size):
        batch = moved(data.batch(chosen[start : start + size], seed, start), device)
        with precision.cast():
            loss, figures = objective(denoiser, batch, Stratified(seed, start, len(chosen)))
        losses.append(loss.double())
        bins.add(figures)
    every = torch.cat(losses)
    spread = every.std().item() / math.sqrt(len(every)) if len(every) > 1 else math.nan
    return HeldOut(images, every.mean().item(), spread, len(every), bins.rows())


class Report:
    """Runs work that must not end the training, and says what went wrong if something did."""

    def __init__(self, report: Callable[[str], None], device: torch.device):
        self._report, self._device = report, device

    def attempt(self, what: str, work: Callable[[], Any]) -> Any:
        """work(), or None with a report if it raised."""
        try:
            return work()
        except Exception as error:
            cause = "memory ran out" if out_of_memory(error) else f"{type(error).__name__}: {error}"
            self._report(f"{what} failed and was left out: {cause}")
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        return None
