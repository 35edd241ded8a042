"""One interface to all posterior samplers: `restore(model, operator, y)`.

    method        what it is                                    operators         calls of the network a step
    replacement   measured part replaced after each step        linear            1
    repaint       the same, each step repeated                  linear            `repeats`
    ddnm          isotropic covariance                          linear            1
    pigdm         isotropic within, Jacobian before             linear            1, and 1 backward
    dps           gradient of the squared residual              differentiable    1, and 1 backward
    moments       Jacobian in both places                       linear            1, and `iterations` + 1 backward, or
                                                                                  one for each measured number
    particles     any of the last four as proposals, weighed    the proposal's    `particles` times the proposal's

`ddnm`, `pigdm`, `dps` and `moments` are denoisers around the model (`Posterior`), under whatever solver it has, a tuned
one included; `replacement` and `repaint` wrap a one-step solver, DDIM unless the model's is one; `particles` have the
bridge for their step.

Without measurement noise what is made of a linear measurement is put on y at the end, x + A+ (y - A x), so that known
pixels are kept to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..codec import LatentCodec
from ..denoisers import Condition, Denoises, Guidance
from ..drawing import check_numbers
from ..errors import BundleError, SolverError, choose
from ..model import Model
from ..noise import Noise
from ..processes import Level
from ..solvers import (
    DDIM,
    Ancestral,
    Callback,
    Driver,
    EDMSolver,
    Euler,
    Grid,
    Heun,
    RungeKutta,
    Solver,
    Steering,
    filled,
    sample,
    values_of,
)
from .batches import counted, in_batches
from .bridged import Replacing
from .decoded import Decoded
from .guided import DAMPING, ITERATIONS, KINDS, Posterior
from .operator import LinearOperator, Measurement, Operator
from .twisted import twisted
from .windows import Windows

ONE_STEP = (DDIM, Ancestral, Euler, Heun, RungeKutta, EDMSolver)


@dataclass(frozen=True)
class Method:
    """Base of the posterior samplers: settings, and `draw`."""

    kind: ClassVar[str] = ""

    def draw(
        self, denoiser: Denoises, measurement: Measurement, noise: Noise, solver: Solver, levels: Sequence[Level],
        condition: Condition = None, callback: Callback | None = None, like: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Samples of p(x_0 | y), (batch, *shape), one for each row of the measurement."""
        raise NotImplementedError


