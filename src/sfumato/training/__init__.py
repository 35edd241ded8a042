"""Training: a denoiser, an objective and data become weights, in a run folder that survives being killed.

`TrainingConfig` can be imported without torch; all else is loaded when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .config import TrainingConfig

if TYPE_CHECKING:
    from .callbacks import Callback
    from .checkpoint import Checkpoint, checkpoints_in, load_checkpoint, newest_valid
    from .compare import averaged_weights
    from .ema import Averages, Exponential, Power
    from .lock import RunLock
    from .logbook import read_log
    from .optimizers import build_optimizer, register_optimizer
    from .posthoc import PostHoc
    from .result import Interrupted, TrainingResult
    from .trainer import Trainer
    from .validation import HeldOut, held_out_loss

_WHERE = {
    "Averages": "ema",
    "Callback": "callbacks",
    "Checkpoint": "checkpoint",
    "Exponential": "ema",
    "HeldOut": "validation",
    "Interrupted": "result",
    "PostHoc": "posthoc",
    "Power": "ema",
    "RunLock": "lock",
    "Trainer": "trainer",
    "TrainingResult": "result",
    "averaged_weights": "compare",
    "build_optimizer": "optimizers",
    "checkpoints_in": "checkpoint",
    "held_out_loss": "validation",
    "load_checkpoint": "checkpoint",
    "newest_valid": "checkpoint",
    "read_log": "logbook",
    "register_optimizer": "optimizers",
}

__all__ = [
    "Averages",
    "Callback",
    "Checkpoint",
    "Exponential",
    "HeldOut",
    "Interrupted",
    "PostHoc",
    "Power",
    "RunLock",
    "Trainer",
    "TrainingConfig",
    "TrainingResult",
    "averaged_weights",
    "build_optimizer",
    "checkpoints_in",
    "held_out_loss",
    "load_checkpoint",
    "newest_valid",
    "read_log",
    "register_optimizer",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
