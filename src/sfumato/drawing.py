"""Drawing one batch: of a state that is one tensor, or of one with several leaves, by the same plan.

Of a joint model the condition is a part of the state: leaves that are held at t = 0 while the others are drawn. Leaves
that are numbers go by the plan's solver, symbols by the bridge, all of them along the plan's grid under their own
process; guidance weighs what the given leaves say against what the model says without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import BundleError, SolverError
from .noise import Noise
from .processes import Categorical, Joint, Prediction
from .sampling import Sampling
from .solvers import Ancestral, Callback, sample, sample_from, sample_joint

State = Tensor | Mapping[str, Tensor]


def check_numbers(process: Any, doing: str) -> None:
    """Raise BundleError for a model whose states are not one tensor of numbers, and say what there is in its place."""
    if isinstance(process, Joint):
        raise BundleError(
            f"{doing} is of states of numbers, and this model's are joint: hold leaves by the condition instead "
            "(sfumato sample --given)"
        )
    if isinstance(process, Categorical):
        raise BundleError(
            f"{doing} is of states of numbers, and this model's are symbols: give a part of them instead (sfumato edit "
            "fill)"
        )


def draw(
    denoiser: Any,
    noise: Noise,
    shape: Any,
    plan: Sampling,
    *,
    condition: Mapping[str, Tensor] | None = None,
    start: Tensor | None = None,
    like: Tensor,
    callback: Any = None,
) -> Any:
    """One sample for each index of the noise, (n, *shape) or {leaf: (n, *shape)}.

    start: estimates to come from, in place of noise, of states that are one tensor of numbers (`check_numbers`).
    """
    process = denoiser.process
    if isinstance(process, Joint):
        given = {name: leaf for name, leaf in (condition or {}).items() if name in process.names}
        rest = {name: slot for name, slot in (condition or {}).items() if name not in given}
        guidance = plan.guidance
        if not isinstance(guidance, float | int):
            raise SolverError("guidance between leaves is a number, without repairs")
        return sample_joint(
            denoiser, noise, {name: own for name, own in shape.items() if name not in given}, steps=plan.steps,
            solvers=leaf_solvers(process, plan), grid=plan.grid, given=given, condition=rest or None,
            guidance=float(guidance), like=like, callback=callback,
        )  # fmt: skip
    settings: dict[str, Any] = {
        "solver": plan.solver,
        "levels": plan.grid.levels(process, plan.steps),
        "condition": condition,
        "callback": callback,
    }
    if start is None:
        return sample(denoiser, noise, shape, like=like, **settings)
    return sample_from(denoiser, start, noise, **settings)


def leaf_solvers(process: Joint, plan: Sampling) -> dict[str, Any]:
    """The solver of each leaf: the plan's for numbers, the bridge for symbols."""
    return {
        name: Ancestral() if isinstance(leaf, Categorical) else plan.solver
        for name, leaf in process.processes.items()
    }


def joined(parts: Sequence[State]) -> Any:
    """Batches as one."""
    if isinstance(parts[0], Mapping):
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}  # type: ignore[index]
    return torch.cat(parts)  # type: ignore[arg-type]


def counted(callback: Callback | None, chunk: int, chunks: int) -> Callback | None:
    """A callback that counts the steps of all chunks."""
    if callback is None:
        return None

    def told(step: int, steps: int, x: Tensor, prediction: Prediction | None) -> None:
        callback(chunk * steps + step, chunks * steps, x, prediction)

    return told
