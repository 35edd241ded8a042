"""Solvers of critically-damped Langevin diffusion (Dockhorn, Vahdat & Kreis 2022, arXiv 2112.07068).

With the clock s = beta t / sqrt(M), w = v / sqrt(M) and S the score of w, the diffusion runs backwards as

    dx = -w ds,      dw = (x + 2 w + 4 S) ds + 2 dB,      its probability flow as      dw = (x + 2 w + 2 S) ds.

Written as (x - 2 w) ds + 2 dB and 4 (S + w) ds, the first part is the equilibrium's own motion with time reversed,
solved exactly by a matrix and a Gaussian draw,

    A(h): (x, w) <- e^-h [[1 + h, -h], [h, 1 - h]] (x, w) + N(0, [[n_xx, -n_xw], [-n_xw, n_ww]]),

n being the forward noise of a known start; the second vanishes where the data are gone, S = -w. Hence

    euler      one Euler-Maruyama step of the whole                                           weak order 1
    sscs       A(h/2), w <- w + 4 h (S + w) at the middle of the step, A(h/2)                 weak order 1 (Euler on S)
    sscs,      the middle by the midpoint rule, a second evaluation at w + 2 h (S + w)        weak order 2
      midpoint
    heun       the explicit trapezoidal rule on the probability flow                          order 2
    bridge     a draw from q(x_s, v_s | x_t, v_t, x_0) with the predicted x_0                  weak order 1

Symmetric splitting (Strang 1968) has order 2 if each part is solved to that order. The score of w is -w / gamma at
the data end and its explicit solvers are stiff there: the steps must be small beside gamma. The bridge is not
explicit in the score, but in x_0, which is smooth.

The step to clean data goes to the predicted x_0 whatever the solver, as for Gaussian processes. It agrees with the
paper's last step, the drift without its noise, x - h w, up to O(h^2), and does not leave noise behind where h is
not small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..noise import Draws
from ..processes import Langevin, Level
from ..processes.langevin import act, factor
from .solver import Denoise, Solver


@dataclass(frozen=True)
class PhaseSolver(Solver):
    """Base of the solvers in phase space."""

    serves: ClassVar[tuple[type, ...]] = (Langevin,)

    def cost(self, steps: int) -> int:
        return (steps - 1) * self.evaluations + 1  # the step to clean data asks once

    def step(
        self, denoise: Denoise, process: Langevin, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        if s.sigma == 0:
            return process.clean(denoise(x, t)), None
        return self.move(denoise, process, x, t, s, noise), None

    def move(
        self, denoise: Denoise, process: Langevin, state: Tensor, t: Level, s: Level, noise: Draws
    ) -> Tensor:
        """A step that does not end at clean data."""
        raise NotImplementedError


def drift(process: Langevin, denoise: Denoise, state: Tensor, level: Level, share: float) -> Tensor:
    """-d(x, v)/dt of the reversed process, -f + share g^2 S: share 1 for the SDE, 1/2 for the probability flow."""
    score = process.score(denoise(state, level))
    push = share * process.diffusion() ** 2 * score
    return torch.cat([torch.zeros_like(push), push], 1) - process.drift(state)


def kick(state: Tensor, added: Tensor) -> Tensor:
    """The state with something added to its velocity."""
    x, v = state.chunk(2, 1)
    return torch.cat([x, v + added], 1)


@dataclass(frozen=True)
class PhaseEuler(PhaseSolver):
    """Euler-Maruyama of the reversed diffusion: u + h (-f + g^2 S) + g sqrt(h) z, z on v alone."""

    kind: ClassVar[str] = "cld-euler"
    stochastic: ClassVar[bool] = True

    def move(
        self, denoise: Denoise, process: Langevin, state: Tensor, t: Level, s: Level, noise: Draws
    ) -> Tensor:
        h = t.time - s.time
        moved = state + h * drift(process, denoise, state, t, 1.0)
        return kick(moved, process.diffusion() * math.sqrt(h) * noise.normal(process.data(state)))


@dataclass(frozen=True)
class SSCS(PhaseSolver):
    """Symmetric splitting: equilibrium's exact half step, the score's step, equilibrium's exact half step.

    midpoint: solve the score's part by the midpoint rule, order 2, instead of Euler's, for a second evaluation a step.
    """

    kind: ClassVar[str] = "sscs"
    stochastic: ClassVar[bool] = True
    midpoint: bool = False

    @property
    def order(self) -> int:  # type: ignore[override]
        return 2 if self.midpoint else 1

    @property
    def evaluations(self) -> int:  # type: ignore[override]
        return 2 if self.midpoint else 1

    def move(
        self, denoise: Denoise, process: Langevin, state: Tensor, t: Level, s: Level, noise: Draws
    ) -> Tensor:
        h, middle = t.time - s.time, process.level((t.time + s.time) / 2)
        law, half = process.schedule, process.at((t.time - s.time) / 2)
        turn = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)  # time reversed is v reversed
        over, spread = turn * law.transition(half), factor(turn * law.covariance(half, 0.0))

        def push(at: Tensor) -> Tensor:
            v = at.chunk(2, 1)[1]
            return process.diffusion() ** 2 * (process.score(denoise(at, middle)) + v / law.mass)

        state = act(over, state) + act(spread, noise.normal(state))
        added = push(state)
        if self.midpoint:
            added = push(kick(state, h / 2 * added))
        return act(over, kick(state, h * added)) + act(spread, noise.normal(state, 1))


@dataclass(frozen=True)
class PhaseHeun(PhaseSolver):
    """The trapezoidal rule on the probability flow du = -f + g^2 S / 2."""

    kind: ClassVar[str] = "cld-heun"
    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 2

    def move(
        self, denoise: Denoise, process: Langevin, state: Tensor, t: Level, s: Level, noise: Draws
    ) -> Tensor:
        h = t.time - s.time
        slope = drift(process, denoise, state, t, 0.5)
        there = drift(process, denoise, state + h * slope, s, 0.5)
        return state + h / 2 * (slope + there)


@dataclass(frozen=True)
class PhaseBridge(PhaseSolver):
    """Ancestral sampling in phase space: a draw from q(u_s | u_t, x_0) with the predicted x_0."""

    kind: ClassVar[str] = "cld-bridge"
    stochastic: ClassVar[bool] = True

    def move(
        self, denoise: Denoise, process: Langevin, state: Tensor, t: Level, s: Level, noise: Draws
    ) -> Tensor:
        return process.bridge(state, denoise(state, t), t, s, noise)
