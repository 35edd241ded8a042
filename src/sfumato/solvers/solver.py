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
    mixed   alpha + sigma          atan(sigma/alpha)  (-1, 1) k               the flow's scale over the angle
    time    1                      t                  (alpha', sigma')        the schedule's own time

with k = (alpha^2 + sigma^2) / (alpha + sigma)^2. `flow`, `angle` and `mixed` are finite at both ends, zero terminal SNR
included. One Euler step in `flow` or `sigma` is DDIM; higher orders differ, because a polynomial in one u is not one in
another.

Exponential integrators take the half-log-SNR u = l = log(alpha / sigma) for the coordinate, where dy/du = e^(rate u) g
with a g that varies slowly, and integrate the exponential exactly:

    x0-exponential   c = sigma   rate = 1    g = x_0     Lu et al. 2022b, eq. 8 (DPM-Solver++)
    eps-exponential  c = alpha   rate = -1   g = -eps    Lu et al. 2022a, prop. 3.1 (DPM-Solver)

A step to clean data is made in the flow frame whatever the frame, which makes it x_0 itself: Euler's in `angle` would
leave some of the noise, and in `time` most of it, since sigma' is infinite at the end of many schedules. So is one to
a level beyond the schedule's end, where all levels have the time 0, and an exponential one from pure noise, where l is
infinite too. A multistep method keeps its order there: u = 0 is an ordinary point of that frame, and the polynomial
through the last slopes ends closer to the data than x_0 as it was last said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from ..denoisers import Condition, Denoises
from ..errors import SolverError, choose
from ..noise import Draws, Keyed
from ..processes import Gaussian, Level, Prediction
from .grid import check_levels

Denoise = Callable[[Tensor, Level], Prediction]
Callback = Callable[[int, int, Tensor, Prediction | None], None]
FRAMES = ("flow", "sigma", "angle", "mixed", "time")
RATES = {"x0-exponential": 1.0, "eps-exponential": -1.0}  # of the exponential frames


@dataclass(frozen=True)
class Solver:
    """Base of the solvers.

    order: the global order of its error in the step size, which the tests fit. evaluations: of the denoiser, a step
    once under way (`cost` counts a whole run). least_steps: the shortest run that its warm-up allows.
    stochastic: whether it draws noise on the way. serves: the processes it can solve.
    """

    kind: ClassVar[str] = ""
    order: ClassVar[int] = 1
    evaluations: ClassVar[int] = 1
    least_steps: ClassVar[int] = 1
    stochastic: ClassVar[bool] = False
    serves: ClassVar[tuple[type, ...]] = (Gaussian,)

    @property
    def start_order(self) -> int:
        """The order of a whole run of equal steps: below `order` where a memory that fills makes the first steps worse.

        One first step of order 1 costs an error h^2 once, so no such run is of an order above 2, whatever `order` is;
        a run whose first steps are short, or whose start is smooth, need not notice.
        """
        return self.order

    def cost(self, steps: int) -> int:
        """The evaluations of a run of so many steps to clean data: the most, if it depends on where they start.

        It is reached from every start but pure noise, from which a solver may have to begin with a cheaper step.
        """
        return steps * self.evaluations

    def within(self, steps: int) -> Solver:
        """The solver for a run of so many steps: itself, unless a setting is left to be chosen by their number."""
        return self

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


class Run(NamedTuple):
    """What a driver's run gave: samples (batch, ...), and the evaluations of the denoiser that each cost (batch,)."""

    x: Tensor
    evaluations: Tensor


@dataclass(frozen=True)
class Driver(Solver):
    """Base of the solvers that choose their own levels: `integrate` calls their `solve`, and they have no `step`."""

    def solve(
        self,
        denoiser: Denoises,
        first: Level,
        last: Level,
        x: Tensor,
        noise: Any,
        condition: Condition = None,
        callback: Callback | None = None,
    ) -> Run:
        """Take x from level `first` to level `last`, and say what it cost.

        callback(done, total, x, None) is told how far the slowest sample is. Raises SolverError naming the sample
        where a state stops being finite.
        """
        raise NotImplementedError


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
    if frame == "mixed":
        c = alpha + sigma
        k = (alpha * alpha + sigma * sigma) / (c * c)
        return c, math.atan2(sigma, alpha), -k, k
    if frame == "time":
        return 1.0, level.time, *process.rates(level)
    if frame in RATES:
        half = level.log_snr / 2
        return (sigma, half, 1.0, 0.0) if frame == "x0-exponential" else (alpha, half, 0.0, -1.0)
    choose(frame, FRAMES, "frame", SolverError)
    if alpha == 0:
        raise SolverError("the sigma frame has no point where alpha = 0: use the flow or angle frame there")
    return alpha, sigma / alpha, 0.0, 1.0


