"""What was measured of a picture, as a measurement of its latent: A(decode(z)).

Decoding is not linear, so neither is the whole, and of the posterior samplers those serve that need a derivative only
(`dps`; Rout et al. 2023, arXiv 2307.00619, on what is lost by it: many latents decode to nearly the same picture).
"""

from __future__ import annotations

from torch import Tensor

from ..codec import LatentCodec
from .operator import Operator


class Decoded(Operator):
    """A of a picture as an operator of its latent, z -> A(decode(z)), differentiable.

    operator: on pictures (channels, height, width); shape: of their latents, (latent_channels, height, width).
    """

    def __init__(self, operator: Operator, codec: LatentCodec):
        self.operator, self.codec = operator, codec
        self.shape = codec.shape(operator.shape)

    def __call__(self, z: Tensor) -> Tensor:
        height, width = self.operator.shape[1:]
        return self.operator(self.codec.network.decode(z)[..., :height, :width])
