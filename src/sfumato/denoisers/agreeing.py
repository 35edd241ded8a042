"""A denoiser whose estimates are brought to agree with what it is told.

What is told may say a part of x_0 exactly: of a spectrum its magnitudes, of a series what is known of it. A network
knows that only as well as it has learned to. If every x_0 that c allows lies in a set C, so does the x_0 that is looked
for, and a sampler may go by the projection

    x0 <- P_C(c) x0(x_t, c),

which for a convex C is no further from any x_0 in it than the estimate is, at each noise level (Wang et al. 2023,
arXiv:2212.00490, whose C holds what a linear measurement allows). Of other sets, such as those of given magnitudes,
that is not sure, and what it is worth has to be measured. `editing.restore` is for measurements that a model was not
told of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from ..errors import SolverError
from ..processes import Gaussian, Langevin, Level, Prediction
from .denoiser import Condition, Denoises


class Agreeing(nn.Module):
    """x0 <- agree(x0, condition), with as many calls of the denoiser: none but its own.

    agree: (x0 (batch, ...), condition) -> the same shape, each sample by itself. Without a condition nothing is done.
    Raises SolverError for a denoiser of symbols or of a joint state, whose estimates are no such x0.
    """

    guides = True  # what it draws has not the density of its denoiser's flow

    def __init__(self, denoiser: Denoises, agree: Callable[[Tensor, Mapping[str, Tensor]], Tensor]):
        super().__init__()
        if not isinstance(denoiser.process, Gaussian | Langevin):
            raise SolverError(
                f"estimates of states that are numbers can agree, not those of {type(denoiser.process).__name__}"
            )
        self.denoiser, self.agree, self.process = denoiser, agree, denoiser.process

    def forward(self, x_t: Tensor, t: float | Tensor | Level, condition: Condition = None) -> Prediction:
        plain = self.denoiser(x_t, t, condition)
        if not condition:
            return plain
        x0 = self.agree(plain.x0, condition)
        return Prediction(x0, "x0", plain.x_t, plain.level, self.process, plain.variance)
