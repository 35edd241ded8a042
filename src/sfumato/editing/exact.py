"""The exact posterior of a Gaussian mixture under a linear measurement, to hold samplers against.

For p(x) = sum_k w_k N(mu_k, C_k) and y = A x + sigma eps, with S_k = A C_k A^T + sigma^2 I, p(x | y) is the mixture of

    w_k' ~ w_k N(y; A mu_k, S_k),    mu_k' = mu_k + C_k A^T S_k^-1 (y - A mu_k),    C_k' = C_k - C_k A^T S_k^-1 A C_k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..denoisers import GaussianMixture
from ..errors import SolverError
from .operator import LinearOperator


def exact_posterior(
    mixture: GaussianMixture, operator: LinearOperator, y: Tensor, sigma: float
) -> GaussianMixture:
    """p(x | y) as a mixture, for one measurement y (1, ...). Raises SolverError for dependent rows without noise."""
    unit = torch.eye(mixture.means.shape[1], dtype=torch.float64).reshape(-1, *operator.shape)
    matrix = operator(unit).flatten(1).mT
    covariances = (mixture.basis * mixture.eigenvalues[:, None]) @ mixture.basis.mT
    joint = covariances @ matrix.mT
    inner = matrix @ joint + sigma**2 * torch.eye(len(matrix), dtype=torch.float64)
    factor, failed = torch.linalg.cholesky_ex(inner)
    if bool(failed.any()):
        raise SolverError("this measurement without noise repeats itself, and has no density: give a sigma")
    error = y.double().reshape(1, -1) - mixture.means @ matrix.mT
    gain = torch.cholesky_solve(joint.mT, factor).mT
    left = covariances - gain @ joint.mT
    evidence = torch.distributions.MultivariateNormal(torch.zeros_like(error), scale_tril=factor).log_prob(
        error
    )
    return GaussianMixture(
        mixture.process,
        mixture.means + (gain @ error[..., None])[..., 0],
        (left + left.mT) / 2,
        torch.softmax(mixture.weights.log() + evidence, 0),
    )
