"""The Gaussian process x_t = alpha x_0 + sigma eps, and the one line of algebra behind every parameterisation.

**Rows.** Whatever a network predicts is a row y = a x_0 + b eps:

    x0        (1, 0)                          v         (-sigma, alpha)          Salimans & Ho 2022
    eps       (0, 1)                          velocity  (alpha', sigma')         dx_t/dt along the probability flow
    score     (0, -1/sigma)                   edm       (sigma, -alpha sd^2) / (sd sqrt(sigma^2 + alpha^2 sd^2)),
                                                        EDM's F with sd the standard deviation of the data

Together with x_t = alpha x_0 + sigma eps a row is a 2x2 linear system of determinant D = alpha b - a sigma:

    x_0 = (b x_t - sigma y) / D,      eps = (alpha y - a x_t) / D,

so any row y' = a' x_0 + b' eps is y' = [(a' b - b' a) x_t + (alpha b' - sigma a') y] / D: one `convert`, not twenty.
An error e in y is an error e (alpha b' - sigma a') / D in y', which turns a loss in one space into a loss in another.
Where D = 0 the prediction says nothing about x_0 (eps at alpha = 0, x0 at sigma = 0), and `convert` refuses.

**SDE.** The marginals above belong to dx = f x dt + g dw with

    f(t) = alpha'/alpha,   g(t)^2 = 2 sigma sigma' - 2 f sigma^2 = -sigma^2 lambda'(t)   (Song et al. 2021).

**Bridge.** For s before t, with the lag v = sigma_s^2 (1 - exp(lambda_t - lambda_s)), variance of q(x_s | x_t, x_0),

    x_s = alpha_s x_0 + sqrt(sigma_s^2 - eta^2 v) eps + eta sqrt(v) z,        z ~ N(0, I),

has the right marginal for every eta in [0, 1] when x_0 and eps are the true ones: eta = 1 is the posterior of the
chain (ancestral sampling, Ho et al. 2020), eta = 0 is DDIM (Song et al. 2021, eq. 12). With alpha = 1 it is the same
step for variance-exploding processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import SolverError, choose
from ..noise import Draws
from .schedule import Level, Scalar, Schedule
from .schedules import SCHEDULES

PARAMETERISATIONS = ("x0", "eps", "v", "score", "velocity", "edm")


def root(value: Any) -> Any:
    """Square root of a float or a tensor, with rounding below zero taken as zero."""
    return value.clamp(min=0).sqrt() if isinstance(value, Tensor) else math.sqrt(max(value, 0.0))


def fit(coefficient: Any, x: Tensor) -> Any:
    """A coefficient, float or (batch,), made to multiply x of shape (batch, ...), in x's precision."""
    if not isinstance(coefficient, Tensor) or coefficient.ndim == 0:
        return coefficient
    return coefficient.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def _mix(own: tuple[Any, Any], wanted: tuple[Any, Any], level: Level, kind: str) -> tuple[Any, Any]:
    """The (p, q) of wanted row = p x_t + q y, for a prediction y in the row `own`."""
    (a, b), (a2, b2) = own, wanted
    alpha, sigma = level.alpha, level.sigma
    determinant = alpha * b - a * sigma
    if isinstance(determinant, Tensor):
        # written so that NaN is singular too
        singular = not bool(((determinant.abs() >= 1e-12) & (determinant.abs() < math.inf)).all())
    else:
        singular = not 1e-12 <= abs(determinant) < math.inf
    if singular:
        raise SolverError(
            f"a prediction of {kind!r} says nothing of x0 where alpha = {alpha:.3g} and sigma = {sigma:.3g} "
            f"(D = {determinant:.3g}): predict 'v', or keep away from that end"
            if not isinstance(determinant, Tensor)
            else f"a prediction of {kind!r} says nothing of x0 at some of these levels (D = 0): "
            "predict 'v', or keep away from that end"
        )
    return (a2 * b - b2 * a) / determinant, (alpha * b2 - sigma * a2) / determinant


