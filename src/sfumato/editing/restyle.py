"""Restyling: a picture taken back towards noise and drawn again, of its own kind or in the manner of another.

SDEdit (Meng et al. 2022, arXiv 2108.01073): x_t0 = alpha x + sigma z, sampled from there. What is coarser than the
noise at t0 stays, what is finer is made anew (`solvers.estimate` has how much is forgotten). A style reference adds a
measurement: that the picture's `Statistics`, mean and deviation of its detail at several scales, are those of the
reference, under which the way from t0 is guided as by `dps`. Neither changes the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..codec import LatentCodec
from ..denoisers import Denoises
from ..errors import BundleError
from ..model import Model
from ..noise import Noise
from ..solvers import Callback, sample_from
from .decoded import Decoded
from .guided import Posterior
from .nonlinear import Statistics
from .operator import Measurement, Operator

TOLERANCE = 0.02  # of the statistics, in the units of the pictures


def restyle(
    model: Model,
    x: Tensor,
    *,
    strength: float = 0.5,
    style: Tensor | None = None,
    condition: Mapping[str, Any] | None = None,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Pictures x (batch, channels, height, width) drawn again from the time `strength`, shaped like x.

    strength: in (0, 1], how far back; style: one picture (channels, height, width) whose statistics to take on.
    Raises BundleError for a style of another shape, SolverError for a strength out of range.
    """
    indices = list(range(len(x)) if indices is None else indices)
    if style is None:
        return model.sample(
            indices=indices, condition=condition, seed=seed, steps=steps, guidance=guidance,
            start=(x, strength), callback=callback,
        )  # fmt: skip
    if style.shape != x.shape[1:]:
        raise BundleError(f"a style picture is one of {tuple(x.shape[1:])}, not {tuple(style.shape)}")
    plan = model.plan(None, None, steps, guidance, conditional=bool(condition), start=strength)
    weights = next(model.denoiser.parameters())
    statistics: Operator = Statistics(model.domain.shape)
    wanted = statistics(style[None].to(weights)).expand(len(x), -1, -1, -1)
    if isinstance(model.codec, LatentCodec):
        statistics = Decoded(statistics, model.codec)
    given = model.conditions.tensors(condition, len(x))
    denoiser: Denoises = Posterior(
        model.guided(plan.guidance), Measurement(statistics, wanted, TOLERANCE), "dps"
    )
    with torch.no_grad():
        z = sample_from(
            denoiser, model.codec.encode(x.to(weights)), Noise(seed, indices), solver=plan.solver,
            levels=plan.grid.levels(model.denoiser.process, plan.steps),
            condition=given and {name: value.to(weights.device) for name, value in given.items()},
            callback=callback,
        )  # fmt: skip
        return model.codec.decode(z)
