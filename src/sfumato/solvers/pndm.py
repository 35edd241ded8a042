"""PNDM: linear multistep methods made of DDIM's step (Liu et al. 2022).

DDIM's step carries x_t to s along one noise e, and is linear in it:

    phi(x_t, e, t, s) = (alpha_s / alpha_t) x_t + alpha_s (sigma_s / alpha_s - sigma_t / alpha_t) e.

PNDM puts a mixture of the noises seen so far in the place of e, with the weights that Adams and Bashforth have for
equal steps, whatever the levels are (eq. 12),

    e = (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3) / 24.

Equal in sigma / alpha, the steps make this Adams-Bashforth of order 4 in the sigma frame. Equal in a smooth function of
it, as on any sensible grid, e is still the mean of eps over the step up to O(h^2), and the method is of order 2.

**Warm-up.** F-PNDM makes its first three steps by Runge and Kutta, with phi for the stages and
e = (e_1 + 2 e_2 + 2 e_3 + e_4) / 6, four evaluations each. With the middle half-way in sigma / alpha (the paper:
half-way in the table of times) that is RK4 in the sigma frame itself, of order 4 without the "pseudo". PLMS, the plain
multistep form (diffusers' skip_prk_steps), makes its first step by Heun, with two evaluations, and two more with

    e = (3 e_0 - e_1) / 2,        e = (23 e_0 - 16 e_1 + 5 e_2) / 12.

A step from alpha = 0, where phi has no value for an e that is not the denoiser's own, is made in the flow frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..noise import Draws
from ..processes import Gaussian, Level
from .runge_kutta import TABLEAUX, rk_step
from .solver import Denoise, Solver, frame_at

_WEIGHTS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclass(frozen=True)
class PNDM(Solver):
    """F-PNDM: three Runge-Kutta steps, then four noises a step. Its carry is the noises seen, the newest first.

    Of order 2, and 4 where sigma / alpha falls evenly. Needs 4 steps: the warm-up cannot end in clean data.
    """

    kind: ClassVar[str] = "pndm"
    order: ClassVar[int] = 2
    least_steps: ClassVar[int] = 4
    warm_up: ClassVar[tuple[str, ...]] = ("rk4", "rk4", "rk4")

    def cost(self, steps: int) -> int:
        return steps + sum(len(TABLEAUX[method].b) - 1 for method in self.warm_up)

    def step(
        self, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        before = carry or ()
        if len(before) < len(self.warm_up):
            frame = "sigma" if t.alpha > 0 else "flow"
            x_s, first = rk_step(TABLEAUX[self.warm_up[len(before)]], frame, denoise, process, x, t, s)
            return x_s, (first.eps, *before)
        seen = (denoise(x, t).eps, *before)[:4]
        c, u, _, _ = frame_at("sigma", process, t)
        c_end, u_end, _, _ = frame_at("sigma", process, s)
        out = (c_end / c) * x
        for weight, eps in zip(_WEIGHTS[len(seen) - 1], seen, strict=True):
            out = torch.add(out, eps, alpha=c_end * (u_end - u) * weight)
        return out, seen


@dataclass(frozen=True)
class PLMS(PNDM):
    """PNDM's plain multistep form: one step of Heun's, then as many noises as there are, up to four."""

    kind: ClassVar[str] = "plms"
    least_steps: ClassVar[int] = 2
    warm_up: ClassVar[tuple[str, ...]] = ("heun",)
