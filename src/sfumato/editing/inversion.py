"""Inversion: the noise that the flow makes into a given picture, and what can be done with it.

The probability flow is an ordinary differential equation, so it runs both ways: from data to noise along the grid's
levels in reverse, by the same solver's steps (Song et al. 2021, sec. 4.3; Mokady et al. 2023 for editing). Both ways
have the solver's error, so the cycle picture -> noise -> picture closes with its order. The way starts at the grid's
last level above clean data, sigma / alpha = e, where the picture stands for x / alpha: by what the flow would change
up to there, of order e^2, the cycle does not close; `levels_for_inversion` adds a level at e = 0.01 where the grid
has none so clean.

    change        invert under one condition, sample under another: what the conditions share is kept
    interpolate   spherically between the noises of two pictures, since noise lies near a sphere and the straight line
                  between two points of it does not (Shoemake 1985); the lengths between are interpolated, too
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Condition, Denoises, Guidance
from ..drawing import check_numbers
from ..errors import BundleError, SolverError
from ..model import Model
from ..noise import Noise
from ..processes import Level
from ..processes.gaussian import fit
from ..solvers import AngleGrid, Euler, Grid, Heun, RungeKutta, Solver, check_levels, check_served, integrate
from .batches import in_batches

CLEANEST = 0.01  # sigma / alpha where inversion starts


def levels_for_inversion(process: Any, steps: int, grid: Grid | None = None) -> list[Level]:
    """The grid's levels, from noise to clean data, the last step being from sigma / alpha = 0.01 or less."""
    levels = (grid or AngleGrid()).levels(process, steps)
    close = process.schedule.level_at(-2 * torch.tensor(CLEANEST).log().item())
    return levels if levels[-2].log_snr >= close.log_snr else [*levels[:-1], close, levels[-1]]


@torch.no_grad()
def invert(
    denoiser: Denoises,
    x: Tensor,
    *,
    levels: Sequence[Level],
    solver: Solver | None = None,
    condition: Condition = None,
) -> Tensor:
    """The state at levels[0] from which the flow, over these levels, leads to x: (batch, ...) shaped like it.

    levels: as for sampling, from noise to clean data. solver: a Runge-Kutta method, Heun's by default; its steps hold
    in either direction. Raises SolverError for another solver, or a state that stops being finite.
    """
    solver = solver or Heun()
    check_served(solver, denoiser.process)
    check_levels(levels)
    if not isinstance(solver, (Euler, Heun, RungeKutta)):
        raise SolverError(f"inversion takes a Runge-Kutta solver such as 'heun', not {solver.kind!r}")
    way = [level for level in reversed(levels) if level.sigma > 0]
    noise = Noise(0, len(x))  # which these solvers do not use
    z = fit(way[0].alpha, x) * x
    for i, (t, s) in enumerate(pairwise(way)):
        z, _ = solver.step(
            lambda x_t, level: denoiser(x_t, level, condition),
            denoiser.process,
            z,
            t,
            s,
            None,
            noise.at(i + 1),
        )
    if not bool(z.isfinite().all()):
        raise SolverError("the inverted state is not finite")
    return z


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation of each sample of (batch, ...), a at 0, b at 1; straight where they are parallel."""
    u, v = a.flatten(1), b.flatten(1)
    long_u, long_v = u.norm(dim=1, keepdim=True), v.norm(dim=1, keepdim=True)
    u, v = u / long_u.clamp(min=1e-30), v / long_v.clamp(min=1e-30)
    angle = torch.acos((u * v).sum(1, keepdim=True).clamp(-1, 1))
    sine = angle.sin()
    straight = sine < 1e-4
    safe = torch.where(straight, 1.0, sine)
    w = torch.where(straight, 1 - share, ((1 - share) * angle).sin() / safe)
    w2 = torch.where(straight, share, (share * angle).sin() / safe)
    return (((1 - share) * long_u + share * long_v) * (w * u + w2 * v)).view_as(a)


def _checked(model: Model, *pictures: Tensor) -> None:
    check_numbers(model.denoiser.process, "inversion")
    for x in pictures:
        if x.shape != model.domain.shape:
            raise BundleError(f"this model's pictures are {model.domain.shape}, not {tuple(x.shape)}")


def _condition(model: Model, condition: Mapping[str, Any] | None, count: int) -> Condition:
    device = next(model.denoiser.parameters()).device
    given = model.conditions.tensors(condition, count)
    return given and {name: value.to(device) for name, value in given.items()}


def _rows(condition: Condition, rows: slice) -> Condition:
    return condition and {name: value[rows] for name, value in condition.items()}


def interpolate(
    model: Model,
    first: Tensor,
    second: Tensor,
    *,
    frames: int = 8,
    condition: Mapping[str, Any] | None = None,
    steps: int = 20,
    batch: int = 64,
) -> Tensor:
    """Pictures on the way from `first` to `second`, (channels, height, width) each: (frames, channels, height, width).

    Both are inverted, and the noises between them sampled; the first and last frame are what comes back of the two.
    Costs 2 evaluations a step for each inversion and each frame. Raises BundleError for fewer than 2 frames.
    """
    if frames < 2:
        raise BundleError(f"an interpolation has at least 2 frames, not {frames}")
    _checked(model, first, second)
    denoiser, levels = model.guided(1.0), levels_for_inversion(model.denoiser.process, steps)
    given = _condition(model, condition, 2)
    pair = model.codec.encode(torch.stack([first, second]).to(next(model.denoiser.parameters())))
    z = invert(denoiser, pair, levels=levels, condition=given)
    between = torch.cat([slerp(z[:1], z[1:], k / (frames - 1)) for k in range(frames)])
    own = given and {name: value[:1].expand(frames, *value.shape[1:]) for name, value in given.items()}

    @torch.no_grad()
    def draw(_: int, rows: slice) -> Tensor:
        noise = Noise(0, range(frames)[rows])
        return model.codec.decode(integrate(denoiser, Heun(), levels, between[rows], noise, _rows(own, rows)))

    return in_batches(range(frames), batch, draw)


def change(
    model: Model,
    x: Tensor,
    old: Mapping[str, Any] | None,
    new: Mapping[str, Any] | None,
    *,
    steps: int = 20,
    guidance: float | str | Guidance = 1.0,
    strength: float = 1.0,
    batch: int = 64,
) -> Tensor:
    """Pictures x (batch, channels, height, width) inverted under the condition `old` and sampled under `new`.

    guidance: the weight of sampling; inversion has none. strength: how far back to go, a time in (0, 1]; less keeps
    more. Raises BundleError for a condition that the model does not have,
    `solvers.Unfinished` with the finished pictures if a later batch fails.
    """
    _checked(model, *x)
    plain, guided = model.guided(1.0), model.guided(guidance)
    before, after = _condition(model, old, len(x)), _condition(model, new, len(x))
    levels = levels_for_inversion(model.denoiser.process, steps, replace(AngleGrid(), start=strength))
    weights = next(model.denoiser.parameters())

    @torch.no_grad()
    def draw(_: int, rows: slice) -> Tensor:
        latent = model.codec.encode(x[rows].to(weights))
        z = invert(plain, latent, levels=levels, condition=_rows(before, rows))
        noise = Noise(0, range(len(x))[rows])
        return model.codec.decode(integrate(guided, Heun(), levels, z, noise, _rows(after, rows)))

    return in_batches(range(len(x)), batch, draw)
