"""Which noise levels training looks at: distributions of time, given by their quantile functions.

A distribution is t = Q(u) for a uniform u, so that any of them can be drawn with low discrepancy: instead of n
independent uniforms, u_i = (u_0 + i / n) mod 1 with one u_0 (Kingma et al. 2021, VDM, appendix I.1). Each u_i is
still uniform, so the loss keeps its expectation, and its variance over a batch falls.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import RecipeError, choose
from ..noise import Draws, Strata
from ..processes import Schedule

EDGE = 1e-5  # times stay this far from 0 and 1, where weights of the form 1/sigma or 1/alpha are not finite


@dataclass(frozen=True)
class Times:
    """A distribution over times. stratified: draw a batch with low discrepancy."""

    kind: ClassVar[str] = ""
    stratified: bool = field(
        default=True, kw_only=True
    )  # so that LogNormal(-1.2, 1.2) is a mean and a deviation

    def __post_init__(self) -> None:
        std = getattr(self, "std", 1.0)
        if not 0 < std < math.inf or not math.isfinite(getattr(self, "mean", 0.0)):
            raise RecipeError(
                f"a time distribution needs a finite mean and a positive std, not {self.to_json()}"
            )

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        """The time below which a share u of the draws lie; float64, any shape."""
        raise NotImplementedError

    def sample(self, like: Tensor, schedule: Schedule, noise: Draws, stream: int = 0) -> Tensor:
        """Times (batch,) in float64 for a batch `like` (batch, ...)."""
        shape = torch.empty(len(like), dtype=torch.float64, device=like.device)
        if self.stratified and isinstance(
            noise, Strata
        ):  # a part of a batch takes its part of the batch's strata
            return self._clamped(noise.strata(shape, stream), schedule)
        u = noise.uniform(shape, stream)
        if self.stratified:
            u = (u[0] + torch.arange(len(u), dtype=u.dtype, device=u.device) / len(u)) % 1.0
            # the order of strata must not follow the order of the data
            u = u[noise.uniform(u, stream + 1).argsort()]
        return self._clamped(u, schedule)

    def _clamped(self, u: Tensor, schedule: Schedule) -> Tensor:
        return self.quantile(u.clamp(1e-7, 1 - 1e-7), schedule).clamp(EDGE, 1 - EDGE)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class Uniform(Times):
    """t uniform in [0, 1]: the process's own time decides."""

    kind: ClassVar[str] = "uniform"

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        return u


@dataclass(frozen=True)
class LogNormal(Times):
    """log(sigma / alpha) ~ N(mean, std^2), whatever the schedule (Karras et al. 2022, table 1)."""

    kind: ClassVar[str] = "log-normal"
    mean: float = -1.2
    std: float = 1.2

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        return schedule.time(-2 * (self.mean + self.std * torch.special.ndtri(u)))


@dataclass(frozen=True)
class LogitNormal(Times):
    """logit(t) ~ N(mean, std^2) in the process's own time (Esser et al. 2024, arXiv 2403.03206, eq. 19)."""

    kind: ClassVar[str] = "logit-normal"
    mean: float = 0.0
    std: float = 1.0

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


TIMES: dict[str, type[Times]] = {cls.kind: cls for cls in (Uniform, LogNormal, LogitNormal)}


def build_times(kind: str = "uniform", **config: Any) -> Times:
    """A time distribution from its name and values."""
    cls = TIMES[choose(kind, TIMES, "time distribution")]
    for name in config:
        choose(name, [entry.name for entry in fields(cls)], f"value of the {kind} time distribution")
    return cls(**config)
