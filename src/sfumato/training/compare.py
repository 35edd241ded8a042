"""Whether a checkpoint belongs to the run that is to go on from it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sfumato.errors import RunError

from .checkpoint import Checkpoint
from .config import TrainingConfig

FIXED = ("seed", "batch", "optimizer", "optimizer_options", "ema", "ema_halflife")
"""Settings that a resumed run cannot change: they decide what images were shown, or what state there is."""


def same_run(
    found: Checkpoint, config: TrainingConfig, examples: int, weights: Mapping[str, Tensor]
) -> list[str]:
    """Messages on settings that changed since the checkpoint and may; raises RunError for those that may
    not."""
    then, now = found.about["config"], config.model_dump(mode="json")
    for name in FIXED:
        if name in then and then[name] != now[name]:
            raise RunError(
                f"{found.path} was made with training.{name} = {then[name]}, this run has {now[name]}: "
                "start it in another folder, or set it back"
            )
    if found.about["examples"] != examples:
        raise RunError(
            f"{found.path} was made with {found.about['examples']} training examples, there are {examples} now"
        )
    saved = found.part("weights")
    for name in sorted({*saved, *weights}):
        theirs = tuple(saved[name].shape) if name in saved else "nothing"
        ours = tuple(weights[name].shape) if name in weights else "nothing"
        if theirs != ours:
            raise RunError(f"{found.path} is of another network: {name} is {theirs} there and {ours} here")
    changed = [name for name in now if name in then and then[name] != now[name]]
    return [f"resumed with training.{name} = {now[name]}, it was {then[name]}" for name in changed]


def averaged_weights(found: Checkpoint, average: str | None = None) -> dict[str, Tensor]:
    """A denoiser's state dict from a checkpoint, with an average (default: the first) in place of the
    weights."""
    weights, names = found.part("weights"), found.about["averages"]
    if average is None and not names:
        return weights
    name = average or names[0]
    if name not in names:
        raise RunError(f"{found.path} has no average {name!r}: it has {', '.join(names) or 'none'}")
    return weights | found.part(f"ema/{name}")
