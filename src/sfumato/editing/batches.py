"""Pictures worked on a batch at a time, so that a folder of any size fits, and one that fails costs no finished one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import BundleError, SolverError
from ..solvers import Callback, Unfinished


def in_batches(indices: Sequence[int], batch: int, work: Callable[[int, slice], Tensor]) -> Tensor:
    """What `work` makes of each batch, one after the other: (number of the batch, its rows) -> (rows, ...).

    Raises `Unfinished` with what was finished where a later batch raises SolverError, BundleError for a batch below 1.
    """
    if batch < 1:
        raise BundleError(f"a batch has at least 1 picture, not {batch}")
    count, drawn = len(indices), []
    for k, begin in enumerate(range(0, count, batch)):
        try:
            drawn.append(work(k, slice(begin, min(begin + batch, count))))
        except SolverError as error:
            if not drawn:
                raise
            raise Unfinished(
                f"{error}; {begin} of {count} pictures were finished",
                tuple(indices[:begin]),
                torch.cat(drawn),
            ) from error
    return torch.cat(drawn)


def counted(callback: Callback, part: int, parts: int) -> Callback:
    """A callback that counts the steps of all batches."""
    return lambda done, steps, x, prediction: callback(part * steps + done, parts * steps, x, prediction)
