"""Posterior sampling by particles: guided proposals, weighed so that what guidance gets wrong is put right.

A guided denoiser is a guess of E[x_0 | x_t, y]. Here it only proposes. With the chain's own steps p(x_s | x_t) =
N(mu(m), v), the bridge with the plain prediction m, proposals q(x_s | x_t) = N(mu(m'), v) with the guided one m', and
the guess psi_t(x_t) of p(y | x_t) that comes with it, particles are weighed by

    w_s = p(x_s | x_t) psi_s(x_s) / (q(x_s | x_t) psi_t(x_t)),

the twisted sequential Monte Carlo of Wu et al. 2023 (arXiv 2306.17775, eq. 11). The psi telescope: at the last noise
level the weights are those of importance sampling for p(x | y) under the chain, whatever the guesses were worth, and
good guesses only keep them even. So the error falls with the particles K of each sample, as about 1 / K, and with the
steps of the chain, which is why a posterior of several modes comes out with the right share of each. The last step,
from the last noise level to clean data, is the guided prediction itself.

With mu(m) = alpha_s m + k (x_t - alpha_t m) / sigma_t, k = sqrt(sigma_s^2 - v), a proposal moves by d = c (m' - m) +
sqrt(v) z with c = alpha_s - k alpha_t / sigma_t, and log p / q = (|z|^2 - |d|^2 / v) / 2.

Particle k of sample i is sample i K + k of the seed, and resampling is the sample's own (`solvers.particles`), so a
sample alone is the same sample in a batch. Cost: K times that of the proposal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..denoisers import Condition, Denoises
from ..errors import SolverError
from ..noise import Noise
from ..processes import Level
from ..solvers import Callback, Particles, Steering, check_levels
from ..solvers.particles import Weights, take_rows
from .guided import Posterior
from .operator import Measurement


def twisted(
    denoiser: Denoises,
    measurement: Measurement,
    noise: Noise,
    *,
    levels: Sequence[Level],
    steering: Steering | None = None,
    kind: str = "moments",
    condition: Condition = None,
    callback: Callback | None = None,
    like: Tensor | None = None,
) -> Particles:
    """Particles of p(x_0 | y) for each measurement: samples (batch, K, ...) and their weights; `picked` is one of each.

    steering: how many particles, and when they are resampled; a temperature has no meaning here. kind: of the
    proposal, see `Posterior`. Raises SolverError for a state that stops being finite, or weights that do.
    """
    steering = steering or Steering()
    process, count = denoiser.process, steering.particles
    check_levels(levels)
    each = Noise(noise.seed, [i * count + k for i in noise.indices for k in range(count)])
    given = condition and {name: rows.repeat_interleave(count, 0) for name, rows in condition.items()}
    posterior = Posterior(denoiser, measurement.repeat(count), kind)
    base = measurement.y if like is None else like
    x = process.prior(base.new_empty(len(each.indices), *measurement.operator.shape), each.at(0), levels[0])
    groups = Weights(len(noise.indices), Steering(count, threshold=steering.threshold), x.device)
    ratio, steps = x.new_zeros(len(x)).double(), len(levels) - 1
    for i in range(steps):
        t, s, draws = levels[i], levels[i + 1], each.at(i + 1)
        look = posterior.look(x, t, given)
        belief = ratio + look.log_evidence
        if not bool(belief.isfinite().all()):
            raise SolverError(
                f"the particles' weights are not finite at step {i + 1} of {steps}: give a larger sigma"
            )
        groups.weigh(belief)
        rows = groups.resample(draws, x)
        if rows is not None:
            x, ratio, look = (take_rows(part, rows, len(x)) for part in (x, ratio, look))
        plain, guided = look.plain.x0, look.guided.x0
        if s.sigma == 0:
            x = guided
        else:
            variance = process.lag(t, s)
            kept = math.sqrt(max(s.sigma**2 - variance, 0.0))
            z = draws.normal(x)
            moved = (s.alpha - kept * t.alpha / t.sigma) * (guided - plain) + math.sqrt(variance) * z
            x = s.alpha * plain + kept * look.plain.eps + moved
            ratio = ratio + 0.5 * _square(z) - 0.5 * _square(moved) / variance
        if callback is not None:
            callback(i + 1, steps, x, look.guided)
    return groups.close(x, each.at(steps + 1))


def _square(x: Tensor) -> Tensor:
    return x.double().square().flatten(1).sum(1)
