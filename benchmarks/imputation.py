"""What is missing of held-out series, drawn by posterior samplers of a model that never saw a gap.

    python benchmarks/imputation.py BUNDLE [--series 60] [--draws 16] [--steps 20] [--methods pigdm ..] [--json FILE]

"half": a random half of all values is missing; "gap": a quarter of the times in the middle, in all channels. Every
method sees the same values; the model is asked without labels. Over the missing values, in deviations of the data:

    RMSE   of the mean of the draws
    CRPS   mean |x_i - y| - mean |x_i - x_j| / 2 over draws i != j: for one draw it is the absolute error

Baselines: the straight line between neighbours in time; the values that training series have at that time ("training
set"); and a Gaussian with the training set's mean and covariance, conditioned on what is known, in closed form. The
interval is 1.96 standard errors over series. Series that may end are judged up to their ends, which are known.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfumato.editing import Mask, restore
from sfumato.evaluation.metrics import crps
from sfumato.recipes.bench import Bench


def scores(draws: np.ndarray, truth: np.ndarray, judged: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(squared error of the mean, CRPS) of each series, of draws (n, m, length, channels); the rest without m."""
    error = (draws.mean(1) - truth) ** 2
    score = crps(torch.from_numpy(draws.swapaxes(0, 1)), torch.from_numpy(truth)).numpy()
    count = judged.sum((1, 2))
    return (error * judged).sum((1, 2)) / count, (score * judged).sum((1, 2)) / count


def straight(x: np.ndarray, known: np.ndarray) -> np.ndarray:
    """One draw: lines between known values, (n, 1, length, channels)."""
    found = x.copy()
    times = np.arange(x.shape[1])
    for row in found:
        for c in range(x.shape[2]):
            if known[:, c].any():
                row[:, c] = np.interp(times, times[known[:, c]], row[known[:, c], c])
    return found[:, None]


def gaussian(x: np.ndarray, known: np.ndarray, train: np.ndarray, draws: int) -> np.ndarray:
    """Draws from the Gaussian of the training set given what is known, (n, draws, length, channels)."""
    flat, at = train.reshape(len(train), -1), known.ravel()
    mean, cov = flat.mean(0), np.cov(flat.T) + 1e-2 * np.eye(flat.shape[1])
    gain = np.linalg.solve(cov[np.ix_(at, at)], cov[np.ix_(at, ~at)]).T
    root = np.linalg.cholesky(cov[np.ix_(~at, ~at)] - gain @ cov[np.ix_(at, ~at)])
    centre = mean[~at] + (x.reshape(len(x), -1)[:, at] - mean[at]) @ gain.T
    noise = np.random.default_rng(0).normal(size=(len(x), draws, len(root)))
    found = np.repeat(x.reshape(len(x), 1, -1), draws, 1)
    found[..., ~at] = centre[:, None] + noise @ root.T
    return found.reshape(len(x), draws, *x.shape[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--series", type=int, default=60)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--methods", nargs="+", default=["ddnm", "pigdm"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    bench = Bench(given.bundle)
    model, held = bench.model, bench.held
    count = len(model.domain.std)
    rows = np.arange(min(given.series, len(held))) * len(held) // min(given.series, len(held))
    state = held.tensor(rows)
    lasts = np.isfinite(held.at(rows))
    x, train = state[..., :count].numpy(), bench.train.tensor()[..., :count].numpy()
    length = x.shape[1]
    gap = np.ones((length, count), bool)
    gap[3 * length // 8 : 3 * length // 8 + length // 4] = False
    half = np.random.default_rng(0).random((length, count)) < 0.5
    record = []
    for name, known in (("half", half), ("gap", gap)):
        seen = torch.ones(state.shape[1:], dtype=torch.bool)  # where a series ends is known
        seen[:, :count] = torch.from_numpy(known)
        operator = Mask(seen, tuple(state.shape[1:]))

        def posterior(method: str, operator: Mask = operator) -> np.ndarray:
            y: Tensor = operator(state).repeat_interleave(given.draws, 0)
            drawn = restore(model, operator, y, method=method, steps=given.steps, batch=256, guidance=1.0)
            return drawn[..., :count].numpy().reshape(len(x), given.draws, length, count)

        methods: dict[str, Callable[[], np.ndarray]] = {
            "straight line": lambda known=known: straight(x, known),
            "training set": lambda: np.repeat(train[None, :400], len(x), 0),
            "gaussian": lambda known=known: gaussian(x, known, train, given.draws),
            **{m: lambda m=m: posterior(m) for m in given.methods},
        }
        print(f"\n{name}: {(~known).mean():.0%} of {len(x)} held-out series of {length} times is missing")
        for who, draw in methods.items():
            squares, score = scores(draw(), x, lasts & ~known)
            rmse, error = float(np.sqrt(squares.mean())), 1.96 * float(score.std(ddof=1)) / len(score) ** 0.5
            print(f"  {who:14s} RMSE {rmse:.3f}   CRPS {score.mean():.3f} ± {error:.3f}", flush=True)
            record.append(
                {"missing": name, "method": who, "rmse": rmse, "crps": float(score.mean()), "half": error}
            )
    if given.json:
        given.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
