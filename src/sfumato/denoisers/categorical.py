"""Denoisers of symbols: a network's logits as chances of x_0, and a table of sequences whose chances are exact.

    denoiser(x_t, t, condition) -> CategoricalPrediction,       p(x_0 | x_t) of each position, given all of x_t

The network is given the symbols themselves, not their one-hot vectors, and the noise level -lambda/8 as any network is;
it answers logits f (batch, ..., symbols). What a position says of itself need not be learned, since by Bayes' rule

    p(x_0,i | x_t)  ~  p(x_0,i | x_t but for i)  q(x_t,i | x_0,i),       log p = f + log q(x_t,i | x_0,i) + const.

That is the parameterisation "evidence". For the mask it says that what is seen is what it is, and that no mask is ever
predicted (SUBS, Sahoo et al. 2024, arXiv 2406.07524): the network is asked about hidden positions only. For the others
it makes the prediction come to x_t as the noise goes. With "chances", log p = f + const, a network has to learn that
itself, and as long as it gives another symbol than x_t a chance c at t -> 0, the reversed chain would jump to it at a
rate c / t: the bound in continuous time is infinite then (`objectives.categorical`).

**The table.** For a law p(x_0) over all sequences of a few symbols, Bayes' rule is a sum:

    p(x_0 | x_t) = p(x_0) prod_i q(x_t,i | x_0,i) / p(x_t),     p(x_0,i = k | x_t) = sum of it over x_0 with x_0,i = k.

That is the best answer that any network can give, so what a sampler or a bound gets wrong on it is its own.

**Guidance.** The score of log p(x_0 | x_t) in the weight is linear in log-chances, (1 - w) log p(x_0 | x_t) + w
log p(x_0 | x_t, c) up to a constant, so `ClassifierFree` serves symbols as it is (Nisonoff et al. 2024, arXiv
2406.01572; Schiff et al. 2024, 2412.10193). Per position it is exact; of positions together it knows no more than
their marginals.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SolverError, choose
from ..noise import Noise, symbols
from ..processes import CLEAN, Categorical, CategoricalPrediction, Level, MaskedChain
from ..processes.categorical import IMPOSSIBLE
from .denoiser import Condition, noise_level


class CategoricalDenoiser(nn.Module):
    """A network's log-chances of x_0 under a categorical process.

    network: (x_t (batch, ...) in int64, noise_level (batch,), condition) -> logits (batch, ..., symbols).
    parameterisation: "evidence", to whose logits log q(x_t | x_0) of the position itself comes, or "chances"; for the
    mask both are SUBS. Raises SolverError for another process or parameterisation, or logits of a wrong shape.
    """

    learned_variance = False

    def __init__(self, network: nn.Module, process: Categorical, parameterisation: str = "evidence"):
        super().__init__()
        if not isinstance(process, Categorical):
            raise SolverError(
                f"a categorical denoiser needs a categorical process, not {type(process).__name__}"
            )
        self.network, self.process = network, process
        self.parameterisation = choose(parameterisation, process.names, "parameterisation", SolverError)

    def forward(
        self, x_t: Tensor, t: float | Tensor | Level, condition: Condition = None
    ) -> CategoricalPrediction:
        level = self.process.level(t)
        weight = next((w for w in self.network.parameters() if w.is_floating_point()), None)
        dtype = torch.get_default_dtype() if weight is None else weight.dtype
        out = self.network(x_t, noise_level(level, x_t).to(dtype), condition)
        return answered(self.process, self.parameterisation, out, x_t, level)


def answered(
    process: Categorical, kind: str, out: Tensor, x_t: Tensor, level: Level
) -> CategoricalPrediction:
    """The prediction that a network's logits are, at least in float32."""
    if out.shape != (*x_t.shape, process.symbols):
        raise SolverError(
            f"the network made {tuple(out.shape)} of {tuple(x_t.shape)} symbols; of {process.symbols} kinds "
            f"that should be {(*x_t.shape, process.symbols)}"
        )
    value = out.to(torch.promote_types(out.dtype, torch.float32)).log_softmax(-1)
    if kind == "evidence" or isinstance(process, MaskedChain):
        value = process.known(value, x_t, level)
    return CategoricalPrediction(value, x_t, level, process)


