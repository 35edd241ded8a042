"""Sampling joint states: every leaf by its own solver, along one path of times, one question to the network a step.

A path says for each leaf at which level it stands after every step. All leaves are asked about at once, where all of
them stand at the start of the step, and then each moves as its solver does alone. So solvers serve that ask once a
step, at its start (the bridge, DDIM, Adams, tau-leaping, ...): a stage half-way would ask for the others half-way, too.

    moved     along its own grid, from noise to data                  what is drawn
    given     at t = 0 throughout, as it is                           a condition
    absent    at t = 1 throughout, pure noise                         marginalised

Leaves that move in one step move independently given x_t, as positions of one leaf do: the error is of order 1 in the
step whatever the solvers, and none where one leaf alone moves by an exact one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Condition, LeafGuided
from ..errors import SolverError
from ..noise import Keyed
from ..processes import CLEAN, Categorical, Joint, Level
from ..processes.joint import stands
from .ancestral import DDIM, Ancestral
from .grid import Grid, UniformGrid, check_levels
from .solver import Denoise, Driver, Solver, check_served

Paths = Mapping[str, Sequence[Level]]


def check_paths(process: Joint, solvers: Mapping[str, Solver], paths: Paths) -> int:
    """The number of steps. Raises SolverError unless all paths are equally long and every solver can go its own."""
    process.whole(paths, "paths")
    lengths = {len(path) for path in paths.values()}
    if len(lengths) > 1 or min(lengths) < 2:
        raise SolverError(
            f"the paths of all leaves have as many levels, and 2 at least; given {sorted(lengths)}"
        )
    for name, path in paths.items():
        visited = [path[0], *(s for t, s in pairwise(path) if not stands(t, s))]
        if len(visited) == 1:
            continue
        check_levels(visited)
        if name not in solvers:
            raise SolverError(f"the leaf {name!r} moves, and so needs a solver")
        solver = solvers[name]
        check_served(solver, process[name])
        if isinstance(solver, Driver) or solver.cost(3) != 3:
            raise SolverError(
                f"joint sampling takes solvers that ask once a step, at its start, and {solver.kind} does not: "
                "take 'ddim', 'adams' or 'ancestral'"
            )
    return lengths.pop() - 1


def integrate_joint(
    denoiser: Any,
    solvers: Mapping[str, Solver],
    paths: Paths,
    state: Mapping[str, Tensor],
    noise: Keyed,
    condition: Condition = None,
    callback: Callable[[int, int, dict[str, Tensor], Any], None] | None = None,
) -> dict[str, Tensor]:
    """Drive all leaves from paths[leaf][0] to paths[leaf][-1]; one evaluation of the denoiser a step.

    denoiser: ({leaf: x_t}, {leaf: level}, condition) -> {leaf: prediction}. Step i draws from key i + 1, each leaf from
    streams of its own. callback(i, steps, state, predictions) sees the state after step i.
    Raises SolverError for what `check_paths` refuses, and for a leaf that stops being finite, naming step and leaf.
    """
    process: Joint = denoiser.process
    steps = check_paths(process, solvers, paths)
    state = dict(process.whole(state, "state"))
    solvers = {name: solver.within(steps) for name, solver in solvers.items()}
    carry = {name: solver.init(state[name]) for name, solver in solvers.items() if name in state}
    for i in range(steps):
        t, s = ({name: path[k] for name, path in paths.items()} for k in (i, i + 1))
        said, draws = denoiser(state, t, condition), noise.at(i + 1)
        for name in process.names:
            if stands(t[name], s[name]):
                continue
            told = _told(state[name], t[name], said[name])
            own = (
                told,
                process[name],
                state[name],
                t[name],
                s[name],
                carry[name],
                process.draws(name, draws),
            )
            state[name], carry[name] = solvers[name].step(*own)
            if not bool(state[name].isfinite().all()):
                raise SolverError(f"the leaf {name!r} is not finite after step {i + 1} of {steps}")
        if callback is not None:
            callback(i + 1, steps, dict(state), said)
    return state


def _told(x: Tensor, t: Level, said: Any) -> Denoise:
    def denoise(x_t: Tensor, level: Level) -> Any:
        if x_t is not x or level is not t:
            raise SolverError("joint sampling takes solvers that ask once a step, at its start")
        return said

    return denoise


@torch.no_grad()
def sample_joint(  # noqa: PLR0913 (what a sample depends on)
    denoiser: Any,
    noise: Keyed,
    shapes: Mapping[str, Sequence[int]],
    *,
    steps: int,
    solvers: Mapping[str, Solver] | None = None,
    grid: Grid | None = None,
    given: Mapping[str, Tensor] | None = None,
    absent: Collection[str] = (),
    condition: Condition = None,
    guidance: float = 1.0,
    like: Tensor | None = None,
    callback: Callable[[int, int, dict[str, Tensor], Any], None] | None = None,
) -> dict[str, Tensor]:
    """Draw any leaves given any others, the rest left out: {leaf: (len(noise.indices), *shape)}, but of absent ones.

    shapes: of leaves that are not given. solvers: one a leaf, else `Ancestral` for symbols and `DDIM` for numbers.
    grid: the levels of each moved leaf under its own process, uniform in time without one. given: leaves held at
    t = 0, absent: leaves held at t = 1. guidance: the weight of what the given leaves say, 1 being plain; see
    `denoisers.LeafGuided`. Raises SolverError for a leaf that is unknown, held twice or has no shape.
    """
    process: Joint = denoiser.process
    given, grid, count = dict(given or {}), grid or UniformGrid(), len(noise.indices)
    base = torch.empty(0) if like is None else like
    own: dict[str, Solver] = {}
    paths: dict[str, Sequence[Level]] = {}
    for name in (*given, *absent):
        _ = process[name]
    for name in process.names:
        leaf: Any = process[name]
        if name in given and name in absent:
            raise SolverError(f"the leaf {name!r} cannot be both given and absent")
        if name in given:
            if len(given[name]) != count:
                raise SolverError(f"{len(given[name])} rows of {name!r} were given for {count} samples")
            paths[name] = [CLEAN] * (steps + 1)
            continue
        if name not in shapes:
            raise SolverError(f"the leaf {name!r} is not given, and so needs a shape")
        paths[name] = [leaf.level(1.0)] * (steps + 1) if name in absent else grid.levels(leaf, steps)
        usual = Ancestral() if isinstance(leaf, Categorical) else DDIM()
        own[name] = (solvers or {}).get(name, usual)
    like_state = {name: base.new_empty(count, *process[name].state_shape(shapes[name])) for name in own}
    start = process.prior(like_state, noise.at(0), {name: paths[name][0] for name in own})
    if guidance != 1 and given:
        nothing = process.prior(given, noise.at(0), {name: process[name].level(1.0) for name in given})
        denoiser = LeafGuided(denoiser, guidance, nothing)
    end = integrate_joint(denoiser, own, paths, {**start, **given}, noise, condition, callback)
    return {name: leaf for name, leaf in end.items() if name not in absent}
