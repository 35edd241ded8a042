"""Where other libraries' samplers leave the exact answer, and ours beside them on the same levels.

    python benchmarks/defects.py          needs diffusers; azula's part is left out without azula

The data are Gaussian, so each step of DDIM and the whole flow are known in closed form.

1. diffusers' DDIM steps to t - 1000 // n whatever the next time is: with `linspace` spacing the transition made is
   not the one that follows. Counted, and how far the result lies from DDIM's on those times, written out by hand.
   (From the end of the exact flow it may lie nearer or further: here the two errors have opposite signs.)
2. diffusers' karras, exponential and lu sigmas are gone through exactly, but the network is told the nearest whole
   time step: how far the noise level that it is told lies from the one it is shown.
3. azula's Rosenbrock-type exponential Adams-Bashforth of order 2: its fitted order, beside ours of order 2.
"""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sfumato import GaussianMixture, Noise
from sfumato.processes import CLEAN, Flow, Gaussian, Table
from sfumato.solvers import DDIM, AdamsMoulton, integrate
from sfumato.solvers.laws import fitted_order, gaussian_errors, gaussian_flow, interior_levels

MEAN, VARIANCES = torch.tensor([0.3, -0.5, 0.1]).double(), torch.tensor([0.04, 0.5, 1.7]).double()
BETAS = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def model(process: Gaussian) -> GaussianMixture:
    return GaussianMixture(process, MEAN[None], VARIANCES[None])


def ddim_transitions() -> None:
    from diffusers import DDIMScheduler

    process = Gaussian(Table())
    exact = model(process)
    print(
        "1. DDIM: transitions that lead elsewhere than to the next time, and the error against the exact flow"
    )
    for spacing in ("linspace", "leading", "trailing"):
        for steps in (5, 10, 20):
            scheduler = DDIMScheduler(**BETAS, timestep_spacing=spacing, clip_sample=False)
            scheduler.set_timesteps(steps)
            times = scheduler.timesteps.tolist()
            made = [t - 1000 // steps for t in times[:-1]]
            wrong = sum(a != b for a, b in zip(made, times[1:], strict=True))
            levels = [*process.schedule.levels([t / 999 for t in times]), CLEAN]
            first = levels[0]
            deviation = (first.alpha**2 * VARIANCES + first.sigma**2).sqrt()
            x = first.alpha * MEAN + deviation * Noise(0, 64).normal(torch.empty(64, 3).double())
            want = gaussian_flow(MEAN, VARIANCES, x, first, CLEAN)
            theirs = x
            for t, level in zip(times, levels, strict=False):
                theirs = scheduler.step(exact(theirs, level).eps, t, theirs).prev_sample
            ours = integrate(exact, DDIM(), levels, x, Noise(0, 64))
            hand = x
            for t, s in pairwise(levels):
                said = exact(hand, t)
                hand = s.alpha * said.x0 + s.sigma * said.eps
            print(
                f"   {spacing:9s} {steps:3d} steps: {wrong:2d} of {len(made):2d} transitions off; "
                f"from DDIM theirs {rms(theirs - hand):.1e}, ours {rms(ours - hand):.1e}; "
                f"from the exact flow theirs {rms(theirs - want):.3f}, ours {rms(ours - want):.3f}"
            )


def rounded_times() -> None:
    from diffusers import DPMSolverMultistepScheduler

    bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    log_sigma = (((1 - bar) / bar).sqrt()).log().numpy()
    schedule = Table()
    print("2. The noise level that the network is told, against the one it is shown, at 20 steps")
    for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_lu_lambdas"):
        scheduler = DPMSolverMultistepScheduler(**BETAS, **{name: True})
        scheduler.set_timesteps(20)
        shown = scheduler.sigmas[:-1].double()
        told = np.exp(np.interp(scheduler.timesteps.numpy(), np.arange(1000), log_sigma))
        off = float((torch.from_numpy(told) / shown - 1).abs().max())
        levels = [schedule.level_at(-2 * math.log(float(s))) for s in shown]
        # ours is told a time between two steps of the chain, at which the schedule has the level that is shown
        at = [schedule.level(min(max(level.time, 0.0), 1.0)) for level in levels]
        own = max(
            abs(a.sigma / a.alpha / float(s) - 1)
            for a, s in zip(at, shown, strict=True)
            if 0 < a.time < 1  # the table's ends are as far as any schedule goes
        )
        print(f"   {name:23s} theirs up to {off:.1%} off, ours {own:.0e}")


def rosenbrock_order() -> None:
    try:
        from azula.denoise import Denoiser, DiracPosterior
        from azula.noise import RectifiedSchedule
        from azula.sample import REABSampler
    except ImportError:
        print("3. azula is not installed: left out")
        return
    process = Gaussian(Flow())
    exact, steps = model(process), (24, 48, 96)

    class Theirs(Denoiser):
        def __init__(self, schedule):
            super().__init__()
            self.schedule = schedule

        def forward(self, x, t):
            alpha, sigma = self.schedule(t)
            ratio = float(sigma / alpha)
            level = process.schedule.level_at(-2 * math.log(ratio))
            return DiracPosterior(exact(x * (level.alpha / alpha), level).x0)

    schedule = RectifiedSchedule()
    ends = interior_levels(process, 1)
    times = []  # their times at which sigma / alpha is that of our interval's ends
    for level in ends:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            alpha, sigma = schedule(torch.tensor(middle, dtype=torch.float64))
            low, high = (middle, high) if float(sigma / alpha) < level.sigma / level.alpha else (low, middle)
        times.append(middle)
    deviation = (ends[0].alpha ** 2 * VARIANCES + ends[0].sigma ** 2).sqrt()
    x = ends[0].alpha * MEAN + deviation * Noise(5, 8).normal(torch.empty(8, 3).double())
    want = gaussian_flow(MEAN, VARIANCES, x, ends[0], ends[1]) / ends[1].alpha
    errors = []
    for count in steps:
        sampler = REABSampler(
            Theirs(schedule),
            start=times[0],
            stop=times[1],
            steps=count,
            order=2,
            silent=True,
            dtype=torch.float64,
        )
        first, last = (float(schedule(torch.tensor(t, dtype=torch.float64))[0]) for t in times)
        errors.append(rms(sampler(x * (first / ends[0].alpha)) / last - want))
    ours = gaussian_errors(AdamsMoulton(2, 0), Flow(), steps)
    print(
        f"3. order 2 asked: azula's REAB has order {fitted_order(steps, errors):.2f}, "
        f"our Adams-Bashforth {fitted_order(steps, ours):.2f}"
    )


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    ddim_transitions()
    rounded_times()
    rosenbrock_order()
