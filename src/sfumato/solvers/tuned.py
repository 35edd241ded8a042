"""Tuned solvers: a table of coefficients and a grid of their own, fitted to one model (`tuning` fits them).

In the flow frame (see `solver`) the state is y = x / (alpha + sigma) with slope v = dy/du = eps - x_0. Every explicit
method that starts at y_0 and evaluates the model N times, Runge-Kutta and multistep, predictors and correctors alike,
is one lower triangular table (Shaul et al. 2024, arXiv 2403.01329, call the family non-stationary):

    y_i = a_i y_0 + sum_{j<i} b_ij v_j,      v_i = eps - x_0 at (y_i, lambda_i),      i = 1 .. N,      y_N the sample.

The evaluations happen at the nodes lambda_1 .. lambda_{N-1}; lambda_0 is where the process starts.

**The table of Adams.** `adams` writes the table that tuning starts from: predict y_{i+1} from the running state by
Adams-Bashforth, evaluate there, and when v_{i+1} is known redo the step behind it by Adams-Moulton, which costs no
evaluation. With polynomials through k slopes the weights are the integrals of Lagrange's basis, and the nodes lie
between u_0 and u_end, the process's ends, before the last step to u = 0. Once tuned, a table has no order any more.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..denoisers import Guidance, build_guidance
from ..errors import SolverError
from ..noise import Draws, Noise
from ..processes import CLEAN, Flow, Gaussian, Level, Prediction
from .adams import adams_weights
from .grid import TunedGrid, check_steps, noisiest
from .solver import Denoise, Solver

NEAR = 1e-6  # two levels whose log-SNRs differ by less are the same level


@dataclass(frozen=True)
class Tuned(Solver):
    """y_i = a_i y_0 + sum_{j<i} b_ij v_j in the flow frame, with a table of one model.

    nodes: log-SNR of evaluations 1 to N - 1. rows: N rows (a_i, b_i0, .., b_i,i-1), the last of which gives the sample.
    weights: SHA-256 of the weights it was fitted to, "" for a model without any. guidance, conditional: how that model
    was guided, and whether it was given conditions. Raises SolverError for a table that is none, and on levels that
    are not its own.
    """

    kind: ClassVar[str] = "tuned"
    order: ClassVar[int] = 0  # none: there is one number of steps
    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    weights: str = ""
    guidance: float | Guidance = 1.0
    conditional: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "guidance", build_guidance(self.guidance))
        object.__setattr__(self, "nodes", tuple(map(float, self.nodes)))
        object.__setattr__(self, "rows", tuple(tuple(map(float, row)) for row in self.rows))
        if not self.rows or [len(row) for row in self.rows] != list(range(2, len(self.rows) + 2)):
            raise SolverError(
                "the table of a tuned solver has rows of 2, 3, 4, .. numbers; this one does not"
            )
        numbers = [*self.nodes, *(value for row in self.rows for value in row)]
        if len(self.nodes) != self.steps - 1 or not np.isfinite(numbers).all():
            raise SolverError(f"a tuned solver of {self.steps} steps has {self.steps - 1} nodes, all finite")
        if any(later <= earlier for earlier, later in pairwise(self.nodes)):
            raise SolverError(f"the log-SNR must rise from node to node; given {self.nodes}")

    def to_json(self) -> dict[str, Any]:
        own = self.guidance
        return super().to_json() | {"guidance": own.to_json() if isinstance(own, Guidance) else own}

    @property
    def steps(self) -> int:
        """How many steps, and evaluations, it makes."""
        return len(self.rows)

    @property
    def sha256(self) -> str:
        """SHA-256 of the table and of what it was fitted to: what a receipt knows the solver by."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @property
    def grid(self) -> TunedGrid:
        """The grid of its nodes, the only one it works on."""
        return TunedGrid(nodes=self.nodes)

    def step(
        self, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        scale = t.alpha + t.sigma
        start, slopes = (x / scale, ()) if carry is None else carry
        i = len(slopes)
        own = [t.log_snr, *self.nodes, math.inf]  # its grid starts wherever the process does
        if i >= self.steps or not (_same(t.log_snr, own[i]) and _same(s.log_snr, own[i + 1])):
            raise SolverError(
                f"this solver is tuned to {self.steps} steps on its own grid: give it `grid=solver.grid`, "
                f"not a step {i + 1} from log-SNR {t.log_snr:.6g} to {s.log_snr:.6g}"
            )
        slopes = (*slopes, denoise(x, t).combine(-1.0, 1.0))
        return (s.alpha + s.sigma) * combined(self.rows[i], start, slopes), (start, slopes)


def _same(one: float, other: float) -> bool:
    return one == other or abs(one - other) < NEAR


def combined(row: Sequence[float], start: Tensor, slopes: Sequence[Tensor]) -> Tensor:
    """a y_0 + sum_j b_j v_j."""
    y = row[0] * start
    for weight, slope in zip(row[1:], slopes, strict=True):
        if weight != 0:
            y = y + weight * slope
    return y


def adams(process: Gaussian, steps: int, order: int = 2, rho: float = 1.2) -> Tuned:
    """The table of Adams-Bashforth-Moulton of an order on the nodes u_end + (u_0 - u_end) (1 - i / N)^rho."""
    check_steps(steps)
    ends = noisiest(process), process.level(0.0)
    first, last = (level.sigma / (level.alpha + level.sigma) for level in ends)
    u = [last + (first - last) * (1 - i / steps) ** rho for i in range(steps)] + [0.0]
    rows, running = [], np.zeros(steps)
    for i in range(steps):
        known = slice(max(0, i - order + 1), i + 1)
        if i:
            behind = known if order > 1 else slice(i - 1, i)  # Euler's step has nothing to correct
            running[behind] += adams_weights(u[behind], u[i - 1], u[i])
        row = running.copy()
        row[known] += adams_weights(u[known], u[i], u[i + 1])
        rows.append((1.0, *row[: i + 1]))
    return Tuned(tuple(2 * math.log((1 - node) / node) for node in u[1:-1]), tuple(rows))


def table(solver: Solver, levels: Sequence[Level]) -> Tuned:
    """The table of a linear multistep solver on its levels, read off a run on the unit vectors of y_0, v_0, v_1, ..

    The flow process has alpha + sigma = 1, so its states are the points y and its velocity is v.
    """
    steps, process = len(levels) - 1, Gaussian(Flow())
    own = [process.schedule.level_at(level.log_snr) for level in levels[:-1]]
    solver, x, rows = solver.within(steps), torch.zeros(1, steps + 1, dtype=torch.float64), []
    x[0, 0] = 1

    def denoise(x_t: Tensor, level: Level) -> Prediction:
        v = torch.zeros_like(x_t)
        v[0, len(rows) + 1] = 1
        return Prediction(v, "velocity", x_t, level, process)

    carry = solver.init(x)
    for t, s in pairwise([*own, CLEAN]):
        x, carry = solver.step(denoise, process, x, t, s, carry, Noise(0, 1).at(0))
        rows.append(tuple(x[0, : len(rows) + 2].tolist()))
    return Tuned(tuple(level.log_snr for level in levels[1:-1]), tuple(rows))
