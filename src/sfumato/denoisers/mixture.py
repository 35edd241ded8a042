"""The exact denoiser of a mixture of Gaussians: a model without a network, whose every answer is known.

For p(x_0) = sum_k w_k N(mu_k, C_k) and x_t = alpha x_0 + sigma eps, component k of x_t is N(alpha mu_k, S_k) with
S_k = alpha^2 C_k + sigma^2 I, and

    E[x_0 | x_t] = sum_k r_k(x_t) (mu_k + alpha C_k S_k^-1 (x_t - alpha mu_k)),   r_k ~ w_k N(x_t; alpha mu_k, S_k).

In the eigenbasis C_k = Q_k diag(l_k) Q_k^T everything is a product of matrices, in float64, at every noise level,
sigma = 0 and alpha = 0 included. Because the answer is exact, what a solver gets wrong on it is the solver's alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import SolverError
from ..noise import Noise
from ..processes import Gaussian, Level, Prediction
from ..processes.gaussian import fit
from .denoiser import Condition


class GaussianMixture(nn.Module):
    """Exact denoiser, log-density and samples of a Gaussian mixture under any Gaussian process.

    means (components, dim), covariances (components, dim, dim) or (components, dim) for diagonal ones,
    weights (components,). Data are (batch, dim) or anything of dim elements, (batch, ...).
    The condition {"label": (batch,)} keeps one component; the label `components` means all of them. {"evidence":
    (batch, components)} is what is known of the component from elsewhere, as the log of its likelihood.
    """

    means: Tensor
    eigenvalues: Tensor
    basis: Tensor
    weights: Tensor

    def __init__(self, process: Gaussian, means: Tensor, covariances: Tensor, weights: Tensor | None = None):
        super().__init__()
        means, covariances = means.double(), covariances.double()
        if covariances.ndim == 2:
            covariances = torch.diag_embed(covariances)
        count, dim = means.shape
        if covariances.shape != (count, dim, dim):
            raise SolverError(
                f"covariances must be {(count, dim, dim)} for these means, not {tuple(covariances.shape)}"
            )
        weights = torch.ones(count, dtype=torch.float64) if weights is None else weights.double()
        eigenvalues, basis = torch.linalg.eigh(covariances)
        if bool((eigenvalues < -1e-12).any()) or weights.shape != (count,) or bool((weights < 0).any()):
            raise SolverError(
                "a mixture needs weights >= 0, one a component, and covariances without negative eigenvalues"
            )
        self.process = process
        self.register_buffer("means", means)
        self.register_buffer("eigenvalues", eigenvalues.clamp(min=0))
        self.register_buffer("basis", basis)
        self.register_buffer("weights", weights / weights.sum())

    def _parts(self, x_t: Tensor, level: Level, condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates Q^T (x - alpha mu), variances, and log w_k N_k, for all components."""
        x = x_t.flatten(1).double()
        alpha, sigma = fit(level.alpha, x), fit(level.sigma, x)
        if isinstance(alpha, Tensor):
            alpha, sigma = alpha[..., None], sigma[..., None]
        offset = torch.einsum("nkd,kde->nke", x[:, None] - alpha * self.means, self.basis)
        variance = alpha**2 * self.eigenvalues + sigma**2
        log_density = -0.5 * (offset**2 / variance + torch.log(2 * math.pi * variance)).sum(-1)
        log_weight = self.weights.log().expand(len(x), -1)
        if condition is not None and "label" in condition:
            label, count = condition["label"], len(self.weights)
            only = (
                torch.nn.functional.one_hot(label.clamp(max=count - 1), count).bool()
                | (label == count)[:, None]
            )
            log_weight = torch.where(only, torch.where((label == count)[:, None], log_weight, 0.0), -math.inf)
        if condition is not None and "evidence" in condition:
            log_weight = log_weight + condition["evidence"]
        return offset, variance, log_density + log_weight

    def forward(self, x_t: Tensor, t: float | Tensor | Level, condition: Condition = None) -> Prediction:
        level = self.process.level(t)
        offset, variance, log_joint = self._parts(x_t, level, condition)
        share = torch.softmax(log_joint, 1)
        alpha = fit(level.alpha, x_t.flatten(1))
        gain = (alpha[..., None] if isinstance(alpha, Tensor) else alpha) * self.eigenvalues / variance
        centred = torch.einsum("nk,nke,kde->nd", share, gain * offset, self.basis)
        x0 = (share @ self.means + centred).reshape(x_t.shape).to(x_t.dtype)
        return Prediction(x0, "x0", x_t, level, self.process)

    def responsibilities(
        self, x_t: Tensor, t: float | Tensor | Level = 0.0, condition: Condition = None
    ) -> Tensor:
        """p(component | x_t), (batch, components) in float64."""
        return torch.softmax(self._parts(x_t, self.process.level(t), condition)[2], 1)

    def log_density(
        self, x_t: Tensor, t: float | Tensor | Level = 0.0, condition: Condition = None
    ) -> Tensor:
        """log p_t(x_t) in nats, (batch,)."""
        return torch.logsumexp(self._parts(x_t, self.process.level(t), condition)[2], 1)

    def sample(self, noise: Noise) -> Tensor:
        """Draws from p(x_0), one for each of the noise's indices, (batch, dim) in float64."""
        like = self.means.new_empty(len(noise.indices), self.means.shape[1])
        chosen = torch.searchsorted(self.weights.cumsum(0), noise.uniform(like[:, :1])[:, 0])
        chosen = chosen.clamp(max=len(self.weights) - 1)
        scaled = self.eigenvalues[chosen].sqrt() * noise.normal(like, stream=1)
        return self.means[chosen] + torch.einsum("nde,ne->nd", self.basis[chosen], scaled)
