"""Looking into a network, and reaching into it, without touching it.

A forward hook is registered on a module that every thread and every caller shares: whoever else runs the network is
recorded, or steered, too. Here the module is left as it is. `rewired` makes another *view* of it,

    view = network with view.a.b = wrap(network.a.b),

by copying the few module objects on the way down to a.b and nothing else: parameters, buffers and all other modules are
the very same objects. A view costs microseconds, may be made for one call and forgotten, and knows nothing of other
views. Copies run uncompiled, since a compiled call is bound to the module that it was made from.

`Tap` is what is mostly put there: the module, and a function of its answer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from .dit import DiT
from .unet import UNet

Root = TypeVar("Root", bound=nn.Module)


class Tap(nn.Module):
    """edit(module(*inputs)): a module whose answer is looked at or changed on the way out."""

    def __init__(self, module: nn.Module, edit: Callable[[Tensor], Tensor]):
        super().__init__()
        self.module, self.edit = module, edit

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """The module's answer, edited."""
        return self.edit(self.module(*inputs, **named))


def rewired(root: Root, path: str, wrap: Callable[[nn.Module], nn.Module]) -> Root:
    """A view of `root` whose submodule at `path` ("network.middle") is wrap(submodule); `root` itself stays as it is.

    Raises AttributeError if there is no such submodule.
    """
    name, _, rest = path.partition(".")
    child = root.get_submodule(name)
    view = copy.copy(root)
    view.__dict__["_modules"] = {**root._modules, name: rewired(child, rest, wrap) if rest else wrap(child)}
    return view


def bottleneck(root: nn.Module) -> str | None:
    """The path of the module whose answer is the network's bottleneck, None where no network is known by kind.

    Of a U-Net the stage of the lowest resolution, (batch, channels, h, w); of a DiT, which has no narrow place, the
    block half way down, (batch, tokens, width); of what has a `mid_block`, as diffusers' U-Nets do, that.
    """
    for name, module in root.named_modules():
        before = f"{name}." if name else ""
        if isinstance(module, UNet):
            return f"{before}middle"
        if isinstance(module, DiT):
            return f"{before}blocks.{(len(module.blocks) - 1) // 2}"
        if isinstance(getattr(module, "mid_block", None), nn.Module):
            return f"{before}mid_block"
    return None
