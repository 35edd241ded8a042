"""Small networks of diffusers, and what is said to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sfumato.noise import Noise

diffusers = pytest.importorskip("diffusers", reason="needs sfumato[diffusers]")


BETAS = {
    "linear": {"beta_schedule": "linear"},
    "scaled linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "trained": {"trained_betas": np.linspace(1e-3, 0.05, 200).tolist(), "num_train_timesteps": 200},
    "zero terminal": {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
}


def unet(classes: int | None = None, seed: int = 0, **config: Any) -> torch.nn.Module:
    torch.manual_seed(seed)
    blocks = {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    }
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16)}
    return diffusers.UNet2DModel(
        **(
            {"layers_per_block": 1, "norm_num_groups": 4, "num_class_embeds": classes}
            | blocks
            | sizes
            | config
        )
    ).eval()


def dit(**config: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=1, out_channels=2, num_layers=1, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10, **config,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for weight in model.parameters():  # a new one answers little but 0
            weight.add_(0.05 * torch.randn_like(weight))
    return model


def state(count: int = 3, channels: int = 1, seed: int = 1) -> torch.Tensor:
    return Noise(seed, count).normal(torch.empty(count, channels, 8, 8))
