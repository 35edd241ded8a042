"""Muon: momentum whose matrices are made orthogonal, for the body of a network; AdamW for the rest of it.

For a weight matrix W (a convolution's is (out, in · height · width)) with gradient G (Jordan et al., "Muon:
an optimizer for hidden layers in neural networks", 2024):

    B <- mu B + (1 - mu) G,     U = (1 - mu) G + mu B,     W <- W - rate · sqrt(max(1, rows / columns)) · orthogonal(U)

where orthogonal(U) sets every singular value of U to about 1, so that directions in which the gradient is
small are learned as fast as those in which it is large. No decomposition is needed: the odd polynomial
p(s) = 3.4445 s - 4.7750 s^3 + 2.0315 s^5, applied to U / |U| five times, takes singular values from [0.01, 1]
to about [0.7, 1.2], by matrix products only; matrices of one shape go through them together.

Not matrices of the body: what maps data to features and back (stem, out), tables (position, labels), and what
is told the noise level (conditioning, modulation). They, biases and gains are AdamW's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import RunError

APART = {"stem", "out", "position", "position_level", "leaves", "conditioning", "modulation"}
"""Parts of a network (the name's first part after "network.") that are AdamW's, as is any "modulation"
within."""
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def in_body(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a weight matrix of the network's body."""
    parts = name.removeprefix("network.").split(".")
    return parameter.ndim >= 2 and parts[0] not in APART and "modulation" not in parts


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Each of the matrices (n, rows, columns) with its singular values brought near 1."""
    a, b, c = _COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide else x.mT


class Muon(torch.optim.AdamW):
    """Muon for the body, AdamW for the rest, as one optimiser with one state.

    matrix_rate: the body's learning rate in units of `learning_rate`. weight_decay: of both, of matrices
    only. Raises RunError if the network has no body.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        learning_rate: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        matrix_rate: float,
        momentum: float,
    ):
        body = [p for name, p in parameters.items() if in_body(name, p)]
        rest = {name: p for name, p in parameters.items() if not in_body(name, p)}
        if not body:
            raise RunError(
                "the optimizer muon needs weight matrices inside the network, and there are none: use adamw"
            )
        from .optimizers import decay_groups, fusible

        scaled = {
            "params": body,
            "weight_decay": weight_decay,
            "rate_scale": matrix_rate,
            "momentum": momentum,
        }
        groups: list[dict[str, Any]] = [scaled | {"orthogonal": True}]
        groups += [group | {"orthogonal": False} for group in decay_groups(rest, weight_decay)]
        super().__init__(groups, lr=learning_rate, betas=betas, eps=eps, fused=fusible(parameters))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:  # type: ignore[override]
        every = self.param_groups
        # AdamW steps the groups it sees; the state stays one.
        self.param_groups = [group for group in every if not group["orthogonal"]]
        try:
            result = super().step(closure) if self.param_groups else None
        finally:
            self.param_groups = every
        for group in every:
            if group["orthogonal"]:
                self._step_body(group)
        return result

    def _step_body(self, group: dict[str, Any]) -> None:
        shapes: dict[torch.Size, list[Tensor]] = {}
        for p in group["params"]:
            if p.grad is not None:
                shapes.setdefault(p.shape, []).append(p)
        for shape, parameters in shapes.items():
            for p in parameters:
                if "momentum" not in self.state[p]:
                    zeros = torch.zeros_like(p, memory_format=torch.preserve_format)
                    # AdamW looks for "step" in every state it loads
                    self.state[p].update(momentum=zeros, step=torch.zeros((), device=p.device))
                self.state[p]["step"] += 1
            kept, gradients = [self.state[p]["momentum"] for p in parameters], [p.grad for p in parameters]
            torch._foreach_lerp_(kept, gradients, 1 - group["momentum"])  # pyright: ignore
            ahead = torch._foreach_lerp(gradients, kept, group["momentum"])  # pyright: ignore
            matrices = orthogonal(torch.stack([u.flatten(1) for u in ahead]))
            rate = group["lr"] * max(1.0, matrices.shape[1] / matrices.shape[2]) ** 0.5
            for p, matrix in zip(parameters, matrices, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(matrix.reshape(shape), alpha=rate)
