"""An E(3)-equivariant network of points in space that have features: atoms of a molecule.

The state of a sample is n points among `length` places, each (position in R^3, features); the slot "count" says n, and
what is in the places beyond it is neither seen nor answered. Turning, mirroring or shifting the positions turns,
mirrors or leaves the answer for them, and does nothing to that for the features; the order of points is nothing:

    F(x R, h) = (F_x R, F_h),      F(x + s, h) = F(x, h),      F(x_pi, h_pi) = F(x, h)_pi.

Each point keeps numbers h_i, which nothing turns, and a few vectors V_i in R^3, which turn along. All that is said of a
pair is made of its distance and of both points' numbers, with r_ij = (x_i - x_j) / (d_ij + 1):

    e_ij = silu(W phi(d_ij) + A h_i + B h_j)                                      a narrow vector, for n^2 pairs
    a_ij = softmax_j(q_i k_j + w e_ij)                                            attention
    h_i  <- h_i + W (sum_j a_ij (v_j, e_ij)),      V_i <- V_i + sum_j (U e_ij) r_ij
    h_i  <- h_i + MLP(h_i, <P V_i, Q V_i>),        V_i <- V_i + MLP'(...) Q V_i    at each point alone
    x_i  <- x_i + g(noise level) MLP''(...) Q V_i                                 where distances are taken next

and all branches are modulated by noise level and condition as in `dit`. That is the equivariant graph network of
Satorras et al. 2021 (arXiv:2102.09844) with its work moved from pairs to points: wide layers see n points, and only
narrow ones n^2 pairs. The vectors are those of Schütt et al. 2021 (PaiNN, arXiv:2102.03150), section 3.

Wherever vectors are used they are brought to unit size first: they grow in training, and weights that read them as they
are become small, and are tossed about by every step.

`project` says where data live: positions with mean 0, and zeros in the places of no point. It is what a denoiser needs
to know of it, see `denoisers.denoiser`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embeddings import Conditioning, check_positive, rms_norm, run, zeroed


class Pairs(nn.Module):
    """What a distance d is to a network: bumps over exp(-d), finest where points are near; (...) -> (..., bumps)."""

    centres: Tensor

    def __init__(self, bumps: int) -> None:
        super().__init__()
        self.register_buffer("centres", torch.linspace(0, 1, bumps), persistent=False)

    def forward(self, distance: Tensor) -> Tensor:
        """exp(-((exp(-d) - c_k) bumps)^2 / 2)."""
        gap = (distance.neg().exp()[..., None] - self.centres) * len(self.centres)
        return (gap.square() * -0.5).exp()


def between(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Distances d_ij (batch, n, n) and r_ij = (x_i - x_j) / (d_ij + 1), (batch, n, n, 3)."""
    gap = positions[:, :, None] - positions[:, None]
    distance = (gap.square().sum(3) + 1e-8).sqrt()
    return distance, gap / (distance + 1)[..., None]


def unit(vectors: Tensor) -> Tensor:
    """The vectors of a point (batch, n, 3, vectors), of unit length in root mean square: its numbers say how long."""
    return vectors * torch.rsqrt(vectors.square().mean((2, 3), keepdim=True) * 3 + 1e-3)