class SequenceTable(nn.Module):
    """Exact denoiser, chances and samples of a law over all sequences of a length, by enumeration.

    chances: (symbols, ..., symbols), one axis a position, or with `classes` one more in front, p(label, x_0); they are
    made to add up to one. Data (batch, positions). The condition {"label": (batch,)} keeps one class; the label
    `classes` means all. Raises SolverError for chances of another shape or sign, or an x_t that cannot be.
    """

    log_chances: Tensor
    sequences: Tensor

    def __init__(self, process: Categorical, chances: Tensor, classes: int | None = None):
        super().__init__()
        table = chances.double() if classes is not None else chances.double()[None]
        length, count = table.ndim - 1, process.symbols
        if table.shape != (classes or 1, *[count] * length) or not length:
            raise SolverError(
                f"a table of {count} symbols has {count} chances along each of its axes, not {tuple(chances.shape)}"
            )
        if not bool((table >= 0).all()) or not 0 < float(table.sum()) < float("inf"):
            raise SolverError("a table needs chances of 0 or more that do not all vanish")
        self.process, self.classes, self.length = process, classes, length
        self.register_buffer("log_chances", (table / table.sum()).log().flatten(1).clamp(min=IMPOSSIBLE))
        sequences = torch.cartesian_prod(*[torch.arange(count)] * length).reshape(-1, length)
        self.register_buffer("sequences", sequences)

    def posterior(self, x_t: Tensor, t: float | Tensor | Level, condition: Condition = None) -> Tensor:
        """p(x_0 | x_t) of all sequences, (batch, sequences), in the order of `sequences`."""
        level = self.process.level(t)
        # of what is seen in spite of alpha = 0, given symbols around a gap, Bayes' rule knows in the limit
        alpha = torch.as_tensor(level.alpha, dtype=torch.float64).clamp(min=1e-300)
        reached = self.process.pull(x_t, level._replace(alpha=alpha), CLEAN, torch.float64)
        log = torch.zeros(len(x_t), len(self.sequences), dtype=torch.float64, device=x_t.device)
        for i in range(self.length):
            log = log + reached[:, i, self.sequences[:, i]].log().clamp(min=IMPOSSIBLE)
        joint = torch.logsumexp(log[:, None] + self._prior(len(x_t), condition), 1)
        if not bool((joint.max(1).values > IMPOSSIBLE / 2).all()):
            raise SolverError("the table gives no chance to any sequence that could become this state")
        return joint.softmax(1)

    def _prior(self, batch: int, condition: Condition) -> Tensor:
        """log p(label, x_0), (batch, classes, sequences), with other labels than the asked one left out."""
        log = self.log_chances.expand(batch, -1, -1)
        if condition is None or "label" not in condition or self.classes is None:
            return log
        label = condition["label"][:, None]
        own = (label == torch.arange(self.classes, device=label.device)) | (label == self.classes)
        return torch.where(own[..., None], log, IMPOSSIBLE)

    def forward(
        self, x_t: Tensor, t: float | Tensor | Level, condition: Condition = None
    ) -> CategoricalPrediction:
        level = self.process.level(t)
        each = F.one_hot(self.sequences, self.process.symbols).double().flatten(1)
        chances = (self.posterior(x_t, level, condition) @ each).reshape(*x_t.shape, -1)
        return CategoricalPrediction(chances.log().clamp(min=IMPOSSIBLE), x_t, level, self.process)

    def law(self, condition: Condition = None) -> Tensor:
        """p(x_0) of all sequences, (sequences,), or (batch, sequences) with a condition."""
        if condition is None:
            return self.log_chances.exp().sum(0)
        return torch.logsumexp(self._prior(len(condition["label"]), condition), 1).softmax(1)

    def sample(self, noise: Noise) -> Tensor:
        """Draws from p(x_0), one for each of the noise's indices, (batch, positions)."""
        chances = self.law().expand(len(noise.indices), -1)
        return self.sequences[symbols(chances, noise.at(0))]
