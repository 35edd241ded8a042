"""Classifier-free guidance: a denoiser around a denoiser (Ho & Salimans 2022, arXiv 2207.12598).

The score of p(x) p(c | x)^w is  (1 - w) score(x) + w score(x | c), and since every row is affine in the score with
the same coefficients on both branches, the same mixture holds for x0:

    x0_w = x0(x_t) + w (x0(x_t, c) - x0(x_t)).

w = 1 is the plain conditional and w = 0 the unconditional. Both branches are evaluated in one batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import SolverError
from ..processes import Level, Prediction
from .denoiser import Condition, Denoises, rows


def nothing(condition: Condition, classes: int) -> dict[str, Tensor]:
    """The same condition saying nothing: no label, no text, an empty picture."""
    empty: dict[str, Tensor] = {}
    for name, value in (condition or {}).items():
        if name == "label":
            empty[name] = torch.full_like(value, classes)
        elif name == "text":
            empty[name] = torch.zeros_like(value)
            empty["text_mask"] = torch.zeros(value.shape[:2], dtype=torch.bool, device=value.device)
        else:
            empty[name] = torch.zeros_like(value)
    return empty


class ClassifierFree(nn.Module):
    """x0_w = x0(x_t) + weight (x0(x_t, c) - x0(x_t)), both branches in one batch.

    classes: how many labels the model has; the label `classes` means "none".
    Without a condition, or with weight 1, it is the denoiser itself at the denoiser's cost.
    """

    def __init__(self, denoiser: Denoises, weight: float, classes: int):
        super().__init__()
        if not math.isfinite(weight):
            raise SolverError(f"a guidance weight must be finite, not {weight!r}")
        self.denoiser = denoiser
        self.process = denoiser.process
        self.weight = weight
        self.classes = classes

    def forward(self, x_t: Tensor, t: float | Tensor | Level, condition: Condition = None) -> Prediction:
        if not condition or self.weight == 1:
            return self.denoiser(x_t, t, condition)
        level = self.process.level(t)
        empty = nothing(condition, self.classes)
        mask = condition.get("text_mask")
        if "text" in condition and mask is None:
            mask = torch.ones_like(empty["text_mask"])
        given = {**condition, **({} if mask is None else {"text_mask": mask})}
        both = {name: torch.cat([value, empty[name]]) for name, value in given.items()}
        twice = Level(*(torch.cat([row, row]) for row in rows(level, x_t))) if _varies(level) else level
        joint = self.denoiser(torch.cat([x_t, x_t]), twice, both)
        conditional, unconditional = joint.value.chunk(2)
        value = unconditional + self.weight * (conditional - unconditional)
        variance = None if joint.variance is None else joint.variance.chunk(2)[0]
        return Prediction(value, joint.kind, joint.x_t.chunk(2)[0], level, self.process, variance)


def _varies(level: Level) -> bool:
    return isinstance(level.alpha, Tensor) and level.alpha.ndim > 0
