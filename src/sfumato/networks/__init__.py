"""Networks: maps (noisy state, noise level, condition) -> answer that know nothing of diffusion.

A network answers F(x, c, condition) in the state's shape. What F *means* (noise, velocity, clean data),
which process made x, and how inputs are scaled is the denoiser's business, one floor above. Every
network has `kind` and `config`, and `build(net.kind, **net.config)` makes its like, so that a bundle is
JSON and weights, never a pickle.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable
from typing import Any

from torch import nn

from .autoencoder import AutoEncoder, PatchCritic, RandomFeatures
from .classifier import NoiseClassifier
from .dit import DiT
from .egnn import EGNN
from .embeddings import Conditioning, FourierFeatures
from .joint import JointTransformer
from .joint_egnn import JointEGNN
from .taps import Tap, bottleneck, rewired
from .transformer import Transformer
from .unet import UNet, fold, unfold
from .video import VideoUNet
from .wave import Wave

__all__ = [
    "EGNN",
    "KINDS",
    "AutoEncoder",
    "Conditioning",
    "DiT",
    "FourierFeatures",
    "JointEGNN",
    "JointTransformer",
    "NoiseClassifier",
    "PatchCritic",
    "RandomFeatures",
    "Tap",
    "Transformer",
    "UNet",
    "VideoUNet",
    "Wave",
    "bottleneck",
    "build",
    "fold",
    "rewired",
    "unfold",
]

KINDS: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "dit": DiT,
    "joint": JointTransformer,
    "joint-egnn": JointEGNN,
    "egnn": EGNN,
    "transformer": Transformer,
    "classifier": NoiseClassifier,
    "autoencoder": AutoEncoder,
    "video": VideoUNet,
    "wave": Wave,
}


def build(kind: str, **config: Any) -> nn.Module:
    """Build the network that `kind` names from keyword arguments: `build("unet", in_channels=1, size=28)`.

    Raises ValueError for an unknown kind, an unknown or missing argument, and whatever the network
    itself refuses; the message says what was given, what is allowed and the nearest allowed name.
    """
    if kind not in KINDS:
        raise ValueError(_unknown("network kind", kind, KINDS))
    parameters = inspect.signature(KINDS[kind]).parameters
    for name in config:
        if name not in parameters:
            raise ValueError(_unknown(f"argument of network {kind!r}:", name, parameters))
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in config]
    if missing:
        raise ValueError(
            f"network {kind!r} needs {' and '.join(missing)}; given: {', '.join(config) or 'nothing'}"
        )
    return KINDS[kind](**config)


def _unknown(what: str, given: object, allowed: Iterable[str]) -> str:
    names = list(allowed)
    close = difflib.get_close_matches(str(given), names, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {what} {given!r}; allowed: {', '.join(names)}{hint}"
