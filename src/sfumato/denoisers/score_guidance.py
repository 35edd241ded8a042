"""Guidance by any differentiable score: a classifier, a similarity of text and picture, a wish about the picture.

For a function f that is added to log p_t(x_t), the score gains grad f, and since x_0 = (x_t + sigma^2 score) / alpha,

    x0_f = x0 + scale (sigma^2 / alpha) grad_{x_t} f.                                                              (1)

    of = "state"   f(x_t, level, condition)         with f = log p(c | x_t), classifier guidance: exactly the
                                                    conditional at scale 1 (Dhariwal & Nichol 2021, arXiv 2105.05233)
    of = "x0"      f(x0(x_t), level, condition)     through the denoiser (Chung et al. 2023, arXiv 2209.14687; Bansal et
                                                    al. 2023, arXiv 2302.07121)

In the second the chain rule gives Cov[x_0 | x_t] grad f at an optimal denoiser, where d x0 / d x_t is (alpha / sigma^2)
Cov. For a linear f and Gaussian data that is the mean of x_0 under the tilted posterior p(x_0 | x_t) e^f, exactly;
otherwise f at the mean stands for f in the mean. At alpha = 0, where x_t says nothing of x_0, (1) is 0 / 0: start
below it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..errors import SolverError, choose
from ..processes import Level, Prediction
from ..processes.gaussian import fit
from .denoiser import Condition, Denoises
from .guidance import LARGEST

Score = Callable[[Tensor, Level, Condition], Tensor]


class ScoreGuided(nn.Module):
    """x0 + scale (sigma^2 / alpha) grad_{x_t} score, with one call of the denoiser (and its derivative for of = "x0").

    score: (x, level, condition) -> (batch,), a log-probability up to a constant; x is x_t or the predicted x_0 as `of`
    says, and each sample's value depends on that sample alone. hidden: conditions that only the score is told, such as
    the label of an unconditional model. Raises SolverError for a score of another shape, one without a derivative or
    with one that is not finite, or at pure noise (alpha = 0).
    """

    def __init__(
        self,
        denoiser: Denoises,
        score: Score,
        scale: float = 1.0,
        *,
        of: str = "x0",
        hidden: Sequence[str] = (),
    ):
        super().__init__()
        if not math.isfinite(scale) or abs(scale) > LARGEST:
            raise SolverError(f"a guidance scale must be finite and {LARGEST:g} at most, not {scale!r}")
        self.denoiser, self.score, self.scale = denoiser, score, float(scale)
        self.process = denoiser.process
        self.of = choose(of, ["state", "x0"], "argument of a score", SolverError)
        self.hidden = tuple(hidden)
        self.guides = scale != 0

    def forward(self, x_t: Tensor, t: float | Tensor | Level, condition: Condition = None) -> Prediction:
        level = self.process.level(t)
        told = condition and {name: value for name, value in condition.items() if name not in self.hidden}
        if not self.guides:
            return self.denoiser(x_t, level, told)
        if bool((torch.as_tensor(level.alpha) == 0).any()):
            raise SolverError(
                "guidance by a score knows nothing at pure noise, alpha = 0: start the grid below it (grid "
                "'angle' does)"
            )
        with torch.inference_mode(False), torch.enable_grad():
            x = x_t.detach().clone().requires_grad_()
            plain = self.denoiser(x if self.of == "x0" else x_t.detach().clone(), level, told)
            value = self.score(plain.x0 if self.of == "x0" else x, level, condition)
            if value.shape != (len(x),) or not value.requires_grad:
                raise SolverError(
                    f"a score gives one differentiable number a sample, ({len(x)},), not {tuple(value.shape)}"
                    + ("" if value.requires_grad else " without a derivative")
                )
            (slope,) = torch.autograd.grad(value.sum(), x)
        if not bool(slope.sum().isfinite()):
            raise SolverError(f"the derivative of the score is not finite at log-SNR {level.log_snr}")
        gain = self.scale * level.sigma * level.sigma / level.alpha
        x0 = plain.x0.detach() + fit(gain, slope) * slope
        variance = None if plain.variance is None else plain.variance.detach()
        return Prediction(x0, "x0", plain.x_t.detach(), level, self.process, variance)