class Block(nn.Module):
    """One round: pairs to points, then each point alone. See the file's head."""

    def __init__(self, width: int, embedding: int, *, head: int, pair: int, vectors: int, bumps: int) -> None:
        super().__init__()
        self.heads, self.pair, self.vectors = width // head, pair, vectors
        self.query_key_value = nn.Linear(width, 3 * width)
        self.ends = nn.Linear(width, 2 * pair)
        self.distance = nn.Linear(2 * bumps, pair, bias=False)
        self.said = nn.Linear(pair, self.heads + vectors)
        self.gather = nn.Linear(width + self.heads * pair, width)
        self.mix = nn.Linear(vectors, 2 * vectors, bias=False)
        self.wide = nn.Linear(width + 2 * vectors, 4 * width)
        self.narrow = nn.Linear(4 * width, width + 2 * vectors)
        self.modulation = zeroed(nn.Linear(embedding, 6 * width + 1))

    def forward(
        self, h: Tensor, v: Tensor, bumps: Tensor, r: Tensor, embedding: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(h (batch, n, width), v (batch, n, 3, vectors), shift of positions); bumps, r: of all pairs."""
        width = h.shape[2]
        a1, b1, g1, a2, b2, g2, g = self.modulation(embedding)[:, None].split([*[width] * 6, 1], dim=2)
        z = rms_norm(h) * (1 + a1) + b1
        q, k, value = self.query_key_value(z).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        here, there = self.ends(z).chunk(2, 2)
        pair = F.silu(self.distance(bumps) + here[:, :, None] + there[:, None])
        bias, push = self.said(pair).split([self.heads, self.vectors], 3)
        logits = rms_norm(q) @ rms_norm(k).mT / math.sqrt(q.shape[-1]) + bias.permute(0, 3, 1, 2)
        weight = logits.masked_fill(~mask[:, None, None], -math.inf).softmax(3)
        points = (weight @ value).transpose(1, 2).flatten(2)
        pairs = (weight.transpose(1, 2) @ pair.to(weight.dtype)).flatten(2)
        h = h + g1 * self.gather(torch.cat([points, pairs.to(points.dtype)], 2))
        push = push * (mask[:, None, :, None] / 4)
        v = v + (r[..., None] * push[..., None, :]).sum(2)
        one, two = self.mix(unit(v)).chunk(2, 3)
        shape = torch.cat([(one * two).sum(2), (one * one).sum(2)], 2)
        hidden = torch.cat([rms_norm(h) * (1 + a2) + b2, shape.to(h.dtype)], 2)
        change, gate, move = self.narrow(F.silu(self.wide(hidden))).split([width, *[self.vectors] * 2], 2)
        return h + g2 * change, v + two * gate[:, :, None], g * (two * move[:, :, None]).sum(3)


class EGNN(nn.Module):
    """F(x, c, condition) of points: (batch, length, in_channels) -> the same; see the file's head.

    Args:
        length, in_channels: places of a state, and numbers of a point, the first 3 of them its position.
        width, depth, head: of a point's numbers, rounds, and a head of attention. pair, vectors: numbers of a pair, and
        vectors of a point. bumps: of a distance. embedding: width of the global embedding.
        numbers: of the condition's slot of that name, see `Conditioning`. checkpointing: recompute blocks backwards.

    The condition has "count", (batch,) whole numbers from 1 to `length`. Raises ValueError for impossible arguments, an
    x of another shape, or a condition without counts.
    """

    kind = "egnn"

    def __init__(  # noqa: PLR0913 (all by keyword: a configuration)
        self,
        *,
        length: int,
        in_channels: int,
        width: int = 128,
        depth: int = 6,
        head: int = 16,
        pair: int = 32,
        vectors: int = 16,
        bumps: int = 24,
        embedding: int = 128,
        numbers: int = 0,
        checkpointing: bool = False,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        check_positive(length=length, features=in_channels - 3, width=width, depth=depth, head=head)
        check_positive(pair=pair, vectors=vectors, bumps=bumps, embedding=embedding)
        if width % head:
            raise ValueError(f"head must divide width: {head} does not divide {width}")
        self.config: dict[str, Any] = config
        self.length, self.width, self.vectors, self.checkpointing = length, width, vectors, checkpointing
        features = in_channels - 3
        self.conditioning = Conditioning(embedding, numbers=numbers)
        self.stem = nn.ModuleDict(
            {"features": nn.Linear(features, width), "count": nn.Embedding(length + 1, width)}
        )
        self.pairs = Pairs(bumps)
        self.blocks = nn.ModuleList(
            Block(width, embedding, head=head, pair=pair, vectors=vectors, bumps=bumps) for _ in range(depth)
        )
        self.modulation = zeroed(nn.Linear(embedding, 2 * width + 2))
        self.out = nn.ModuleDict(
            {"features": zeroed(nn.Linear(width, features)), "vectors": zeroed(nn.Linear(width, vectors))}
        )

    def mask(self, x: Tensor, condition: Mapping[str, Tensor] | None) -> Tensor:
        """Which places hold a point, bool (batch, length)."""
        count = (condition or {}).get("count")
        if count is None or count.shape != (len(x),):
            said = "none" if count is None else f"of shape {tuple(count.shape)}"
            raise ValueError(
                f"this network is told how many points there are, 'count' ({len(x)},), not {said}"
            )
        return torch.arange(self.length, device=x.device) < count[:, None]

    def project(self, x: Tensor, condition: Mapping[str, Tensor] | None) -> Tensor:
        """The nearest state that data could have: positions of mean 0, zeros in places without a point."""
        held = self.mask(x, condition)[..., None].to(x.dtype)
        x = x * held
        mean = x[..., :3].sum(1, keepdim=True) / held.sum(1, keepdim=True).clamp(min=1)
        return torch.cat([x[..., :3] - mean * held, x[..., 3:]], 2)

    def forward(
        self, x: Tensor, noise_level: Tensor, condition: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Answer for every sample from that sample alone; see the class for shapes."""
        wanted = (self.length, self.config["in_channels"])
        if tuple(x.shape[1:]) != wanted:
            raise ValueError(
                f"this network was built for x of (batch, {wanted[0]}, {wanted[1]}), got {tuple(x.shape)}"
            )
        mask = self.mask(x, condition)
        told = {name: value for name, value in (condition or {}).items() if name != "count"}
        embedding, _, _ = self.conditioning(noise_level, told)
        start, features = x[..., :3], x[..., 3:]
        count = (condition or {})["count"].clamp(0, self.length)
        h = self.stem["features"](features) + self.stem["count"](count)[:, None]
        v = x.new_zeros(*x.shape[:2], 3, self.vectors)
        distance, r = between(start)
        first = bumps = self.pairs(distance)
        for block in self.blocks:
            both = torch.cat([first, bumps], 3)
            h, v, shift = run(self.checkpointing, block, h, v, both, r, embedding, mask)
            distance, r = between(start + shift.to(start.dtype))
            bumps = self.pairs(distance)
        scale, shift, stay, keep = self.modulation(embedding)[:, None].split(
            [self.width, self.width, 1, 1], 2
        )
        h = rms_norm(h) * (1 + scale) + shift
        moved = stay * start + (unit(v) * self.out["vectors"](h)[:, :, None]).sum(3)
        said = keep * features + self.out["features"](h)
        return torch.cat([moved, said.to(moved.dtype)], 2) * mask[..., None]
