"""Sampling that starts from an estimate and not from noise: come closer, diffuse faster.

An estimate e of the data (a sketch, a blurred picture, another model's answer) is noised to a time t0 with the
process's own law, and sampled from there (Chung et al. 2022, arXiv 2112.05146, alg. 1; Meng et al. 2022 for editing):

    x_t0 = alpha e + sigma z,     z ~ N(0, I) keyed by the sample,     then the grid from t0 to 0.

**Contraction.** What an error e - x_0 becomes is known for data N(mu, C). With S = alpha^2 C + sigma^2 at t0 and the
same draws on the way, it is multiplied in each eigendirection of C by

    the flow    alpha sqrt(C / S)  < 1,         the reverse chain (the bridge, eta = 1)    alpha^2 C / S  < 1,

the second for any number of steps: the chain's means are E[x_s | x_t], which compose. Both fall as t0 grows and where
the data vary little: far enough back every estimate is forgotten, and t0 = 1 under a schedule with alpha(1) = 0 is
plain sampling, bit for bit. t0 near 0 gives the estimate back. If e has the law of the data, so has what is made of
it, at any t0, up to the solver's own error. Fewer steps do, because a shorter way is left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..denoisers import Condition, Denoises
from ..errors import SolverError
from ..noise import Noise
from ..processes import Level
from .grid import check_levels
from .solver import Callback, Solver, check_served, integrate


@torch.no_grad()
def sample_from(
    denoiser: Denoises,
    estimate: Tensor,
    noise: Noise,
    *,
    solver: Solver,
    levels: Sequence[Level],
    condition: Condition = None,
    callback: Callback | None = None,
) -> Tensor:
    """Noise an estimate to levels[0] and integrate to levels[-1]; shaped like it, (len(noise.indices), ...).

    x = alpha estimate + sigma z with the draws of `noise` that plain sampling would start from. How far back to
    start is the grid's `start`: `FlowGrid(start=0.4).levels(process, steps)`.
    Raises SolverError for an estimate that is not finite or not one for each of the noise's samples.
    """
    check_served(solver, denoiser.process)
    check_levels(levels)
    if len(estimate) != len(noise.indices):
        raise SolverError(f"{len(estimate)} estimates were given for {len(noise.indices)} samples")
    if not bool(estimate.isfinite().all()):
        raise SolverError("an estimate to start from must be finite: it holds NaN or infinity")
    x = denoiser.process.corrupt(estimate, levels[0], noise.at(0).normal(estimate))
    return integrate(denoiser, solver, levels, x, noise, condition, callback)
