"""The laws that critically-damped Langevin diffusion must obey: `check_langevin(process)`.

* The mean and the covariance, of a start with known and with integrated velocity, are those that the SDE carries:
  da/dt = A a,  dSigma/dt = A Sigma + Sigma A^T + diag(0, g^2), in the slopes of finite differences.
* The covariance is positive definite and L L^T is it, with L_vv < 0.
* The end is the prior N(0, I) x N(0, M I), up to what is left of the data.
* The log-SNR of the rows falls, `time` inverts it, and r (x, v) = kappa x_0 + eps.
* The bridge composes: from t to s, drawn with the true x_0, it leads from the marginal to the marginal.
"""

from __future__ import annotations

import torch

from .langevin import Langevin
from .laws import require


def check_langevin(process: Langevin, points: int = 25) -> None:
    """Raise LawBroken unless the process obeys its laws at `points` times inside (0, 1)."""
    law = process.schedule
    t = torch.linspace(0, 1, points + 2, dtype=torch.float64)[1:-1]
    rates = process.drift(torch.eye(2, dtype=torch.float64))  # row i: the drift of unit state i
    push = torch.diag(torch.tensor([0.0, process.diffusion() ** 2], dtype=torch.float64))
    h = 1e-6
    slope = (law.mean(t + h) - law.mean(t - h)) / (2 * h)
    _close(slope, law.mean(t) @ rates, 1e-6, "the mean does not move as the drift says")
    for gamma in (0.0, law.gamma):
        here = law.covariance(t, gamma)
        slope = (law.covariance(t + h, gamma) - law.covariance(t - h, gamma)) / (2 * h)
        _close(
            slope, rates.T @ here + here @ rates + push, 1e-6, "the covariance does not grow as the SDE says"
        )
        low = law.cholesky(t, gamma)
        _close(low @ low.mT, here, 1e-9, "L L^T is not the covariance")
        require(bool((low[..., 0, 0] > 0).all() and (low[..., 1, 1] < 0).all()), "L is singular")
    prior = torch.diag(torch.tensor([1.0, law.mass], dtype=torch.float64))
    gap = float(
        ((law.covariance(process.at(1.0)) - prior) / prior.diagonal().sqrt().outer(prior.diagonal().sqrt()))
        .abs()
        .max()
    )
    gap = max(gap, float(law.mean(process.at(1.0)).abs().max()))
    require(
        gap < 0.02, f"at t = 1 the diffusion is off its prior by {gap:.1e}: beta / sqrt(mass) is too small"
    )
    log_snr = law.log_snr(t)
    require(bool((log_snr.diff() < 0).all()), "the log-SNR of the rows must fall with time")
    _close(law.time(log_snr), t, 1e-7, "time(log_snr(t)) must be t")
    _check_rows(process, t)
    for time in t.tolist()[:: max(1, points // 6)]:
        for share in (0.0, 0.3, 0.9):
            _check_bridge(process, time, share * time)


def _close(got: torch.Tensor, want: torch.Tensor, tolerance: float, law: str) -> None:
    gap = float(((got - want).abs() / (1 + want.abs())).max())
    require(gap < tolerance, f"{law}: off by {gap:.1e}")


def _check_rows(process: Langevin, t: torch.Tensor) -> None:
    level = process.level(t)
    x0 = torch.linspace(-1, 1, len(t), dtype=torch.float64)[:, None]
    noise = torch.linspace(1, 7, 2 * len(t), dtype=torch.float64).sin().reshape(-1, 2)
    state = process.corrupt(x0, level, noise)
    seen = process.view(state, level)[1]
    want = level.alpha[:, None] * x0 + level.sigma[:, None] * noise[:, 1:]
    _close(seen, want, 1e-7, "the state's projection is not alpha x_0 + sigma eps")


def _check_bridge(process: Langevin, t: float, s: float) -> None:
    law = process.schedule
    at, to = process.at(t), process.at(s)
    gain, mean, variance = process.posterior(at, to)
    _close(mean + gain @ law.mean(at), law.mean(to), 1e-9, "the bridge does not lead to the mean")
    there = gain @ law.covariance(at) @ gain.mT + variance
    _close(there, law.covariance(to), 1e-9, "the bridge does not lead to the covariance")
    joint = gain @ law.covariance(at)  # of (u_s, u_t) given x_0, which the forward transition gives too
    _close(joint, law.covariance(to) @ law.transition(at - to).mT, 1e-9, "the bridge has another past")