def _linear(coefficients: tuple[Any, Any], x: Tensor, y: Tensor) -> Tensor:
    p, q = coefficients
    if not isinstance(p, Tensor) and p == 0:
        return y if q == 1 else q * y
    return fit(p, x) * x + fit(q, y) * y


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says about x_0, held in the row it was said in and converted when asked.

    value: the prediction, shaped like x_t. kind: its row's name. variance: where the network learns the variance of
    p(x_s | x_t), its place between the log of the two bounds, -1 to 1 (Nichol & Dhariwal 2021), else None.
    """

    value: Tensor
    kind: str
    x_t: Tensor
    level: Level
    process: Any  # a `Rows`, of whatever kind the denoiser's is
    variance: Tensor | None = None

    def to(self, kind: str) -> Tensor:
        """The same prediction in another row."""
        return self.process.convert(self.value, self.x_t, self.level, self.kind, kind)

    def combine(self, a: Any, b: Any) -> Tensor:
        """a x_0 + b eps for any coefficients, without making x_0 and eps first."""
        own = self.process.row(self.kind, self.level)
        return _linear(_mix(own, (a, b), self.level, self.kind), self.x_t, self.value)

    @property
    def x0(self) -> Tensor:
        return self.to("x0")

    @property
    def eps(self) -> Tensor:
        return self.to("eps")


@dataclass(frozen=True)
class Rows:
    """What a process is to a prediction: noise levels, and rows y = a x_0 + b eps that turn into one another.

    sigma_data: standard deviation of the data, which the `edm` row and the scaling of network inputs use.
    """

    names: ClassVar[tuple[str, ...]] = PARAMETERISATIONS  # of what a network may predict
    schedule: Schedule
    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, Schedule):
            raise SolverError(f"schedule must be a Schedule ({', '.join(SCHEDULES)}), not {self.schedule!r}")
        if not 0 < self.sigma_data < math.inf:
            raise SolverError(f"sigma_data must be positive and finite, not {self.sigma_data!r}")

    def level(self, t: Scalar | Level) -> Level:
        """The noise level at time t."""
        return self.schedule.level(t)

    def rates(self, t: Scalar | Level) -> tuple[Any, Any]:
        """(alpha', sigma') at a time."""
        time = t.time if isinstance(t, Level) else t
        if isinstance(time, Tensor):
            return self.schedule.rates(time.double())
        alpha, sigma = self.schedule.rates(torch.tensor([time], dtype=torch.float64))
        return float(alpha), float(sigma)

    # -- what networks, samplers and domains see of the state ----------------------------------------------------
    def view(self, x_t: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """(the network's input, of unit size; the x_t that stands in the rows)."""
        scale = 1 / root((level.alpha * self.sigma_data) ** 2 + level.sigma * level.sigma)
        return fit(scale, x_t) * x_t, x_t

    def state_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of a state whose data have this shape, without the batch."""
        return tuple(shape)

    def data(self, state: Tensor) -> Tensor:
        """The part of a state that is data."""
        return state

    # -- rows --------------------------------------------------------------------------------------------------
    def row(self, kind: str, level: Level) -> tuple[Any, Any]:
        """The (a, b) of y = a x_0 + b eps at a level."""
        alpha, sigma = level.alpha, level.sigma
        if kind == "x0":
            return 1.0, 0.0
        if kind == "eps":
            return 0.0, 1.0
        if kind == "v":
            return -sigma, alpha
        if kind == "velocity":
            return self.rates(level)
        if kind == "edm":
            size = self.sigma_data * root(sigma * sigma + (alpha * self.sigma_data) ** 2)
            return sigma / size, -alpha * self.sigma_data**2 / size
        if kind == "score":
            if not isinstance(sigma, Tensor) and sigma == 0:
                raise SolverError(
                    "the score is infinite where sigma = 0: stop at a time above 0 or predict another row"
                )
            return 0.0, -1 / sigma
        choose(kind, PARAMETERISATIONS, "parameterisation", SolverError)
        raise AssertionError(kind)

    def determinant(self, kind: str, level: Level) -> Any:
        """D = alpha b - a sigma: how much of x_0 a prediction of this kind holds at this level."""
        a, b = self.row(kind, level)
        return level.alpha * b - a * level.sigma

    def gain(self, source: str, target: str, level: Level) -> Any:
        """How an error in one row grows in another: (alpha b' - sigma a') / D. Its square turns losses into losses."""
        if source == target:  # also where D = 0
            return torch.ones_like(level.alpha) if isinstance(level.alpha, Tensor) else 1.0
        return _mix(self.row(source, level), self.row(target, level), level, source)[1]

    def convert(self, y: Tensor, x_t: Tensor, t: Scalar | Level, source: str, target: str) -> Tensor:
        """Turn a prediction y in row `source` into row `target`. Raises SolverError where D = 0."""
        if source == target:
            return y
        level = self.level(t)
        return _linear(_mix(self.row(source, level), self.row(target, level), level, source), x_t, y)


@dataclass(frozen=True)
class Gaussian(Rows):
    """The process x_t = alpha(t) x_0 + sigma(t) eps of a schedule."""

    # -- the forward law ---------------------------------------------------------------------------------------
    def prior(self, like: Tensor, noise: Draws, level: Level | None = None) -> Tensor:
        """Where sampling starts: sigma eps, with the data's own share alpha^2 sigma_data^2 added to the variance."""
        alpha, sigma = (level or self.level(1.0))[1:3]
        return math.sqrt(sigma**2 + (alpha * self.sigma_data) ** 2) * noise.normal(like)

    def corrupt(self, x0: Tensor, t: Scalar | Level, eps: Tensor) -> Tensor:
        """x_t = alpha x_0 + sigma eps."""
        level = self.level(t)
        return fit(level.alpha, x0) * x0 + fit(level.sigma, x0) * eps

    # -- backwards ---------------------------------------------------------------------------------------------
    def lag(self, t: Level, s: Level) -> Any:
        """The variance of q(x_s | x_t, x_0): sigma_s^2 (1 - exp(lambda_t - lambda_s))."""
        if isinstance(s.sigma, Tensor):
            return -(s.sigma**2) * torch.expm1(t.log_snr - s.log_snr)
        return -(s.sigma**2) * math.expm1(t.log_snr - s.log_snr) if s.sigma > 0 else 0.0

    def bridge(
        self,
        x_t: Tensor,
        prediction: Prediction,
        t: Scalar | Level,
        s: Scalar | Level,
        noise: Draws,
        eta: float = 1.0,
    ) -> Tensor:
        """Draw x_s from q(x_s | x_t, x_0) with the predicted x_0; eta = 1 ancestral, 0 deterministic."""
        t, s = self.level(t), self.level(s)
        variance = eta * eta * self.lag(t, s)
        x0, eps = prediction.x0, prediction.eps
        mean = fit(s.alpha, x0) * x0 + fit(root(s.sigma * s.sigma - variance), eps) * eps
        if eta == 0 or (not isinstance(variance, Tensor) and variance == 0):
            return mean
        return mean + fit(root(variance), mean) * noise.normal(mean)

    def drift(self, t: Scalar | Level) -> Any:
        """f(t) = alpha' / alpha of the forward SDE dx = f x dt + g dw."""
        alpha = self.level(t).alpha
        if not isinstance(alpha, Tensor) and alpha == 0:
            raise SolverError("the drift alpha'/alpha is infinite where alpha = 0: stay at times below 1")
        return self.rates(t)[0] / alpha

    def diffusion(self, t: Scalar | Level) -> Any:
        """g(t) = sqrt(2 sigma (sigma' - f sigma)) of the forward SDE."""
        sigma = self.level(t).sigma
        return root(2 * sigma * (self.rates(t)[1] - self.drift(t) * sigma))

    def to_json(self) -> dict[str, Any]:
        return {"kind": "gaussian", "schedule": self.schedule.to_json(), "sigma_data": self.sigma_data}
