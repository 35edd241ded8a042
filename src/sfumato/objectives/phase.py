"""Score matching in phase space, for critically-damped Langevin diffusion (`processes.langevin`).

Only the score of v is needed, and given where a state came from it is known: with (x, v) = mean + L (eps_x, eps) it is
-eps / L_vv. Two choices of "where it came from" have the same minimiser (Dockhorn et al. 2022):

    hybrid     from x_0, the initial velocity integrated out      Sigma of gamma,  L_vv ~ sqrt(t)
    denoising  from x_0 and v_0                                   Sigma of gamma = 0

The network's target is the row of (x_0, eps) under the hybrid L. The denoising target is the same score, so its eps
is the hybrid one times the ratio of the two L_vv, and its x_0 is what that eps makes of the same state. The hybrid
target varies less around its mean near the data, where v_0 says more about the noise than x_0 does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import RecipeError
from ..noise import Draws
from ..processes import Langevin, Level
from ..processes.gaussian import fit
from .denoising import EPS, START, Denoising


@dataclass(frozen=True)
class PhaseScoreMatching(Denoising):
    """Hybrid score matching, ||y - y(x, v)||^2 in the row that is predicted; hybrid = False: denoising score matching.

    Its weighting, times and dropping of the condition are those of `Denoising`; weight 1 on eps is the paper's.
    Raises RecipeError for a process without a velocity.
    """

    hybrid: bool = True

    def noised(self, process: Any, x0: Tensor, level: Level, noise: Draws) -> tuple[Tensor, Tensor, Tensor]:
        if not isinstance(process, Langevin):
            raise RecipeError(
                "the objectives hsm and dsm need the process cld; a gaussian process is trained by 'denoising'"
            )
        noises = noise.normal(torch.cat([x0, x0], 1), EPS)
        eps = noises.chunk(2, 1)[1]
        if self.hybrid:
            return process.corrupt(x0, level, noises), x0, eps
        law, time = process.schedule, process.at(level, x0)
        v0 = math.sqrt(law.gamma * law.mass) * noise.normal(x0, START)
        state = process.corrupt(x0, level, noises, v0)
        eps = fit(law.cholesky(time)[..., 1, 1] / law.cholesky(time, 0.0)[..., 1, 1], eps) * eps
        seen = process.view(state, level)[1]
        return state, fit(1 / level.alpha, seen) * (seen - fit(level.sigma, eps) * eps), eps
