"""Adams-Bashforth solvers of any order, plain and exponential, and DEIS.

In a frame (see `solver`) the probability-flow ODE is dy/du = e^(rate u) g(u), with rate = 0 in the plain frames. Put
the polynomial through g at the last k levels in g's place, and integrate it exactly (Bashforth & Adams 1883;
exponential: Hochbruck & Ostermann 2010, sec. 2.5; diffusion: Lu et al. 2022b, Zhang & Chen 2023):

    y_s = y_t + sum_i g_i  int_{u_t}^{u_s}  e^(rate u) L_i(u) du,         L_i(u_j) = 1 if i = j else 0.

With theta = (u - u_t) / h from 0 to 1 over the step, every L_i is a polynomial in theta, and with z = rate h

    int e^(rate (u - u_s)) L_i du = h sum_k c_ik m_k,
    m_k = int_0^1 e^(z (theta - 1)) theta^k dtheta = k! phi_{k+1}(-z),    m_0 = (1 - e^-z) / z,   z m_k = 1 - k m_{k-1}.

The recursion is stable upwards for large z; for small z it is run downwards from the series of the highest m. The
levels need not be even. One evaluation a step gives order k, after k - 1 steps of lower order: the first is Euler's.

**DEIS** (Zhang & Chen 2023, eq. 14-15) integrates eps in the sigma frame, where dy = eps d rho with
rho = sigma / alpha, and lets the polynomial be one in another variable w:

    x_s = (alpha_s / alpha_t) x_t + alpha_s sum_i eps_i int L_i(w) d rho.

w = rho is Adams-Bashforth in the sigma frame, and w = log rho is exponential Adams-Bashforth of eps. w = t (tAB-DEIS)
needs rho(t): by parts the integral is [L_i rho] - int L_i'(t) rho dt, and the last by Gauss and Legendre. Degree 0 is
DDIM. A step to clean data is Adams's in the flow frame, in which it is one to u = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import SolverError, choose
from ..noise import Draws
from ..processes import Gaussian, Level, Prediction
from .solver import FRAMES, RATES, Denoise, Solver, frame_at, frame_to

MOST = 8  # beyond it the weights alternate so strongly that nothing is gained
_X, _W = np.polynomial.legendre.leggauss(24)
_POINTS, _SHARES = (_X + 1) / 2, _W / 2


class Said(NamedTuple):
    """What the denoiser said at a level, and the slope g which that is in the solver's frame."""

    level: Level
    prediction: Prediction
    slope: Tensor


def ask(frame: str, denoise: Denoise, process: Gaussian, x: Tensor, level: Level) -> Said:
    """One evaluation, at state x of a level."""
    prediction = denoise(x, level)
    return Said(level, prediction, prediction.combine(*frame_at(frame, process, level)[2:]))


def lagrange(nodes: Sequence[float]) -> list[list[float]]:
    """The Lagrange basis of distinct nodes: for each, its polynomial's coefficients from the constant one upwards."""
    basis = []
    for node in nodes:
        polynomial = [1.0]
        for other in nodes:
            if other != node:  # times (x - other) / (node - other)
                gap = node - other
                polynomial = [
                    (low - other * high) / gap
                    for low, high in zip([0.0, *polynomial], [*polynomial, 0.0], strict=True)
                ]
        basis.append(polynomial)
    return basis


def moments(z: float, count: int) -> list[float]:
    """m_k = int_0^1 e^(z (theta - 1)) theta^k dtheta for k below count."""
    if abs(z) >= 3:
        found = [-math.expm1(-z) / z]
        for k in range(1, count):
            found.append((1 - k * found[-1]) / z)
        return found
    term, top = 1 / count, 0.0
    for j in range(40):  # sum_j (-z)^j k! / (k + 1 + j)! with k = count - 1
        top += term
        term *= -z / (count + 1 + j)
    found = [top]
    for k in range(count - 1, 0, -1):
        found.append((1 - z * found[-1]) / k)
    return found[::-1]


def adams_weights(nodes: Sequence[float], start: float, end: float, rate: float = 0.0) -> list[float]:
    """int_start^end e^(rate (u - end)) L_i(u) du of the Lagrange polynomials of distinct nodes, the end's or not.

    nodes: places in u; start, end: of the step. With the weights w, y_s = y_t + e^(rate end) sum_i w_i g_i.
    """
    h = end - start
    powers = moments(rate * h, len(nodes))
    basis = lagrange([(node - start) / h for node in nodes])
    return [h * sum(c * m for c, m in zip(row, powers, strict=True)) for row in basis]


