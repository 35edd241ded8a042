"""A small autoencoder and a model of its latents, which tests of both share."""

from __future__ import annotations

import torch

from sfumato.denoisers import Denoiser
from sfumato.domains.images import Images
from sfumato.model import Model, Sampling
from sfumato.networks import AutoEncoder, build
from sfumato.processes import Flow, Gaussian
from sfumato.solvers import DPMpp2M, FlowGrid


def coder(seed: int = 0, **changes) -> AutoEncoder:
    """A small autoencoder whose every weight is something: new ones decode everything to 0."""
    torch.manual_seed(seed)
    settings = {"in_channels": 1, "size": 8, "latent_channels": 2, "patch": 2, "width": 8, "multipliers": [1]}
    network = AutoEncoder(**{**settings, "blocks": 1, **changes})
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return network.eval().requires_grad_(False)


def model_of(codec, channels: int = 2, size: int = 4) -> Model:
    torch.manual_seed(1)
    network = build("unet", in_channels=channels, size=size, patch=1, width=16, multipliers=[1], blocks=1)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    denoiser = Denoiser(network.eval().requires_grad_(False), Gaussian(Flow()), "velocity")
    return Model(denoiser, Images(size=8, channels=1), Sampling(DPMpp2M(), FlowGrid(), steps=3), codec=codec)
