"""Posterior samplers against exact posteriors: Gaussian mixtures measured linearly, whose posterior is again a mixture.

    python benchmarks/posterior.py [--samples 400] [--json FILE] [--problems ring valleys grid]

A sampler is judged by the sliced Wasserstein-2 distance (200 directions) of its draws to exact draws, the mean over 8
sets of these, and the same for other exact sets, which is the floor. Both are averaged over measurements of different
pictures; every sampler sees the same. A ratio of 1 is as good as exact draws at this number of samples.

Samplers of deepinv run beside ours if it can be imported and the operator is a mask; it imports torchvision, which its
samplers do not use and which is stood in for by an empty module if it is missing. They have the mixture divided by 5,
since they clip to [-1, 1], and as many steps as ours.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import json
import math
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato import GaussianMixture, Noise
from sfumato.editing import (
    Linear,
    LinearOperator,
    Mask,
    Measurement,
    downsample,
    exact_posterior,
    measure,
    sample_posterior,
)
from sfumato.processes import Flow, Gaussian
from sfumato.solvers import AdamsMoulton, Ancestral, AngleGrid

PROCESS = Gaussian(Flow())
STEPS, SETS = 50, 8
FLOOR = "exact draws (floor)"
SCALE = 5.0  # of data for samplers that clip to [-1, 1]


def mixture(dim: int, components: int) -> GaussianMixture:
    """A ring of narrow modes in 2 dimensions; in more, random means and covariances of spectra from 1 to 0.001."""
    draw = Noise(3, components)
    if dim == 2:
        angle = torch.arange(components, dtype=torch.float64) * (2 * math.pi / components)
        return GaussianMixture(
            PROCESS, 1.2 * torch.stack([angle.cos(), angle.sin()], 1), torch.full((components, 2), 0.04)
        )
    means = 0.6 * draw.normal(torch.empty(components, dim, dtype=torch.float64))
    basis = torch.linalg.qr(draw.normal(torch.empty(components, dim, dim, dtype=torch.float64), 1))[0]
    spectrum = torch.logspace(0, -3, dim, dtype=torch.float64)
    return GaussianMixture(PROCESS, means, (basis * spectrum) @ basis.mT)


def problems(names: list[str]) -> Iterator[tuple[str, GaussianMixture, LinearOperator, float, int, int]]:
    """(name, prior, operator, sigma_y, measurements, particles)."""
    for sigma in (0.05, 0.3):
        if "ring" in names:
            yield "2-D, random row", mixture(2, 6), _random(1, 2), sigma, 3, 64
        if "valleys" in names:
            yield "8-D, 4 random rows", mixture(8, 5), _random(4, 8), sigma, 3, 32
        if "grid" in names:
            known = torch.zeros(1, 8, 8, dtype=torch.bool)
            known[..., 0] = True
            yield "64-D, a column of 8 known", mixture(64, 5), Mask(known, (1, 8, 8)), sigma, 1, 12
            yield "64-D, means of 4x4", mixture(64, 5), downsample((1, 8, 8), 4), sigma, 1, 12


def _random(rows: int, columns: int) -> Linear:
    draw = Noise(5, rows).normal(torch.empty(rows, columns, dtype=torch.float64))
    return Linear(draw / math.sqrt(columns), (columns,))


def sliced(a: Tensor, b: Tensor) -> float:
    """Sliced Wasserstein-2 distance of two sets of equal size, over 200 directions."""
    directions = Noise(0, a.shape[1]).normal(a.new_empty(a.shape[1], 200))
    directions = directions / directions.norm(dim=0)
    gap = (a @ directions).sort(0).values - (b @ directions).sort(0).values
    return float(gap.square().mean().sqrt())


def ours(particles: int) -> dict[str, tuple[str, Any]]:
    """Name -> (method, solver)."""
    found: dict[str, tuple[str, Any]] = {
        "replacement": ("replacement", Ancestral()),
        "repaint": ("repaint", Ancestral()),
    }
    for kind in ("ddnm", "pigdm", "dps", "moments"):
        found[f"{kind}, ancestral"] = kind, Ancestral()
        found[f"{kind}, adams-moulton"] = kind, AdamsMoulton()
    for kind in ("pigdm", "moments"):
        found[f"particles of {kind}"] = f"particles:particles={particles},proposal={kind}", Ancestral()
    return found


# -- deepinv ---------------------------------------------------------------------------------------------------------
class _Empty(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Empty modules for what deepinv imports and its samplers do not use."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] in ("torchvision", "h5py", "natsort", "einops"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def deepinv_samplers() -> tuple[dict[str, Callable] | None, str]:
    """{name: sample(prior, mask, y, sigma, seed)}, or None and the reason."""
    if importlib.util.find_spec("deepinv") is None:
        return None, "deepinv is not installed"
    sys.meta_path.append(_StandIn())
    try:
        import deepinv as dinv
        from deepinv.sampling import DDRM, DiffPIR
    except Exception as error:
        return None, f"deepinv cannot be imported: {type(error).__name__}: {error}"

    class Exact(torch.nn.Module):
        """E[x_0 | x_0 + sigma eps] of the mixture divided by SCALE, its values moved by `shift` and times `size`."""

        def __init__(self, prior: GaussianMixture, shift: float = 0.0, size: float = 1.0):
            super().__init__()
            self.prior, self.shift, self.size = prior, shift, size

        def forward(self, x: Tensor, sigma: Any, *_: Any, **__: Any) -> Tensor:
            sigma = float(torch.as_tensor(sigma).flatten()[0]) * SCALE / self.size
            level = PROCESS.schedule.level_at(-2 * math.log(max(sigma, 1e-6)))
            state = (x.double() - self.shift) * SCALE / self.size
            return (self.prior(level.alpha * state, level).x0 / SCALE * self.size + self.shift).to(x)

    def ddrm(prior: GaussianMixture, mask: Tensor, y: Tensor, sigma: float, seed: int) -> Tensor:
        physics = dinv.physics.Inpainting(
            mask=mask.double(), img_size=tuple(mask.shape),
            noise_model=dinv.physics.GaussianNoise(sigma / SCALE),
        )  # fmt: skip
        torch.manual_seed(seed)
        levels = (torch.linspace(8 ** (1 / 3), 0.002 ** (1 / 3), STEPS + 1) ** 3).numpy()
        return DDRM(Exact(prior), sigmas=levels)(y / SCALE, physics) * SCALE

    def diffpir(prior: GaussianMixture, mask: Tensor, y: Tensor, sigma: float, seed: int) -> Tensor:
        physics = dinv.physics.Inpainting(mask=mask.double(), img_size=tuple(mask.shape))
        torch.manual_seed(seed)
        model = DiffPIR(
            Exact(prior, 0.5, 0.5), dinv.optim.data_fidelity.L2(), sigma=sigma / SCALE / 2, max_iter=STEPS
        )
        known = (y / SCALE / 2 + 0.5) * mask
        return (2 * model(known.float(), physics).double() - 1) * SCALE

    return {"deepinv DDRM": ddrm, "deepinv DiffPIR": diffpir}, f"deepinv {dinv.__version__}"


def solve(problem: tuple, theirs: dict[str, Callable], levels: list, n: int) -> list[dict[str, Any]]:
    """Every sampler on one problem, printed and as rows."""
    name, prior, operator, sigma, count, particles = problem
    sums: dict[str, float] = {}
    seconds: dict[str, float] = {}

    def judge(
        who: str, truth: list[Tensor], draw: Callable[..., Tensor], *given: Any, **settings: Any
    ) -> None:
        start = time.process_time()
        try:
            x = draw(*given, **settings).reshape(n, -1).double()
        except Exception as error:  # another library's
            print(f"{who}: {type(error).__name__}: {str(error)[:100]}", flush=True)
            return
        seconds[who] = seconds.get(who, 0.0) + time.process_time() - start
        sums[who] = sums.get(who, 0.0) + sum(sliced(x, t) for t in truth) / SETS / count

    for j in range(count):
        x0 = prior.sample(Noise(100 + j, 1)).reshape(1, *operator.shape)
        y = measure(operator, x0, sigma, Noise(200 + j, 1)).y
        exact = exact_posterior(prior, operator, y, sigma)
        truth = [exact.sample(Noise(300 + k, n)) for k in range(SETS)]
        measured = Measurement(operator, y.expand(n, *y.shape[1:]), sigma)
        own = [sliced(exact.sample(Noise(400 + k, n)), t) for k in range(4) for t in truth]
        sums[FLOOR], seconds[FLOOR] = sums.get(FLOOR, 0.0) + sum(own) / len(own) / count, 0.0
        for who, (method, solver) in ours(particles).items():
            judge(
                who, truth, sample_posterior, prior, measured, Noise(7, n),
                method=method, solver=solver, levels=levels,
            )  # fmt: skip
        if isinstance(operator, Mask):
            for who, draw in theirs.items():
                judge(who, truth, draw, prior, operator.mask, operator.adjoint(measured.y), sigma, j)
    floor, rows = sums[FLOOR], []
    print(f"\n{name}, sigma_y = {sigma} ({count} measurements): floor {floor:.4f}", flush=True)
    for who, value in sorted(sums.items(), key=lambda item: item[1]):
        print(f"  {who:26s} {value:.4f}  {value / floor:6.2f} x floor  {seconds[who]:6.1f} s", flush=True)
        rows.append(
            {"problem": name, "sigma_y": sigma, "sampler": who, "particles": particles}
            | {"distance": value, "ratio": value / floor, "seconds": seconds[who]}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--problems", nargs="+", default=["ring", "valleys", "grid"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    theirs, said = deepinv_samplers()
    print(f"{said}; {given.samples} samples, {STEPS} steps", flush=True)
    levels, n, rows = AngleGrid().levels(PROCESS, STEPS), given.samples, []
    for problem in problems(given.problems):
        rows += solve(problem, theirs or {}, levels, n)
    if given.json:
        record = {
            "samples": n,
            "steps": STEPS,
            "deepinv": said,
            "rows": rows,
        }
        given.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
