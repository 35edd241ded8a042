"""Tomography with few angles and an MRI with few lines, on ellipse phantoms, from a prior of no more than two moments.

    python examples/phantoms.py [--out phantoms.png]

The prior is a mixture of Gaussians fitted to 3,000 random phantoms by k-means, so its denoiser is exact and nothing is
trained; it knows how phantoms vary, and not that they are made of ellipses. A held-out phantom is measured by 6
angles of 12 through 24 x 24 pixels, then by 7 of 24 lines of its Fourier transform, both with noise. Columns: the
phantom, the pseudo-inverse of the measurement, two draws from the posterior, the mean of 16, their deviation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from sfumato import GaussianMixture, Images, Noise
from sfumato.editing import FourierLines, Moments, measure, radon, sample_posterior
from sfumato.processes import Flow, Gaussian
from sfumato.solvers import Ancestral, AngleGrid

SIDE, TRAIN, COMPONENTS, DRAWS = 24, 3000, 6, 16
SHAPE = (1, SIDE, SIDE)


def phantoms(count: int, seed: int) -> Tensor:
    """Random heads: a large ellipse of tissue with up to four smaller ones in it, (count, 1, side, side) in [-1, 1]."""
    place = torch.linspace(-1, 1, SIDE, dtype=torch.float64)
    down, across = torch.meshgrid(place, place, indexing="ij")
    u = Noise(seed, count).uniform(torch.empty(count, 5, 6, dtype=torch.float64))
    x = torch.full((count, SIDE, SIDE), -1.0, dtype=torch.float64)
    for k in range(5):
        centre = (u[:, k, :2] - 0.5) * (0.2 if k == 0 else 0.9)
        radii = 0.65 + 0.25 * u[:, k, 2:4] if k == 0 else 0.1 + 0.25 * u[:, k, 2:4]
        turn, value = 3.1416 * u[:, k, 4], 0.8 if k == 0 else 1.2 * (u[:, k, 5] - 0.5)
        dy, dx = down - centre[:, :1, None], across - centre[:, 1:, None]
        c, s = turn.cos()[:, None, None], turn.sin()[:, None, None]
        far = ((c * dx + s * dy) / radii[:, :1, None]) ** 2 + ((c * dy - s * dx) / radii[:, 1:, None]) ** 2
        value = value if k == 0 else value[:, None, None]
        x = x + value * torch.sigmoid(10 * (1 - far))  # a soft edge, about a pixel wide
    return x.clamp(-1, 1)[:, None]


def fit(x: Tensor) -> GaussianMixture:
    """A mixture of Gaussians by k-means, each component's covariance with a little of the whole's."""
    flat = x.flatten(1)
    centres = flat[:COMPONENTS]
    for _ in range(15):
        label = torch.cdist(flat, centres).argmin(1)
        centres = torch.stack([flat[label == k].mean(0) for k in range(COMPONENTS)])
    whole = torch.cov(flat.mT)
    own = [0.8 * torch.cov(flat[label == k].mT) + 0.2 * whole for k in range(COMPONENTS)]
    weights = torch.bincount(label, minlength=COMPONENTS).double()
    return GaussianMixture(Gaussian(Flow(), sigma_data=float(x.std())), centres, torch.stack(own), weights)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("phantoms.png"))
    given = parser.parse_args()
    prior, truth = fit(phantoms(TRAIN, 0)), phantoms(1, 1)
    levels = AngleGrid().levels(prior.process, 25)
    rows = []
    for name, operator, sigma in (
        ("tomography, 6 angles", radon(SHAPE, 6), 0.01),
        ("MRI, 7 of 24 lines", FourierLines([0, 1, 2, 3, 21, 22, 23], SHAPE), 0.05),
    ):
        seen = measure(operator, truth, sigma, Noise(2, 1))
        drawn = sample_posterior(
            prior, seen.repeat(DRAWS), Noise(3, DRAWS), method=Moments(iterations=20, damping=0.0),
            solver=Ancestral(), levels=levels,
        )  # fmt: skip
        inverse, mean = operator.inverse(seen.y), drawn.mean(0, keepdim=True)

        def psnr(x: Tensor) -> float:
            return float(10 * torch.log10(4 / (x.clamp(-1, 1) - truth).square().mean()))

        print(
            f"{name}: PSNR of the pseudo-inverse {psnr(inverse):.1f}, of one draw {psnr(drawn[:1]):.1f}, "
            f"of the mean {psnr(mean):.1f}; residual {seen.repeat(DRAWS).residual(drawn).std():.3f} of noise {sigma}"
        )
        rows.append(torch.cat([truth, inverse, drawn[:2], mean, 4 * drawn.std(0, keepdim=True) - 1]))
    sheet = Images(size=SIDE, channels=1).strip(
        [torch.stack(pair).clamp(-1, 1).float() for pair in zip(*rows, strict=True)],
        ["phantom", "inverse", "draw", "draw", "mean", "4 x dev."], tile=96,
    )  # fmt: skip
    sheet.save(given.out)


if __name__ == "__main__":
    main()
