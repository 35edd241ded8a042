"""The laws that a categorical process must obey: `check_categorical(process)`, which `check_process` runs too.

* What is kept falls with time, and the log-SNR with it.
* The rows of a transition are chances: none negative, sum 1. Two moves are one: q(u | s) = q(t | s) q(u | t)
  (Chapman and Kolmogorov), and a short one follows the generator: dq = beta R dt.
* `push` and `pull` are the rows and the columns of the transition, whatever way they take, and in both forms of time.
* The stationary law stays, and is where everything is at t = 1, up to what is left of the data.
* The bridge leads from the marginal to the marginal: sum over x_t of q(x_t | x_0) q(x_s | x_t, x_0) = q(x_s | x_0), for
  every x_0 and, where noise can be held, every eta.
* The reverse rates are the slope of the bridge: q(x_s | x_t, x_0) - [x_s = x_t] = (t - s) beta rates + O((t - s)^2).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..errors import SolverError
from .categorical import Categorical, CategoricalPrediction
from .laws import require
from .schedule import Level

STEP = 1e-6  # of the slopes


def check_categorical(process: Categorical, points: int = 5) -> None:
    """Raise LawBroken unless the process obeys its laws at `points` times inside (0, 1)."""
    times = (torch.arange(points, dtype=torch.float64) + 0.5137) / points  # between the kinks of a table
    levels = process.schedule.levels(times)
    for s, t in pairwise(levels):
        require(t.alpha < s.alpha and t.log_snr < s.log_snr, "what is kept of the data must fall with time")
    eye = torch.eye(process.states, dtype=torch.float64)
    _close(process.generator.sum(1), 0 * eye[0], 1e-9, "the rows of the generator must add up to 0")
    _close(process.stationary @ process.generator, 0 * eye[0], 1e-9, "the stationary law must stay")
    end, pi = process.level(1.0), process.stationary.expand(process.states, -1)
    left = 2 * process.states * end.alpha ** min(1.0, _gap(process)) + 1e-9
    _close(process.transition(end), pi, left, "the prior is not met at t = 1")
    for t in levels:
        _check_transition(process, t)
        for share in (0.0, 0.4, 0.95):
            _check_bridge(process, t, process.level(share * t.time))
        _check_rates(process, t)


def _gap(process: Categorical) -> float:
    """How fast the slowest part of the data goes, in units of the clock."""
    return float((-torch.linalg.eigvals(process.generator).real).sort().values[1])


def _close(got: Tensor, want: Tensor, tolerance: float, law: str) -> None:
    gap = float((got - want).abs().max())
    require(gap <= tolerance, f"{law}: off by {gap:.1e}")


def _check_transition(process: Categorical, t: Level) -> None:
    where = f"at t = {t.time:.2f}"
    eye, every = torch.eye(process.states, dtype=torch.float64), torch.arange(process.states)
    whole = process.transition(t)
    require(bool((whole >= -1e-12).all()), f"a transition {where} has negative chances")
    _close(
        whole.sum(1), torch.ones_like(whole[0]), 1e-9, f"the rows of a transition {where} must add up to 1"
    )
    middle = process.level(0.6 * t.time)
    both = process.transition(middle) @ process.transition(t, middle)
    _close(both, whole, 1e-9, f"two moves {where} are not one")
    after = process.transition(process.level(t.time + STEP), t)
    slope, allowed = (
        (after - eye) / (STEP * process.rate(t)),
        1e-3 * float(1 + process.generator.abs().max()) ** 2,
    )
    _close(slope, process.generator, allowed, f"a short move {where} does not follow the generator")
    _close(
        process.push(eye, t, middle), process.transition(t, middle), 1e-9, f"push {where} is no transition"
    )
    column = process.pull(every, t, middle, torch.float64)
    _close(column, process.transition(t, middle).mT, 1e-9, f"pull {where} is no transition")
    rows = process.level(torch.full((process.states,), t.time, dtype=torch.float64))
    form = f"{where} depends on the form of time"
    _close(process.push(eye, rows, middle), process.push(eye, t, middle), 1e-9, f"push {form}")
    _close(process.pull(every, rows, middle, torch.float64), column, 1e-9, f"pull {form}")


def pairs(process: Categorical, t: Level) -> tuple[CategoricalPrediction, Tensor]:
    """Who knows x_0, asked at every x_t that it can become: a prediction (pairs, symbols), and which x_0."""
    x0, x_t = (process.transition(t)[: process.symbols] > 0).nonzero(as_tuple=True)
    return process.certain(x0, x_t, t, torch.float64), x0


def _check_bridge(process: Categorical, t: Level, s: Level) -> None:
    known, x0 = pairs(process, t)
    marginal = process.transition(t)[x0, known.x_t]
    for eta in (1.0, 0.5, 0.0):
        try:
            chances = process.reverse(known, s, eta)
        except SolverError:
            require(eta != 1, "a process has a bridge with eta = 1")
            continue
        arrived = torch.zeros(process.symbols, process.states, dtype=torch.float64)
        arrived = arrived.index_add(0, x0, marginal[:, None] * chances)
        law = f"the bridge from {t.time:.2f} to {s.time:.2f} with eta = {eta} does not lead from marginal to marginal"
        _close(arrived, process.transition(s)[: process.symbols], 1e-9, law)


def _check_rates(process: Categorical, t: Level) -> None:
    known, _ = pairs(process, t)
    near = process.reverse(known, process.level(t.time - STEP)).scatter(1, known.x_t[:, None], 0.0)
    rates, slope = process.reverse_rates(known), near / (STEP * process.rate(t))
    law = f"the reverse rates at t = {t.time:.2f} are not the bridge's slope"
    _close(slope / (1 + rates), rates / (1 + rates), 1e-3, law)
