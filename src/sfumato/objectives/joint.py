"""The denoising loss of joint states: every leaf guessed from all of them, each at a noise level of its own.

    L = E_{x0, t}  sum_leaf  w_leaf(t_leaf) l_leaf / leaves,       t = {leaf: time} drawn anew for every example

with l the squared error of the row that is predicted, for numbers, and for symbols the cross-entropy -log p(x_0 | x_t)
of what noise has hidden. Whatever the times are drawn from, each leaf's part is least at the law of x_0,leaf given all
of x_t, so that one network learns every conditional that its times pass through (Bao et al. 2023, UniDiffuser, arXiv
2303.06555). Which are used most is up to the times:

    together    all leaves at one time                          drawing everything at once
    apart       every leaf at its own                           any pace of any leaf
    held        a random part of the leaves at t = 0 or t = 1   conditionals and marginals, which samplers go along

Half of the examples hold leaves, each but one with the same chance that is itself uniform; of those, half hold all that
they hold at 0, and the others each leaf by itself, half of them at 0. A leaf that is held has no loss. `given` holds
the same leaves always: a model of that one conditional.

**What is missing.** A number that is NaN, a symbol below 0 was not recorded: its leaf is absent there, at t = 1, and
has no loss. Nothing is filled in, and no row is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import RecipeError, choose
from ..noise import Apart, Draws
from ..processes import Categorical, Joint, MaskedChain
from .denoising import EPS, TIME, Batch, Denoising, drop_condition
from .times import Times, Uniform
from .weighting import Plain, Weighting

# where streams begin that decide about a whole example, and of each leaf, those of its time and its noise
MODES, OWN, CORRUPT = 1 << 20, 1 << 21, 1 << 22
HOLDING, CLEAN, ABSENT = 0.5, 0.5, 0.5


@dataclass(frozen=True)
class JointDenoising:
    """The denoising loss of a joint process, (batch,).

    weighting, times: of leaves that are numbers; symbols have weight 1 and the same times. drop, classes: as for
    `Denoising`. given: leaves that are clean in every example. Figures: "log_snr" and "error" of the first leaf that is
    not given. Raises RecipeError for another process, an unknown leaf, or where all are given.
    """

    weighting: Weighting = field(default_factory=lambda: Plain("velocity"))
    times: Times = field(default_factory=Uniform)
    drop: float = 0.0
    classes: int = 0
    given: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "given", tuple(self.given))
        if not 0 <= self.drop <= 1:
            raise RecipeError(f"the share of dropped conditions must lie in [0, 1], not {self.drop!r}")

    def check(self, process: Any) -> None:
        """Raise RecipeError for a process that this is no objective of."""
        if not isinstance(process, Joint):
            raise RecipeError(f"a joint objective is of a joint process, not of {type(process).__name__}")
        for name in self.given:
            choose(name, process.names, "leaf that is given", RecipeError)
        if set(self.given) == set(process.names):
            raise RecipeError("all leaves are given, so there is nothing to learn: leave one out")

    def draw_times(
        self, process: Joint, known: Mapping[str, Tensor], noise: Draws
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Times (batch,) of each leaf, and which are learned from, bool (batch,)."""
        moving = [name for name in process.names if name not in self.given]
        like = known[process.names[0]].double()
        schedule = next(iter(process.processes.values())).schedule
        shared = self.times.sample(like, schedule, noise, TIME)
        whole = Apart(noise, MODES)
        apart, holding, share, mover, clean = (whole.uniform(like, stream) for stream in range(5))
        times, held = {}, {}
        for name in process.names:
            draws = Apart(process.draws(name, noise), OWN)
            own = self.times.sample(like, process[name].schedule, draws)
            chance, end = draws.uniform(like, 8), draws.uniform(like, 9)
            times[name] = torch.where(apart < 0.5, shared, own)
            if name in self.given:
                times[name], held[name] = torch.zeros_like(own), torch.ones_like(known[name])
                continue
            moves = (mover * len(moving)).long() == moving.index(name)  # one leaf is always learned from
            held[name] = (holding < HOLDING) & (chance < share) & ~moves
            times[name] = torch.where(held[name], ((end < ABSENT) & (clean > CLEAN)).double(), times[name])
            times[name] = torch.where(known[name], times[name], 1.0)  # what was not recorded is absent
        learned = {name: known[name] & ~held[name] for name in process.names}
        return times, learned

    def __call__(self, denoiser: Any, batch: Batch, noise: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        process = denoiser.process
        x0, known = recorded(batch["x"])
        times, learned = self.draw_times(process, known, noise)
        levels = process.level(times)
        x_t, eps = {}, {}
        for name, leaf in process.processes.items():
            draws = process.draws(name, noise)
            if isinstance(leaf, Categorical):
                x_t[name] = leaf.corrupt(x0[name], levels[name], Apart(draws, CORRUPT))
            else:
                eps[name] = draws.normal(x0[name], EPS)
                x_t[name] = leaf.corrupt(x0[name], levels[name], eps[name])
        condition = drop_condition(batch.get("condition"), self.drop, self.classes, noise)
        said = denoiser(x_t, levels, condition)
        total, figures = 0.0, {}
        for name, leaf in process.processes.items():
            if name in self.given:
                continue
            if isinstance(leaf, Categorical):
                error = -said[name].value.gather(-1, x0[name][..., None])[..., 0]
                if isinstance(leaf, MaskedChain):
                    error = torch.where(x_t[name] == leaf.mask, error, 0.0)
                loss = error = error.flatten(1).mean(1)
            else:
                error = Denoising.error(said[name], x0[name], eps[name])
                # at the ends, where leaves are held, weights need not be finite
                inside = leaf.level(torch.where(learned[name], times[name], 0.5))
                weight = self.weighting.in_row(said[name].kind, inside, leaf)
                loss = torch.where(learned[name], weight, 0.0).to(error.dtype) * error
            loss = torch.where(learned[name], loss, 0.0)
            total = total + loss / (len(process.names) - len(self.given))
            if not figures:
                figures = {"log_snr": levels[name].log_snr.detach(), "error": error.detach()}
        assert isinstance(total, Tensor)
        return total, figures


def recorded(x: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A state with zeros where it was not recorded, and of each leaf which examples have it whole, bool (batch,)."""
    full, known = {}, {}
    for name, leaf in x.items():
        there = leaf.isfinite() if leaf.is_floating_point() else leaf >= 0
        full[name] = torch.where(there, leaf, torch.zeros_like(leaf))
        known[name] = there.flatten(1).all(1)
    return full, known
