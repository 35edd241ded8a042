"""A codec stands between pictures and what a model makes: x -> encode -> z ... z -> decode -> x.

The identity is one, and every model has it unless it says otherwise, so nothing else needs to know whether a model
makes pixels or latents. A `LatentCodec` is a trained autoencoder (networks/autoencoder.py). Its latents have mean 0 and
deviation 1 in every channel over the data it was trained on, since the scale is part of the codec.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .errors import BundleError
from .networks.autoencoder import AutoEncoder

BATCH = 64  # pictures encoded or decoded at once


class Codec(Protocol):
    """What a model asks of a codec. shape: that of one latent for one picture, (channels, height, width) each."""

    def shape(self, picture: Sequence[int]) -> tuple[int, ...]: ...
    def encode(self, x: Tensor) -> Tensor: ...
    def decode(self, z: Tensor, tile: int | None = None, overlap: int | None = None) -> Tensor: ...


@dataclass(frozen=True)
class IdentityCodec:
    """The codec of a model that makes pictures themselves."""

    def shape(self, picture: Any) -> Any:
        return picture if isinstance(picture, Mapping) else tuple(picture)

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor, tile: int | None = None, overlap: int | None = None) -> Tensor:
        return z


@dataclass(frozen=True)
class LatentCodec:
    """A trained autoencoder as a codec. info: the record of the bundle it came from.

    `encode`: (batch, c, h, w) in [-1, 1] -> latents of unit scale; `decode`: back, in tiles where asked for, with the
    same result (see `AutoEncoder.decode`). Both work through a batch in parts, so memory does not grow with it. Raises
    BundleError for pictures or latents of another shape than the network's.
    """

    network: AutoEncoder
    info: dict[str, Any] = field(default_factory=dict)

    def shape(self, picture: Sequence[int]) -> tuple[int, ...]:
        if picture[0] != self.network.in_channels:
            raise BundleError(
                f"this codec takes pictures of {self.network.in_channels} channels, these have {picture[0]}"
            )
        return self.network.latent_shape(picture[1:])

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        return self._in_parts(self.network.encode, x)

    @torch.no_grad()
    def decode(self, z: Tensor, tile: int | None = None, overlap: int | None = None) -> Tensor:
        return self._in_parts(lambda part: self.network.decode(part, tile, overlap), z)

    def _in_parts(self, work: Any, x: Tensor) -> Tensor:
        weights = next(self.network.parameters())
        try:
            return torch.cat([work(part.to(weights)) for part in x.split(BATCH)])
        except ValueError as error:
            raise BundleError(str(error)) from None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights, scale included: codecs of one fingerprint have the same latents."""
        return fingerprint(self.network)


IDENTITY = IdentityCodec()


def fingerprint(network: nn.Module) -> str:
    """SHA-256 of a network's weights, names and shapes included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def check_latents(codec: Codec, picture: Sequence[int], network: nn.Module) -> None:
    """Raise BundleError unless a network was built for the latents that a codec makes of such pictures."""
    config = getattr(network, "config", {})
    size = config.get("size")
    if size is None:  # a network of others, which does not say
        return
    made = codec.shape(picture)
    inner = (config["in_channels"], *((size, size) if isinstance(size, int) else size))
    if made != inner and made != (config.get("out_channels"), *inner[1:]):  # under cld the state is (x, v)
        raise BundleError(
            f"this codec makes latents of {_by(made)} (channels, height, width), and the model is one of {_by(inner)}: "
            "take the codec it was trained with"
        )


def _by(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
