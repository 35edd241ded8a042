"""The denoising loss: guess what was mixed with noise, at a random noise level.

    L = E_{x0, t, eps}  w(lambda_t) || y(x_t) - y ||^2 / dim,       x_t = alpha x_0 + sigma eps,  y = a x_0 + b eps

with y the row that the network predicts and w the weighting turned into that row, so that the network's own error is
all that is ever computed: no division by a small sigma. Any such loss is minimised by E[y | x_t]; the weighting and
the distribution of times only say where a network of finite size should spend itself (Kingma & Gao 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..denoisers import Condition, Denoiser
from ..denoisers.guidance import nothing
from ..errors import RecipeError
from ..noise import Draws
from ..processes import Level
from .times import Times, Uniform
from .weighting import Plain, Weighting

Batch = Mapping[str, Any]  # {"x": (batch, ...), "condition": {"label": (batch,), ...}}


class Objective(Protocol):
    """What training minimises: a loss per example (batch,), and figures (batch,) to log."""

    def __call__(
        self, denoiser: Denoiser, batch: Batch, noise: Draws
    ) -> tuple[Tensor, dict[str, Tensor]]: ...


# Streams of one step's noise, so that no two uses share numbers.
EPS, TIME, STRATA, DROP, START = range(5)


def drop_condition(condition: Condition, share: float, classes: int, noise: Draws) -> Condition:
    """The condition with a share of its rows saying nothing, which is what classifier-free guidance needs."""
    if not condition or share == 0:
        return condition
    rows = next(iter(condition.values()))
    drop = noise.uniform(torch.empty(len(rows), device=rows.device), DROP) < share
    empty = nothing(condition, classes)
    full = {**condition}
    if "text_mask" in empty and "text_mask" not in full:
        full["text_mask"] = torch.ones_like(empty["text_mask"])
    return {
        name: torch.where(drop.reshape(-1, *[1] * (value.ndim - 1)), empty[name], value)
        for name, value in full.items()
    }


@dataclass(frozen=True)
class Denoising:
    """The denoising loss.

    weighting: the weight of each noise level. times: which levels are drawn. drop: share of examples whose condition
    is dropped, so that the model can also be sampled without one. classes: the model's number of labels.
    Figures: "log_snr" and "error", the mean squared error in v, whose value at a noise level is comparable between
    parameterisations.
    """

    weighting: Weighting = field(default_factory=lambda: Plain("velocity"))
    times: Times = field(default_factory=Uniform)
    drop: float = 0.0
    classes: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.drop <= 1:
            raise RecipeError(f"the share of dropped conditions must lie in [0, 1], not {self.drop!r}")

    def __call__(self, denoiser: Denoiser, batch: Batch, noise: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        x0, process = batch["x"], denoiser.process
        level = process.level(self.times.sample(x0, process.schedule, noise, TIME))
        x_t, x0, eps = self.noised(process, x0, level, noise)
        condition = drop_condition(batch.get("condition"), self.drop, self.classes, noise)
        prediction = denoiser(x_t, level, condition)
        squared = self.error(prediction, x0, eps)
        loss = self.weighting.in_row(prediction.kind, level, process).to(squared.dtype) * squared
        gain = process.gain(prediction.kind, "v", level)
        figures = {
            "log_snr": level.log_snr.detach(),
            "error": squared.detach() * (gain * gain).to(squared.dtype),
        }
        return loss, figures

    def noised(self, process: Any, x0: Tensor, level: Level, noise: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """A state at a level, and the (x_0, eps) that its rows are made of."""
        eps = noise.normal(x0, EPS)
        return process.corrupt(x0, level, eps), x0, eps

    @staticmethod
    def error(prediction: Any, x0: Tensor, eps: Tensor) -> Tensor:
        """Mean squared error (batch,) in the row that was predicted."""
        a, b = prediction.process.row(prediction.kind, prediction.level)
        target = _scaled(a, x0) + _scaled(b, eps)
        return (prediction.value - target).square().flatten(1).mean(1)


def _scaled(coefficient: Any, x: Tensor) -> Tensor:
    if isinstance(coefficient, Tensor):
        return coefficient.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) * x
    return coefficient * x
