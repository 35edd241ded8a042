"""The laws of samplers of symbols, which `check_solver` runs: `check_chain_solver(solver)`.

On a `SequenceTable` everything is known. A sampler that draws every position alone given x_t has the one-step kernel

    P(x_s | x_t) = prod_i chances_i(x_s,i | x_t)

over all states^positions states, so the law of a whole run is a product of matrices applied to the prior, without
sampling, and its total variation to the table's law is the sampler's error, exactly. Its slope over the steps is the
order. That a step draws by these chances, from the uniforms that it is given, is checked draw by draw. The kernel of
`Unmasking`, whose positions compete, is got by making all draws that there are; surest first and one position at a
time, it must be exact. Beside that the laws of all solvers: frozen, as many evaluations as stated, a sample alone as in
a batch, clean data at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..denoisers import SequenceTable
from ..errors import SolverError
from ..noise import Noise, symbols
from ..processes import Categorical, CategoricalPrediction, Level, MaskedChain, UniformChain
from ..processes.laws import require
from .ancestral import Ancestral
from .categorical import PositionWise, Unmasking
from .grid import UniformGrid
from .laws import fitted_order
from .solver import Solver, integrate

CHAIN_STEPS = (12, 24, 48)  # to fit an order


def example(process: Categorical, positions: int = 3) -> SequenceTable:
    """A table of correlated sequences: neighbours tend to agree, and no sequence is impossible."""
    every = torch.cartesian_prod(*[torch.arange(process.symbols)] * positions).reshape(-1, positions)
    agree = (every[:, 1:] == every[:, :-1]).sum(1) + 0.3 * (every[:, 0] == 0) - 0.2 * (every[:, -1] == 1)
    return SequenceTable(process, torch.exp(1.2 * agree.double()).reshape(*[process.symbols] * positions))


def step_chances(solver: Solver, prediction: CategoricalPrediction, s: Level) -> Tensor:
    """The chances (batch, ..., states) that a step of a sampler draws every position by."""
    if isinstance(solver, PositionWise):
        return solver.chances(prediction, s)
    return prediction.process.reverse(prediction, s)


def chain_law(solver: Solver, table: SequenceTable, levels: Sequence[Level]) -> Tensor:
    """The law of a run's output over all sequences, (symbols^positions,), exactly, from pure noise at levels[0].

    Raises SolverError for `Unmasking` with a temperature, whose order is one of infinitely many draws.
    """
    process, length = table.process, table.length
    states = torch.cartesian_prod(*[torch.arange(process.states)] * length).reshape(-1, length)
    law, carry = process.stationary[states].prod(1), None
    for t, s in pairwise(levels):
        alive = law > 0  # a state that cannot be is nothing to ask the table about
        kernel, carry = _kernel(solver, table, states[alive], t, s, carry)
        law = law[alive] @ kernel
    clean = law.reshape([process.states] * length)[(slice(process.symbols),) * length]
    return clean.flatten()


def _kernel(
    solver: Solver, table: SequenceTable, x: Tensor, t: Level, s: Level, carry: Any
) -> tuple[Tensor, Any]:
    """P(x_s | x_t) from states x (rows, positions) to all, (rows, states^positions), and the carry, one for all."""
    if isinstance(solver, Unmasking):
        return _unmasked(solver, table, x, t, s, carry)
    chances = step_chances(solver, table(x, t), s)
    kernel = torch.ones(len(x), 1, dtype=torch.float64)
    for i in range(x.shape[1]):
        kernel = (kernel[:, :, None] * chances[:, i, None, :]).flatten(1)
    return kernel, None


def _unmasked(
    solver: Unmasking, table: SequenceTable, x: Tensor, t: Level, s: Level, carry: Any
) -> tuple[Tensor, Any]:
    """The same, by making every draw that every state can make."""
    if solver.temperature > 0:
        raise SolverError("the law of an order that is drawn is not enumerated: take temperature 0")
    states, draws = table.process.states, len(table.sequences)
    asked = table.sequences.repeat(len(x), 1)[..., None]
    chances = table(x, t).chances.repeat_interleave(draws, 0)
    own = chances.gather(-1, asked)
    middle = (chances.cumsum(-1).gather(-1, asked) - own / 2)[..., 0]
    carry = None if carry is None else carry[:1].expand(len(asked))
    process: Any = table.process
    out, carry = solver.step(table, process, x.repeat_interleave(draws, 0), t, s, carry, _Prescribed(middle))
    place = (out * states ** torch.arange(x.shape[1] - 1, -1, -1)).sum(1)
    kernel = torch.zeros(len(x), states ** x.shape[1], dtype=torch.float64)
    row = torch.arange(len(x)).repeat_interleave(draws)
    return kernel.index_put((row, place), own[..., 0].prod(1), accumulate=True), carry


class _Prescribed:
    """In place of noise: the uniforms in the middle of the symbols that are asked for."""

    def __init__(self, u: Tensor):
        self.u = u

    def uniform(self, like: Tensor, stream: int = 0) -> Tensor:
        return self.u

    def normal(self, like: Tensor, stream: int = 0) -> Tensor:
        raise NotImplementedError("symbols are drawn from uniforms")


def total_variation(law: Tensor, other: Tensor) -> float:
    """Half the sum of |p - q|, plus half of what `law` has elsewhere."""
    return 0.5 * float((law - other).abs().sum() + (1 - law.sum()).abs())


def chain_errors(
    solver: Solver, process: Any, steps: Sequence[int] = CHAIN_STEPS, positions: int = 3
) -> list[float]:
    """The total variation of a sampler's law to the right one at several numbers of steps, exactly."""
    table = example(process, positions)
    return [
        total_variation(chain_law(solver, table, UniformGrid().levels(process, n)), table.law())
        for n in steps
    ]


