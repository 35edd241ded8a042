"""The folder that `make demo` leaves, made in a moment: the same parts, with a small untrained network.

For the examples in the documents and for tests that need some bundle, not a good one.
"""

from __future__ import annotations

from pathlib import Path


def make_demo_run(run: Path) -> None:
    """Write run/model, a bundle for ten classes of grey 8 x 8 pictures."""
    import torch

    from sfumato.bundle import save
    from sfumato.denoisers import Denoiser
    from sfumato.domains.images import Images
    from sfumato.model import Model, Sampling
    from sfumato.networks import build
    from sfumato.processes import Flow, Gaussian
    from sfumato.solvers import DPMpp2M, FlowGrid

    torch.manual_seed(0)
    network = build(
        "unet", in_channels=1, size=8, classes=10, width=16, multipliers=[1], blocks=[1], embedding=32
    )
    with torch.no_grad():  # a new network answers 0 everywhere, and a test of such a model shows nothing
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    denoiser = Denoiser(network, Gaussian(Flow(), sigma_data=0.5), "velocity")
    digits = Images(size=8, channels=1, classes=tuple("0123456789"))
    save(Model(denoiser, digits, Sampling(DPMpp2M(), FlowGrid(), steps=10)), run / "model")
