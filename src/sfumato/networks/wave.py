"""A network along time: of a spectrum, bins by frames, each frame is one vector, and convolutions run over frames.

Pictures look alike wherever one looks; spectra do not. A bin at 200 Hz and one at 3 kHz have little in common, so a
two-dimensional convolution shares weights that should differ. Here all the bins of a frame are channels, (batch, c,
bins, frames) -> (batch, frames, c x bins), and only time is convolved over: the shape of Vocos (Siuzdak 2024,
arXiv:2306.00814) and of RFWave (Liu et al. 2024, arXiv:2403.05010), which is that with a flow. A block is that of
ConvNeXt (Liu et al. 2022, arXiv:2201.03545), modulated as all blocks here are:

    x <- x + g * W2 gelu(W1 ((1 + a) * norm(d * x) + b)),     d: `kernel` taps a channel; (a, b, g) = W e + w, W = w = 0

The taps are written as shifted sums, which need no layout of their own. What comes out are a gain and a sum for each
number, both linear in z:

    F = gain(z) * x_t + sum(z).

The best linear estimate of x0 is such a gain (Wiener's), and where the spectrum that is told has nothing, x_t is
noise and passes whole. Noise has as many dimensions as a frame has numbers, and without the gain all of them would
have to pass through `width` channels.

What is told of every frame, the slot "spectrum" (batch, spectrum, frames), enters beside the state. Nothing here
depends on the number of frames, so a network trained on pieces of a second makes sounds of a minute; it reaches
`depth (kernel - 1) / 2` frames to either side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embeddings import Conditioning, check_positive, pair, rms_norm, run, zeroed


class FrameBlock(nn.Module):
    """A residual block over frames (batch, frames, width), modulated by the embedding (batch, embedding)."""

    def __init__(self, width: int, embedding: int, kernel: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.kernel = kernel
        # flat: they are no matrix, and an optimizer of matrices shall not take them for one
        self.taps = nn.Parameter(torch.randn(kernel * width) / kernel**0.5)
        self.grow = nn.Linear(width, expansion * width)
        self.shrink = nn.Linear(expansion * width, width)
        self.modulation = zeroed(nn.Linear(embedding, 3 * width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Apply the block."""
        scale, shift, gate = self.modulation(embedding)[:, None].chunk(3, dim=2)
        taps, reach = self.taps.view(self.kernel, -1), self.kernel // 2
        padded = F.pad(x, (0, 0, reach, reach))
        h = padded[:, : x.shape[1]] * taps[0]
        for k in range(1, self.kernel):
            h = torch.addcmul(h, padded[:, k : k + x.shape[1]], taps[k])
        h = rms_norm(h) * (1 + scale) + shift
        return x + gate * self.shrink(self.dropout(F.gelu(self.grow(h), approximate="tanh")))


class Wave(nn.Module):
    """F(x, c, condition) of spectra: (batch, in_channels, bins, frames) -> the same, for any number of frames.

    Args:
        in_channels, size: of the state; size is (bins, frames), of which the frames are not held to.
        width, depth, expansion: of the blocks. kernel: taps over frames, an odd number.
        spectrum: numbers told of every frame in the slot of that name, (batch, spectrum, frames); 0 for no such slot.
        embedding: width of the global embedding. classes: labels, see `Conditioning`.
        dropout: probability, inside blocks. checkpointing: recompute blocks in the backward pass.

    Raises ValueError for impossible arguments, an x of other bins, and a missing spectrum: without it there is nothing
    to make a sound of.
    """

    kind = "wave"

    def __init__(  # noqa: PLR0913 (all by keyword: a configuration)
        self,
        *,
        in_channels: int,
        size: int | Sequence[int],
        width: int = 256,
        depth: int = 8,
        kernel: int = 7,
        expansion: int = 3,
        spectrum: int = 0,
        embedding: int = 128,
        classes: int = 0,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.config: dict[str, Any] = {**config, "size": list(pair(size))}
        check_positive(in_channels=in_channels, width=width, depth=depth, kernel=kernel, expansion=expansion)
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, so that a frame is in the middle of it; got {kernel}")
        self.in_channels, self.bins, self.spectrum = in_channels, pair(size)[0], spectrum
        self.checkpointing = checkpointing
        self.conditioning = Conditioning(embedding, classes=classes)
        numbers = in_channels * self.bins
        self.stem = nn.Linear(numbers + spectrum, width)
        self.blocks = nn.ModuleList(
            FrameBlock(width, embedding, kernel, expansion, dropout) for _ in range(depth)
        )
        self.modulation = zeroed(nn.Linear(embedding, 2 * width))
        self.out = zeroed(nn.Linear(width, 2 * numbers))

    def forward(
        self, x: Tensor, noise_level: Tensor, condition: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Answer for every sample from that sample alone; see the class for shapes."""
        if x.ndim != 4 or tuple(x.shape[1:3]) != (self.in_channels, self.bins):
            raise ValueError(
                f"this network was built for x of (batch, {self.in_channels}, {self.bins}, frames), "
                f"got {tuple(x.shape)}"
            )
        condition = dict(condition or {})
        z = x.flatten(1, 2).mT
        if self.spectrum:
            told, wanted = condition.pop("spectrum", None), (x.shape[0], self.spectrum, x.shape[3])
            if told is None or tuple(told.shape) != wanted:
                raise ValueError(
                    f"condition 'spectrum' must be {wanted}, got {None if told is None else tuple(told.shape)}"
                )
            z = torch.cat([z, told.to(z.dtype).mT], 2)
        embedding, _, _ = self.conditioning(noise_level, condition)
        z = self.stem(z)
        for block in self.blocks:
            z = run(self.checkpointing, block, z, embedding)
        scale, shift = self.modulation(embedding)[:, None].chunk(2, dim=2)
        gain, add = self.out(rms_norm(z) * (1 + scale) + shift).mT.chunk(2, dim=1)
        return (gain * x.flatten(1, 2) + add).unflatten(1, (self.in_channels, self.bins))
