"""Denoisers of joint states: one network for all leaves, and the exact one of a mixture and its labels.

    denoiser(x_t, t, condition) -> {leaf: prediction},       x_t = {leaf: tensor}, t = {leaf: time}

Every prediction is of one leaf given all of x_t, each leaf at its own noise level, which the network is told as it is
told the level of a single state.

**The exact one.** Let a label k have the law w_k and x_0 given k be N(mu_k, C_k). Given the label k the noisy leaves
are independent, so

    p(k | x_t, k_t)  ~  w_k N(x_t; alpha mu_k, alpha^2 C_k + sigma^2 I) q(k_t | k),
    E[x_0 | x_t, k_t]  =  sum_k p(k | x_t, k_t) m_k,

with m_k the mean of component k: `GaussianMixture` with one more factor of evidence. All of its conditionals are known:
x_0 given a label is a Gaussian, the label given x_0 the mixture's responsibilities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SolverError, choose
from ..processes import CLEAN, Categorical, CategoricalPrediction, Gaussian, Joint, Level
from ..processes.categorical import IMPOSSIBLE
from . import categorical
from .denoiser import Condition, answered, noise_level, rows
from .mixture import GaussianMixture


class JointDenoiser(nn.Module):
    """A network's predictions of all leaves of a joint process.

    network: (state {leaf: (batch, ...)}, noise_level {leaf: (batch,)}, condition) -> {leaf: (batch, ...)}; Gaussian
    leaves come with unit size and are answered in their row, symbols come as they are and are answered by logits
    (batch, ..., symbols). parameterisations: by leaf, "v" for numbers and "evidence" for symbols where nothing is said.
    Raises SolverError for another process, an unknown leaf or row, or outputs of wrong shapes or names.
    """

    learned_variance = False

    def __init__(
        self, network: nn.Module, process: Joint, parameterisations: Mapping[str, str] | None = None
    ):
        super().__init__()
        if not isinstance(process, Joint):
            raise SolverError(f"a joint denoiser needs a joint process, not {type(process).__name__}")
        rows = dict(parameterisations or {})
        for name, row in rows.items():
            choose(row, process[name].names, f"parameterisation of the leaf {name!r}", SolverError)
        self.network, self.process, self.parameterisation = network, process, rows

    def forward(self, x_t: Mapping[str, Tensor], t: Any, condition: Condition = None) -> dict[str, Any]:
        levels, state, told = self.process.level(t), {}, {}
        self.process.whole(x_t, "state")
        size = next((x.dtype for x in x_t.values() if x.is_floating_point()), torch.get_default_dtype())
        for name, process in self.process.processes.items():
            x, level = x_t[name], levels[name]
            state[name] = process.view(x, level)[0] if isinstance(process, Gaussian) else x
            told[name] = noise_level(level, x).to(size)
        out, said = self.process.whole(self.network(state, told, condition), "network's outputs"), {}
        for name, process in self.process.processes.items():
            x, level = x_t[name], levels[name]
            if isinstance(process, Gaussian):
                row = self.parameterisation.get(name, "v")
                said[name] = answered(process, row, out[name], (x, x), level)
            else:
                row = self.parameterisation.get(name, "evidence")
                said[name] = categorical.answered(process, row, out[name], x, level)
        return said


class LeafGuided(nn.Module):
    """Guidance between leaves: what the given ones say, weighed against what is said without them.

        x0_w = x0(without) + weight (x0(with) - x0(without)),       of log-chances for symbols

    `without` is the same state with the given leaves at t = 1, which says that they are absent: no token for nothing
    is needed, nor dropping in training. Both are rows of one call. nothing: {given leaf: its noise (batch, ...)}.
    Raises SolverError for an unknown leaf, or where the result is not finite.
    """

    guides = True

    def __init__(self, denoiser: Any, weight: float, nothing: Mapping[str, Tensor]):
        super().__init__()
        for name in nothing:
            _ = denoiser.process[name]
        self.denoiser, self.weight, self.nothing = denoiser, weight, dict(nothing)
        self.process = denoiser.process

    def forward(self, x_t: Mapping[str, Tensor], t: Any, condition: Condition = None) -> dict[str, Any]:
        levels = self.process.level(t)
        states, both = {}, {}
        for name, x in x_t.items():
            other = self.nothing.get(name, x)
            away = self.process[name].level(1.0) if name in self.nothing else levels[name]
            states[name] = torch.cat([x, other])
            pairs = zip(rows(levels[name], x), rows(away, x), strict=True)
            both[name] = Level(*(torch.cat(pair) for pair in pairs))
        doubled = condition and {name: torch.cat([value, value]) for name, value in condition.items()}
        said, out = self.denoiser(states, both, doubled), {}
        for name, prediction in said.items():
            count = len(x_t[name])
            own, base = prediction.value[:count], prediction.value[count:]
            value = base + self.weight * (own - base)
            if not bool(value.isfinite().all()):
                raise SolverError(
                    f"guidance {self.weight:g} overflows in the leaf {name!r}: give a smaller one"
                )
            out[name] = replace(prediction, value=value, x_t=x_t[name], level=levels[name])
        return out


class LabelledMixture(nn.Module):
    """Exact denoiser of (x, label), x drawn from the component of a Gaussian mixture that the label names.

    mixture: of as many components as the chain has symbols. leaves: the names of the two; the label's state is
    (batch,) or (batch, 1). Raises SolverError where the numbers differ.
    """

    def __init__(
        self, mixture: GaussianMixture, chain: Categorical, leaves: tuple[str, str] = ("x", "label")
    ):
        super().__init__()
        if len(mixture.weights) != chain.symbols:
            raise SolverError(
                f"a label of {chain.symbols} symbols does not name {len(mixture.weights)} components"
            )
        self.mixture, self.leaves = mixture, leaves
        self.process = Joint({leaves[0]: mixture.process, leaves[1]: chain})

    def forward(self, x_t: Mapping[str, Tensor], t: Any, condition: Condition = None) -> dict[str, Any]:
        levels, (name, label) = self.process.level(t), self.leaves
        self.process.whole(x_t, "state")
        chain: Any = self.process[label]
        reached = chain.pull(x_t[label], levels[label], CLEAN, torch.float64)[..., : chain.symbols]
        evidence = {"evidence": reached.log().clamp(min=IMPOSSIBLE).reshape(-1, chain.symbols)}
        known = self.mixture.responsibilities(x_t[name], levels[name], evidence).log().clamp(min=IMPOSSIBLE)
        value = known.reshape(*x_t[label].shape, -1)
        return {
            name: self.mixture(x_t[name], levels[name], evidence),
            label: CategoricalPrediction(value, x_t[label], levels[label], chain),
        }
