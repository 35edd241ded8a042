"""Low-rank updates of a network's layers (Hu et al. 2021, arXiv:2106.09685), and new rows of its table of labels.

A linear layer's weight W, (out, in), is frozen and a product of rank r learned beside it,

    y = W x + s B A x,        A (r, in),  B (out, r),   s = alpha / r,

whose r (in + out) numbers are few. B starts at zero, so training starts at the base model exactly; A at normals of
variance 1 / in, so that A x is of the size of x. A convolution is the same with its patches as inputs: A is a
convolution like it with r outputs, B a 1 x 1 one, and the weight B A has rank r as a matrix (out, in k k).

*Beside or inside.* Beside (`attach`), the gradient of W is never formed, which is what makes a step cheaper than one of
full training. Inside (`merge`), W + s B A costs nothing when the model is used, and is what `Model.with_adapters`
makes. Several adapters are added up, sum_i w_i s_i B_i A_i, in float64 and rounded once; to unmerge is to subtract.

*A new class* is a new row of the table of labels, put before the last one, which means "no label". It starts as that
row: the new class starts as whatever the model draws when nothing is asked for.

Layers keep their class's behaviour and the names of their weights: `attach` gives a layer a class derived from its own,
as torch's parametrisations do, so that checkpoints, exporters and code that looks for a `Linear` see what they saw.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import BundleError, RecipeError, nearest
from .adapter import Adapter
from .words import text_width

DOWN, UP, ROWS = "low_rank_down", "low_rank_up", "new_rows"
TABLE = "conditioning.labels"


class LowRankLinear(nn.Linear):
    """y = W x + b + s B A x."""

    low_rank_down: Tensor
    low_rank_up: Tensor
    low_rank_scale: float

    def forward(self, input: Tensor) -> Tensor:
        """(batch, ..., in) -> (batch, ..., out)."""
        beside = F.linear(F.linear(input, self.low_rank_down), self.low_rank_up)
        return super().forward(input) + self.low_rank_scale * beside


class LowRankConv2d(nn.Conv2d):
    """The same of a convolution, with its stride, padding and dilation."""

    low_rank_down: Tensor
    low_rank_up: Tensor
    low_rank_scale: float

    def forward(self, input: Tensor) -> Tensor:
        """(batch, in, h, w) -> (batch, out, h', w')."""
        few = self._conv_forward(input, self.low_rank_down, None)
        return super().forward(input) + self.low_rank_scale * F.conv2d(few, self.low_rank_up[..., None, None])


class GrownTable(nn.Embedding):
    """A table of labels with new rows before its last one."""

    new_rows: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """(batch,) long -> (batch, width)."""
        return F.embedding(input, torch.cat([self.weight[:-1], self.new_rows, self.weight[-1:]]))


_BESIDE: dict[type, type] = {nn.Linear: LowRankLinear, nn.Conv2d: LowRankConv2d}


def rooms(network: nn.Module) -> dict[str, int]:
    """The layers that can be updated, and the greatest rank that an update of each may have: min(out, in k k).

    Linear and Conv2d layers themselves, not classes derived from them, whose weight may be used in other ways; and no
    convolutions in groups.
    """
    layers: Any = network.named_modules()
    return {
        name: min(layer.weight.shape[0], layer.weight[0].numel())
        for name, layer in layers
        if type(layer) in _BESIDE and getattr(layer, "groups", 1) == 1
    }


def chosen(network: nn.Module, rank: int, layers: Iterable[str] = ()) -> list[str]:
    """The layers that patterns name ("middle.*", with * for anything), or without any all that have room for the rank.

    Raises RecipeError for a rank that is no whole number from 1, one larger than a named layer has room for or larger
    than all of them, and a pattern that no layer matches.
    """
    room, patterns = rooms(network), list(layers)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise RecipeError(f"a rank is a whole number from 1, not {rank!r}")
    if not room:
        raise RecipeError("the network has no linear layer and no convolution to adapt")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in room):
            near = nearest(pattern, room)
            hint = f"; did you mean {near!r}?" if near else ""
            raise RecipeError(f"no layer matches {pattern!r}: there are {_few(list(room))}{hint}")
    found = [name for name in room if not patterns or any(fnmatchcase(name, p) for p in patterns)]
    small = [name for name in found if room[name] < rank]
    if patterns and small:
        raise RecipeError(f"rank {rank} is larger than the layer {small[0]}, which has rank {room[small[0]]}")
    if len(small) == len(found):
        raise RecipeError(
            f"rank {rank} is larger than every layer: the largest has rank {max(room.values())}"
        )
    return [name for name in found if room[name] >= rank]


def _few(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def fresh(
    network: nn.Module,
    base: str,
    *,
    rank: int = 8,
    alpha: float | None = None,
    layers: Iterable[str] = (),
    classes: Sequence[str] = (),
    seed: int = 0,
) -> Adapter:
    """An adapter that changes nothing yet: B = 0, new classes like "no label". base: the fingerprint of the weights.

    alpha: default the rank, so that the scale is 1. layers: see `chosen`. classes: names of new ones.
    Raises RecipeError for what `chosen` refuses, BundleError for classes where the network has no table of labels.
    """
    generator, updates = torch.Generator().manual_seed(seed), {}
    for name in chosen(network, rank, layers):
        weight: Any = network.get_submodule(name).weight
        down = torch.randn(rank, *weight.shape[1:], generator=generator) / math.sqrt(weight[0].numel())
        updates[name] = (down.to(weight), torch.zeros(len(weight), rank).to(weight))
    rows = {name: _table(network).weight[-1].detach().clone() for name in classes}
    return Adapter(base, updates, float(rank if alpha is None else alpha), rows)


def _table(network: nn.Module) -> nn.Embedding:
    table = getattr(getattr(network, "conditioning", None), "labels", None)
    if not isinstance(table, nn.Embedding):
        raise BundleError(
            "the network has no table of labels, so it cannot learn a new class: leave the label out"
        )
    return table


def _layer(network: nn.Module, name: str, update: tuple[Tensor, Tensor]) -> Any:
    """The layer that an update is for, if it fits it."""
    try:
        layer: Any = network.get_submodule(name)
    except AttributeError:
        layer = None
    down, up = update
    if type(layer) not in _BESIDE or layer.weight.shape != (len(up), *down.shape[1:]):
        raise BundleError(
            f"the adapter is of another network: it updates a layer {name} of ({len(up)}, "
            f"{', '.join(map(str, down.shape[1:]))}), which this one does not have"
        )
    return layer


def _rows(network: nn.Module, classes: Mapping[str, Tensor]) -> Tensor | None:
    if not classes:
        return None
    table, rows = _table(network), torch.stack(list(classes.values()))
    if rows.shape[1] != table.embedding_dim:
        raise BundleError(
            f"the adapter is of another network: its classes have {rows.shape[1]} numbers, the table of labels "
            f"{table.embedding_dim}"
        )
    return rows.to(table.weight)


def _count(network: Any, more: int) -> None:
    """Tell a network that it has more classes."""
    network.conditioning.classes += more
    network.config = {**network.config, "classes": network.conditioning.classes}


def attach(network: nn.Module, adapter: Adapter) -> None:
    """Put an adapter beside a network's layers, in place: its tensors become parameters, all others are frozen.

    The network then answers as it does with the adapter merged. Raises BundleError if the adapter does not fit it, as
    it does not once one is attached.
    """
    layers = {name: _layer(network, name, update) for name, update in adapter.updates.items()}
    rows = _rows(network, adapter.classes)
    network.requires_grad_(False)
    for name, layer in layers.items():
        down, up = adapter.updates[name]
        layer.__class__ = _BESIDE[type(layer)]
        layer.low_rank_scale = adapter.scale
        layer.register_parameter(DOWN, nn.Parameter(down.detach().clone().to(layer.weight)))
        layer.register_parameter(UP, nn.Parameter(up.detach().clone().to(layer.weight)))
    if rows is not None:
        grow(network, rows)


def grow(network: nn.Module, rows: Tensor) -> None:
    """Give the network's table of labels new rows (k, width), in place, as a parameter beside the old ones."""
    table = _table(network)
    table.__class__ = GrownTable
    table.register_parameter(ROWS, nn.Parameter(rows.detach().clone()))
    _count(network, len(rows))


