"""Particles: sampling toward a reward by weighing trajectories and resampling them.

Wanted is the tilted law p(x_0) exp(r(x_0) / tau) / Z, with Z = E_p exp(r / tau), from a model of p and any reward r,
which need not be differentiable. K particles are drawn by an ordinary solver; after step i each is weighed by

    G_i = exp((r_i - r_{i-1}) / tau),     r_i = r(x_0(x_i)) of what the denoiser takes it to become,    r_0 = 0,

and the last r is that of the finished sample. The product telescopes to exp(r(x_0) / tau), so whatever the guesses on
the way were worth, the weights at the end are those of importance sampling; the guesses only say early which particles
are worth going on with (Feynman-Kac models: Del Moral 2004; Wu et al. 2023, arXiv 2306.17775; Singhal et al. 2025,
arXiv 2501.06848, the "difference" potential). When the effective number of particles (sum w)^2 / sum w^2 falls below a
share of K, they are resampled systematically: with one uniform u, ancestor j is where the running sum of the weights
passes (u + j) / K, so that particle k leaves K w_k children up to rounding (Kitagawa 1996). Weights then start again
from one, and

    log Z = sum over resamplings and the end of log mean w       is an estimate whose exp is unbiased.

Weighted averages over the K particles of a group tend to those of the tilted law as K grows, with an error of order
1 / sqrt(K) and, from normalising the weights, a bias of order 1 / K; groups averaged with weights Z have no such bias.

**Diversity.** Children of one parent differ by the noise of later steps alone, so a deterministic solver would carry
copies to the end: it is refused unless resampling is off (threshold 0), which is plain importance sampling.

**Randomness.** Particle k of group i is the plain sample i K + k of the seed: with a reward that is zero it is that
very sample. A group's resampling is keyed by its first particle, so a group alone is the same group in a batch.

**Cost.** The guess at x_i is handed to the step that starts there, so a solver that evaluates where it starts pays
nothing for it; one that starts elsewhere (EDM's churn) makes one evaluation more a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Condition, Denoises
from ..errors import SolverError
from ..noise import Draws, Noise
from ..processes import Gaussian, Level, Prediction, Schedule
from .grid import check_levels
from .solver import Denoise, Solver, check_served

Reward = Callable[[Tensor], Tensor]
ANCESTORS, PICK = 1 << 40, (1 << 40) + 1  # streams that no solver uses


@dataclass(frozen=True)
class Steering:
    """How particles are steered. particles: K, in each group. temperature: tau, in the reward's units.

    threshold: resample when the effective share of particles falls below it; 0 never, 1 whenever weights differ.
    """

    particles: int = 16
    temperature: float = 1.0
    threshold: float = 0.5

    def __post_init__(self) -> None:
        whole = isinstance(self.particles, int) and not isinstance(self.particles, bool)
        if not whole or not 1 <= self.particles <= 1_000_000:
            raise SolverError(f"particles must be a whole number from 1 to 1,000,000, not {self.particles!r}")
        if not 0 < self.temperature < math.inf:
            raise SolverError(f"a temperature must be positive and finite, not {self.temperature!r}")
        if not 0 <= self.threshold <= 1:
            raise SolverError(f"threshold is a share of the particles, from 0 to 1, not {self.threshold!r}")


@dataclass(frozen=True)
class Particles:
    """What steering found.

    samples: (groups, K, ...). log_weights: (groups, K) in float64, normalised to a sum of one in each group.
    log_normaliser: (groups,), log of the estimate of Z. resampled: (groups,), how often. pick: (groups,), the particle
    drawn with the weights' probabilities.
    """

    samples: Tensor
    log_weights: Tensor
    log_normaliser: Tensor
    resampled: Tensor
    pick: Tensor

    @property
    def picked(self) -> Tensor:
        """One sample a group, (groups, ...), drawn with the weights."""
        return self.samples[torch.arange(len(self.pick), device=self.samples.device), self.pick]

    @property
    def effective(self) -> Tensor:
        """(sum w)^2 / sum w^2, the effective number of particles at the end, (groups,)."""
        return torch.exp(-torch.logsumexp(2 * self.log_weights, 1))


@torch.no_grad()
def steer(
    denoiser: Denoises,
    noise: Noise,
    shape: Sequence[int],
    reward: Reward,
    *,
    solver: Solver,
    levels: Sequence[Level],
    steering: Steering | None = None,
    condition: Condition = None,
    like: Tensor | None = None,
) -> Particles:
    """Draw len(noise.indices) groups of particles from p(x_0) exp(reward(x_0) / temperature).

    reward: (n, *shape) to (n,), of clean data and of guesses of it. condition: one row a group. like: a tensor whose
    dtype and device the samples take. Raises SolverError for a deterministic solver with resampling, a reward that is
    not finite or has the wrong shape, or a state that stops being finite, naming the step.
    """
    steering = steering or Steering()
    process, count = denoiser.process, steering.particles
    check_served(solver, process)
    check_levels(levels)
    if not solver.stochastic and steering.threshold > 0:
        raise SolverError(
            f"the {solver.kind} solver is deterministic, so resampled particles would stay copies of each other: "
            "take a stochastic one such as 'ancestral', or threshold=0 to weigh and never resample"
        )
    each = Noise(noise.seed, [i * count + k for i in noise.indices for k in range(count)])
    given = (
        None
        if condition is None
        else {name: rows.repeat_interleave(count, 0) for name, rows in condition.items()}
    )
    base = torch.empty(0) if like is None else like
    x = process.prior(base.new_empty(len(each.indices), *shape), each.at(0), levels[0])
    carry = solver.init(x)
    groups = Weights(len(noise.indices), steering, x.device)
    steps = len(levels) - 1
    for i in range(steps):
        t, s, draws = levels[i], levels[i + 1], each.at(i + 1)

        def denoise(x_t: Tensor, level: Level) -> Prediction:
            return denoiser(x_t, level, given)

        asked: Denoise = denoise
        if i > 0:  # at the start all particles are noise, and a guess says nothing of which is better
            guess = denoise(x, t)
            groups.weigh(_rewards(reward, guess.x0, i))
            rows = groups.resample(draws, x)
            if rows is not None:
                x, carry, guess = (take_rows(part, rows, len(x)) for part in (x, carry, guess))
            asked = _first(guess, x, t, denoise)
        x, carry = solver.step(asked, process, x, t, s, carry, draws)
        if not bool(x.isfinite().all()):
            raise SolverError(
                f"the state is not finite after step {i + 1} of {steps} (time {t.time:.4g} to {s.time:.4g})"
            )
    groups.weigh(_rewards(reward, x, steps))
    return groups.close(x, each.at(steps + 1))


class Weights:
    """The log-weights of all groups, (groups, K) in float64, and what resampling has taken out of them."""

    def __init__(self, groups: int, steering: Steering, device: torch.device):
        self.steering = steering
        self.log = torch.zeros(groups, steering.particles, dtype=torch.float64, device=device)
        self.last = torch.zeros_like(self.log)
        self.normaliser, self.resampled = (
            torch.zeros_like(self.log[:, 0]),
            torch.zeros_like(self.log[:, 0]).long(),
        )

    def weigh(self, rewards: Tensor) -> None:
        """Multiply the weights by exp((r - r_last) / tau)."""
        rewards = rewards.double().reshape(self.log.shape)
        self.log = self.log + (rewards - self.last) / self.steering.temperature
        self.last = rewards

    def _mean(self) -> Tensor:
        return torch.logsumexp(self.log, 1) - math.log(self.steering.particles)

    def resample(self, noise: Draws, x: Tensor) -> Tensor | None:
        """The rows that go on, (groups K,), or None where no group has too few that count."""
        count = self.steering.particles
        weights = torch.softmax(self.log, 1)
        needy = 1 / weights.square().sum(1) < self.steering.threshold * count * (1 - 1e-9)
        if not bool(needy.any()):
            return None
        # the group's own uniform is that of its first particle
        u = noise.uniform(x.flatten(1)[:, :1], ANCESTORS).double()[::count]
        marks = (u + torch.arange(count, device=x.device)) / count
        ancestors = torch.searchsorted(weights.cumsum(1), marks, right=True).clamp(max=count - 1)
        ancestors = torch.where(needy[:, None], ancestors, torch.arange(count, device=x.device))
        self.normaliser = self.normaliser + torch.where(needy, self._mean(), 0.0)
        self.log = torch.where(needy[:, None], 0.0, self.log)
        self.last = self.last.gather(1, ancestors)
        self.resampled = self.resampled + needy
        return (ancestors + count * torch.arange(len(u), device=x.device)[:, None]).flatten()

    def close(self, x: Tensor, noise: Draws) -> Particles:
        """The particles with their weights, and one of each group drawn by them."""
        count = self.steering.particles
        u = noise.uniform(x.flatten(1)[:, :1], PICK).double()[::count].contiguous()
        pick = torch.searchsorted(torch.softmax(self.log, 1).cumsum(1), u, right=True)[:, 0]
        return Particles(
            x.reshape(-1, count, *x.shape[1:]),
            torch.log_softmax(self.log, 1),
            self.normaliser + self._mean(),
            self.resampled,
            pick.clamp(max=count - 1),
        )


def _rewards(reward: Reward, x0: Tensor, step: int) -> Tensor:
    values = reward(x0)
    if not isinstance(values, Tensor) or values.shape != x0.shape[:1]:
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise SolverError(f"a reward gives one number a sample, ({len(x0)},), not {found}")
    if not bool(values.isfinite().all()):
        raise SolverError(
            f"the reward is not finite before step {step + 1}: bound it, or give what is forbidden a very low reward"
        )
    return values.detach()


def _first(guess: Prediction, x: Tensor, t: Level, denoise: Denoise) -> Denoise:
    """A denoiser that knows the answer at (x, t) already."""
    return lambda x_t, level: guess if x_t is x and level is t else denoise(x_t, level)


def take_rows(part: Any, rows: Tensor, batch: int) -> Any:
    """The same carry, state or prediction with other rows of every tensor (batch, ...) in it."""
    if isinstance(part, Tensor):
        return part[rows] if part.ndim and len(part) == batch else part
    if part is None or isinstance(part, (bool, int, float, str, Gaussian, Schedule)):
        return part
    if isinstance(part, dict):
        return {name: take_rows(value, rows, batch) for name, value in part.items()}
    if isinstance(part, (list, tuple)):
        moved = [take_rows(value, rows, batch) for value in part]
        return type(part)(*moved) if hasattr(part, "_fields") else type(part)(moved)
    if is_dataclass(part) and not isinstance(part, type):
        return replace(
            part, **{entry.name: take_rows(getattr(part, entry.name), rows, batch) for entry in fields(part)}
        )
    raise SolverError(f"particles cannot be resampled with a carry that holds a {type(part).__name__}")
