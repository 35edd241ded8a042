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
from torch.nn import functional as F

from ..codec import LatentCodec
from ..denoisers import Guidance
from ..drawing import check_numbers
from ..errors import BundleError
from ..model import Model
from ..noise import Noise
from ..solvers import Callback, sample_from
from .batches import counted, in_batches
from .decoded import Decoded
from .guided import Posterior
from .nonlinear import Statistics
from .operator import Measurement, Operator

TOLERANCE = 0.02  # of the statistics, in the units of the pictures
BATCH = 64


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
    guidance: float | str | Guidance | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Pictures x (batch, channels, height, width) drawn again from the time `strength`, shaped like x.

    strength: in (0, 1], how far back; style: one picture (channels, height, width) whose statistics to take on.
    Raises BundleError for a style of another shape, SolverError for a strength out of range,
    `solvers.Unfinished` with the finished pictures if a later batch fails.
    """
    check_numbers(model.denoiser.process, "restyling")
    indices = list(range(len(x)) if indices is None else indices)
    if model.base is not None and "image" not in (condition or {}):  # the base would draw others than these
        small = F.interpolate(x, model.base.shape[1:], mode="bicubic", antialias=True, align_corners=False)
        condition = {**(condition or {}), "image": small.clamp(-1, 1)}
    if style is None:
        return model.sample(
            indices=indices, condition=condition, seed=seed, steps=steps, guidance=guidance,
            start=(x, strength), callback=callback,
        )  # fmt: skip
    if style.shape != x.shape[1:]:
        raise BundleError(f"a style picture is one of {tuple(x.shape[1:])}, not {tuple(style.shape)}")
    plan = model.plan(None, None, steps, guidance, conditional=bool(condition), start=strength)
    levels = plan.grid.levels(model.denoiser.process, plan.steps)
    weights = next(model.denoiser.parameters())
    statistics: Operator = Statistics(model.domain.shape)
    wanted = statistics(style[None].to(weights))
    if isinstance(model.codec, LatentCodec):
        statistics = Decoded(statistics, model.codec)
    given = model.conditions.tensors(condition, len(x))
    guided, parts = model.guided(plan.guidance), -(-len(x) // BATCH)

    @torch.no_grad()
    def draw(k: int, rows: slice) -> Tensor:
        own = x[rows].to(weights)
        measured = Measurement(statistics, wanted.expand(len(own), -1, -1, -1), TOLERANCE)
        z = sample_from(
            Posterior(guided, measured, "dps"), model.codec.encode(own), Noise(seed, indices[rows]),
            solver=plan.solver, levels=levels,
            condition=given and {name: value[rows].to(weights.device) for name, value in given.items()},
            callback=callback and counted(callback, k, parts),
        )  # fmt: skip
        return model.codec.decode(z)

    return in_batches(indices, BATCH, draw)