def settle(network: nn.Module) -> None:
    """Make the new rows of a grown table ordinary ones, in place."""
    table: Any = _table(network)
    if isinstance(table, GrownTable):
        whole = torch.cat([table.weight[:-1], table.new_rows, table.weight[-1:]]).detach()
        table.__class__ = nn.Embedding  # type: ignore[assignment]
        del table.new_rows
        table.weight, table.num_embeddings = nn.Parameter(whole), len(whole)


def read(state: Mapping[str, Tensor], like: Adapter, prefix: str = "") -> Adapter:
    """The adapter that was trained, from a state dict of the network that `like` was attached to; copies."""

    def get(name: str) -> Tensor:
        return state[prefix + name].detach().clone(memory_format=torch.contiguous_format)

    updates = {name: (get(f"{name}.{DOWN}"), get(f"{name}.{UP}")) for name in like.updates}
    rows = get(f"{TABLE}.{ROWS}") if like.classes else ()
    return replace(like, updates=updates, classes=dict(zip(like.classes, rows, strict=True)))


@torch.no_grad()
def _add(network: nn.Module, adapters: Sequence[tuple[Adapter, float]], sign: float) -> None:
    sums: dict[str, tuple[Any, Tensor]] = {}
    for adapter, weight in adapters:
        if not math.isfinite(weight):
            raise BundleError(f"an adapter's weight must be finite, not {weight!r}")
        for name, update in adapter.updates.items():
            layer = _layer(network, name, update)
            down, up = (part.to(layer.weight.device, torch.float64) for part in update)
            change = weight * adapter.scale * (up @ down.flatten(1)).reshape(layer.weight.shape)
            sums[name] = (layer, sums[name][1] + change if name in sums else change)
    for layer, change in sums.values():
        layer.weight.copy_(layer.weight.double() + sign * change)


