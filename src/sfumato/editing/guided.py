"""Posterior sampling by a changed denoiser: what x_t says of x_0, and what the measurement adds.

Given x_t, x_0 has some mean m = E[x_0 | x_t] and covariance C. If it were Gaussian, then with y = A x_0 + sigma_y eps

    E[x_0 | x_t, y] = m + C A* (A C A* + sigma_y^2)^-1 (y - A m)                     (Kalman's gain)

would be exact, and a denoiser that says this samples p(x_0 | y) under any solver. The methods differ in their C.
Tweedie's second formula has it exactly, C = (sigma^2 / alpha) J with J = d m / d x_t (Meng et al. 2021, thm 1;
symmetric for the true denoiser), at one backward pass a product. Isotropic, for data of deviation d, C = r^2 with r^2
= d^2 sigma^2 / (alpha^2 d^2 + sigma^2).

    moments   C = (sigma^2 / alpha) J in both places: Rozet et al. 2024 (arXiv 2405.13712), Boys et al. 2023, TMPD
    pigdm     r^2 within the inverse, (sigma^2 / alpha) J before it: Song et al. 2023, PiGDM, eq. 7
    ddnm      r^2 in both places, m + A* (A A* + sigma_y^2 / r^2)^-1 (y - A m): Wang et al. 2023, DDNM. No gradient
    dps       any differentiable A: the inverse is one number a sample, m + scale C A'* (y - A(m)) / s^2 with J's C,
              s^2 = sigma_y^2 + r^2 |A' u|^2 / |u|^2 with u = A'* (y - A(m)), which is the best step along u. Chung et
              al. 2023 take a fixed step / |y - A(m)| instead, to be tuned for each operator and number of steps

Where the data vary in few directions, their C is there many times r^2, so pigdm and dps step beyond y by as much, and,
step upon step, away from it. The change c of pigdm is therefore no longer than brings A(m + c) nearest to y along it;
that of dps is not bounded, since beyond a nonlinear A its length is what finds the mode, but takes a smaller `scale`.

On Gaussian data `moments` is exact for any A, and on white ones of deviation d all four are where A A* = 1. `moments`
solves for its inverse by conjugate gradients, one backward pass an iteration, or, where a measurement has at most
`dense` numbers, directly with one backward pass for each.

Where alpha = 0, x_t says nothing and J is 0/0: C is d^2 there. A level without noise is left as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..denoisers import Condition, Denoises
from ..errors import SolverError, choose
from ..processes import Gaussian, Level, Prediction
from ..processes.gaussian import fit
from .operator import Measurement, conjugate_gradients

KINDS = ("moments", "pigdm", "ddnm", "dps")
DENSE, ITERATIONS, DAMPING = 64, 5, 0.1


class Look(NamedTuple):
    """What is known at x_t: plain (m), guided (with y), and log p(y | x_t) up to a constant, (batch,)."""

    plain: Prediction
    guided: Prediction
    log_evidence: Tensor


class Posterior(nn.Module):
    """E[x_0 | x_t, y]: a denoiser around a denoiser that takes a measurement into account.

    kind: "moments", "pigdm", "ddnm" or "dps". measurement: one row a sample. scale: multiplies the correction of dps.
    iterations: of moments' conjugate gradients; damping: the share of r^2 that they add to sigma_y^2. dense: the most
    numbers in a measurement for which moments solves directly.
    Costs one evaluation; all but ddnm one backward pass more, moments one for each iteration or number.
    Raises SolverError for a process that is not Gaussian, or an operator that is not linear where it must be.
    """

    def __init__(
        self,
        denoiser: Denoises,
        measurement: Measurement,
        kind: str = "pigdm",
        *,
        scale: float = 1.0,
        iterations: int = ITERATIONS,
        damping: float = DAMPING,
        dense: int = DENSE,
    ):
        super().__init__()
        if not isinstance(denoiser.process, Gaussian):
            raise SolverError(
                f"posterior sampling serves gaussian processes, not {type(denoiser.process).__name__}"
            )
        if choose(kind, KINDS, "kind of posterior", SolverError) != "dps":
            measurement.linear  # noqa: B018 (refuses what it is not)
        _check(scale, iterations, damping)
        self.denoiser, self.process, self.measurement = denoiser, denoiser.process, measurement
        self.kind, self.scale, self.iterations, self.damping = kind, scale, iterations, damping
        self.direct = measurement.y[0].numel() <= dense

    def forward(self, x_t: Tensor, t: float | Tensor | Level, condition: Condition = None) -> Prediction:
        return self.look(x_t, t, condition).guided

    def look(self, x_t: Tensor, t: float | Tensor | Level, condition: Condition = None) -> Look:
        """The plain and the guided prediction, and the log-evidence, from one evaluation."""
        level = self.process.level(t)
        if not isinstance(level.sigma, Tensor) and level.sigma == 0:
            plain = self.denoiser(x_t, level, condition)
            residual = self.measurement.residual(plain.x0).double()
            return Look(plain, plain, -residual.square().flatten(1).sum(1))
        if self.kind == "ddnm":
            plain = self.denoiser(x_t, level, condition)
            mean, covary = plain.x0, self._isotropic(level)
        else:
            with torch.enable_grad():
                point = x_t.detach().requires_grad_()
                inside = self.denoiser(point, level, condition)
                joined = inside.x0
            if not joined.requires_grad:
                raise SolverError(
                    f"{self.kind!r} needs the network's gradient, which this denoiser does not give: take 'ddnm'"
                )
            plain = Prediction(inside.value.detach(), inside.kind, x_t, level, self.process, inside.variance)
            mean, covary = joined.detach(), self._tweedie(joined, point, level)
        change, log_evidence = getattr(self, f"_{self.kind}")(mean, covary, level)
        if isinstance(level.sigma, Tensor) and bool((clean := level.sigma == 0).any()):
            change = torch.where(fit(clean, change).bool(), 0.0, change)
            residual = self.measurement.residual(mean).double().square().flatten(1).sum(1)
            log_evidence = torch.where(clean, -residual, log_evidence)
        guided = Prediction(mean + change, "x0", plain.x_t, level, self.process, plain.variance)
        return Look(plain, guided, log_evidence)

    # -- covariances -------------------------------------------------------------------------------------------
    def _spread(self, level: Level) -> Any:
        """r^2, the variance of x_0 given x_t for white data."""
        d2, s2 = self.process.sigma_data**2, level.sigma * level.sigma
        return d2 * s2 / (level.alpha * level.alpha * d2 + s2)

    def _isotropic(self, level: Level) -> Callable[[Tensor], Tensor]:
        return lambda v: fit(self._spread(level), v) * v

    def _tweedie(self, mean: Tensor, point: Tensor, level: Level) -> Callable[[Tensor], Tensor]:
        """v -> (sigma^2 / alpha) J^T v."""
        alpha = level.alpha
        blind = alpha == 0
        safe = torch.where(blind, 1.0, alpha) if isinstance(alpha, Tensor) else alpha or 1.0
        factor = level.sigma * level.sigma / safe

        def product(v: Tensor) -> Tensor:
            if blind is True:
                return self._isotropic(level)(v)
            found = fit(factor, v) * torch.autograd.grad(mean, point, v, retain_graph=True)[0]
            if isinstance(blind, Tensor) and bool(blind.any()):
                return torch.where(fit(blind, v).bool(), self._isotropic(level)(v), found)
            return found

        return product

    # -- what each kind adds to the mean, and log p(y | x_t) -----------------------------------------------------
    def _damping(self, level: Level) -> Any:
        return self.measurement.sigma**2 / self._spread(level)

    def _ddnm(self, mean: Tensor, covary: Callable, level: Level) -> tuple[Tensor, Tensor]:
        residual = self.measurement.residual(mean)
        pulled = self.measurement.linear.inverse(residual, self._damping(level))
        return pulled, self._isotropic_evidence(residual, pulled, level)

    def _pigdm(self, mean: Tensor, covary: Callable, level: Level) -> tuple[Tensor, Tensor]:
        residual = self.measurement.residual(mean)
        pulled = self.measurement.linear.inverse(residual, self._damping(level))
        change = covary(fit(1 / self._spread(level), mean) * pulled)
        return self._bounded(change, residual), self._isotropic_evidence(residual, pulled, level)

    def _bounded(self, change: Tensor, residual: Tensor) -> Tensor:
        """The change c, shortened to where |e - s A c| is least if it goes beyond: s = <e, A c> / |A c|^2, from 0 to 1.

        An isotropic inverse before a covariance that is larger than r^2 where it is measured overshoots by their ratio.
        """
        reached = self.measurement.linear(change).flatten(1).double()
        size = reached.square().sum(1)
        share = (residual.flatten(1).double() * reached).sum(1) / torch.where(size > 0, size, 1.0)
        return fit(torch.where(size > 0, share.clamp(0, 1), 1.0), change) * change

    def _isotropic_evidence(self, residual: Tensor, pulled: Tensor, level: Level) -> Tensor:
        """-1/2 e^T (r^2 A A* + sigma_y^2)^-1 e; the determinant is the same for all samples at a level.

        By the identity e^T S^-1 e = (e - A p)^T (e - A p) / sigma_y^2 + p^T p / r^2 with p = R_d e. Without noise only
        the second part is left, what A reaches of e.
        """
        spread = self._spread(level)
        within = pulled.double().square().flatten(1).sum(1) / spread
        if self.measurement.sigma == 0:
            return -0.5 * within
        left = (residual - self.measurement.operator(pulled)).double().square().flatten(1).sum(1)
        return -0.5 * (within + left / self.measurement.sigma**2)

    def _dps(self, mean: Tensor, covary: Callable, level: Level) -> tuple[Tensor, Tensor]:
        operator, residual = self.measurement.operator, self.measurement.residual(mean)
        u = operator.pull(mean, residual)
        along = operator.push(mean, u).flatten(1).double().square().sum(1)
        size = u.flatten(1).double().square().sum(1)
        curvature = torch.where(size > 0, along / torch.where(size > 0, size, 1.0), 1.0)
        variance = self.measurement.sigma**2 + self._spread(level) * curvature
        # where nothing is measured along u, nothing can be said, and u is 0
        variance = torch.where(variance > 0, variance, 1.0)
        error = residual.double().square().flatten(1)
        log_evidence = -0.5 * error.sum(1) / variance - 0.5 * error.shape[1] * variance.log()
        return self.scale * covary(fit(1 / variance, u) * u), log_evidence

    def _moments(self, mean: Tensor, covary: Callable, level: Level) -> tuple[Tensor, Tensor]:
        linear, residual = self.measurement.linear, self.measurement.residual(mean)
        sigma2 = self.measurement.sigma**2
        if not self.direct:
            # a network's J is only nearly that of a mean, and without noise nothing would damp what it gets wrong
            damping = fit(sigma2 + self.damping * self._spread(level), residual)

            def product(v: Tensor) -> Tensor:
                return linear(covary(linear.adjoint(v))) + damping * v

            solved = conjugate_gradients(product, residual, self.iterations)
            log_evidence = -0.5 * (residual * solved).double().flatten(1).sum(1)
            return covary(linear.adjoint(solved)), log_evidence
        flat = residual.flatten(1)
        columns = []
        for k in range(flat.shape[1]):
            unit = torch.zeros_like(flat)
            unit[:, k] = 1
            columns.append(covary(linear.adjoint(unit.view_as(residual))).double().flatten(1))
        joint = torch.stack(columns, 2)  # C A*, (batch, data, measured)
        rows = torch.stack(
            [linear(column.view_as(mean).to(mean)).double().flatten(1) for column in columns], 2
        )
        # a network's J is not symmetric, and rounding may leave a direction without variance
        inner = (rows + rows.mT) / 2
        least = 1e-9 * inner.diagonal(dim1=1, dim2=2).abs().mean(1).clamp(min=1e-300)
        values, basis = torch.linalg.eigh(inner)
        values = values.clamp(min=0) + torch.clamp(least, min=sigma2)[:, None]
        seen = torch.einsum("nkm,nk->nm", basis, flat.double())
        solved = torch.einsum("nkm,nm->nk", basis, seen / values)
        log_evidence = -0.5 * (seen.square() / values + values.log()).sum(1)
        return torch.einsum("ndm,nm->nd", joint, solved).view_as(mean).to(mean), log_evidence


def _check(scale: Any, iterations: Any, damping: Any) -> None:
    """Raise SolverError for settings that are no numbers of their range."""

    def number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

    for name, value, fine, rule in (
        ("scale", scale, number(scale), "a finite number"),
        ("iterations", iterations, type(iterations) is int and iterations >= 1, "a whole number from 1 on"),
        ("damping", damping, number(damping) and damping >= 0, "a number from 0 on"),
    ):
        if not fine:
            raise SolverError(f"{name} must be {rule}, not {value!r}")
