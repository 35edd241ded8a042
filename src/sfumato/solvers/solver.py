"""What a solver is, the frames that deterministic ones work in, and the one loop that drives them all.

A solver is frozen: it holds its settings and nothing else. What it remembers from step to step is an explicit carry,

    carry = solver.init(x)
    x, carry = solver.step(denoise, process, x, t, s, carry, noise)

so two threads may share one solver. `t` and `s` are levels (time, alpha, sigma, log-SNR) in floats; `denoise(x, t)`
gives a `Prediction`.

**Frames.** The probability-flow ODE may be integrated in any coordinates. For a scale c(t) and a coordinate u(t), the
scaled state y = x / c obeys dy/du = a x_0 + b eps with x_0 and eps the denoiser's, and

    frame   c                      u                  (a, b)
    sigma   alpha                  sigma / alpha      (0, 1)                  Karras et al. 2022
    flow    alpha + sigma          sigma / c          (-1, 1)                 rectified flow
    angle   sqrt(alpha^2+sigma^2)  atan(sigma/alpha)  (-sigma, alpha) / c     v of Salimans & Ho 2022
    time    1                      t                  (alpha', sigma')        the schedule's own time

`flow` and `angle` are finite at both ends, zero terminal SNR included. One Euler step in any of the first two frames is
DDIM; higher orders differ, because a polynomial in one u is not one in another.

A step to clean data is made in the flow frame whatever the frame, which makes it x_0 itself: Euler's in `angle` would
leave some of the noise, and in `time` most of it, since sigma' is infinite at the end of many schedules. So is one to
a level beyond the schedule's end, where all levels have the time 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ..denoisers import Condition, Denoises
from ..errors import SolverError, choose
from ..noise import Draws, Noise
from ..processes import Gaussian, Level, Prediction
from .grid import check_levels

Denoise = Callable[[Tensor, Level], Prediction]
Callback = Callable[[int, int, Tensor, Prediction | None], None]
FRAMES = ("flow", "sigma", "angle", "time")


@dataclass(frozen=True)
class Solver:
    """Base of the solvers.

    order: the global order of its error in the step size, which the tests fit. evaluations: of the denoiser, a step.
    stochastic: whether it draws noise on the way. serves: the processes it can solve.
    """

    kind: ClassVar[str] = ""
    order: ClassVar[int] = 1
    evaluations: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False
    serves: ClassVar[tuple[type, ...]] = (Gaussian,)

    def init(self, x: Tensor) -> Any:
        """The carry before the first step."""
        return None

    def step(
        self, denoise: Denoise, process: Any, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        """One step from level t to the cleaner level s of a process that the solver serves."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}


class Frame(Protocol):
    """(c, u, a, b) of a frame at a level."""

    def __call__(self, process: Gaussian, level: Level) -> tuple[float, float, float, float]: ...


def frame_at(frame: str, process: Gaussian, level: Level) -> tuple[float, float, float, float]:
    """The scale c, coordinate u and row (a, b) of dy/du at a level."""
    alpha, sigma = level.alpha, level.sigma
    if frame == "flow":
        c = alpha + sigma
        return c, sigma / c, -1.0, 1.0
    if frame == "angle":
        c = math.hypot(alpha, sigma)
        return c, math.atan2(sigma, alpha), -sigma / c, alpha / c
    if frame == "time":
        return 1.0, level.time, *process.rates(level)
    choose(frame, FRAMES, "frame", SolverError)
    if alpha == 0:
        raise SolverError("the sigma frame has no point where alpha = 0: use the flow or angle frame there")
    return alpha, sigma / alpha, 0.0, 1.0


def frame_to(frame: str, s: Level) -> str:
    """The frame in which a step to s is made: the one asked for, but for clean data and the end of time."""
    return "flow" if s.sigma == 0 or (frame == "time" and s.time == 0) else frame


def euler_step(
    frame: str, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level
) -> tuple[Tensor, Tensor]:
    """x_s by one Euler step in a frame, and the slope dy/du it used."""
    frame = frame_to(frame, s)
    c, u, a, b = frame_at(frame, process, t)
    c_end, u_end, *_ = frame_at(frame, process, s)
    slope = denoise(x, t).combine(a, b)
    return (c_end / c) * x + (c_end * (u_end - u)) * slope, slope


def check_served(solver: Solver, process: Any) -> None:
    """Raise SolverError unless the solver serves this kind of process."""
    if not isinstance(process, solver.serves):
        names = ", ".join(cls.__name__ for cls in solver.serves)
        raise SolverError(f"the {solver.kind} solver serves {names} processes, not {type(process).__name__}")


def integrate(
    denoiser: Denoises,
    solver: Solver,
    levels: Sequence[Level],
    x: Tensor,
    noise: Noise,
    condition: Condition = None,
    callback: Callback | None = None,
) -> Tensor:
    """Drive a solver from x at levels[0] to levels[-1]. The one loop of the package.

    noise: keyed by sample; step i of the loop draws from key i + 1 (key 0 is the prior's).
    callback(i, steps, x, prediction) sees the state after step i and the step's last prediction.
    Raises SolverError for a process the solver does not serve, a grid that goes the wrong way, or a state that stops
    being finite, naming the step.
    """
    process = denoiser.process
    check_served(solver, process)
    check_levels(levels)
    steps, last = len(levels) - 1, None

    def denoise(x_t: Tensor, level: Level) -> Prediction:
        nonlocal last
        last = denoiser(x_t, level, condition)
        return last

    carry = solver.init(x)
    for i in range(steps):
        t, s = levels[i], levels[i + 1]
        x, carry = solver.step(denoise, process, x, t, s, carry, noise.at(i + 1))
        if not math.isfinite(float(x.detach().sum())):
            raise SolverError(
                f"the state is not finite after step {i + 1} of {steps} (time {t.time:.4g} to {s.time:.4g})"
            )
        if callback is not None:
            callback(i + 1, steps, x, last)
    return x


@torch.no_grad()
def sample(
    denoiser: Denoises,
    noise: Noise,
    shape: Sequence[int],
    *,
    solver: Solver,
    levels: Sequence[Level],
    condition: Condition = None,
    callback: Callback | None = None,
    like: Tensor | None = None,
) -> Tensor:
    """Draw from the prior at levels[0] and integrate to levels[-1]: data (len(noise.indices), *shape).

    like: a tensor whose dtype and device the samples take (float32 on the CPU without one).
    """
    check_served(solver, denoiser.process)
    check_levels(levels)
    base = torch.empty(0) if like is None else like
    x = base.new_empty(len(noise.indices), *denoiser.process.state_shape(shape))
    x = denoiser.process.prior(x, noise.at(0), levels[0])
    return denoiser.process.data(integrate(denoiser, solver, levels, x, noise, condition, callback))