def merge(network: nn.Module, adapters: Sequence[tuple[Adapter, float]]) -> None:
    """Add adapters times their weights to a network's own weights, and their new classes to its table, in place.

    W <- W + sum_i w_i s_i B_i A_i. A new class has no weight: it is there or not. Raises BundleError for an adapter
    that does not fit, two that teach the same class, and weights that are not finite.
    """
    names = [name for adapter, _ in adapters for name in adapter.classes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BundleError(f"two of the adapters teach the class {twice[0]!r}: take one of them")
    rows = _rows(network, {k: v for adapter, _ in adapters for k, v in adapter.classes.items()})
    _add(network, adapters, 1.0)
    if rows is not None:
        grow(network, rows)
        settle(network)


def unmerge(network: nn.Module, adapters: Sequence[tuple[Adapter, float]]) -> None:
    """Undo `merge` of the same adapters with the same weights, in place; the weights return up to rounding."""
    more = sum(len(adapter.classes) for adapter, _ in adapters)
    _add(network, adapters, -1.0)
    if more:
        table = _table(network)
        kept = torch.cat([table.weight[: -1 - more], table.weight[-1:]]).detach()
        table.weight, table.num_embeddings = nn.Parameter(kept, table.weight.requires_grad), len(kept)
        _count(network, -more)


def check_made_for(own: str, network: nn.Module, adapter: Adapter) -> None:
    """Raise BundleError unless an adapter was made for the weights with the fingerprint `own`."""
    if adapter.base != own:
        raise BundleError(
            f"this adapter was made for another model: for weights with the SHA-256 {adapter.base[:12]}, and these "
            f"have {own[:12]}; adapters of one model are given together, not one upon the other"
        )
    width = text_width(network)
    for name, word in adapter.words.items():
        if word.shape[1] != width:
            raise BundleError(
                f"the word {name!r} has tokens of {word.shape[1]} numbers, the model takes {width or 'no text'}"
            )
