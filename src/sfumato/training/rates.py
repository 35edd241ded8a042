"""The learning rate as a function of images seen, with nothing to save or restore.

With peak p, warm-up w, run length T and x = (images - w) / (T - w), clamped to [0, 1],

    rate = p · min(1, images / w) · f        constant:      f = 1
                                             linear:        f = 1 - x
                                             cosine:        f = (1 + cos(pi x)) / 2
                                             inverse-sqrt:  f = (max(images, r) / r)^(-1/2)
                                             wsd:           f = min(1, (T - images) / (share · T))

(inverse-sqrt: Karras et al. 2024, eq. 67; wsd, "warm-up, stable, decay": Hu et al. 2024.) A step that leads
from a to a + batch images uses the rate in its *middle*: else the first step of a warm-up or the last one of
a decay would be taken with rate 0, for nothing.
"""

from __future__ import annotations

import math

from .config import TrainingConfig


def rate_at(config: TrainingConfig, images: float) -> float:
    """The learning rate once `images` images have been seen."""
    total, warm = config.images, config.warmup
    images = min(max(images, 0.0), total)
    rise = min(1.0, images / warm) if warm else 1.0
    done = min(max((images - warm) / max(total - warm, 1), 0.0), 1.0)
    if config.decay == "constant":
        fall = 1.0
    elif config.decay == "linear":
        fall = 1.0 - done
    elif config.decay == "cosine":
        fall = 0.5 * (1.0 + math.cos(math.pi * done))
    elif config.decay == "inverse-sqrt":
        reference = max(config.decay_reference or warm, 1)
        fall = math.sqrt(reference / max(images, reference))
    else:
        fall = min(1.0, (total - images) / (config.decay_fraction * total))
    return config.learning_rate * rise * fall


def rate_of_step(config: TrainingConfig, before: int) -> float:
    """The learning rate of the step that starts with `before` images seen: that in its middle."""
    return rate_at(config, before + min(config.batch, max(config.images - before, 0)) / 2)
