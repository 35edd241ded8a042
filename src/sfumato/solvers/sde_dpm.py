"""SDE-DPM-Solver++: multistep exponential integrators of the reverse SDE, in the log-SNR.

With l = lambda / 2 = log(alpha / sigma), every eta >= 0 gives a process with the right marginals (Song et al. 2021;
Xue et al. 2023, eq. 8): the probability flow and a share of Langevin's dynamics, which renews the noise at rate eta^2,

    dx = [(sigma'/sigma - eta^2) x + (1 + eta^2) alpha x_0(x, l)] dl + sqrt(2) eta sigma dw,     ' = d/dl.

It is linear but for x_0, so that over a step of h = l_s - l_t, with the rate k = 1 + eta^2, it is solved exactly by

    x_s = (sigma_s/sigma_t) e^(-eta^2 h) x_t + alpha_s int_0^h k e^(-k (h - v)) x_0(l_t + v) dv
          + sigma_s sqrt(1 - e^(-2 eta^2 h)) z.

The weight under the integral has the mass 1 - e^(-k h), so it is a mean of x_0 over the step that favours its end. x_0
is continued as a polynomial through what was seen at this level and at the last ones: `step_weights`. A constant is the
bridge at eta = 0 and 1. The solver's own forms (Lu et al. 2022b, alg. 2, app. B; with h_last = r h)

    order 2   D = x_0 + (x_0 - x_0_last) / 2r,   int = (1 - e^(-k h)) D      the line, taken at the middle of the step
    order 3   the parabola, integrated exactly

differ in that: at order 2 the middle stands for the weighted mean, which is the same to the order of the method. (The
3M of k-diffusion and diffusers gives the parabola's second difference half its weight in the integral.)

**Ends.** From alpha = 0, h is infinite: x_t is forgotten, and x_0 with fresh noise takes its place, as in the chain. A
level at infinity can hold no polynomial, so the next step starts from a constant. A step to sigma = 0 gives x_0.

**Orders.** At eta = 0 this is DPM-Solver++; of order 2 also with three points, since the first step, which has seen one
only, leaves an error of that order. With noise the variance of what Gaussian data become has the second order; on one
Brownian path the error is of the first.

**One path.** sigma_s e^(-eta^2 l_s) (B(q_s) - B(q_t)) is that noise for a Brownian motion B in the clock
q = e^(2 eta^2 l), which at eta = 1 is the signal-to-noise ratio. It adds up when a step is split: `brownian` gives a
run such noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import SolverError
from ..noise import Draws, Noise, Path
from ..processes import Gaussian, Level
from .solver import Denoise, Solver

Seen = tuple[tuple[float, Tensor], ...]  # (log-SNR, x0), newest first


def step_weights(rate: float, h: float, nodes: Sequence[float]) -> list[float]:
    """Weights w with  sum_j w_j p(v_j) = int_0^h k e^(-k (h - v)) p(v) dv  for polynomials p of degree < len(nodes).

    nodes: the places v_j, from the start of the step: 0 is its start, h its end, what was seen before is negative.
    """
    moments = _moments(rate * h, len(nodes))
    if len(nodes) == 1:
        return moments
    places, weights = [node / h for node in nodes], []
    for own in places:
        lagrange = [1.0]  # rising coefficients of the polynomial that is 1 at its own place, 0 at others
        for other in places:
            if other != own:
                low, high = [-other * c for c in lagrange] + [0.0], [0.0, *lagrange]
                lagrange = [(a + b) / (own - other) for a, b in zip(low, high, strict=True)]
        weights.append(sum(c * m for c, m in zip(lagrange, moments, strict=True)))
    return weights


def _moments(y: float, count: int) -> list[float]:
    """The moments int_0^1 y e^(-y (1 - r)) r^j dr = 1 - j M_(j-1) / y, from M_0 = 1 - e^-y."""
    moments = [-math.expm1(-y)]
    if y >= 1 or count == 1:
        for j in range(1, count):
            moments.append(1 - j * moments[-1] / y)
        return moments
    # upwards the recursion would cancel here; downwards it is stable, from e^-y y sum_n y^n / (n! (n + j + 1))
    top = count - 1
    term, series = 1.0, 1 / (top + 1)
    for n in range(1, 17):
        term *= y / n
        series += term / (n + top + 1)
    moments = [math.exp(-y) * y * series]
    for j in range(top, 0, -1):
        moments.append((1 - moments[-1]) * y / j)
    return moments[::-1]


def follow(x: Tensor, rate: float, t: Level, s: Level, seen: Seen) -> Tensor:
    """x + alpha_s int_0^h k e^(-k (h - v)) p(v) dv for the polynomial p through what was seen."""
    used, h = usable(t, s, seen), (s.log_snr - t.log_snr) / 2
    weights = step_weights(
        rate, h, [(log_snr - t.log_snr) / 2 for log_snr, _ in used] if len(used) > 1 else [0.0]
    )
    for weight, (_, x0) in zip(weights, used, strict=True):
        x = torch.add(x, x0, alpha=s.alpha * weight)
    return x


def usable(t: Level, s: Level, seen: Seen) -> Seen:
    """What a step's polynomial goes through: from or to an end the newest only, and never what pure noise said."""
    if not math.isfinite(s.log_snr - t.log_snr):
        return seen[:1]
    return tuple(pair for pair in seen if pair[0] > -math.inf)