def frame_to(frame: str, t: Level, s: Level) -> str:
    """The frame in which a step from t to s is made: the one asked for, but at the ends where that has none."""
    ends = s.sigma == 0 or (frame == "time" and s.time == 0) or (frame in RATES and t.alpha == 0)
    return "flow" if ends else frame


def level_in(frame: str, process: Gaussian, u: float) -> Level:
    """The level at coordinate u of a frame, inside its range."""
    if frame == "time":
        return process.level(u)
    if frame in RATES:
        return process.schedule.level_at(2 * u)
    ratio = {"flow": u / (1 - u), "sigma": u, "angle": math.tan(u), "mixed": math.tan(u)}[frame]
    return process.schedule.level_at(-2 * math.log(ratio))


def euler_step(
    frame: str, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level
) -> tuple[Tensor, Tensor]:
    """x_s by one Euler step in a frame, and the slope dy/du it used."""
    frame = frame_to(frame, t, s)
    c, u, a, b = frame_at(frame, process, t)
    c_end, u_end, *_ = frame_at(frame, process, s)
    slope = denoise(x, t).combine(a, b)
    return (c_end / c) * x + (c_end * (u_end - u)) * slope, slope


def check_served(solver: Solver, process: Any) -> None:
    """Raise SolverError unless the solver serves this kind of process."""
    if not isinstance(process, solver.serves):
        names = ", ".join(cls.__name__ for cls in solver.serves)
        raise SolverError(f"the {solver.kind} solver serves {names} processes, not {type(process).__name__}")


def upper_end(kind: str, s_min: float, s_max: float | None) -> float | None:
    """s_max of an interval of sigma / alpha, None for infinity, which JSON does not know; SolverError if it is none."""
    if not 0 <= s_min < math.inf or not (s_max is None or s_min <= s_max):
        raise SolverError(f"the {kind} solver needs 0 <= s_min <= s_max, not {s_min!r} and {s_max!r}")
    return None if s_max == math.inf else s_max


def between(ratio: float, s_min: float, s_max: float | None) -> bool:
    """Whether a sigma / alpha lies in an interval that may have no upper end."""
    return s_min <= ratio and (s_max is None or ratio <= s_max)


def check_run(solver: Solver, process: Any, levels: Sequence[Level]) -> None:
    """Raise SolverError unless the solver serves the process and the grid goes from noise to data in enough steps."""
    check_served(solver, process)
    check_levels(levels)
    if len(levels) - 1 < solver.least_steps:
        raise SolverError(
            f"the {solver.kind} solver needs at least {solver.least_steps} steps for its warm-up, not {len(levels) - 1}"
        )


def steps_within(solver: Solver, evaluations: int) -> int:
    """The most steps to clean data that so many evaluations of the model pay for.

    Raises SolverError if they do not pay for the solver's shortest run.
    """
    steps = solver.least_steps
    if solver.cost(steps) > evaluations:
        raise SolverError(
            f"the {solver.kind} solver needs at least {solver.cost(steps)} evaluations, not {evaluations}"
        )
    while solver.cost(steps + 1) <= evaluations:
        steps += 1
    return steps


def integrate(
    denoiser: Denoises,
    solver: Solver,
    levels: Sequence[Level],
    x: Tensor,
    noise: Keyed,
    condition: Condition = None,
    callback: Callback | None = None,
) -> Tensor:
    """Drive a solver from x at levels[0] to levels[-1]. The one loop over a grid.

    A `Driver` takes the two ends of the levels and goes its own way between them.
    noise: keyed by sample; step i of the loop draws from key i + 1 (key 0 is the prior's).
    callback(i, steps, x, prediction) sees the state after step i and the step's last prediction.
    Raises SolverError for a process the solver does not serve, a grid that goes the wrong way or is too short for the
    solver's warm-up, or a state that stops being finite, naming the step.
    """
    process = denoiser.process
    check_run(solver, process, levels)
    if isinstance(solver, Driver):
        return solver.solve(denoiser, levels[0], levels[-1], x, noise, condition, callback).x
    steps, last = len(levels) - 1, None

    def denoise(x_t: Tensor, level: Level) -> Prediction:
        nonlocal last
        last = denoiser(x_t, level, condition)
        return last

    solver = solver.within(steps)
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
    noise: Keyed,
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
    check_run(solver, denoiser.process, levels)
    base = torch.empty(0) if like is None else like
    x = base.new_empty(len(noise.indices), *denoiser.process.state_shape(shape))
    x = denoiser.process.prior(x, noise.at(0), levels[0])
    return denoiser.process.data(integrate(denoiser, solver, levels, x, noise, condition, callback))
