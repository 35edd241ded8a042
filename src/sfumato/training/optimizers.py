"""Optimisers by name, and their state as plain tensors and JSON.

`state_dict` of a torch optimiser is {"state": {index: {name: tensor or number}}, "param_groups": [{...}]}.
`flatten` splits it into tensors "index/name" and a JSON value for all else; `restore` puts it back bit for
bit, in the memory layout of the parameters: the fused kernels walk parameter and moments side by side, so a
moment restored with its channels outermost beside a channels-last weight would be paired with the wrong
elements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sfumato.errors import RunError, choose

Parameters = Mapping[str, nn.Parameter]
Builder = Callable[..., Optimizer]
_BUILDERS: dict[str, Builder] = {}
_OWN = ("fused", "foreach", "betas", "momentum", "eps", "weight_decay")


def register_optimizer(kind: str) -> Callable[[Builder], Builder]:
    """Decorator: make `builder(parameters, *, learning_rate, betas, eps, weight_decay, **options)` known as `kind`.

    parameters: name -> parameter, names as in the denoiser ("network.stem.weight"). A group of the optimiser that is
    made may say "rate_scale": its learning rate in units of the configured one.
    """

    def add(builder: Builder) -> Builder:
        _BUILDERS[kind] = builder
        return builder

    return add


def build_optimizer(
    kind: str,
    parameters: Parameters,
    *,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    **options: Any,
) -> Optimizer:
    """The optimiser `kind` over named parameters; raises RunError for an unknown kind or option."""
    choose(kind, _BUILDERS, "optimizer", RunError)
    if not parameters:
        raise RunError("the network has no parameters to train")
    settings = {"learning_rate": learning_rate, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    try:
        optimizer = _BUILDERS[kind](parameters, **settings, **options)
    except (TypeError, ValueError) as error:
        raise RunError(f"the optimizer {kind} cannot be built: {error}") from error
    set_rate(optimizer, learning_rate)
    return optimizer


def decay_groups(parameters: Parameters, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for an optimiser: tensors of two or more dimensions, which decay, and biases and gains, which do not."""
    decayed = [p for p in parameters.values() if p.ndim >= 2]
    spared = [p for p in parameters.values() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


@register_optimizer("adamw")
def _adamw(
    parameters: Parameters, *, learning_rate: float, betas: tuple, eps: float, weight_decay: float
) -> Optimizer:
    groups = decay_groups(parameters, weight_decay)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=fusible(parameters))


@register_optimizer("adam")
def _adam(
    parameters: Parameters, *, learning_rate: float, betas: tuple, eps: float, weight_decay: float
) -> Optimizer:
    groups = decay_groups(parameters, weight_decay)
    return torch.optim.Adam(groups, lr=learning_rate, betas=betas, eps=eps, fused=fusible(parameters))


@register_optimizer("sgd")
def _sgd(
    parameters: Parameters,
    *,
    learning_rate: float,
    betas: tuple,
    eps: float,
    weight_decay: float,
    nesterov: bool = False,
) -> Optimizer:
    del eps
    groups = decay_groups(parameters, weight_decay)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=betas[0], nesterov=nesterov)


@register_optimizer("muon")
def _muon(
    parameters: Parameters,
    *,
    learning_rate: float,
    betas: tuple,
    eps: float,
    weight_decay: float,
    matrix_rate: float = 10.0,
    momentum: float = 0.95,
) -> Optimizer:
    from .muon import Muon

    return Muon(
        parameters,
        learning_rate=learning_rate,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        matrix_rate=matrix_rate,
        momentum=momentum,
    )


def fusible(parameters: Parameters) -> bool:
    """Whether one kernel can step all parameters: floating point, on a device that has such a kernel."""
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters.values())


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set every group's learning rate to `rate` times the group's own "rate_scale" (1 unless its builder set
    one)."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_scale", 1.0)


def flatten(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimiser's state as tensors "index/name" (not copies) and a JSON value."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{name}"] = value
            elif value is None or isinstance(value, (bool, int, float, str)):
                numbers[f"{index}/{name}"] = value
            else:
                raise RunError(
                    f"the optimiser keeps a {type(value).__name__} ({name}), which a checkpoint cannot hold"
                )
    return tensors, {"numbers": numbers, "groups": state["param_groups"]}


def restore(optimizer: Optimizer, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    """Put back what `flatten` gave, exactly; raises RunError if it is of other parameters."""
    own = optimizer.state_dict()["param_groups"]
    saved = rest["groups"]
    if [len(g["params"]) for g in own] != [len(g["params"]) for g in saved]:
        raise RunError("the checkpoint's optimiser state is of other parameters")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition("/")
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:
            tensor = torch.empty_like(
                parameter, dtype=tensor.dtype, memory_format=torch.preserve_format
            ).copy_(tensor)
        state.setdefault(int(index), {})[name] = tensor
    for key, value in rest["numbers"].items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    groups = [_typed(mine, theirs) for mine, theirs in zip(own, saved, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _typed(own: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved group with its tuples back (JSON knows lists only), this machine's choice of kernel, and what the
    recipe says now: those settings may be changed on resuming."""
    group = {k: tuple(v) if isinstance(own.get(k), tuple) else v for k, v in saved.items()}
    return group | {k: own[k] for k in _OWN if k in own}
