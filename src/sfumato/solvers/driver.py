"""Solvers that choose their own levels: each sample at its own time, in one batch.

A step size that a whole batch shares makes a sample depend on its neighbours. Here every sample has its own time and
step size, and the denoiser is asked once for the whole batch with the times as a tensor. Samples that have arrived
leave the batch; the others go on:

    round    propose a step for each sample -> judge each -> those accepted move on, those rejected try a shorter one

All samples in the batch are in the same round, and a round asks about each of them equally often, so the evaluations
that a sample cost are the rounds until it arrived, whatever the batch. Of a grid, a driver uses the two ends. It goes
from the first level down to the smallest sigma / alpha that is asked for, and from there to clean data with the
prediction at hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Condition
from ..errors import SolverError
from ..noise import Noise
from ..processes import Gaussian, Level
from ..processes.gaussian import fit
from ..processes.schedule import path_point
from .grid import LogSNRGrid
from .solver import Callback, Driver, Run

# each (batch, ...); "x": the samples, "left": the share of the way they have to go, "finite": whether the step was
State = dict[str, Tensor]
Attempt = Callable[[State, Noise, Condition, int], State]
PROGRESS = 1000  # what a driver's callback counts to, since nobody knows the number of rounds beforehand


class Unfinished(SolverError):
    """A run that stopped early. finished: the indices of the samples that had arrived; samples: these, in order."""

    def __init__(self, message: str, finished: tuple[int, ...], samples: Tensor):
        super().__init__(message)
        self.finished, self.samples = finished, samples


@dataclass(frozen=True)
class Adaptive(Driver):
    """Base of the solvers that control their error.

    tolerance: the error allowed in a step. sigma_min: the sigma / alpha from which the last step goes to clean data
    (None: the schedule's own smallest, or 0.002 where that is 0). max_evaluations: of the denoiser, for each sample.
    """

    tolerance: float = 1e-3
    sigma_min: float | None = None
    max_evaluations: int = 10_000

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < math.inf:
            raise SolverError(f"tolerance of the {self.kind} solver must be positive, not {self.tolerance!r}")
        if self.sigma_min is not None and not 0 < self.sigma_min < math.inf:
            raise SolverError(f"sigma_min of the {self.kind} solver must be positive, not {self.sigma_min!r}")
        if not 1 <= self.max_evaluations < math.inf:
            raise SolverError(f"max_evaluations must be at least 1, not {self.max_evaluations!r}")

    def smallest(self, process: Gaussian) -> float:
        """The sigma / alpha from which the last step goes to clean data."""
        return LogSNRGrid(sigma_min=self.sigma_min).ends(process)[1]

    def drive(
        self, state: State, attempt: Attempt, noise: Noise, condition: Condition,
        callback: Callback | None, outside: int,
    ) -> Run:  # fmt: skip
        """Repeat attempt(state, noise, condition, round) -> state until nothing of any sample's way is left.

        outside: how many evaluations a sample costs before and after its rounds.
        """
        out, rows = state["x"].clone(), torch.arange(len(state["x"]), device=state["x"].device)
        spent = torch.full((len(out),), outside, dtype=torch.long)
        indices, number = noise.indices, 0
        while True:
            left = state["left"]
            finite = torch.isfinite(state["x"].flatten(1).sum(1)) & state["finite"]
            out[rows] = state["x"]
            if not bool(finite.all()):
                bad = int((~finite).nonzero()[0])
                raise self._stopped(
                    f"sample {indices[int(rows[bad])]} is not finite after {int(spent[rows[bad]])} evaluations, with "
                    f"{float(left[bad]):.1%} of the way to go",
                    rows, left.where(finite, torch.inf), out, indices,
                )  # fmt: skip
            if callback is not None:
                share = 1 - float(left.max()) if len(left) else 1.0
                callback(int(PROGRESS * max(share, 0.0)), PROGRESS, out, None)
            going = left > 0
            if not bool(going.all()):
                rows = rows[going]
                state = {name: value[going] for name, value in state.items()}
            if not len(rows):
                return Run(out, spent)
            number += 1
            if int(spent[rows[0]]) + self.evaluations > self.max_evaluations:
                raise self._stopped(
                    f"{len(rows)} of {len(out)} samples are not finished after {int(spent[rows[0]])} evaluations, "
                    f"the farthest behind with {float(state['left'].max()):.1%} of the way to go: raise "
                    f"max_evaluations ({self.max_evaluations}) or the tolerance ({self.tolerance:g})",
                    rows, state["left"], out, indices,
                )  # fmt: skip
            spent[rows.cpu()] += self.evaluations
            chosen = rows.tolist()
            own = None if condition is None else {name: value[rows] for name, value in condition.items()}
            state = attempt(state, Noise(noise.seed, [indices[i] for i in chosen]), own, number)

    def _stopped(
        self, what: str, rows: Tensor, left: Tensor, out: Tensor, indices: tuple[int, ...]
    ) -> Unfinished:
        open_rows = set(rows[left > 0].tolist())
        done = [i for i in range(len(out)) if i not in open_rows]
        kept = f"; {len(done)} finished samples are kept in the error's `samples`" if done else ""
        return Unfinished(
            f"the {self.kind} solver stopped: {what}{kept}", tuple(indices[i] for i in done), out[done]
        )


def level_of(process: Gaussian, a: Tensor, b: Tensor) -> Level:
    """The levels (batch,) of the process's path at which sigma / alpha = b / a; either may be 0."""
    log_snr = 2 * (a.log() - b.log())
    return Level(process.schedule.time(log_snr), *path_point(process.schedule.path, a, b), log_snr)


def control(error: Tensor, power: float, safety: float = 0.9, most: float = 5.0) -> Tensor:
    """safety error^-power within [1/5, most]: the factor by which a step is made longer or shorter."""
    return (safety * error.clamp(min=1e-12) ** -power).clamp(0.2, most)


def rms(x: Tensor) -> Tensor:
    """Root mean square of each sample, (batch,) in float64."""
    return x.flatten(1).double().square().mean(1).sqrt()


def scaled(coefficient: Tensor, x: Tensor) -> Any:
    """coefficient (batch,) times x (batch, ...), in x's precision."""
    return fit(coefficient, x) * x
