"""Classifying noisy data: which class did x_t come from, at a random noise level.

    L = E_{x0, c, t, eps}  -log q(c | x_t, lambda_t),       x_t = alpha x_0 + sigma eps,

which is least where q is the posterior p(c | x_t), the one whose derivative turns an unconditional score into the
conditional one (`denoisers.score_guidance`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..errors import RecipeError
from ..noise import Draws
from .denoising import EPS, TIME, Batch
from .times import Times, Uniform


@dataclass(frozen=True)
class Classification:
    """Cross-entropy of a `Classifier` on noisy data; figures "log_snr" and "error", the share that it gets wrong.

    times: which noise levels are drawn. Raises RecipeError for data without labels.
    """

    times: Times = field(default_factory=Uniform)

    def __call__(self, denoiser: Any, batch: Batch, noise: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        x0, label = batch["x"], (batch.get("condition") or {}).get("label")
        if label is None:
            raise RecipeError("the objective 'classifier' needs data with labels")
        level = denoiser.process.level(self.times.sample(x0, denoiser.process.schedule, noise, TIME))
        logits = denoiser(denoiser.process.corrupt(x0, level, noise.normal(x0, EPS)), level)
        wrong = (logits.detach().argmax(1) != label).to(logits.dtype)
        return F.cross_entropy(logits, label, reduction="none"), {"log_snr": level.log_snr, "error": wrong}