def forget(eta: float, t: Level, s: Level) -> tuple[float, float]:
    """(factor of x_t, deviation of the noise) of a step at the rate eta of renewal."""
    if eta == 0 or s.sigma == 0:
        return s.sigma / t.sigma, 0.0  # also where 0 times infinity would be asked for
    turn = eta * eta * (s.log_snr - t.log_snr) / 2
    return s.sigma / t.sigma * math.exp(-turn), s.sigma * math.sqrt(-math.expm1(-2 * turn))


def brownian(noise: Noise, levels: Sequence[Level], eta: float = 1.0, depth: int = 12) -> Path:
    """In place of a run's noise: one Brownian path per sample, the same whatever levels are visited.

    Its clock is (alpha / sigma)^(2 eta^2), in which the noise of solvers with that rate eta is exact; others see the
    same path, with an error that vanishes with the step. Raises ValueError for levels closer than the tree's leaves.
    """
    return Path(
        noise,
        tuple(
            math.exp(min(eta * eta * level.log_snr, 700.0)) if level.sigma else math.inf for level in levels
        ),
        depth,
    )


@dataclass(frozen=True)
class SDEDPMpp(Solver):
    """SDE-DPM-Solver++ multistep. points: levels looked at, 1, 2 (2M) or 3 (3M). eta: 0 the flow, 1 the chain's rate.

    Its carry is the last points - 1 pairs of log-SNR and x0, newest first.
    """

    kind: ClassVar[str] = "sde-dpm++"
    points: int = 2
    eta: float = 1.0

    def __post_init__(self) -> None:
        if self.points not in (1, 2, 3):
            raise SolverError(f"SDE-DPM-Solver++ looks at 1, 2 or 3 points, not {self.points!r}")
        if not 0 <= self.eta < math.inf:
            raise SolverError(f"eta of SDE-DPM-Solver++ is at least 0 and finite, not {self.eta!r}")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0

    @property
    def order(self) -> int:  # type: ignore[override]
        return min(self.points, 2)

    def init(self, x: Tensor) -> Any:
        return ()

    def step(
        self, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        seen = ((t.log_snr, denoise(x, t).x0), *carry[: self.points - 1])
        rate, used = 1 + self.eta**2, usable(t, s, seen)
        factor, deviation = forget(self.eta, t, s)
        x = factor * x
        if self.points == 2 and len(used) == 2:
            slope = (s.log_snr - t.log_snr) / (t.log_snr - used[1][0])  # 1 / r
            mass = -s.alpha * math.expm1(-rate * (s.log_snr - t.log_snr) / 2)
            x = torch.add(x, used[0][1], alpha=mass * (1 + slope / 2))
            x = torch.add(x, used[1][1], alpha=-mass * slope / 2)
        else:
            x = follow(x, rate, t, s, used)
        if deviation > 0:
            x = torch.add(x, noise.normal(x), alpha=deviation)
        return x, seen
