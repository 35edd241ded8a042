"""Runge-Kutta solvers of the probability-flow ODE: any explicit tableau, Euler and Heun, and EDM's Heun with churn.

In a frame (see `solver`) the ODE is dy/du = g(y, u). With h = u_s - u_t a tableau (a, b), c_i = sum_j a_ij, says

    g_i = g(y_t + h sum_j a_ij g_j, u_t + c_i h),        y_s = y_t + h sum_i b_i g_i,

one evaluation a stage. It is of order p if its sums agree with the Taylor series of every ODE up to h^p (Butcher 1963):

    1: sum b = 1       2: b.c = 1/2       3: b.c^2 = 1/3, b.a.c = 1/6
    4: b.c^3 = 1/4,    b.(c * (a.c)) = 1/8,     b.a.c^2 = 1/12,      b.a.a.c = 1/24

which is checked when a tableau is made.

    Euler   y_s = y_t + h g_t                                  order 1, one evaluation
    Heun    y_s = y_t + h (g_t + g(y_t + h g_t, u_s)) / 2      order 2, two evaluations

**The last step**, to sigma = 0, is made in the flow frame, and never asks the denoiser there, where a prediction of x0
is the state itself and networks are not trained. A method with a stage at the end of the step makes this one by one
of one order less whose stages keep clear of the end, and of one evaluation less: Heun by Euler, Kutta's third order by
the midpoint rule, the classical fourth by Ralston's third. One step of local error h^p does not lower the order p of a
run. The others (midpoint, Ralston) have no stage there and need no change.

EDM (Karras et al. 2022, alg. 2) first raises the noise from sigma/alpha to (1 + gamma) sigma/alpha by adding fresh
noise, then makes a Heun step down from there; gamma = min(churn, sqrt(2) - 1) inside [s_min, s_max], where churn is
Karras et al.'s S_churn / N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import SolverError, choose
from ..noise import Draws
from ..processes import Gaussian, Level, Prediction
from .solver import (
    FRAMES,
    Denoise,
    Solver,
    between,
    euler_step,
    frame_at,
    frame_to,
    level_in,
    upper_end,
)


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: row i of `a` has i entries, `b` one a stage.

    order: up to 4, which it must have. last: the tableau for a step to clean data, if this one asks at the step's end.
    Raises SolverError for rows of the wrong length, or an order condition that fails, naming it.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    last: str = ""

    def __post_init__(self) -> None:
        stages = len(self.b)
        if [len(row) for row in self.a] != list(range(stages)):
            raise SolverError(f"an explicit tableau of {stages} stages has rows of 0 to {stages - 1} entries")
        if not 1 <= self.order <= 4:
            raise SolverError(f"tableaux are checked up to order 4, not {self.order!r}")
        a = np.array([[*row, *[0.0] * (stages - len(row))] for row in self.a])
        b, c = np.array(self.b), a.sum(1)
        sums = {
            "sum b = 1": (1, b.sum() - 1),
            "b.c = 1/2": (2, b @ c - 1 / 2),
            "b.c^2 = 1/3": (3, b @ c**2 - 1 / 3),
            "b.a.c = 1/6": (3, b @ a @ c - 1 / 6),
            "b.c^3 = 1/4": (4, b @ c**3 - 1 / 4),
            "b.(c a.c) = 1/8": (4, b @ (c * (a @ c)) - 1 / 8),
            "b.a.c^2 = 1/12": (4, b @ a @ c**2 - 1 / 12),
            "b.a.a.c = 1/24": (4, b @ a @ a @ c - 1 / 24),
        }
        for condition, (order, gap) in sums.items():
            if order <= self.order and abs(gap) > 1e-12:
                raise SolverError(
                    f"a tableau of order {self.order} has {condition}; here it is off by {gap:.3g}"
                )

    @property
    def c(self) -> tuple[float, ...]:
        """Where in the step each stage asks: 0 its start, 1 its end."""
        return tuple(sum(row) for row in self.a)


TABLEAUX = {
    "euler": Tableau(((),), (1.0,), 1),
    "heun": Tableau(((), (1.0,)), (1 / 2, 1 / 2), 2, "euler"),
    "midpoint": Tableau(((), (1 / 2,)), (0.0, 1.0), 2),
    "ralston": Tableau(((), (2 / 3,)), (1 / 4, 3 / 4), 2),
    "kutta3": Tableau(((), (1 / 2,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6), 3, "midpoint"),
    "ralston3": Tableau(((), (1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9), 3),
    "rk4": Tableau(
        ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4, "ralston3"
    ),
}


def rk_step(
    tableau: Tableau, frame: str, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level
) -> tuple[Tensor, Prediction]:
    """x_s by one step of a tableau in a frame, and what the denoiser said at t."""
    frame = frame_to(frame, t, s)
    if s.sigma == 0 and tableau.last:
        tableau = TABLEAUX[tableau.last]
    c, start, a, b = frame_at(frame, process, t)
    c_end, end, _, _ = frame_at(frame, process, s)
    h = end - start

    def move(to: float, row: tuple[float, ...]) -> Tensor:
        out = (to / c) * x
        for weight, slope in zip(row, slopes, strict=True):
            out = torch.add(out, slope, alpha=to * h * weight) if weight else out
        return out

    first = denoise(x, t)
    slopes = [first.combine(a, b)]
    for share, row in list(zip(tableau.c, tableau.a, strict=True))[1:]:
        level = s if share == 1 else level_in(frame, process, start + share * h)
        here, _, a, b = frame_at(frame, process, level)
        slopes.append(denoise(move(here, row), level).combine(a, b))
    return move(c_end, tableau.b), first


@dataclass(frozen=True)
class RungeKutta(Solver):
    """An explicit Runge-Kutta method in a frame. method: midpoint, ralston, kutta3, ralston3, rk4 (TABLEAUX)."""

    kind: ClassVar[str] = "runge-kutta"
    method: str = "rk4"
    frame: str = "flow"

    def __post_init__(self) -> None:
        choose(self.method, TABLEAUX, "Runge-Kutta method", SolverError)
        choose(self.frame, FRAMES, "frame", SolverError)

    @property
    def order(self) -> int:  # type: ignore[override]
        return TABLEAUX[self.method].order

    @property
    def evaluations(self) -> int:  # type: ignore[override]
        return len(TABLEAUX[self.method].b)

    def cost(self, steps: int) -> int:
        return steps * self.evaluations - bool(TABLEAUX[self.method].last)

    def step(
        self, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        return rk_step(TABLEAUX[self.method], self.frame, denoise, process, x, t, s)[0], None


@dataclass(frozen=True)
class Euler(Solver):
    """Euler's method in a frame; in the flow and sigma frames it equals DDIM."""

    kind: ClassVar[str] = "euler"
    frame: str = "flow"

    def __post_init__(self) -> None:
        choose(self.frame, FRAMES, "frame", SolverError)

    def step(
        self, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        return euler_step(self.frame, denoise, process, x, t, s)[0], None


@dataclass(frozen=True)
class Heun(Solver):
    """Heun's method in a frame (the explicit trapezoidal rule)."""

    kind: ClassVar[str] = "heun"
    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 2
    frame: str = "flow"

    def __post_init__(self) -> None:
        choose(self.frame, FRAMES, "frame", SolverError)

    def cost(self, steps: int) -> int:
        return 2 * steps - 1

    def step(
        self, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        return heun_step(self.frame, denoise, process, x, t, s), None


def heun_step(frame: str, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level) -> Tensor:
    """x_s by one Heun step in a frame, Euler's where s is clean."""
    frame = frame_to(frame, t, s)
    x_s, slope = euler_step(frame, denoise, process, x, t, s)
    if s.sigma == 0:
        return x_s
    c, u, _, _ = frame_at(frame, process, t)
    c_end, u_end, a, b = frame_at(frame, process, s)
    slope = 0.5 * (slope + denoise(x_s, s).combine(a, b))
    return (c_end / c) * x + (c_end * (u_end - u)) * slope


@dataclass(frozen=True)
class EDMSolver(Solver):
    """EDM's stochastic sampler. churn: share of noise renewed a step (S_churn / N); 0 is Heun in the sigma frame.

    s_min, s_max: the sigma / alpha between which noise is renewed (s_max None: no upper end). s_noise: inflation of the
    fresh noise. A first step from pure noise is DDIM's, and a run of several that begins there costs one evaluation
    less than `cost` says.
    """

    kind: ClassVar[str] = "edm"
    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 2
    churn: float = 0.2
    s_min: float = 0.05
    s_max: float | None = 50.0
    s_noise: float = 1.003

    def __post_init__(self) -> None:
        object.__setattr__(self, "s_max", upper_end(self.kind, self.s_min, self.s_max))
        if not (0 <= self.churn < math.inf and 0 < self.s_noise < math.inf):
            raise SolverError(
                f"EDM needs churn >= 0 and s_noise > 0, not {self.churn!r} and {self.s_noise!r}"
            )

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.churn > 0

    def cost(self, steps: int) -> int:
        return 2 * steps - 1

    def step(
        self, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        if (
            t.alpha == 0
        ):  # where the sigma frame does not reach; Heun's step in the flow frame is no better there
            return euler_step("flow", denoise, process, x, t, s)[0], None
        ratio = t.sigma / t.alpha
        if self.churn > 0 and between(ratio, self.s_min, self.s_max):
            raised = process.schedule.level_at(-2 * math.log(ratio * (1 + min(self.churn, math.sqrt(2) - 1))))
            scale = raised.alpha / t.alpha
            added = math.sqrt(raised.sigma**2 - (scale * t.sigma) ** 2)
            x = scale * x + (self.s_noise * added) * noise.normal(x)
            t = raised
        return heun_step("sigma", denoise, process, x, t, s), None
