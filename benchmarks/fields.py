"""Downscaling and assimilation of held-out fields by a model that was trained on neither.

    python benchmarks/fields.py BUNDLE [--tiles 48] [--draws 16] [--steps 20] [--methods ddnm ..] [--json FILE]

"downscaling": means over 4 x 4 points are known, the field between them is asked for. "stations": one point in 20 is
known, at places chosen at random once. All methods see the same values; in deviations of the data, over all points:

    CRPS   mean |x_i - y| - mean |x_i - x_j| / 2 over draws i != j; of one draw it is the absolute error
    RMSE   of the mean of the draws

Baselines of downscaling: bicubic enlargement alone, and with climatological noise: the residuals that bicubic
enlargement leaves on training tiles taken at random, put on the held-out ones. Of stations: interpolation between them
on triangles (the nearest outside), the same with climatological noise, and training tiles. The interval is 1.96
standard errors over tiles.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.editing import Mask, downsample, restore
from sfumato.evaluation.metrics import crps
from sfumato.evaluation.receipts import versions
from sfumato.files import write_json
from sfumato.recipes.bench import Bench


def enlarged(coarse: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Coarse fields (n, c, h, w) at full size, by bicubic interpolation."""
    return F.interpolate(coarse, size=shape[1:], mode="bicubic", align_corners=False)


def between(x: Tensor, known: np.ndarray) -> Tensor:
    """Fields interpolated linearly between the points that are known, (n, c, h, w)."""
    from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator

    places, every = np.argwhere(known), np.argwhere(np.ones_like(known))
    values = x.numpy()[:, :, known].transpose(2, 0, 1)  # (points, n, c)
    inside = LinearNDInterpolator(places, values)(every)
    outside = NearestNDInterpolator(places, values)(every)
    found = np.where(np.isfinite(inside), inside, outside)
    return torch.from_numpy(found.transpose(1, 2, 0).reshape(x.shape)).float()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tiles", type=int, default=48)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--grid", default="angle", help="what is measured tells the mean: less noise than sampling needs"
    )
    parser.add_argument("--methods", nargs="+", default=["ddnm", "pigdm"])
    parser.add_argument("--tasks", nargs="+", default=["downscaling", "stations"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    bench = Bench(given.bundle)
    model, held = bench.model, bench.held
    shape, draw = model.domain.shape, np.random.default_rng(0)
    x = held.tensor(np.sort(draw.permutation(len(held))[: given.tiles]))
    train = bench.train.tensor(np.sort(draw.permutation(len(bench.train))[:2000]))
    known = draw.random(shape[1:]) < 0.05
    small, stations = downsample(shape, 4), Mask(torch.from_numpy(known)[None], shape)

    def noisy(estimate: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
        """Draws (n, draws, ...): the estimate, with residuals that it leaves on training tiles."""
        some = train[draw.integers(0, len(train), given.draws)]
        return estimate[:, None] + (some - of(some))[None]

    def posterior(operator: Any, method: str) -> Tensor:
        y = operator(x).repeat_interleave(given.draws, 0)
        made = restore(model, operator, y, method=method, steps=given.steps, grid=given.grid, batch=64)
        return made.unflatten(0, (len(x), given.draws))

    def by_cubic(z: Tensor) -> Tensor:
        return enlarged(small(z), shape)

    def by_lines(z: Tensor) -> Tensor:
        return between(z, known)

    tasks: dict[str, dict[str, Callable[[], Tensor]]] = {
        "downscaling": {
            "bicubic": lambda: by_cubic(x)[:, None],
            "bicubic, climatological noise": lambda: noisy(by_cubic(x), by_cubic),
            **{m: lambda m=m: posterior(small, m) for m in given.methods},
        },
        "stations": {
            "interpolated": lambda: by_lines(x)[:, None],
            "interpolated, climatological noise": lambda: noisy(by_lines(x), by_lines),
            "training tiles": lambda: train[:200].expand(len(x), -1, -1, -1, -1),
            **{m: lambda m=m: posterior(stations, m) for m in given.methods},
        },
    }
    rows = []
    for task, ways in ((task, tasks[task]) for task in given.tasks):
        trivial = None
        for name, way in ways.items():
            made = way()
            each = crps(made.transpose(0, 1), x).flatten(1).mean(1)
            rmse = float((made.mean(1) - x).square().mean().sqrt())
            half = 1.96 * float(each.std()) / len(each) ** 0.5
            row = {"task": task, "way": name, "crps": float(each.mean()), "half": half, "rmse": rmse}
            said = f"{task:12s} {name:36s} CRPS {each.mean():.4f} ± {half:.4f}   RMSE {rmse:.4f}"
            if trivial is not None:  # the same tiles, so in pairs
                gap = each - trivial
                row |= {"difference": float(gap.mean()), "of": 1.96 * float(gap.std()) / len(gap) ** 0.5}
                said += f"   {row['difference']:+.4f} ± {row['of']:.4f}"
            if name.endswith("climatological noise"):
                trivial = each
            print(said, flush=True)
            rows.append(row)
    if given.json:
        about = {"kind": "sfumato-fields", "model": model.info["sha256"], "data": bench.data_hash}
        asked = {key: str(value) for key, value in vars(given).items() if key not in ("bundle", "json")}
        write_json(given.json, about | {"arguments": asked, "rows": rows, "versions": versions()})


if __name__ == "__main__":
    main()