def check_chain_solver(solver: Solver) -> None:
    """Raise LawBroken unless a sampler of symbols obeys the laws above on the chains that it serves."""
    for process in (MaskedChain(3), UniformChain(3)):
        if isinstance(process, tuple(solver.serves)):
            _check(solver, process, f"the {solver.kind} solver on the {process.law} chain")


def _check(solver: Any, process: Any, name: str) -> None:
    table, calls, levels = example(process), [], UniformGrid().levels(process, 6)

    def counted(x_t: Tensor, t: Any, condition: Any = None) -> Any:
        calls.append(t)
        return table(x_t, t, condition)

    counted.process = process  # type: ignore[attr-defined]
    x = process.prior(torch.empty(40, 3), Noise(1, 40).at(0))
    before = dict(vars(solver))
    together = integrate(counted, solver, levels, x, Noise(1, 40))  # type: ignore[arg-type]
    require(dict(vars(solver)) == before, f"{name} is changed by a run: {before} became {vars(solver)}")
    require(
        len(calls) == solver.cost(6), f"{name} states {solver.cost(6)} evaluations but makes {len(calls)}"
    )
    require(
        together.dtype == torch.long and bool(((together >= 0) & (together < process.symbols)).all()),
        f"{name} does not end in clean data",
    )
    for i in (0, 7):
        alone = integrate(table, solver, levels, x[i : i + 1], Noise(1, (i,)))  # type: ignore[arg-type]
        require(
            torch.equal(alone, together[i : i + 1]),
            f"{name}: sample {i} alone differs from itself in a batch",
        )
    if isinstance(solver, Unmasking) and solver.by == "certainty" and solver.temperature == 0:
        (error,) = chain_errors(solver, process, (3,))
        require(error < 1e-9, f"{name} misses the law by {error:.1e} where it shows one position at a time")
    if not isinstance(solver, PositionWise | Ancestral):
        return
    for i, (t, s) in enumerate(pairwise(levels)):
        noise, prediction = Noise(2, 40).at(i), table(x, t)
        drawn, _ = solver.step(table, process, x, t, s, None, noise)
        stated = symbols(step_chances(solver, prediction, s), noise)
        require(
            torch.equal(drawn, stated), f"{name} does not draw by the chances that it states, in step {i + 1}"
        )
        x = drawn
    errors = chain_errors(solver, process)
    order = fitted_order(CHAIN_STEPS, errors)
    require(
        order > solver.order - 0.15,
        f"{name} states order {solver.order} but its total variation falls with order {order:.2f}: "
        f"{', '.join(f'{error:.1e}' for error in errors)} at {CHAIN_STEPS} steps",
    )
