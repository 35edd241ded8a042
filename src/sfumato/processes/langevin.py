"""Critically-damped Langevin diffusion: noise enters a velocity, and the data only through it.

Dockhorn, Vahdat & Kreis 2022 (arXiv 2112.07068). Beside the data x stands a velocity v of the same shape, and

    dx = beta M^-1 v dt,      dv = -beta x dt - beta Gamma M^-1 v dt + sqrt(2 Gamma beta) dw,       Gamma^2 = 4 M,

with the paper's values M^-1 = 4, beta = 4 (so Gamma = 1), and v_0 ~ N(0, gamma M I), gamma = 0.04. Gamma^2 = 4 M is
critical damping: the fastest return to equilibrium N(0, I) x N(0, M I) without oscillation. The state is (x, v)
along dimension 1.

**Moments.** With the clock s = beta t / sqrt(M) and w = v / sqrt(M) the mass leaves the equations. The drift's
matrix is then [[0, 1], [-1, -2]] = -I + N with N^2 = 0, so its exponential ends after two terms:

    Phi(s) = e^-s [[1 + s, s], [-s, 1 - s]],       E (x, w) = a x_0,   a = e^-s (1 + s, -s).

Equilibrium has covariance I, so a start without any spread gathers I - Phi Phi^T, and with y = 2 s and P(3, .) the
regularised incomplete gamma function (which does not cancel at small s)

    Sigma(s) = [[P(3, y), y^2/2 e^-y], [., P(3, y) + 2 y e^-y]] + gamma q q^T,      q = e^-s (s, 1 - s).

gamma > 0 integrates the initial velocity out (hybrid score matching); gamma = 0 takes it as known (denoising score
matching), where its mean Phi (0, w_0) is added. det Sigma is summed from terms that do not cancel either.

**Rows.** Only v is driven by noise, so only the score of v is ever needed. Let Sigma = L L^T with L lower triangular,
L_vv < 0, and (x, v) = a x_0 + L (eps_x, eps). Given x_0 the score of v is -eps / L_vv. The last row r of L^-1 gives

    r (x, v) = kappa x_0 + eps,      kappa = r a = e^-s (s Sigma_xx + (1 + s) Sigma_xw) / sqrt(Sigma_xx det Sigma) > 0,

which is a Gaussian process in one variable: x' = alpha x_0 + sigma eps with alpha/sigma = kappa. So a prediction is
held in the same rows as everywhere else, with x' in the place of x_t; the schedule below is that of x', falls from
kappa = infinity at t = 0, and serves every grid and every distribution of times. What can be known of x_0 is more
than x' tells: eps_x does not depend on x_0, but (x, v) gives a Sigma^-1 a = kappa^2 + a_x^2 / Sigma_xx as its
signal-to-noise ratio, see `sufficient`.

**Mixed score** (the paper's name). Were the data N(0, sd^2 I), (x, v) would have the covariance C = Sigma + sd^2
a a^T and

    E[eps | x, v] = L_vv (C^-1 (x, v))_v,       Var[eps | x, v] = c^2,   c = sd kappa sqrt(det Sigma / det C).

The row "mixed" lets the network say what is missing from that: eps = L_vv (C^-1 (x, v))_v + c F, F of unit size.
The paper subtracts v / Sigma_vv; here x has its say too, and c is known, which is Karras et al.'s preconditioning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import SolverError, choose
from ..noise import Draws
from .gaussian import Prediction, Rows, fit, root
from .schedule import Level, Scalar, Schedule


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.stack([torch.stack([a, b], -1), torch.stack([c, d], -1)], -2)


def act(matrix: Tensor, state: Tensor) -> Tensor:
    """A 2x2 matrix, (2, 2) or one a sample (batch, 2, 2), times the (x, v) of a state (batch, 2 channels, ...)."""
    x, v = state.chunk(2, 1)
    return torch.cat([fit(row[0], x) * x + fit(row[1], v) * v for row in matrix.movedim((-2, -1), (0, 1))], 1)


def spread(vector: Tensor, x: Tensor) -> Tensor:
    """A vector (2,) or (batch, 2) times data (batch, channels, ...): a state."""
    return torch.cat([fit(part, x) * x for part in vector.movedim(-1, 0)], 1)


def factor(covariance: Tensor) -> Tensor:
    """A lower triangular root of 2x2 covariances (..., 2, 2), zero rows allowed."""
    top = covariance[..., 0, 0].clamp(min=0).sqrt()
    side = torch.where(top > 0, covariance[..., 1, 0] / top.clamp(min=1e-300), 0.0)
    return _matrix(top, torch.zeros_like(top), side, root(covariance[..., 1, 1] - side**2))


@dataclass(frozen=True)
class CriticallyDamped(Schedule):
    """The moments of the diffusion, and the schedule (alpha, sigma) of the x' in which predictions are held.

    beta: how fast time runs. mass: M. gamma: the initial velocity's variance as a share of M.
    """

    kind: ClassVar[str] = "cld"
    beta: float = 4.0
    mass: float = 0.25
    gamma: float = 0.04

    def _check(self) -> None:
        self._require(
            self.beta > 0 and self.mass > 0 and 0 < self.gamma <= 1,
            "beta > 0, mass > 0 and 0 < gamma <= 1",
        )

    def clock(self, t: Tensor) -> Tensor:
        """s = beta t / sqrt(M)."""
        return self.beta / math.sqrt(self.mass) * t

    def units(self, matrix: Tensor, power: int = 1) -> Tensor:
        """A matrix in (x, w) in the units of (x, v): D m D for a covariance (power 1), D m D^-1 for a map (-1)."""
        size = matrix.new_tensor([1.0, math.sqrt(self.mass)])
        return size[:, None] * matrix * size**power

    def transition(self, duration: Tensor) -> Tensor:
        """Phi over a duration of t: how (x, v) moves without noise."""
        s = self.clock(duration)
        return self.units(torch.exp(-s)[..., None, None] * _matrix(1 + s, s, -s, 1 - s), -1)

    def mean(self, t: Tensor) -> Tensor:
        """a with E (x, v) = a x_0, (..., 2)."""
        return self.transition(t)[..., 0]

    def _unit(self, t: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
        """Sigma in (x, w), and its determinant."""
        s = self.clock(t)
        y = 2 * s
        grown = torch.special.gammainc(torch.full_like(y, 3.0), y)
        nxx, nxw, nww = grown, y**2 / 2 * torch.exp(-y), grown + 2 * y * torch.exp(-y)
        qx, qw = torch.exp(-s) * s, torch.exp(-s) * (1 - s)
        determinant = nxx * nww - nxw**2 + gamma * (nxx * qw**2 - 2 * nxw * qx * qw + nww * qx**2)
        xx, xw, ww = nxx + gamma * qx**2, nxw + gamma * qx * qw, nww + gamma * qw**2
        return _matrix(xx, xw, xw, ww), determinant

    def covariance(self, t: Tensor, gamma: float | None = None) -> Tensor:
        """Sigma of (x, v) given x_0, (..., 2, 2); gamma = 0: given v_0 too."""
        return self.units(self._unit(t, self.gamma if gamma is None else gamma)[0])

    def cholesky(self, t: Tensor, gamma: float | None = None) -> Tensor:
        """L of (x, v) with L L^T = Sigma, lower triangular, L_vv <= 0."""
        sigma, determinant = self._unit(t, self.gamma if gamma is None else gamma)
        low = factor(sigma)
        top = low[..., 0, 0]
        last = torch.where(top > 0, root(determinant) / top.clamp(min=1e-300), sigma[..., 1, 1].sqrt())
        unit = _matrix(top, torch.zeros_like(top), low[..., 1, 0], -last)
        return unit * unit.new_tensor([1.0, math.sqrt(self.mass)])[:, None]

    def log_snr(self, t: Tensor) -> Tensor:
        """2 log kappa."""
        s = self.clock(t)
        sigma, determinant = self._unit(t, self.gamma)
        xx, xw = sigma[..., 0, 0], sigma[..., 0, 1]
        value = 2 * (torch.log(s * xx + (1 + s) * xw) - s) - torch.log(xx) - torch.log(determinant)
        return torch.where(t > 0, value, math.inf)


@dataclass(frozen=True)
class Langevin(Rows):
    """Critically-damped Langevin diffusion of data (batch, channels, ...), its states (batch, 2 channels, ...).

    sigma_data: standard deviation of the data, for the row "mixed", the network's input and the prior.
    """

    names: ClassVar[tuple[str, ...]] = ("mixed", "x0", "eps", "v", "edm")
    schedule: CriticallyDamped = CriticallyDamped()  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.schedule, CriticallyDamped):
            raise SolverError(
                f"critically-damped Langevin diffusion has its own schedule, CriticallyDamped, not {self.schedule!r}"
            )

    @staticmethod
    def at(t: Scalar | Level, like: Tensor | None = None) -> Tensor:
        """The time of a level or time as a float64 tensor, () or (batch,)."""
        time = t.time if isinstance(t, Level) else t
        return torch.as_tensor(time, dtype=torch.float64, device=None if like is None else like.device)

    # -- the forward law ---------------------------------------------------------------------------------------
    def prior(self, like: Tensor, noise: Draws, level: Level | None = None) -> Tensor:
        """Where sampling starts: N(0, Sigma + sd^2 a a^T), which at t = 1 is nearly N(0, I) x N(0, M I)."""
        return act(factor(self.spread_of_data(self.at(level or 1.0))), noise.normal(like))

    def corrupt(self, x0: Tensor, t: Scalar | Level, eps: Tensor, v0: Tensor | None = None) -> Tensor:
        """(x, v) = a x_0 + L (eps_x, eps); with v0 given, Phi (x_0, v_0) + L (eps_x, eps) and L that of gamma = 0.

        x0, v0 (batch, channels, ...), eps (batch, 2 channels, ...).
        """
        if eps.shape[1] != 2 * x0.shape[1]:
            raise SolverError(
                f"phase space needs noise for x and for v, {2 * x0.shape[1]} along dimension 1, not {eps.shape[1]}: "
                "train it by the objective 'hsm' or 'dsm'"
            )
        time = self.at(t, x0)
        if v0 is None:
            return spread(self.schedule.mean(time), x0) + act(self.schedule.cholesky(time), eps)
        start = torch.cat([x0, v0], 1)
        return act(self.schedule.transition(time), start) + act(self.schedule.cholesky(time, 0.0), eps)

    def drift(self, state: Tensor) -> Tensor:
        """f of the forward SDE du = f(u) dt + g dw: (beta v / M, -beta x - beta Gamma v / M)."""
        beta, mass = self.schedule.beta, self.schedule.mass
        x, v = state.chunk(2, 1)
        return torch.cat([beta / mass * v, -beta * x - 2 * beta / math.sqrt(mass) * v], 1)

    def diffusion(self) -> float:
        """g on v, sqrt(2 Gamma beta); on x it is 0."""
        return math.sqrt(4 * math.sqrt(self.schedule.mass) * self.schedule.beta)

    # -- what predictions are made of ----------------------------------------------------------------------------
    def spread_of_data(self, time: Tensor) -> Tensor:
        """C = Sigma + sd^2 a a^T, (..., 2, 2): the covariance of (x, v) over white data of sigma_data."""
        a = self.schedule.mean(time)
        return self.schedule.covariance(time) + self.sigma_data**2 * a[..., :, None] * a[..., None, :]

    def view(self, x_t: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        time = self.at(level, x_t)
        size = self.spread_of_data(time).diagonal(dim1=-2, dim2=-1).rsqrt()
        low = self._inner(time)
        x, v = x_t.chunk(2, 1)
        share = torch.as_tensor(level.sigma, dtype=low.dtype, device=x.device) / low[..., 1, 1]
        seen = fit(share, v) * (v - fit(low[..., 1, 0] / low[..., 0, 0], x) * x)
        return torch.cat([fit(size[..., 0], x) * x, fit(size[..., 1], v) * v], 1), seen

    def mixed(self, out: Tensor, x_t: Tensor, level: Level) -> Tensor:
        """eps = L_vv (C^-1 (x, v))_v + c F for a network's answer F."""
        time = self.at(level, x_t)
        whole, low = self.spread_of_data(time), self._inner(time)
        a, last = self.schedule.mean(time), low[..., 1, 1]
        # det C and c without their cancelling terms, from det Sigma = (L_xx L_vv)^2
        cross = a[..., 1] * low[..., 0, 0] - a[..., 0] * low[..., 1, 0]  # = kappa L_xx L_vv
        inner = (low[..., 0, 0] * last) ** 2
        det = inner + self.sigma_data**2 * (cross**2 + (a[..., 0] * last) ** 2)
        x, v = x_t.chunk(2, 1)
        known = fit(-last * whole[..., 0, 1] / det, x) * x + fit(last * whole[..., 0, 0] / det, v) * v
        return known + fit(self.sigma_data * cross.abs() / det.sqrt(), out) * out

    def _inner(self, time: Tensor) -> Tensor:
        """L, where it can be divided by."""
        if not bool((time > 0).all()):
            raise SolverError("at t = 0 the state is the data itself: nothing can be predicted there")
        return self.schedule.cholesky(time)

    def score(self, prediction: Prediction) -> Tensor:
        """The predicted score of v, -eps / L_vv, (batch, channels, ...)."""
        last = self._inner(self.at(prediction.level, prediction.x_t))[..., 1, 1]
        return fit(-1 / last, prediction.value) * prediction.eps

    def sufficient(self, state: Tensor, level: Level) -> tuple[Tensor, Level]:
        """All that (x, v) says of x_0, as a variance-preserving state and its level.

        y = a Sigma^-1 (x, v) / q, q = a Sigma^-1 a, is x_0 plus white noise of variance 1 / q.
        """
        time = self.at(level, state)
        inverse = torch.linalg.solve_triangular(
            self._inner(time), torch.eye(2, dtype=time.dtype, device=time.device), upper=False
        )
        a = inverse @ self.schedule.mean(time)[..., None]  # L^-1 a
        q = (a**2).sum((-2, -1))
        weights = (a.mT @ inverse)[..., 0, :] / torch.sqrt(q * (1 + q))[
            ..., None
        ]  # alpha / q = 1 / sqrt(q (1 + q))
        x, v = state.chunk(2, 1)
        seen = fit(weights[..., 0], x) * x + fit(weights[..., 1], v) * v
        found = (q / (1 + q)).sqrt(), (1 + q).rsqrt(), q.log()
        numbers = found if time.ndim else map(float, found)
        return seen, Level(level.time, *numbers)

    # -- backwards ---------------------------------------------------------------------------------------------
    def bridge(
        self, x_t: Tensor, prediction: Prediction, t: Scalar | Level, s: Scalar | Level, noise: Draws
    ) -> Tensor:
        """Draw (x, v) at s from its law given (x, v) at t and the predicted x_0 (`posterior`)."""
        gain, a, variance = self.posterior(self.at(t), self.at(s))
        return spread(a, prediction.x0) + act(gain, x_t) + act(factor(variance), noise.normal(x_t))

    def posterior(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(K, b, V) of q(u_s | u_t, x_0) = N(b x_0 + K u_t, V), for u = (x, v) and s < t.

        With Phi and N the transition from s to t and its noise, K = Sigma_s Phi^T Sigma_t^-1, b = a_s - K a_t and
        V = (I - K Phi) Sigma_s (I - K Phi)^T + K N K^T. Where s = 0, x is x_0 itself.
        """
        law = self.schedule
        before, over = law.covariance(s), law.transition(t - s)
        gain = before @ torch.linalg.solve(law.covariance(t), over).mT
        rest = torch.eye(2, dtype=gain.dtype) - gain @ over
        variance = rest @ before @ rest.mT + gain @ law.covariance(t - s, 0.0) @ gain.mT
        return gain, law.mean(s) - (gain @ law.mean(t)[..., None])[..., 0], variance

    # -- what samplers and domains see of the state ------------------------------------------------------------
    def state_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (2 * shape[0], *shape[1:])

    def data(self, state: Tensor) -> Tensor:
        return state.chunk(2, 1)[0]

    def clean(self, prediction: Prediction) -> Tensor:
        """The state at t = 0 with the predicted x_0, at rest."""
        return spread(self.at(0.0).new_tensor([1.0, 0.0]), prediction.x0)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "cld", "schedule": self.schedule.to_json(), "sigma_data": self.sigma_data}


def build_critically_damped(kind: str = "cld", **config: Any) -> CriticallyDamped:
    """The schedule of the "cld" process from the values a recipe or bundle writes."""
    if kind != "cld":
        raise SolverError(f"the cld process has a schedule of its own (beta, mass, gamma), not {kind!r}")
    for name in config:
        choose(
            name, [field.name for field in fields(CriticallyDamped)], "value of the cld schedule", SolverError
        )
    return CriticallyDamped(**config)
