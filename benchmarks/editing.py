"""Restoring held-out pictures with a trained bundle: half of each filled in, and 4x super-resolution.

    python benchmarks/editing.py BUNDLE [--pictures 200] [--steps 12] [--draws 4] [--method ddnm] [--json FILE]

Against filling in by the mean of the training set, and against bicubic enlargement. Two figures with 95 % intervals:
PSNR (of [-1, 1], peak 2, the mean over pictures; bootstrap over pictures) and the Fréchet distance over the features of
the bundle's recipe to the training set, whose floor is that of the originals (bootstrap over both sets). Two answers of
the model: one draw of the posterior, which is what looks right, and the mean of several draws, which is what is near
in squared error; a perfect posterior's single draw has twice the squared error of its mean.

PSNR of half a picture is of the half that was filled in. No labels are given.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.editing import LinearOperator, Mask, downsample, restore
from sfumato.evaluation.features import in_batches, to_unit
from sfumato.evaluation.measure import interval, resample
from sfumato.evaluation.metrics import frechet_to, moments
from sfumato.evaluation.receipts import machine, versions
from sfumato.recipes.bench import Bench
from sfumato.solvers import AdamsMoulton, AngleGrid

REFERENCE, RESAMPLES = 5_000, 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--method", default="ddnm")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    bench, started = Bench(given.bundle), time.monotonic()
    model, n = bench.model, given.pictures
    order = torch.randperm(len(bench.train), generator=torch.Generator().manual_seed(0))[:REFERENCE].numpy()
    chosen = torch.randperm(len(bench.held), generator=torch.Generator().manual_seed(1))[:n].tolist()
    x = bench.held.tensor(chosen)

    def features(pictures: Tensor) -> Tensor:
        return in_batches(bench.features, model.domain.decode(pictures))[0].double()

    train = in_batches(bench.features, to_unit(bench.train.images[order]))[0].double()
    reference = moments(train)
    again = [moments(train, w) for w in resample(len(train), RESAMPLES, 0, 1)]
    mean = torch.from_numpy(bench.train.images[order]).float().mean(0).permute(2, 0, 1) / 127.5 - 1
    half = torch.zeros(1, *model.domain.shape[1:], dtype=torch.bool)
    half[..., : model.domain.shape[2] // 2] = True
    rows = []

    def judge(task: str, who: str, found: Tensor, where: Tensor) -> None:
        found = found.clamp(-1, 1)
        error = (found - x).square()[:, where.expand(model.domain.shape)].double().mean(1)
        psnr = 10 * torch.log10(4 / error.clamp(min=1e-9))
        draws = [float(w @ psnr / n) for w in resample(n, RESAMPLES, 0, 2)]
        low, high = interval(float(psnr.mean()), draws)
        f = features(found)
        distance = frechet_to(f, *reference)
        spread = [frechet_to(f, *r, w) for w, r in zip(resample(n, RESAMPLES, 0, 0), again, strict=True)]
        below, above = interval(distance, spread, (0.0, float("inf")))
        rows.append(
            {"task": task, "answer": who, "pictures": n, "psnr": float(psnr.mean()), "psnr_low": low}
            | {"psnr_high": high, "frechet": distance, "frechet_low": below, "frechet_high": above}
        )
        print(
            f"{task:22s} {who:22s} PSNR {psnr.mean():.2f} ({low:.2f} … {high:.2f})  "
            f"Fréchet {distance:.2f} ({below:.2f} … {above:.2f})",
            flush=True,
        )

    def answers(task: str, operator: LinearOperator, where: Tensor) -> None:
        drawn = [
            restore(
                model, operator, operator(x), method=given.method, steps=given.steps, solver=AdamsMoulton(),
                grid=AngleGrid(), guidance=1.0, seed=k, batch=50,
            )
            for k in range(given.draws)
        ]  # fmt: skip
        judge(task, "one draw", drawn[0], where)
        judge(task, f"mean of {given.draws} draws", torch.stack(drawn).mean(0), where)

    everywhere = torch.ones_like(half)
    judge("floor", "the originals", x, everywhere)
    judge("half filled in", "mean fill", torch.where(half, x, mean), ~half)
    answers("half filled in", Mask(half, model.domain.shape), ~half)
    small = downsample(model.domain.shape, 4)
    enlarged = F.interpolate(small(x), size=model.domain.shape[1:], mode="bicubic", align_corners=False)
    judge("4x super-resolution", "bicubic", enlarged, everywhere)
    answers("4x super-resolution", small, everywhere)
    if given.json:
        record = {
            "kind": "sfumato-editing",
            "command": f"python benchmarks/editing.py BUNDLE --pictures {n} --steps {given.steps} "
            f"--draws {given.draws} --method {given.method}",
            "model": model.info.get("sha256"),
            "features": bench.features.hash,
            "data": bench.data_hash,
            "rows": rows,
            "seconds": round(time.monotonic() - started, 1),
            "versions": versions(),
            "machine": machine(),
        }
        given.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
