"""What a step of each solver costs beside the model: a denoiser that only hands out a tensor, at 16x3x32x32 in float32.

Every solver of ours, and the leanest peers, take turns in one process on one thread; a turn is a run of 20 steps, and
what is reported is the median over turns of the processor's time for one step, with the quartiles. Bare operations are
there to measure the machine by: three of them on such tensors, and 49,152 normals of `torch.randn`, which is what any
stochastic solver has to draw. Ours are keyed by sample; `path` is one Brownian path for all grids, which the peers'
trees are for.

    python benchmarks/overhead.py [--rounds 15] [--steps 20] [--json overhead.json]

k-diffusion and diffusers are measured where they are installed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from sfumato.noise import Noise
from sfumato.processes import EDM, Cosine, Flow, Gaussian, Level, Linear, Prediction, Schedule, Table
from sfumato.solvers import SOLVERS, DPMpp2M, KarrasGrid, SDEDPMpp, Solver, brownian, integrate

SHAPE = (16, 3, 32, 32)
CLOCK = time.process_time


class Says:
    """A denoiser that always says the same tensor, in a row."""

    def __init__(self, said: torch.Tensor, schedule: Schedule | None = None, row: str = "x0"):
        self.process, self.said, self.row = Gaussian(schedule or EDM()), said, row

    def __call__(self, x_t, t, condition=None) -> Prediction:
        return Prediction(self.said, self.row, x_t, t, self.process)


def k_sampling() -> types.ModuleType | None:
    """k-diffusion's sampling module alone: the package itself imports a training stack."""
    found = importlib.util.find_spec("k_diffusion")
    if found is None or not found.submodule_search_locations:
        return None
    package, utils = types.ModuleType("k_only"), types.ModuleType("k_only.utils")
    package.__path__ = list(found.submodule_search_locations)
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    sys.modules.update({"k_only": package, "k_only.utils": utils})
    return importlib.import_module("k_only.sampling")


def runs(steps: int) -> dict[str, Callable[[], object]]:
    """What is measured: a name, and a run of so many steps."""
    x, said, other = (Noise(i, SHAPE[0]).normal(torch.empty(SHAPE)) for i in range(3))
    model, noise = Says(said), Noise(0, SHAPE[0])
    levels = KarrasGrid().levels(model.process, steps)

    def bare() -> None:
        for _ in range(steps):
            _ = 0.3 * x + 0.2 * other

    def draw() -> None:
        for _ in range(steps):
            torch.randn(SHAPE)

    def keyed() -> None:
        for i in range(steps):
            noise.at(i).normal(x)

    def ours(solver: Solver) -> Callable[[], object]:
        return lambda: integrate(model, solver, levels, x, noise)

    def spoken(schedule: Schedule) -> Callable[[], object]:
        told = Says(said, schedule, "velocity")
        own = KarrasGrid().levels(told.process, steps)
        return lambda: integrate(told, DPMpp2M(), own, x, noise)

    table: dict[str, Callable[[], object]] = {
        "three operations": bare,
        "torch.randn": draw,
        "Noise.normal": keyed,
    }
    table |= {kind: ours(cls()) for kind, cls in SOLVERS.items() if Gaussian in cls().serves}
    # turning a velocity into x0 takes the schedule's rates, by closed form or automatic differentiation (the last two)
    for schedule in (EDM(), Flow(), Linear(), Cosine(), Table()):
        table[f"dpm++2m, velocity row, {schedule.kind}"] = spoken(schedule)
    # a fresh path for each run, since a path keeps what it met last
    table["sde-dpm++, path"] = lambda: integrate(model, SDEDPMpp(), levels, x, brownian(noise, levels))
    table |= _k_diffusion(x, said, levels) | _diffusers(x, said, steps)
    return table


def _k_diffusion(x: torch.Tensor, said: torch.Tensor, levels: list[Level]) -> dict[str, Callable[[], object]]:
    k = k_sampling()
    if k is None:
        return {}
    sigmas = torch.tensor([level.sigma for level in levels])
    ends = sigmas[-2], sigmas[0]

    def of(name: str, **given: object) -> Callable[[], object]:
        return lambda: getattr(k, name)(lambda x, sigma: said, x, sigmas, disable=True, **given)

    def tree() -> object:
        sampler = k.BrownianTreeNoiseSampler(x, *ends, seed=list(range(len(x))))
        return of("sample_dpmpp_2m_sde", noise_sampler=sampler)()

    return {
        "k-diffusion dpmpp_2m": of("sample_dpmpp_2m"),
        "k-diffusion euler": of("sample_euler"),
        "k-diffusion euler_ancestral": of("sample_euler_ancestral"),
        "k-diffusion dpmpp_2m_sde, its tree": of("sample_dpmpp_2m_sde"),
        "k-diffusion dpmpp_2m_sde, a tree a sample": tree,
    }


def _diffusers(x: torch.Tensor, said: torch.Tensor, steps: int) -> dict[str, Callable[[], object]]:
    if importlib.util.find_spec("diffusers") is None:
        return {}
    from diffusers import DPMSolverMultistepScheduler

    def of(kind: str) -> Callable[[], object]:
        scheduler = DPMSolverMultistepScheduler(algorithm_type=kind, prediction_type="sample")

        def run() -> object:
            scheduler.set_timesteps(steps)
            state = x
            for time_step in scheduler.timesteps:
                state = scheduler.step(said, time_step, state).prev_sample
            return state

        return run

    return {f"diffusers {kind}": of(kind) for kind in ("dpmsolver++", "sde-dpmsolver++")}


def measure(table: dict[str, Callable[[], object]], steps: int, rounds: int) -> list[dict]:
    """Microseconds a step: everything once a round, in turns."""
    took: dict[str, list[float]] = {name: [] for name in table}
    slow = {name for name in table if "tree" in name}
    for i in range(rounds + 2):
        for name, run in table.items():
            if name in slow and i % 5:
                continue
            start = CLOCK()
            run()
            if i > 1 or name in slow:
                took[name].append((CLOCK() - start) / steps * 1e6)
    rows = []
    for name, times in took.items():
        low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
        rows.append({"what": name, "median": middle, "quartiles": [low, high], "turns": len(times)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with torch.no_grad():
        rows = measure(runs(given.steps), given.steps, given.rounds)
    bar = next((row["median"] for row in rows if row["what"] == "k-diffusion dpmpp_2m"), None)
    print("| a step of | µs | quartiles | × k-diffusion's dpmpp_2m |\n|---|---|---|---|")
    for row in rows:
        ratio = "" if bar is None else f"{row['median'] / bar:.2f}"
        print(
            f"| {row['what']} | {row['median']:.0f} | {row['quartiles'][0]:.0f}–{row['quartiles'][1]:.0f} | {ratio} |"
        )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
