"""How much each noise level counts in the denoising loss.

A weighting is written in the space where its formula is simplest; the loss converts, since an error e in one row is
an error gain * e in another (`Gaussian.gain`). With SNR = alpha^2 / sigma^2 = exp(lambda) the same loss reads

    |x0 - x0^|^2 = |eps - eps^|^2 / SNR = |v - v^|^2 / (SNR + 1)                      (vp: alpha^2 + sigma^2 = 1).

| name     | space | weight                              | source                                        |
|----------|-------|-------------------------------------|-----------------------------------------------|
| plain    | any   | 1                                   | eps: Ho et al. 2020; velocity: flow matching  |
| snr      | x0    | max(SNR, floor)                     | Salimans & Ho 2022, sec. 4 (floor = 0: plain eps)  |
| min-snr  | x0    | min(SNR, gamma)                     | Hang et al. 2023, eq. 8                       |
| edm      | x0    | (s^2 + sd^2) / (s sd)^2, s = sigma/alpha | Karras et al. 2022, table 1              |
| sigmoid  | eps   | S(bias - lambda)                    | Kingma & Gao 2023; Hoogeboom et al. 2024      |
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import RecipeError, choose
from ..processes import PARAMETERISATIONS, Level, Rows


@dataclass(frozen=True)
class Weighting:
    """A weight on the squared error in `space`, as a function of the log-SNR."""

    kind: ClassVar[str] = ""
    space: str = field(default="x0", kw_only=True)  # so that MinSNR(5.0) is a gamma; Plain("v") is a space

    def __post_init__(self) -> None:
        choose(self.space, PARAMETERISATIONS, "space of a weighting")
        if self.kind != "plain" and self.space != self._own_space():
            raise RecipeError(
                f"the {self.kind} weighting is defined on {self._own_space()!r}; only 'plain' takes another space"
            )
        if getattr(self, "gamma", 1.0) <= 0 or getattr(self, "floor", 0.0) < 0:
            raise RecipeError(f"a weighting needs gamma > 0 and floor >= 0, not {self.to_json()}")

    def _own_space(self) -> Any:
        return next(entry.default for entry in fields(self) if entry.name == "space")

    def weight(self, log_snr: Tensor, process: Rows) -> Tensor:
        """The weight (batch,) of the squared error in `self.space`."""
        raise NotImplementedError

    def in_row(self, row: str, level: Level, process: Rows) -> Tensor:
        """The weight (batch,) that the squared error in another row must have for the same loss."""
        gain = process.gain(row, self.space, level)
        return self.weight(level.log_snr, process) * gain * gain

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class Plain(Weighting):
    """Weight 1 in the chosen space."""

    kind: ClassVar[str] = "plain"
    space: str = "eps"

    def weight(self, log_snr: Tensor, process: Rows) -> Tensor:
        return torch.ones_like(log_snr)


@dataclass(frozen=True)
class SNR(Weighting):
    """max(SNR, floor) on x0; floor 1 is the truncated SNR."""

    kind: ClassVar[str] = "snr"
    floor: float = 1.0

    def weight(self, log_snr: Tensor, process: Rows) -> Tensor:
        return torch.exp(log_snr).clamp(min=self.floor)


@dataclass(frozen=True)
class MinSNR(Weighting):
    """min(SNR, gamma) on x0."""

    kind: ClassVar[str] = "min-snr"
    gamma: float = 5.0

    def weight(self, log_snr: Tensor, process: Rows) -> Tensor:
        return torch.exp(log_snr).clamp(max=self.gamma)


@dataclass(frozen=True)
class EDMWeighting(Weighting):
    """(s^2 + sd^2) / (s sd)^2 on x0 with s = sigma / alpha: weight 1 on EDM's F."""

    kind: ClassVar[str] = "edm"

    def weight(self, log_snr: Tensor, process: Rows) -> Tensor:
        return 1 / process.sigma_data**2 + torch.exp(log_snr)


@dataclass(frozen=True)
class SigmoidWeighting(Weighting):
    """S(bias - lambda) on eps."""

    kind: ClassVar[str] = "sigmoid"
    space: str = field(default="eps", kw_only=True)
    bias: float = 0.0

    def weight(self, log_snr: Tensor, process: Rows) -> Tensor:
        return torch.sigmoid(self.bias - log_snr)


WEIGHTINGS: dict[str, type[Weighting]] = {
    cls.kind: cls for cls in (Plain, SNR, MinSNR, EDMWeighting, SigmoidWeighting)
}


def build_weighting(kind: str = "plain", **config: Any) -> Weighting:
    """A weighting from its name and values."""
    cls = WEIGHTINGS[choose(kind, WEIGHTINGS, "weighting")]
    for name in config:
        choose(name, [entry.name for entry in fields(cls)], f"value of the {kind} weighting")
    return cls(**config)