def adams_step(
    frame: str,
    process: Gaussian,
    x: Tensor,
    t: Level,
    s: Level,
    said: Sequence[Said],
    weights: Callable[..., list[float]] = adams_weights,
) -> Tensor:
    """x_s from x at t, along the polynomial in a frame through what was `said`; Adams-Moulton if that includes s."""
    own, frame = frame, frame_to(frame, t, s)
    rate = RATES.get(frame, 0.0)
    if rate:  # pure noise has no place on an axis of log-SNR
        said = [one for one in said if one.level.alpha > 0]
    c, u, _, _ = frame_at(frame, process, t)
    c_end, u_end, _, _ = frame_at(frame, process, s)
    scale = c_end if rate == 0 else s.alpha if rate > 0 else s.sigma  # c e^(rate u)
    places = [frame_at(frame, process, one.level) for one in said]
    out = (c_end / c) * x
    for one, (_, _, a, b), weight in zip(
        said, places, weights([place[1] for place in places], u, u_end, rate), strict=True
    ):
        slope = one.slope if frame == own else one.prediction.combine(a, b)
        out = torch.add(out, slope, alpha=scale * weight)
    return out


def check_order(order: int, what: str, least: int = 1, most: int = MOST) -> None:
    """Raise SolverError unless an order is a whole number in its range."""
    if isinstance(order, bool) or not isinstance(order, int) or not least <= order <= most:
        raise SolverError(f"{what} is a whole number from {least} to {most}, not {order!r}")


@dataclass(frozen=True)
class Adams(Solver):
    """Adams-Bashforth of an order in a frame: "flow", "sigma", "angle", "time", "x0-exponential", "eps-exponential".

    Its carry is what the denoiser said at the last levels. Order 1 in the flow frame is DDIM.
    """

    kind: ClassVar[str] = "adams"
    order: int = 3  # type: ignore[override]
    frame: str = "flow"

    def __post_init__(self) -> None:
        check_order(self.order, "order of Adams-Bashforth")
        choose(self.frame, (*FRAMES, *RATES), "frame", SolverError)

    @property
    def start_order(self) -> int:
        return min(self.order, 2)

    def step(
        self, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        said = (ask(self.frame, denoise, process, x, t), *(carry or ()))[: self.order]
        return adams_step(self.frame, process, x, t, s, said), said


@dataclass(frozen=True)
class DEIS(Solver):
    """The polynomial of a degree through eps in a variable, "time" (tAB-DEIS), "rho" or "log-rho"; order degree + 1.

    In "time" the schedule must be smooth: over a table of levels, where rho(t) has kinks, high degrees lose order.
    """

    kind: ClassVar[str] = "deis"
    degree: int = 2
    variable: str = "time"

    def __post_init__(self) -> None:
        check_order(self.degree, "degree of DEIS", 0, MOST - 1)
        choose(self.variable, ("time", "rho", "log-rho"), "variable of DEIS", SolverError)

    @property
    def order(self) -> int:  # type: ignore[override]
        return self.degree + 1

    @property
    def start_order(self) -> int:
        return min(self.order, 2)

    def step(
        self, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        said = (ask("eps-exponential", denoise, process, x, t), *(carry or ()))[: self.degree + 1]
        if t.alpha == 0 or self.variable == "log-rho":
            return adams_step("eps-exponential", process, x, t, s, said), said
        if self.variable == "rho" or frame_to("time", t, s) != "time":
            told = [one._replace(slope=-one.slope) for one in said if one.level.alpha > 0]
            return adams_step("sigma", process, x, t, s, told), said
        times = [one.level.time for one in said]
        ratio, out = s.sigma / s.alpha, (s.alpha / t.alpha) * x
        for one, weight in zip(said, _time_weights(process, times, t, s, ratio), strict=True):
            out = torch.add(out, one.slope, alpha=-s.alpha * weight)
        return out, said


def _time_weights(
    process: Gaussian, times: Sequence[float], t: Level, s: Level, rho_end: float
) -> list[float]:
    """int L_i d rho of the Lagrange polynomials in time, with theta from 0 at t to 1 at s."""
    h = s.time - t.time
    alpha, sigma = process.schedule.alpha_sigma(torch.from_numpy(t.time + h * _POINTS))
    rho = (sigma / alpha).numpy() * _SHARES
    weights = []
    for i, row in enumerate(lagrange([(time - t.time) / h for time in times])):
        slope = sum(k * c * _POINTS ** (k - 1) for k, c in enumerate(row) if k > 0)
        at_start = 1.0 if i == 0 else 0.0  # node 0 is t itself
        weights.append(sum(row) * rho_end - at_start * t.sigma / t.alpha - float(np.sum(slope * rho)))
    return weights
