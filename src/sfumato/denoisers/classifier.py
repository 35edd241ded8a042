"""A classifier of noisy data: log p(c | x_t) at every noise level, whose derivative guides (`score_guidance`).

It is a network and a process like a denoiser, is given the same input of unit size and the same number for the level,
and answers logits (batch, classes). Training it on x_t at random levels by cross-entropy makes it the posterior
p(c | x_t) of its data; trained on clean data alone its derivative would say nothing about noisy ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SolverError
from ..processes import Gaussian, Level, Rows
from .denoiser import Condition, noise_level


class Classifier(nn.Module):
    """Logits (batch, classes) of x_t (batch, ...) at a noise level; `log_probability` is a score for `ScoreGuided`.

    network: (x, noise_level (batch,)) -> (batch, classes). Raises SolverError for a process that is not Gaussian.
    """

    parameterisation = "class"  # what stands in a bundle where a denoiser has its row
    learned_variance = False

    def __init__(self, network: nn.Module, process: Rows):
        super().__init__()
        if not isinstance(process, Gaussian):
            raise SolverError(
                f"a noise-aware classifier needs a gaussian process, not {type(process).__name__}"
            )
        self.network = network
        self.process: Any = process

    def forward(self, x_t: Tensor, t: float | Tensor | Level, condition: Condition = None) -> Tensor:
        level = self.process.level(t)
        scaled, _ = self.process.view(x_t, level)
        return self.network(scaled, noise_level(level, x_t).to(x_t.dtype)).to(x_t.dtype)

    def log_probability(self, x_t: Tensor, level: Level, condition: Condition) -> Tensor:
        """log p(label | x_t), (batch,); 0 for the label that means none. Raises SolverError without a label."""
        if not condition or "label" not in condition:
            raise SolverError('a classifier guides towards a label: give a condition={"label": ...}')
        chances, label = self(x_t, level).log_softmax(1), condition["label"]
        own = chances.gather(1, label.clamp(max=chances.shape[1] - 1)[:, None])[:, 0]
        return torch.where(label < chances.shape[1], own, torch.zeros_like(own))