@dataclass(frozen=True)
class Guided(Method):
    """Base of the methods that are a changed denoiser: `around` gives it, for use with any solver."""

    def around(self, denoiser: Denoises, measurement: Measurement) -> Posterior:
        """The denoiser of p(x_0 | y)."""
        return Posterior(denoiser, measurement, self.kind)

    def draw(
        self, denoiser: Denoises, measurement: Measurement, noise: Noise, solver: Solver, levels: Sequence[Level],
        condition: Condition = None, callback: Callback | None = None, like: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        return sample(
            self.around(denoiser, measurement), noise, measurement.operator.shape, solver=solver, levels=levels,
            condition=condition, callback=callback, like=like,
        )  # fmt: skip


@dataclass(frozen=True)
class DDNM(Guided):
    """What x_t says, corrected by the damped inverse; no gradient (Wang et al. 2023)."""

    kind: ClassVar[str] = "ddnm"


@dataclass(frozen=True)
class PiGDM(Guided):
    """Pseudo-inverse guidance through the network's gradient (Song et al. 2023)."""

    kind: ClassVar[str] = "pigdm"


@dataclass(frozen=True)
class DPS(Guided):
    """Gradient of the squared residual, for any differentiable operator. scale: multiplies it (Chung et al. 2023)."""

    kind: ClassVar[str] = "dps"
    scale: float = 1.0

    def around(self, denoiser: Denoises, measurement: Measurement) -> Posterior:
        return Posterior(denoiser, measurement, "dps", scale=self.scale)


@dataclass(frozen=True)
class Moments(Guided):
    """The network's own covariance in Kalman's gain. iterations, damping: of the solve (Rozet et al. 2024).

    damping: the share of r^2 that is added to the noise, against what a network's derivatives get wrong; 0 for an exact
    denoiser.
    """

    kind: ClassVar[str] = "moments"
    iterations: int = ITERATIONS
    damping: float = DAMPING

    def around(self, denoiser: Denoises, measurement: Measurement) -> Posterior:
        return Posterior(denoiser, measurement, "moments", iterations=self.iterations, damping=self.damping)


@dataclass(frozen=True)
class Replacement(Method):
    """The measured part replaced after each step by y noised to its level (Song et al. 2021)."""

    kind: ClassVar[str] = "replacement"

    def draw(
        self, denoiser: Denoises, measurement: Measurement, noise: Noise, solver: Solver, levels: Sequence[Level],
        condition: Condition = None, callback: Callback | None = None, like: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        base = solver if isinstance(solver, ONE_STEP) else DDIM()
        return sample(
            denoiser, noise, measurement.operator.shape,
            solver=Replacing(base, measurement, getattr(self, "repeats", 1)), levels=levels,
            condition=condition, callback=callback, like=like,
        )  # fmt: skip


@dataclass(frozen=True)
class RePaint(Replacement):
    """Replacement with each step repeated, so that both parts come to fit (Lugmayr et al. 2022). repeats: how often."""

    kind: ClassVar[str] = "repaint"
    repeats: int = 5

    def __post_init__(self) -> None:
        if isinstance(self.repeats, bool) or not isinstance(self.repeats, int) or self.repeats < 1:
            raise SolverError(f"repeats must be a whole number from 1 on, not {self.repeats!r}")


@dataclass(frozen=True)
class Twisted(Method):
    """Guided proposals weighed and resampled (Wu et al. 2023). particles: of each sample. proposal: see `Posterior`."""

    kind: ClassVar[str] = "particles"
    particles: int = 16
    proposal: str = "pigdm"

    def __post_init__(self) -> None:
        choose(self.proposal, KINDS, "proposal", SolverError)
        Steering(self.particles)

    def draw(
        self, denoiser: Denoises, measurement: Measurement, noise: Noise, solver: Solver, levels: Sequence[Level],
        condition: Condition = None, callback: Callback | None = None, like: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        with torch.no_grad():
            return twisted(
                denoiser, measurement, noise, levels=levels, steering=Steering(self.particles), kind=self.proposal,
                condition=condition, callback=callback, like=like,
            ).picked  # fmt: skip


METHODS: dict[str, type[Method]] = {
    cls.kind: cls for cls in (DDNM, PiGDM, DPS, Moments, Replacement, RePaint, Twisted)
}


def build_method(kind: str) -> Method:
    """A posterior sampler from its name, with values behind it if need be: "particles:particles=32,proposal=ddnm".

    Raises SolverError for a name or value that does not exist.
    """
    name, config = values_of(kind)
    cls = METHODS[choose(name, METHODS, "method", SolverError)]
    return filled(cls, config, f"{name} method")


def sample_posterior(
    denoiser: Denoises,
    measurement: Measurement,
    noise: Noise,
    *,
    method: Method | str = "ddnm",
    solver: Solver,
    levels: Sequence[Level],
    condition: Condition = None,
    callback: Callback | None = None,
    like: Tensor | None = None,
) -> Tensor:
    """Draw x_0 from p(x_0 | y) for each row of a measurement, (batch, *shape), from any denoiser.

    Sample i depends on (seed, index i, its row of y) alone. Without measurement noise a linear measurement is met to
    rounding. Raises SolverError for an operator that the method does not serve, or a state that stops being finite.
    """
    if len(measurement.y) != len(noise.indices):
        raise SolverError(f"{len(measurement.y)} measurements were given for {len(noise.indices)} samples")
    method = build_method(method) if isinstance(method, str) else method
    like = measurement.y if like is None else like
    return _met(
        measurement, method.draw(denoiser, measurement, noise, solver, levels, condition, callback, like)
    )


def _met(measurement: Measurement, x: Tensor) -> Tensor:
    """The samples, put on a linear measurement that has no noise."""
    if measurement.sigma == 0 and isinstance(measurement.operator, LinearOperator):
        return measurement.project(x)
    return x


def restore(  # noqa: PLR0913 (what a sample depends on)
    model: Model,
    operator: Operator,
    y: Tensor,
    *,
    sigma: float = 0.0,
    method: Method | str | None = None,
    condition: Any = None,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    steps: int | None = None,
    solver: Solver | str | None = None,
    grid: Grid | str | None = None,
    guidance: float | str | Guidance | None = None,
    batch: int = 64,
    callback: Callback | None = None,
) -> Tensor:
    """Pictures (count, channels, height, width) in [-1, 1] that fit y = A(x) + sigma eps, one for each row of y.

    method: "ddnm" by default; of a model of latents "dps", and only methods that need no linear operator: what was
    measured of a picture was measured of its latent by A after decoding (`Decoded`).
    operator: on the model's pictures, or on larger ones, for which the model is asked in overlapping windows
    (`Windows`). Repeat a row of y for several draws of its posterior. indices: which samples of the seed the rows are
    (0, 1, .. by default). The other arguments are those of `Model.sample`.
    Raises SolverError or BundleError for what does not fit, `solvers.Unfinished` with the finished pictures if a later
    batch fails.
    """
    check_numbers(model.denoiser.process, "restoring")
    chosen = list(range(len(y)) if indices is None else indices)
    if len(chosen) != len(y) or not chosen or batch < 1:
        raise BundleError(
            f"{len(y)} measurements need as many indices and a batch of at least 1, not {len(chosen)}, {batch}"
        )
    Measurement(operator, y, sigma)  # refuses what does not fit before anything is drawn
    plan = model.plan(solver, grid, steps, guidance, conditional=bool(condition))
    if isinstance(plan.solver, Driver) and steps is not None:
        raise SolverError(
            f"the {plan.solver.kind} solver chooses its own steps: leave steps out, and set its tolerance"
        )
    levels = plan.grid.levels(model.denoiser.process, plan.steps)
    try:
        whole = Noise(seed, chosen)
    except ValueError as error:
        raise BundleError(str(error)) from None
    given = model.conditions.tensors(condition, len(chosen), whole)
    weights = next(model.denoiser.parameters())
    denoiser: Denoises = model.guided(plan.guidance)
    codec, inner = model.codec, operator
    if isinstance(codec, LatentCodec):
        inner = Decoded(operator, codec)
    if inner.shape != model.latent_shape:
        denoiser = Windows(denoiser, model.latent_shape, inner.shape)
    method = method or ("ddnm" if inner is operator else "dps")
    parts = -(-len(chosen) // batch)

    def draw(k: int, rows: slice) -> Tensor:
        noise = Noise(seed, chosen[rows])
        told = callback and counted(callback, k, parts)
        part = given and {name: value[rows].to(weights.device) for name, value in given.items()}
        own = Measurement(inner, y[rows].to(weights), sigma)
        z = sample_posterior(
            denoiser, own, noise, method=method, solver=plan.solver, levels=levels,
            condition=part, callback=told, like=weights,
        )  # fmt: skip
        if inner is operator:
            return codec.decode(z)
        x = codec.decode(z)[
            ..., : operator.shape[-2], : operator.shape[-1]
        ]  # latents stand for whole blocks of pixels
        return _met(Measurement(operator, own.y, sigma), x)

    return in_batches(chosen, batch, draw)
