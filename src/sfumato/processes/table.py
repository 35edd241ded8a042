"""A schedule given by a table: the chain that a model was trained on, made continuous between its steps.

A discrete chain x_i = sqrt(abar_i) x_0 + sqrt(1 - abar_i) eps, i = 0 .. n - 1, is known by its table of abar alone.
Entry i stands at t = i / (n - 1), where the schedule is exactly the table. Between two entries the log-SNR is linear in
t, so a noise level that lies between them has a time, and a network that was told i can be told the fraction:

    lambda(t) = lambda_i + w (lambda_{i+1} - lambda_i),     w = (n - 1) t - i in [0, 1].

A table may end in pure noise, abar = 0 (zero terminal SNR, Lin et al. 2023), where lambda is -infinity and no straight
line leads. Over the last interval it is then alpha / sigma that falls in a line, to 0:

    lambda(t) = lambda_i + 2 log(1 - w).

The table starts at abar_0 < 1: the chain knows no noise level below that of its first step. Solvers step from there to
clean data, and a level beyond the table has the time of the nearest end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import SolverError
from .schedule import Schedule, path_point


def _ddpm() -> tuple[float, ...]:
    """abar of Ho et al. 2020: 1000 betas from 1e-4 to 0.02."""
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return tuple(torch.cumprod(1 - beta, 0).tolist())


_DDPM = _ddpm()


@dataclass(frozen=True, repr=False)
class Table(Schedule):
    """alpha^2 = abar_i at t = i / (n - 1), log-SNR linear in between. alpha_bar: n falling numbers in [0, 1)."""

    kind: ClassVar[str] = "table"
    alpha_bar: tuple[float, ...] = _DDPM

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "alpha_bar", tuple(map(float, self.alpha_bar)))
        except (TypeError, ValueError):
            raise SolverError(
                f"a table schedule needs a list of numbers, not {str(self.alpha_bar)[:60]!r}"
            ) from None
        values = self.alpha_bar
        if not 2 <= len(values) <= 1_000_000:
            raise SolverError(f"a table schedule needs from 2 to 1,000,000 entries, not {len(values)}")
        for i, (before, after) in enumerate(pairwise(values)):
            if not 0 <= after < before < 1:  # written so that NaN is refused
                raise SolverError(
                    f"alpha_bar of a table schedule falls strictly inside [0, 1); entries {i} and {i + 1} are "
                    f"{before:.6g} and {after:.6g}"
                )

    def __repr__(self) -> str:
        return f"Table({len(self.alpha_bar)} entries, {self.alpha_bar[0]:.6g} .. {self.alpha_bar[-1]:.6g})"

    @property
    def steps(self) -> int:
        """How many entries there are."""
        return len(self.alpha_bar)

    @cached_property
    def table(self) -> Tensor:
        """lambda at t = 0, 1/(n-1), ..., 1, shape (n,); -inf at the end of a table that ends in pure noise."""
        with torch.inference_mode(
            False
        ):  # kept, hence also met by `rates`, whose graph takes no inference tensors
            alpha_bar = torch.tensor(self.alpha_bar, dtype=torch.float64)
            return torch.log(alpha_bar) - torch.log1p(-alpha_bar)

    def _interval(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(w, lambda_i, its fall to lambda_{i+1} or 0 where that is infinite, whether it is finite)."""
        position = t * (self.steps - 1)
        # a time written as i / (n - 1) must land on entry i although the product rounds
        gap = position.detach().round() - position.detach()
        position = torch.where(gap.abs() < 1e-12 * self.steps, position + gap, position)
        left = position.detach().floor().clamp(0, self.steps - 2).long()
        table = self.table.to(t.device)
        fall = table[left + 1] - table[left]
        finite = fall > -math.inf
        return position - left, table[left], torch.where(finite, fall, 0.0), finite

    def log_snr(self, t: Tensor) -> Tensor:
        weight, start, fall, finite = self._interval(t)
        return start + torch.where(finite, weight * fall, 2 * torch.log1p(-weight))

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # through alpha / sigma and not its logarithm, so that the slope at alpha = 0 is finite
        weight, start, fall, finite = self._interval(t)
        ratio = torch.exp(start / 2) * torch.where(finite, torch.exp(weight * fall / 2), 1 - weight)
        return path_point(self.path, ratio, torch.ones_like(ratio))

    def time(self, log_snr: Tensor) -> Tensor:
        table = self.table.to(log_snr.device)
        right = torch.searchsorted(-table, -log_snr.contiguous()).clamp(1, self.steps - 1)
        start, end = table[right - 1], table[right]
        gone = log_snr - start
        weight = torch.where(end > -math.inf, gone / (end - start), -torch.expm1(gone / 2))
        return ((right - 1 + weight) / (self.steps - 1)).clamp(0, 1)
