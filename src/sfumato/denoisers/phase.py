"""A Gaussian denoiser seen from phase space.

Given x_0 the state (x, v) of critically-damped Langevin diffusion is a x_0 plus noise whose 2x2 covariance is
known, so all that it says of x_0 is in one weighted sum of its two parts, y = x_0 + white noise
(`Langevin.sufficient`). Hence

    E[x_0 | x, v] = E[x_0 | y],

and whoever can denoise y, a Gaussian state, can denoise (x, v): an exact mixture, or a network trained without a
velocity.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import SolverError
from ..processes import Gaussian, Langevin, Level, Prediction
from ..processes.gaussian import fit, root
from ..processes.schedule import path_point
from .denoiser import Condition, Denoises


class InPhase(nn.Module):
    """The denoiser of (x, v) under a Langevin process that a Gaussian process's denoiser contains.

    E[x_0 | x, v] = E[x_0 | y] with y = a Sigma^-1 (x, v) / q at signal-to-noise ratio q. States (batch, 2 channels,
    ...), data and predictions (batch, channels, ...). Raises SolverError for a denoiser that is no Gaussian's.
    """

    def __init__(self, denoiser: Denoises, process: Langevin):
        super().__init__()
        if not isinstance(denoiser.process, Gaussian) or not isinstance(process, Langevin):
            raise SolverError(
                "InPhase takes a denoiser of a Gaussian process and a Langevin process, not "
                f"{type(denoiser.process).__name__} and {type(process).__name__}"
            )
        self.denoiser, self.process = denoiser, process

    def forward(self, x_t: Tensor, t: float | Tensor | Level, condition: Condition = None) -> Prediction:
        level = self.process.level(t)
        state, at = self.process.sufficient(x_t, level)
        own = self.denoiser.process.schedule
        if isinstance(at.log_snr, Tensor):
            alpha, sigma = path_point(own.path, at.alpha, at.sigma)
            there = Level(own.time(at.log_snr), alpha, sigma, at.log_snr)
        else:
            there = own.level_at(at.log_snr)
        # the same y on the denoiser's own path
        scale = root(there.alpha * there.alpha + there.sigma * there.sigma)
        x0 = self.denoiser(fit(scale, state) * state, there, condition).x0
        return Prediction(x0, "x0", self.process.view(x_t, level)[1], level, self.process)
