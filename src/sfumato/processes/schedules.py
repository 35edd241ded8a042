"""The schedules of the papers: each gives log alpha(t), or (alpha, sigma)(t), and the inverse of its log-SNR.

What a schedule is, and what follows from one, is in `schedule`. `Shifted` and `ZeroTerminalSNR` make one of another.

Sources: Song et al. 2021 (arXiv 2011.13456); Ho et al. 2020 (2006.11239); Nichol & Dhariwal 2021 (2102.09672);
Jabri et al. 2022 (2212.11972) for sigmoid; Karras et al. 2022 (2206.00364); Hang et al. 2024 (2407.03297) for Laplace;
Lin et al. 2023 (2305.08891) for zero terminal SNR; Hoogeboom et al. 2023 (2301.11093) for the resolution shift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import SolverError, choose
from .schedule import Schedule, float64, path_point
from .table import Table


@dataclass(frozen=True)
class _VariancePreserving(Schedule):
    """Schedules given by log alpha(t), with sigma^2 = 1 - alpha^2 computed without cancellation."""

    def log_alpha(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def time_of(self, log_alpha: Tensor) -> Tensor:
        raise NotImplementedError

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = self.log_alpha(t)
        # 0.0 - 0.0 has no minus sign
        return torch.exp(log_alpha), torch.sqrt(0.0 - torch.expm1(2 * log_alpha))

    def log_snr(self, t: Tensor) -> Tensor:
        log_alpha = self.log_alpha(t)
        return 2 * log_alpha - torch.log(-torch.expm1(2 * log_alpha))

    def time(self, log_snr: Tensor) -> Tensor:
        # alpha^2 = sigmoid(lambda), so log alpha = -softplus(-lambda) / 2
        return self.time_of(-0.5 * torch.nn.functional.softplus(-log_snr, threshold=700)).clamp(0, 1)


@dataclass(frozen=True)
class Linear(_VariancePreserving):
    """beta(t) = beta_min + t (beta_max - beta_min); log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2."""

    kind: ClassVar[str] = "linear"
    beta_min: float = 0.1
    beta_max: float = 20.0

    def _check(self) -> None:
        self._require(0 < self.beta_min <= self.beta_max, "0 < beta_min <= beta_max")

    def log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t * t * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def log_rate(self, t: Tensor) -> Tensor:
        return -0.5 * (self.beta_min + t * (self.beta_max - self.beta_min))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.alpha_sigma(t)
        slope = alpha * self.log_rate(t)
        return slope, -alpha * slope / sigma  # as alpha^2 + sigma^2 = 1

    def time_of(self, log_alpha: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        return -4 * log_alpha / (self.beta_min + torch.sqrt(self.beta_min**2 - 4 * slope * log_alpha))


@dataclass(frozen=True)
class DDPM(_VariancePreserving):
    """The discrete chain of Ho et al. 2020: beta_i evenly from beta_start to beta_end, i = 1..steps.

    alpha^2 at t = i / steps is exactly prod_{j <= i} (1 - beta_j), and alpha(0) = 1. Between these times log alpha is
    linear: the continuous process whose beta is constant over each step of the chain.
    """

    kind: ClassVar[str] = "ddpm"
    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def _check(self) -> None:
        self._require(1 <= self.steps <= 1_000_000, "steps from 1 to 1,000,000")
        self._require(0 < self.beta_start <= self.beta_end < 1, "0 < beta_start <= beta_end < 1")

    @cached_property
    def table(self) -> Tensor:
        """log alpha at t = 0, 1/steps, ..., 1, shape (steps + 1,)."""
        with torch.inference_mode(
            False
        ):  # kept, hence also met by `rates`, whose graph takes no inference tensors
            beta = torch.linspace(self.beta_start, self.beta_end, self.steps, dtype=torch.float64)
            return torch.cat([beta.new_zeros(1), 0.5 * torch.log1p(-beta).cumsum(0)])

    def log_alpha(self, t: Tensor) -> Tensor:
        position = t * self.steps
        # A time written as i / steps must land on entry i although the product rounds.
        gap = position.detach().round() - position.detach()
        position = torch.where(gap.abs() < 1e-9 * self.steps, position + gap, position)
        left = position.detach().floor().clamp(0, self.steps - 1).long()
        weight, table = position - left, self.table.to(t.device)
        return table[left] * (1 - weight) + table[left + 1] * weight

    def time_of(self, log_alpha: Tensor) -> Tensor:
        table = self.table.to(log_alpha.device)
        right = torch.searchsorted(-table, -log_alpha.contiguous()).clamp(1, self.steps)
        high, low = table[right - 1], table[right]
        return (right - 1 + (log_alpha - high) / (low - high)) / self.steps


@dataclass(frozen=True)
class Cosine(_VariancePreserving):
    """alpha(t) = cos(pi/2 (t + s) / (1 + s)) / cos(pi/2 s / (1 + s)), exactly 0 at t = 1.

    Source: Nichol & Dhariwal 2021, eq. 17.
    """

    kind: ClassVar[str] = "cosine"
    s: float = 0.008

    def _check(self) -> None:
        self._require(0 <= self.s <= 1, "0 <= s <= 1")

    @property
    def _scale(self) -> float:
        return math.pi / (2 * (1 + self.s))

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # sin^2 A - sin^2 B = sin(A - B) sin(A + B): nothing cancels, and no logarithm hides the slope at alpha = 0
        scale, whole = self._scale, math.sin(self._scale)
        return torch.sin(scale * (1 - t)) / whole, torch.sqrt(
            torch.sin(scale * t) * torch.sin(scale * (2 - t))
        ) / whole

    def log_alpha(self, t: Tensor) -> Tensor:
        # cos(pi/2 - y) = sin(y) is 0 at t = 1 without rounding
        return torch.log(torch.sin(self._scale * (1 - t)) / math.sin(self._scale))

    def time_of(self, log_alpha: Tensor) -> Tensor:
        return 1 - torch.asin((torch.exp(log_alpha) * math.sin(self._scale)).clamp(max=1)) / self._scale


@dataclass(frozen=True)
class Sigmoid(_VariancePreserving):
    """alpha^2(t) = (S(end/tau) - S((start + t (end - start))/tau)) / (S(end/tau) - S(start/tau)).

    S is the logistic function. Source: Jabri et al. 2022.
    """

    kind: ClassVar[str] = "sigmoid"
    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0

    def _check(self) -> None:
        self._require(self.start < self.end and self.tau > 0, "start < end and tau > 0")

    def _ends(self) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(float64(self.start / self.tau)), torch.sigmoid(float64(self.end / self.tau))

    def log_alpha(self, t: Tensor) -> Tensor:
        low, high = self._ends()
        value = torch.sigmoid((self.start + t * (self.end - self.start)) / self.tau)
        # log(1 - share) keeps alpha near 1 exact; at t = 1 the share is 1 and alpha 0
        return 0.5 * torch.log1p(-((value - low) / (high - low)).clamp(0, 1))

    def time_of(self, log_alpha: Tensor) -> Tensor:
        low, high = self._ends()
        value = low - torch.expm1(2 * log_alpha) * (high - low)
        return (self.tau * torch.logit(value) - self.start) / (self.end - self.start)


@dataclass(frozen=True)
class Laplace(Schedule):
    """lambda(t) = mean - scale sgn(1/2 - t) log(1 - 2 |t - 1/2|): a uniform t gives a Laplace-distributed log-SNR."""

    kind: ClassVar[str] = "laplace"
    mean: float = 0.0
    scale: float = 0.5

    def _check(self) -> None:
        self._require(self.scale > 0, "scale > 0")

    def log_snr(self, t: Tensor) -> Tensor:
        tail = torch.log(torch.where(t < 0.5, 2 * t, 2 * (1 - t)))
        return self.mean - self.scale * torch.where(t < 0.5, tail, -tail)

    def time(self, log_snr: Tensor) -> Tensor:
        z = (log_snr - self.mean) / self.scale
        return torch.where(z > 0, 0.5 * torch.exp(-z.abs()), 1 - 0.5 * torch.exp(-z.abs()))


@dataclass(frozen=True)
class SubVP(Linear):
    """Linear beta with sigma = 1 - alpha^2 (Song et al. 2021): less noise at every time than `linear`."""

    kind: ClassVar[str] = "sub-vp"
    path: ClassVar[str] = "sub-vp"

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = self.log_alpha(t)
        return torch.exp(log_alpha), -torch.expm1(2 * log_alpha)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = torch.exp(self.log_alpha(t))
        slope = alpha * self.log_rate(t)
        return slope, -2 * alpha * slope

    def log_snr(self, t: Tensor) -> Tensor:
        log_alpha = self.log_alpha(t)
        return 2 * (log_alpha - torch.log(-torch.expm1(2 * log_alpha)))

    def time(self, log_snr: Tensor) -> Tensor:
        a, b = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
        alpha, sigma = path_point(self.path, a, b)
        return self.time_of(torch.where(sigma < 0.5, 0.5 * torch.log1p(-sigma), torch.log(alpha))).clamp(0, 1)


@dataclass(frozen=True)
class Flow(Schedule):
    """alpha = 1 - t, sigma = t: straight lines from noise to data (rectified flow, flow matching)."""

    kind: ClassVar[str] = "flow"
    path: ClassVar[str] = "flow"

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * (torch.log1p(-t) - torch.log(t))

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)


@dataclass(frozen=True)
class VE(Schedule):
    """alpha = 1, sigma(t) = sigma_min (sigma_max / sigma_min)^t."""

    kind: ClassVar[str] = "ve"
    path: ClassVar[str] = "ve"
    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def _check(self) -> None:
        self._require(0 < self.sigma_min < self.sigma_max, "0 < sigma_min < sigma_max")

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * (math.log(self.sigma_min) + t * math.log(self.sigma_max / self.sigma_min))

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.exp(-0.5 * self.log_snr(t))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), self.alpha_sigma(t)[1] * math.log(self.sigma_max / self.sigma_min)

    def time(self, log_snr: Tensor) -> Tensor:
        span = math.log(self.sigma_max / self.sigma_min)
        return ((-0.5 * log_snr - math.log(self.sigma_min)) / span).clamp(0, 1)


@dataclass(frozen=True)
class EDM(Schedule):
    """alpha = 1, sigma(t) = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho.

    Source: Karras et al. 2022, eq. 5.
    """

    kind: ClassVar[str] = "edm"
    path: ClassVar[str] = "ve"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def _check(self) -> None:
        self._require(
            0 < self.sigma_min < self.sigma_max and self.rho > 0, "0 < sigma_min < sigma_max and rho > 0"
        )

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return torch.ones_like(t), (low + t * (high - low)) ** self.rho

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return torch.zeros_like(t), self.rho * (high - low) * (low + t * (high - low)) ** (self.rho - 1)

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * torch.log(self.alpha_sigma(t)[1])

    def time(self, log_snr: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return ((torch.exp(-0.5 * log_snr / self.rho) - low) / (high - low)).clamp(0, 1)


@dataclass(frozen=True)
class Shifted(Schedule):
    """Another schedule with its log-SNR lowered by 2 log(factor), on the same path.

    A picture of twice the side averages four times the pixels, so the same noise hides half as much: factor 2 undoes
    that. For `flow` this is the familiar t' = factor t / (1 + (factor - 1) t).
    """

    kind: ClassVar[str] = "shifted"
    base: Schedule = Flow()
    factor: float = 1.0

    def _check(self) -> None:
        self._require(self.factor > 0, "factor > 0")
        object.__setattr__(self, "path", self.base.path)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.base.alpha_sigma(t)
        return path_point(self.path, alpha, self.factor * sigma)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.path != "flow":
            return super().rates(t)
        (alpha, sigma), (falls, rises) = self.base.alpha_sigma(t), self.base.rates(t)
        slope = self.factor * (falls * sigma - rises * alpha) / (alpha + self.factor * sigma) ** 2
        return slope, -slope

    def log_snr(self, t: Tensor) -> Tensor:
        return self.base.log_snr(t) - 2 * math.log(self.factor)

    def time(self, log_snr: Tensor) -> Tensor:
        return self.base.time(log_snr + 2 * math.log(self.factor))

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "base": self.base.to_json(), "factor": self.factor}


@dataclass(frozen=True)
class ZeroTerminalSNR(_VariancePreserving):
    """A variance-preserving schedule with alpha shifted and stretched so that alpha(1) = 0 and alpha(0) stays.

    alpha'(t) = alpha(0) (alpha(t) - alpha(1)) / (alpha(0) - alpha(1)), sigma'^2 = 1 - alpha'^2
    (Lin et al. 2023, alg. 1).
    """

    kind: ClassVar[str] = "zero-terminal-snr"
    base: Schedule = Linear()

    def _check(self) -> None:
        self._require(self.base.path == "vp", "a variance-preserving base schedule")

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False):  # as for DDPM's table
            alpha, _ = self.base.alpha_sigma(torch.tensor([0.0, 1.0], dtype=torch.float64))
            return alpha[0], alpha[1]

    def _share(self, t: Tensor) -> Tensor:
        """How far alpha has fallen, from 0 to 1: 1 - share avoids cancellation near alpha = 1."""
        first, last = self._ends
        return ((first - self.base.alpha_sigma(t)[0]) / (first - last)).clamp(0, 1)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # without a logarithm, so that the slope at alpha = 0 is finite
        first, share = self._ends[0], self._share(t)
        alpha = first * (1 - share)
        return alpha, torch.sqrt((1 - first + first * share) * (1 + alpha))

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log(self._ends[0]) + torch.log1p(-self._share(t))

    def time(self, log_snr: Tensor) -> Tensor:
        first, last = self._ends
        alpha = last + torch.sigmoid(log_snr).sqrt() * (first - last) / first
        return self.base.time(torch.log(alpha**2) - torch.log((1 - alpha) * (1 + alpha))).clamp(0, 1)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "base": self.base.to_json()}


SCHEDULES: dict[str, type[Schedule]] = {
    cls.kind: cls
    for cls in (Linear, DDPM, Cosine, Sigmoid, Laplace, SubVP, Flow, VE, EDM, Shifted, ZeroTerminalSNR, Table)
}


def build_schedule(kind: str, **config: Any) -> Schedule:
    """A schedule from its name and values, as recipes and bundles write them; nested schedules under `base`."""
    cls = SCHEDULES[choose(kind, SCHEDULES, "schedule", SolverError)]
    if isinstance(config.get("base"), dict):
        config["base"] = build_schedule(**config["base"])
    for name in config:
        choose(name, [field.name for field in fields(cls)], f"value of the {kind} schedule", SolverError)
    return cls(**config)
