"""A network for clips, factorised into space and time: a U-Net on every frame, and blocks between its own over frames.

A clip of f frames of h x w pixels has f h w positions, and a network that mixes all of them with all costs f times
what its pictures cost, and more where it attends. Factorised, each frame goes through the U-Net as a picture, the
frames as a batch, and after each of its blocks every position looks at the same position of the other frames
(Ho et al. 2022, Video Diffusion Models, arXiv:2204.03458; Bertasius et al. 2021, arXiv:2102.05095):

    u = (1 + a) * norm(z) + b,      v_t = u_t + k_-1 u_{t-1} + k_0 u_t + k_1 u_{t+1},
    z <- z + g * attention over t of v,      (a, b, g) = W e + w,  W = w = 0

with e the embedding of noise level and condition, and k three weights a channel that start as zero. Attention by itself
does not know which frame is next to which; v does. At initialisation every such block is the identity: the network is
a U-Net that has never seen two frames at once.

*Loops.* Of an animation that runs in a circle every frame may be the first. With `loop` the neighbours are taken around
the circle and nothing else says where a frame stands, so that turning the input turns the answer,

    F(x_{t+s}) = F(x)_{t+s}       for every s, t + s modulo f,

and each clip is trained on as all its f beginnings at once. Without it positions are learned, and there is nothing
before the first frame and after the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embeddings import Attention, check_positive, rms_norm, run, zeroed
from .unet import Stage, UNet


class TimeBlock(nn.Module):
    """Every position attends over its frames; (batch frames, width, h, w) -> same. `embedding` has a row a clip."""

    def __init__(self, frames: int, width: int, embedding: int, head: int, loop: bool) -> None:
        super().__init__()
        self.frames, self.loop = frames, loop
        self.attention = Attention(width, head)
        self.near = nn.Parameter(torch.zeros(3, width))
        self.position = None if loop else nn.Parameter(torch.zeros(frames, width))
        self.modulation = zeroed(nn.Linear(embedding, 3 * width))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """Apply the block."""
        scale, shift, gate = self.modulation(embedding)[:, None, None, :].chunk(3, dim=3)
        # (batch, positions, frames, width), of which channels_last memory is a view until frames come to positions
        z = h.permute(0, 2, 3, 1).flatten(1, 2).unflatten(0, (-1, self.frames)).transpose(1, 2)
        u = rms_norm(z) * (1 + scale) + shift
        around = u[:, :, [-1, *range(self.frames), 0]] if self.loop else F.pad(u, (0, 0, 1, 1))
        before, now, after = (around[:, :, k : k + self.frames] * self.near[k] for k in range(3))
        v = u + before + now + after
        if self.position is not None:
            v = v + self.position
        mixed = self.attention(v.flatten(0, 1)).unflatten(0, z.shape[:2])
        z = (z + gate * mixed).transpose(1, 2).flatten(0, 1)
        return z.unflatten(1, h.shape[2:]).permute(0, 3, 1, 2)


class TimedStage(nn.Module):
    """A stage of the U-Net on the frames of clips, with a `TimeBlock` after each of its blocks."""

    def __init__(self, stage: Stage, blocks: Sequence[TimeBlock]) -> None:
        super().__init__()
        self.space, self.time, self.frames = stage, nn.ModuleList(blocks), blocks[0].frames

    def forward(self, h: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """Apply all blocks in turn; embedding, context and mask have a row a frame."""
        space, once = self.space, embedding[:: self.frames]
        for i, (block, time) in enumerate(zip(space.residual, self.time, strict=True)):
            h = run(space.checkpointing, block, h, embedding)
            if space.attention:
                h = run(space.checkpointing, space.attention[i], h, embedding, context, mask)
            h = run(space.checkpointing, time, h, once)
        return h


class VideoUNet(nn.Module):
    """F(x, c, condition) of clips: (batch, in_channels, frames, h, w) -> (batch, out_channels, frames, h, w).

    Args:
        size: (frames, height, width) of the state. loop: whether the frames go round in a circle.
        in_channels, out_channels, patch, width, multipliers, blocks, attention, head, embedding, classes, text_dim,
        numbers, dropout, checkpointing: of the U-Net that all frames go through, see `UNet`. A head's channels divide
        the width of every level.

    `forward(x, noise_level, condition)`: `noise_level` is (batch,), by sfumato's convention -log_snr / 8. Raises
    ValueError for impossible arguments and for an `x` of another shape.
    """

    kind = "video"

    def __init__(  # noqa: PLR0913 (all by keyword: a configuration)
        self,
        *,
        in_channels: int,
        size: Sequence[int],
        loop: bool = False,
        out_channels: int | None = None,
        patch: int = 2,
        width: int = 48,
        multipliers: Sequence[int] = (1, 2),
        blocks: int | Sequence[int] = (1, 3),
        attention: Sequence[int] = (),
        head: int = 16,
        embedding: int = 128,
        classes: int = 0,
        text_dim: int = 0,
        numbers: int = 0,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        if len(size) != 3:
            raise ValueError(f"the size of a clip is (frames, height, width), got {size!r}")
        check_positive(frames=size[0])
        self.frames = size[0]
        own = {name: value for name, value in config.items() if name not in ("size", "loop")}
        self.unet = UNet(**own, size=list(size[1:]))
        # of the U-Net's own those that a network of clips can be given
        shared = {name: value for name, value in self.unet.config.items() if name in own}
        self.config: dict[str, Any] = shared | {"size": list(size), "loop": loop}

        def timed(stage: nn.Module, level: int) -> TimedStage:
            assert isinstance(stage, Stage)
            times = [
                TimeBlock(self.frames, width * multipliers[level], embedding, head, loop)
                for _ in stage.residual
            ]
            return TimedStage(stage, times)

        last = len(multipliers) - 1
        self.unet.middle = timed(self.unet.middle, last)  # type: ignore[assignment]
        for stages in (self.unet.encoder, self.unet.decoder):
            for level in range(last):
                stages[level] = timed(stages[level], level)

    def forward(
        self, x: Tensor, noise_level: Tensor, condition: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Answer for every clip from that clip alone; see the class for shapes."""
        if x.ndim != 5 or x.shape[2] != self.frames:
            raise ValueError(
                f"this network was built for clips of {self.config['size']}, (batch, channels, frames, height, width), "
                f"got {tuple(x.shape)}"
            )
        frames = x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        each = {name: value.repeat_interleave(self.frames, 0) for name, value in (condition or {}).items()}
        found = self.unet(frames, noise_level.repeat_interleave(self.frames, 0), each)
        return found.unflatten(0, (-1, self.frames)).transpose(1, 2)
