"""Classifier-free guidance and its kin as a denoiser around a denoiser; `guidance` derives what it computes.

All branches (the condition, its base, further conditions) are rows of one call, (branches x batch, ...). Two branches
that say the same are one, and where nothing is guided there is one branch, the plain one. Of symbols it mixes the
log-chances, without repairs, which are for numbers.

**A weaker model as the base** (autoguidance, Karras et al. 2024, arXiv 2406.02507): with x0_b the answer of a worse
model to the same condition, (1) moves away from the errors that the two share. That costs a call of either network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SolverError
from ..processes import CategoricalPrediction, Level, Prediction
from ..processes.gaussian import fit
from .denoiser import Condition, Denoises, rows
from .guidance import Guidance, build_guidance, nothing


class ClassifierFree(nn.Module):
    """x0_w = x0_b + weight (x0_c - x0_b) + sum_k w_k (x0_k - x0_b), repaired as `Guidance` says, in one batched call.

    weight: a number, a `Guidance` or its text. classes: how many labels the model has; the label `classes` means
    "none". negative: the condition of the base, one row, None for none. also: the conditions, one row each, of the
    guidance's further terms. weak: a worse denoiser of the same process, whose answer to the condition is the base.
    Without a condition, with weight 1, or outside the interval, it is the denoiser itself at the denoiser's cost.
    Raises SolverError for words that are no tensors yet (`Model.guided` makes them), or where the weight overflows.
    """

    guides = True

    def __init__(
        self,
        denoiser: Denoises,
        weight: float | str | Guidance,
        classes: int,
        *,
        negative: Condition = None,
        also: Sequence[Mapping[str, Tensor]] = (),
        weak: Denoises | None = None,
    ):
        super().__init__()
        built = build_guidance(weight)
        self.guidance = built if isinstance(built, Guidance) else Guidance(built)
        if (self.guidance.negative and not negative) or len(self.guidance.also) != len(also):
            raise SolverError(
                "the negative and further conditions of a guidance are given as tensors too, negative={..}, "
                "also=[{..}, ..]: Model.guided makes them of its words"
            )
        if weak is not None and negative:
            raise SolverError("a weaker model is a base already: it takes no negative condition beside it")
        if weak is not None and weak.process != denoiser.process:
            raise SolverError("a weaker model guides one of the same process; these two differ")
        self.denoiser, self.weak = denoiser, weak
        self.process = denoiser.process
        self.weight = self.guidance.weight
        self.classes = classes
        self.negative, self.also = negative, list(also)
        self.guides = not self.guidance.idle

    def forward(self, x_t: Tensor, t: float | Tensor | Level, condition: Condition = None) -> Prediction:
        level = self.process.level(t)
        inside = self.guidance.inside(level)
        different = bool(condition or self.negative or self.also or self.weak)
        if not different or not self.guides or not bool(torch.as_tensor(inside).any()):
            return self.denoiser(x_t, level, condition)
        alone = self.weak is not None or not (condition or self.negative)  # the base is no branch of its own
        branches = [condition, *([] if alone else [self.negative]), *self.also]
        joint = self.denoiser(
            torch.cat([x_t] * len(branches)),
            _repeated(level, x_t, len(branches)),
            stacked(branches, len(x_t), self.classes, x_t.device),
        )
        parts = [
            replace(joint, value=value, x_t=joint.x_t[: len(x_t)], level=level)
            for value in joint.value.chunk(len(branches))
        ]
        own, others = parts[0], parts[1 if alone else 2 :]
        base = own if alone else parts[1]
        if self.weak is not None:
            base = self.weak(x_t, level, condition)
        linear, kind = self.guidance.linear, joint.kind if self.guidance.linear else "x0"
        mix = self.guidance.mixed if linear else self.guidance.repaired
        value = mix(own.to(kind), base.to(kind), [other.to(kind) for other in others])
        if not bool(value.detach().sum().isfinite()):
            raise SolverError(
                f"the prediction under guidance {self.guidance} is not finite at log-SNR {level.log_snr}: "
                "the weight overflows, give a smaller one"
            )
        if isinstance(inside, Tensor):
            value = torch.where(fit(inside.double(), value) > 0, value, own.to(kind))
        if isinstance(own, CategoricalPrediction):
            return replace(own, value=value)  # which makes chances of it
        variance = None if joint.variance is None else joint.variance[: len(x_t)]
        return Prediction(value, kind, own.x_t, level, self.process, variance)


def stacked(
    branches: Sequence[Condition], count: int, classes: int, device: torch.device
) -> dict[str, Tensor] | None:
    """Conditions of (count, ...) or one row each as one of (branches x count, ...); what a branch lacks says nothing.

    Texts of different lengths are padded with hidden tokens. None where no branch says anything.
    """
    full: list[dict[str, Tensor]] = []
    for branch in branches:
        own = {name: value.to(device) for name, value in (branch or {}).items()}
        own = {
            name: value.expand(count, *value.shape[1:]) if len(value) == 1 else value
            for name, value in own.items()
        }
        if "text" in own and "text_mask" not in own:
            own["text_mask"] = torch.ones(own["text"].shape[:2], dtype=torch.bool, device=device)
        full.append(own)
    like = {name: value for own in full for name, value in own.items()}
    if not like:
        return None
    longest = max((own["text"].shape[1] for own in full if "text" in own), default=0)
    empty = nothing(like, classes)
    found: dict[str, list[Tensor]] = {name: [] for name in like}
    for own in full:
        for name, values in found.items():
            value = own.get(name, empty[name])
            if name in ("text", "text_mask") and value.shape[1] < longest:
                value = F.pad(value, (*[0] * (2 * (value.ndim - 2)), 0, longest - value.shape[1]))
            values.append(value)
    return {name: torch.cat(values) for name, values in found.items()}


def _repeated(level: Level, x_t: Tensor, times: int) -> Level:
    if isinstance(level.alpha, Tensor) and level.alpha.ndim > 0:
        return Level(*(torch.cat([row] * times) for row in rows(level, x_t)))
    return level
