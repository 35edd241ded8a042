"""Gaps of symbols filled in: what is given stands from the beginning, and the rest is drawn around it.

A masked chain says of every position whether it is known, so a part that is given is no measurement to be fitted but a
state like any other: x_t with the given symbols seen and the rest hidden. For an exact denoiser p(x_0 | x_t) is then
the conditional of the data's law given what is seen, whatever t, since masks say nothing of what they hide; and a run
from pure noise goes through such states only. So

    x_1 = given where it is given, mask elsewhere;          x_s <- given where it is given, after every step.

The second changes nothing for samplers that never take back what they have shown. One that hides again (`Remasking`)
draws every position of a step by itself, so putting the given ones back is the same step with these left out: what is
free is drawn and renewed as ever, and comes as near to the conditional as the steps are fine.

A network is told a time as well, and in training never saw at t = 1 what it is shown here. So it is told the time at
which as large a share of positions hides as does now, alpha(t') = 1 - share, and not the one that the run has come to.
An exact denoiser says the same at both.

The chains that replace symbols by symbols cannot be told what is given: they take it for what noise may have put there.
They are refused, as are numbers, for which there is `restore`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..denoisers import Condition, Denoises
from ..errors import BundleError, SolverError
from ..model import Model
from ..noise import Draws, Keyed, Noise
from ..processes import Categorical, Joint, Level, MaskedChain
from ..solvers import Callback, Grid, Solver, check_served, integrate
from ..solvers.solver import Denoise

OPEN = -1
"""What stands for a symbol that is not given, in states to be filled."""


@dataclass(frozen=True, eq=False)
class Keeping(Solver):
    """A solver whose every step leaves what is given as it is. given: states (batch, ...), `OPEN` where free."""

    kind: ClassVar[str] = "keeping"
    stochastic: ClassVar[bool] = True
    serves: ClassVar[tuple[type, ...]] = (MaskedChain,)
    base: Solver
    given: Tensor

    def within(self, steps: int) -> Solver:
        return replace(self, base=self.base.within(steps))

    def init(self, x: Tensor) -> Any:
        return self.base.init(x)

    def step(
        self, denoise: Denoise, process: MaskedChain, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        x, carry = self.base.step(denoise, process, x, t, s, carry, noise)
        return torch.where(self.given == OPEN, x, self.given), carry


class Shown:
    """A denoiser of a masked chain that is told the time by how much of a state hides; see the file's head."""

    def __init__(self, denoiser: Denoises):
        self.denoiser, self.process = denoiser, denoiser.process

    def __call__(self, x_t: Tensor, t: float | Tensor | Level, condition: Condition = None) -> Any:
        share = (x_t == self.process.mask).double().flatten(1).mean(1)
        low, high = torch.zeros_like(share), torch.ones_like(share)
        for _ in range(30):
            middle = (low + high) / 2
            enough = 1 - torch.as_tensor(self.process.level(middle).alpha) >= share
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        said: Any = self.denoiser(x_t, high, condition)
        return replace(said, level=self.process.level(t))


def _masked(process: Any) -> MaskedChain:
    if isinstance(process, MaskedChain):
        return process
    if isinstance(process, Categorical):
        raise SolverError(
            f"the {process.law} chain cannot be told what is given: gaps are filled by a masked one"
        )
    if isinstance(process, Joint):
        raise SolverError(
            "gaps are of symbols behind a mask: what is known of joint states is a condition (sfumato sample --given)"
        )
    raise SolverError(
        "gaps are of symbols behind a mask: for numbers there is sfumato.editing.restore (of pictures: sfumato edit "
        "inpaint)"
    )


@torch.no_grad()
def fill_gaps(
    denoiser: Denoises,
    given: Tensor,
    noise: Keyed,
    *,
    solver: Solver,
    levels: Sequence[Level],
    condition: Condition = None,
    callback: Callback | None = None,
) -> Tensor:
    """Draw p(x_0 | what is given), (batch, ...) in int64: the given symbols stay, the others are drawn.

    given: int64 (batch, ...), `OPEN` = -1 where nothing is known, one row for each of the noise's indices.
    Raises SolverError for a process that is no masked chain, a solver that does not serve it, or no such symbols.
    """
    process = _masked(denoiser.process)
    check_served(solver, process)
    if given.dtype != torch.long or not OPEN <= int(given.min()) <= int(given.max()) < process.symbols:
        raise SolverError(
            f"what is given are int64 symbols from 0 to {process.symbols - 1}, and {OPEN} where nothing is"
        )
    start = torch.where(given == OPEN, process.mask, given)
    return integrate(Shown(denoiser), Keeping(solver, given), levels, start, noise, condition, callback)


def fill(  # noqa: PLR0913 (what a sample depends on)
    model: Model,
    given: Tensor | str | Sequence[str],
    *,
    count: int = 1,
    condition: Mapping[str, Any] | None = None,
    seed: int = 0,
    steps: int | None = None,
    solver: Solver | str | None = None,
    grid: Grid | str | None = None,
    guidance: float | str | None = None,
    batch: int = 64,
    callback: Callback | None = None,
) -> Tensor:
    """Fill the gaps of a model's data, `count` ways each: states (given x count, ...), in the order of the given.

    given: states with `OPEN` = -1 where nothing is known, or what the domain reads as such (`Domain.partial`): texts
    with "?" for sequences. condition, seed, steps, solver, grid, guidance: as in `Model.sample`. Filling i depends on
    the seed and i alone. Raises BundleError for states of another shape or without a gap, DataError for what cannot be
    read, SolverError for a model that cannot be told what is given.
    """
    process: Any = _masked(model.denoiser.process)
    domain: Any = model.domain
    if not isinstance(given, Tensor):
        texts = [given] if isinstance(given, str) else list(given)
        given = torch.cat([domain.partial(text) for text in texts])
    if tuple(given.shape[1:]) != tuple(domain.shape):
        raise BundleError(f"states of {(*domain.shape,)} are filled, not {(*given.shape[1:],)}")
    if count < 1 or batch < 1:
        raise BundleError(f"at least one answer for each and a batch of at least one, not {count}, {batch}")
    if whole := [k for k, row in enumerate(given) if not bool((row == OPEN).any())]:
        raise BundleError(f"number {whole[0]} of what is given has no gap: there is nothing to fill")
    given = given.repeat_interleave(count, 0)
    number = len(given)
    plan = model.plan(solver, grid, steps, guidance, conditional=bool(condition))
    levels = plan.grid.levels(process, plan.steps)
    try:
        whole_noise = Noise(seed, number)
    except ValueError as error:
        raise BundleError(str(error)) from None
    denoiser, told = model.guided(plan.guidance), model.conditions.tensors(condition, number, whole_noise)
    device = next(model.denoiser.parameters()).device
    drawn = []
    for start in range(0, number, batch):
        part = slice(start, start + batch)
        drawn.append(
            fill_gaps(
                denoiser, given[part].to(device), Noise(seed, range(number)[part]), solver=plan.solver, levels=levels,
                condition=told and {name: value[part].to(device) for name, value in told.items()},
                callback=callback,
            )
        )  # fmt: skip
    return torch.cat(drawn)
