"""Embedded Runge–Kutta with error control: the probability flow to a tolerance instead of in a number of steps.

In a frame (see `solver`) the flow is dy/du = g(y, u). A pair of Runge–Kutta methods of orders p and p - 1 that share
their stages, k_i = g(y + h sum_j a_ij k_j, u + c_i h), gives y_s and with it an estimate of its error for nothing,

    y_s = y + h sum_i b_i k_i,     e = h sum_i (b_i - b*_i) k_i,     err = RMS(e) / tolerance.

A step with err <= 1 is accepted. The next is longer by the factor 0.9 err^(-0.7/p) err_last^(0.4/p), a PI controller
(Gustafsson 1991), which does not overreact to one lucky step. Since e is that of the lower order, err ~ h^p, and the
better of the two solutions is kept, the error at the end is in proportion to the tolerance. Both pairs evaluate their
last stage where the next step begins, so an accepted step costs one evaluation less than it has stages:

    bogacki-shampine   3(2)   3 a step     Bogacki & Shampine 1989
    dormand-prince     5(4)   6 a step     Dormand & Prince 1980

The frames offered are `flow` and `angle`, finite at both ends: a schedule that ends in pure noise is an ordinary one,
and y is of the size of the data all along, so the tolerance is in the data's own units. Toward clean data the last
prediction is followed to sigma = 0, as every solver here does, from sigma / alpha = sigma_min.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..denoisers import Condition, Denoises
from ..errors import SolverError, choose
from ..noise import Noise
from ..processes import Gaussian, Level
from .driver import Adaptive, State, control, level_of, rms, scaled
from .solver import Callback, Run, frame_at


class Pair(NamedTuple):
    """An embedded pair whose last stage is the next step's first: rows a_i (the last of them b), c, and b - b*."""

    order: int
    rows: tuple[tuple[float, ...], ...]
    nodes: tuple[float, ...]
    error: tuple[float, ...]


PAIRS = {
    "bogacki-shampine": Pair(
        3,
        ((1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        (1 / 2, 3 / 4, 1),
        (-5 / 72, 1 / 12, 1 / 9, -1 / 8),
    ),
    "dormand-prince": Pair(
        5,
        (
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
        (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    ),
}


def weighted(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """sum_i weights_i slopes_i, without the terms of weight 0."""
    terms = [w * k for w, k in zip(weights, slopes, strict=True) if w]
    return reduce(torch.add, terms)


def frame_level(process: Gaussian, frame: str, u: Tensor) -> tuple[Level, Tensor, Any, Any]:
    """The levels at coordinates u (batch,) of the flow or angle frame, their scale c, and the row (a, b) of dy/du."""
    if frame == "flow":
        level = level_of(process, 1 - u, u)
        return level, level.alpha + level.sigma, -1.0, 1.0
    level = level_of(process, u.cos(), u.sin())
    return level, torch.hypot(level.alpha, level.sigma), -u.sin(), u.cos()


@dataclass(frozen=True)
class AdaptiveODE(Adaptive):
    """The probability flow to a tolerance, each sample with its own steps.

    tolerance: RMS of a step's estimated error, in the units of the data. pair: "bogacki-shampine" or "dormand-prince",
    the better one from about 1e-4 down. frame: "flow" or "angle".
    """

    kind: ClassVar[str] = "adaptive"
    pair: str = "dormand-prince"
    frame: str = "flow"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose(self.pair, PAIRS, "pair of Runge–Kutta methods", SolverError)
        choose(self.frame, ("flow", "angle"), "frame of the adaptive solver", SolverError)

    @property
    def order(self) -> int:  # type: ignore[override]
        return PAIRS[self.pair].order

    @property
    def evaluations(self) -> int:  # type: ignore[override]
        return len(PAIRS[self.pair].rows)

    def solve(
        self,
        denoiser: Denoises,
        first: Level,
        last: Level,
        x: Tensor,
        noise: Noise,
        condition: Condition = None,
        callback: Callback | None = None,
    ) -> Run:
        process, pair = denoiser.process, PAIRS[self.pair]
        c, begin, a, b = frame_at(self.frame, process, first)
        clean = last.sigma == 0
        low = self.smallest(process)
        end = (low / (1 + low) if self.frame == "flow" else math.atan(low)) if clean else 0.0
        c_end, end = (1.0, min(end, begin)) if clean else frame_at(self.frame, process, last)[:2]

        def slope(y: Tensor, u: Tensor, condition: Condition) -> Tensor:
            level, c, a, b = frame_level(process, self.frame, u)
            return denoiser(scaled(c, y), level, condition).combine(a, b)

        def finish(y: Tensor, k: Tensor) -> Tensor:
            """x at the end, from y = (alpha x0 + sigma eps) / c and k = a x0 + b eps there."""
            if not clean:
                return c_end * y
            return y - end * k if self.frame == "flow" else math.cos(end) * y - math.sin(end) * k

        def attempt(state: State, noise: Noise, condition: Condition, number: int) -> State:
            y, u, h = state["x"], state["u"], state["h"]
            arrives = h >= u - end
            h = torch.where(arrives, u - end, h)
            u_s = torch.where(arrives, end, u - h)
            k = [state["k"]]
            for row, node in zip(pair.rows, pair.nodes, strict=True):
                k.append(
                    slope(y - scaled(h, weighted(row, k)), u_s if node == 1 else u - node * h, condition)
                )
            y_s = y - scaled(h, weighted(pair.rows[-1], k[:-1]))
            error = h * rms(weighted(pair.error, k)) / self.tolerance
            good = error <= 1
            factor = control(error, 0.7 / pair.order) * state["error"] ** (0.4 / pair.order)
            factor = torch.where(good, factor.clamp(max=5.0), control(error, 1 / pair.order, most=1.0))
            wide = good.reshape(-1, *[1] * (y.ndim - 1))
            u = torch.where(good, u_s, u)
            done = (u <= end).reshape(wide.shape)
            y, k_end = torch.where(wide, y_s, y), torch.where(wide, k[-1], k[0])
            return {
                "x": torch.where(done, finish(y, k_end), y),
                "u": u,
                "h": h * factor,
                "k": k_end,
                "error": torch.where(good, error.clamp(min=1e-4), state["error"]),
                "left": (u - end) / (begin - end),
                "finite": error.isfinite(),  # where it is not, the step must not look like a rejected one
            }

        y = x / c
        ones = torch.ones(len(x), dtype=torch.float64, device=x.device)
        k = denoiser(x, first, condition).combine(a, b)
        span = begin - end
        # the first step is a guess; a rejection or two put it right
        h = span * min(0.2, 0.5 * self.tolerance ** (1 / pair.order))
        state = {"x": y if span > 0 else finish(y, k), "u": begin * ones, "h": h * ones, "k": k}
        state |= {"error": ones, "left": ones * (span > 0), "finite": ones > 0}
        return self.drive(state, attempt, noise, condition, callback, outside=1)
