"""How samples come about: the settings that a model samples with, and what it thinks at steps along the way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .errors import SolverError
from .model import Model
from .processes import Prediction
from .sampling import Sampling
from .solvers import Driver


def planned(model: Model, settings: Mapping[str, Any]) -> Sampling:
    """The settings that `model.sample(.., **settings)` uses."""
    names = {name: settings.get(name) for name in ("solver", "grid", "steps", "guidance")}
    start = settings.get("start")
    return model.plan(
        **names, conditional=bool(settings.get("condition")), start=None if start is None else start[1]
    )


def film(model: Model, count: int, frames: int = 8, **settings: Any) -> tuple[list[Tensor], list[str]]:
    """What the model thinks the picture will be (x0) at evenly spread steps of sampling, and the time of each.

    settings: as those of `Model.sample`, `indices` (count of them) included.
    Returns `frames` tensors (count, ...) or fewer, and a caption "t = 0.50" for each. The last is the sample.
    """
    plan = planned(model, settings)
    if isinstance(plan.solver, Driver):
        raise SolverError(
            f"a film shows the steps of a grid, and under the {plan.solver.kind} solver each sample has its own: "
            "choose another solver for the film"
        )
    steps = plan.steps
    number = min(frames, steps)
    wanted = {math.ceil((k + 1) * steps / number) for k in range(number)}
    shots: list[Tensor] = []
    captions: list[str] = []

    def keep(done: int, total: int, x: Tensor, prediction: Prediction | None) -> None:
        if done in wanted:
            guess = None if done == total else prediction
            shown = model.denoiser.process.data(x) if guess is None else guess.x0
            shots.append(model.codec.decode(shown).clone())
            captions.append("sample" if guess is None else f"t = {guess.level.time:.2f}")

    model.sample(None if settings.get("indices") else count, callback=keep, batch=count, **settings)
    return shots, captions
