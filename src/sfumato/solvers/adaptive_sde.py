"""The reverse SDE with error control, after "Gotta go fast" (Jolicoeur-Martineau et al. 2021, arXiv 2105.14080).

**A clock in which the SDE is plain.** With y = (alpha / sigma^2) x and the SNR tau = alpha^2 / sigma^2 as the time, the
reverse SDE of every Gaussian process is one and the same,

    dy = x0(x, tau) dtau + dw,            w a standard Brownian motion in tau,

(under the true x_0, y_tau - tau x_0 is a Brownian motion: what makes the bridge of `processes` one).
The noise is additive and the drift is bounded by the data. The Euler–Maruyama step in it, back in x, is the ancestral
step

    x' = (kappa_s / kappa_t) x + kappa_s [(tau_s - tau_t) x0(x, t) + w_s - w_t],        kappa = sigma^2 / alpha,

and the second evaluation gives the stochastic improved Euler step (trapezoidal drift, same noise; weak order 2 as the
noise is additive),

    x'' = x' + kappa_s (tau_s - tau_t) (x0(x', s) - x0(x, t)) / 2.

**Control** (their algorithm 1). With delta = max(e_abs, e_rel max(|x'|, |x'_last|)) for each element and E the RMS
of (x' - x'') / delta, a step with E <= 1 is accepted, x'' is kept (extrapolation), and the next step is 0.9 E^-0.9
times as long, in log-SNR. x is measured in the variance-preserving scale: the path a process takes changes nothing. No
step is longer than 2: in one from pure noise to nearly clean data x' would be the mean of the data, of which the
denoiser says that it is right, and E would be 0.

**A rejected step keeps its path.** Drawing anew after a rejection would favour small noise, and using the same normal
at another length would make the length depend on the noise: both change the law. Instead w is one Brownian motion:
what was drawn for the longer step stays true, and its value at the nearer time is drawn from the bridge between
(Rackauckas & Nie 2017 call it rejection sampling with memory),

    w_r - w_t = q (w_s - w_t) + sqrt((tau_r - tau_t) (1 - q)) z,     q = (tau_r - tau_t) / (tau_s - tau_t).

A later step ends at most where the path is already known. Each sample keeps a stack of the known points before it.

A start at pure noise (alpha = 0, tau = 0) is read as sigma / alpha = 1000, where a thousandth of x is data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..denoisers import Condition, Denoises
from ..errors import SolverError
from ..noise import Noise
from ..processes import Level
from ..processes.gaussian import fit
from .driver import Adaptive, State, control, level_of, rms, scaled
from .solver import Callback, Run

NOISIEST = -2 * math.log(1000.0)  # the log-SNR that stands for pure noise
LONGEST = 2.0  # step in log-SNR


@dataclass(frozen=True)
class AdaptiveSDE(Adaptive):
    """The reverse SDE to a tolerance, each sample with its own steps and its own Brownian motion.

    tolerance: e_abs, in the units of the data (the paper's 0.0078 is one 8-bit value in [-1, 1]). relative: e_rel.
    """

    kind: ClassVar[str] = "adaptive-sde"
    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True
    tolerance: float = 0.0078
    relative: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.relative < math.inf:
            raise SolverError(f"relative tolerance must be at least 0, not {self.relative!r}")

    def solve(
        self,
        denoiser: Denoises,
        first: Level,
        last: Level,
        x: Tensor,
        noise: Noise,
        condition: Condition = None,
        callback: Callback | None = None,
    ) -> Run:
        process, clean = denoiser.process, last.sigma == 0
        begin = max(first.log_snr, NOISIEST)
        end = max(begin, -2 * math.log(self.smallest(process)) if clean else last.log_snr)

        def predict(x: Tensor, log_snr: Tensor, condition: Condition) -> Tensor:
            level = level_of(process, torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt())
            return denoiser(scaled(torch.hypot(level.alpha, level.sigma), x), level, condition).x0

        def finish(x: Tensor, log_snr: Tensor, condition: Condition) -> Tensor:
            return predict(x, log_snr, condition) if clean else math.hypot(last.alpha, last.sigma) * x

        def attempt(state: State, noise: Noise, condition: Condition, number: int) -> State:
            x, t = state["x"], state["t"]
            s, moved, state = path(state, (t + state["h"]).clamp(max=end), noise, number)
            a_s, kappa = torch.sigmoid(s).sqrt(), torch.sigmoid(-s) / torch.sigmoid(s).sqrt()
            gain = -a_s * torch.expm1(t - s)  # kappa_s (tau_s - tau_t)
            keep = kappa * torch.sigmoid(t).sqrt() / torch.sigmoid(-t)
            x0 = predict(x, t, condition)
            x1 = scaled(keep, x) + scaled(gain, x0) + scaled(kappa, moved)
            x2 = x1 + scaled(0.5 * gain, predict(x1, s, condition) - x0)
            size = torch.maximum(x1.abs(), state["last"].abs())
            error = rms((x1 - x2) / (self.relative * size).clamp(min=self.tolerance))
            good = error <= 1
            wide = good.reshape(-1, *[1] * (x.ndim - 1))
            h = ((s - t) * control(error, 0.9)).clamp(max=LONGEST)
            t = torch.where(good, s, t)
            x = torch.where(wide, x2, x)
            done = t >= end
            if bool(done.any()):
                own = None if condition is None else {name: value[done] for name, value in condition.items()}
                x = x.index_put((done,), finish(x[done], t[done], own))
            last_x = torch.where(wide, x1, state["last"])
            state |= {"x": x, "last": last_x, "t": t, "h": h, "top": state["top"] - good.long()}
            return state | {"left": (end - t) / (end - begin), "finite": error.isfinite()}

        ones = torch.ones(len(x), dtype=torch.float64, device=x.device)
        x = x / math.hypot(first.alpha, first.sigma)
        # the bottom of the stack: a point infinitely far on, which says nothing
        state = {"x": x, "last": x, "t": begin * ones, "h": 0.5 * ones, "left": ones * (end > begin)}
        state["finite"] = ones > 0
        state |= {"knots": math.inf * ones[:, None], "gaps": torch.zeros_like(x)[:, None]}
        state["top"] = torch.zeros(len(x), dtype=torch.long, device=x.device)
        if end == begin:
            state["x"] = finish(x, state["t"], condition)
        return self.drive(state, attempt, noise, condition, callback, outside=int(clean))


def path(state: State, s: Tensor, noise: Noise, number: int) -> tuple[Tensor, Tensor, State]:
    """Where a step to log-SNR s at most ends (batch,), by how much w moves until there, and the state that knows it.

    knots[i], gaps[i]: for sample i, known points of its path still before it, the nearest at `top`, and how much w
    moves from each point (or from here) to the next one. Afterwards the step's own end is at `top`.
    """
    t, top, knots, gaps = state["t"], state["top"], state["knots"], state["gaps"]
    rows = torch.arange(len(t), device=t.device)
    knot, gap = knots[rows, top], gaps[rows, top]
    s = torch.minimum(s, knot)
    new = s < knot
    share = torch.where(new, torch.expm1(s - t) / torch.expm1(knot - t), 1.0)
    deviation = (t.exp() * torch.expm1(s - t) * (1 - share)).sqrt()
    moved = scaled(share, gap) + scaled(deviation, noise.normal(gap, number))
    if bool((top[new] + 1 >= knots.shape[1]).any()):
        knots = torch.cat([knots, torch.zeros_like(knots)], 1)
        gaps = torch.cat([gaps, torch.zeros_like(gaps)], 1)
    else:
        knots, gaps = knots.clone(), gaps.clone()
    gaps[rows, top] = gap - fit(new.double(), gap) * moved
    top = top + new.long()
    knots[rows, top], gaps[rows, top] = s, moved
    return s, moved, {**state, "knots": knots, "gaps": gaps, "top": top}
