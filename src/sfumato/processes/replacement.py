"""Masked and uniform chains: a symbol is kept, or replaced by one that knows nothing of it.

    masked     R = 1 m^T - I, m the mask, a state of its own: S = K + 1. A symbol is kept or hidden.
    uniform    R = 1 u^T - I, u = 1/K: a symbol is kept or drawn anew from all of them.

Where R = 1 pi^T - I, one replacement makes all before it irrelevant, and with a = alpha_t / alpha_s

    q(x_t | x_s) = a [x_t = x_s] + (1 - a) pi(x_t),

which takes no matrix: to push weights w over states forward is a w + (1 - a) (sum w) pi.

**The mask.** What is seen is known, what is hidden carries no other news, so backwards what is seen stays and what is
hidden is shown with chance (alpha_s - alpha_t) / (1 - alpha_t) as a symbol of p(x_0 | x_t) (Sahoo et al. 2024, eq. 7;
Shi et al. 2024). Nothing that is shown is ever taken back (but see `solvers.categorical`).

**Holding the noise.** A bridge with eta < 1 leaves to a share 1 - eta of the positions the noise that they have: x_s is
x_t with chance (1 - alpha_s) / (1 - alpha_t) and else x_0, whose marginals are the same (Song et al. 2021, appendix A).
For the mask there is no difference.

Sources: Sahoo et al. 2024 (arXiv 2406.07524, MDLM); Shi et al. 2024 (2406.04329, MD4); Song et al. 2021 (2010.02502).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import SolverError
from ..noise import Draws
from .categorical import Categorical, CategoricalPrediction, kept, log_certain
from .gaussian import fit
from .schedule import CLEAN, Level, Scalar


@dataclass(frozen=True)
class _Replacing(Categorical):
    """R = 1 pi^T - I: a position is kept with chance alpha, or drawn from pi whatever it was. No matrix is made."""

    @property
    def generator(self) -> Tensor:
        return self.stationary.expand(self.states, -1) - torch.eye(self.states, dtype=torch.float64)

    def transition(self, t: Scalar | Level, s: Scalar | Level = CLEAN) -> Tensor:
        share = kept(self.level(t), self.level(s))[..., None, None]
        pi = self.stationary.to(share.device)
        return share * torch.eye(self.states, dtype=share.dtype, device=share.device) + (1 - share) * pi

    def push(self, weights: Tensor, t: Level, s: Level = CLEAN) -> Tensor:
        share = fit(kept(t, s).to(weights.device), weights)
        return share * self._all_states(weights) + (1 - share) * self._noised(weights.sum(-1, keepdim=True))

    def pull(self, x_t: Tensor, t: Level, s: Level, dtype: torch.dtype) -> Tensor:
        own = F.one_hot(x_t, self.states).to(dtype)
        share = fit(kept(t, s).to(x_t.device), own)
        return share * own + (1 - share) * self.stationary.to(x_t.device, dtype)[x_t][..., None]

    def _noised(self, whole: Tensor) -> Tensor:
        return whole * self.stationary.to(whole.device, whole.dtype)

    def _into(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return self.stationary.to(x.device, dtype)[x][..., None]

    def corrupt(self, x0: Tensor, t: Scalar | Level, noise: Draws) -> Tensor:
        self._check(x0)
        u = noise.uniform(torch.empty(x0.shape, dtype=torch.float64, device=x0.device))
        return torch.where(u < fit(self.level(t).alpha, u), x0, self.pure(x0, noise, 1))

    def _holding(self, prediction: CategoricalPrediction, s: Level, eta: float) -> Tensor:
        if not 0 <= eta <= 1:
            raise SolverError(f"eta of a bridge lies in [0, 1], not {eta!r}")
        lost = [1 - torch.as_tensor(level.alpha, dtype=torch.float64) for level in (s, prediction.level)]
        chances = prediction.chances
        share = fit((lost[0] / lost[1]).to(chances.device), chances)
        own = F.one_hot(prediction.x_t, self.states).to(chances.dtype)
        return share * own + (1 - share) * self._all_states(chances)


@dataclass(frozen=True)
class MaskedChain(_Replacing):
    """The absorbing chain: a symbol is kept with chance alpha(t), else hidden behind the mask, the state `symbols`."""

    law: ClassVar[str] = "masked"

    @property
    def states(self) -> int:
        return self.symbols + 1

    @property
    def mask(self) -> int:
        """The state that hides a symbol."""
        return self.symbols

    @property
    def stationary(self) -> Tensor:
        return F.one_hot(torch.tensor(self.mask), self.states).double()

    def known(self, value: Tensor, x_t: Tensor, t: Level) -> Tensor:
        """What is seen is known, and the mask is no symbol (Sahoo et al. 2024, section 3.2.3)."""
        hidden = x_t == self.mask
        seen = log_certain(x_t.clamp(max=self.symbols - 1), self.symbols, value.dtype)
        return torch.where(hidden[..., None], value, seen)

    def reverse(self, prediction: CategoricalPrediction, s: Scalar | Level, eta: float = 1.0) -> Tensor:
        """What is seen stays, also where the schedule leaves nothing to be seen: so gaps are filled from t = 1 on."""
        x_t, value = prediction.x_t, prediction.chances
        lost, less = (1 - fit(level.alpha, value) for level in (prediction.level, self.level(s)))
        still = (less / lost) * torch.ones_like(value[..., :1])
        hidden = torch.cat([(1 - still) * value, still], -1)
        return torch.where((x_t == self.mask)[..., None], hidden, F.one_hot(x_t, self.states).to(value.dtype))

    def pure(self, like: Tensor, noise: Draws, stream: int = 0) -> Tensor:
        return torch.full(like.shape, self.mask, dtype=torch.long, device=like.device)


@dataclass(frozen=True)
class UniformChain(_Replacing):
    """The uniform chain: a symbol is kept with chance alpha(t), else drawn from all of them evenly."""

    law: ClassVar[str] = "uniform"

    @property
    def stationary(self) -> Tensor:
        return torch.full((self.symbols,), 1 / self.symbols, dtype=torch.float64)

    def pure(self, like: Tensor, noise: Draws, stream: int = 0) -> Tensor:
        u = noise.uniform(torch.empty(like.shape, dtype=torch.float64, device=like.device), stream)
        return (u * self.symbols).long().clamp(max=self.symbols - 1)
