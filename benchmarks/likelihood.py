"""Log-likelihood by the probability flow against the truth, on Gaussian mixtures in 64 dimensions.

    python benchmarks/likelihood.py                       on a mixture of its own
    python benchmarks/likelihood.py --problems FOLDER     also on that of FOLDER/problems.py

Every error is in nats per dimension, against the mixture's own log-density of clean data: what the start at sigma_min
and the prior cost is in it. "covered" counts the points whose truth lies in the stated interval: for an exact trace
nats -+ the estimated error of the steps, which knows nothing of the two ends (about 0.0001), and for probes the 95 %
interval.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from adaptive import own_mixture, problem_mixture

from sfumato.denoisers import GaussianMixture
from sfumato.noise import Noise
from sfumato.processes import CLEAN, Flow, Gaussian, Linear
from sfumato.solvers import log_likelihood


def compare(model: GaussianMixture, points: int, name: str) -> None:
    x, dim = model.sample(Noise(7, points)), model.means.shape[1]
    truth = model.log_density(x, CLEAN)
    print(f"\n{name}, {points} points: truth {float(truth.mean()) / dim:.4f} nats a dimension\n")
    print(
        "| divergence | steps | evaluations | error of the mean | median | within 0.01 | largest | covered "
        "| standard error | seconds |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for probes, steps in ((0, 8), (0, 16), (4, 16), (16, 16)):
        began = time.perf_counter()
        found = log_likelihood(model, x, steps=steps, probes=probes, noise=Noise(11, points))
        low, high = found.interval()
        error = (found.nats - truth) / dim
        covered = int(((low <= truth) & (truth <= high)).sum())
        label = f"{probes} probes" if probes else "exact"
        size = error.abs()
        print(
            f"| {label} | {steps} | {found.evaluations} | {float(error.mean()):+.5f} | {float(size.median()):.5f} "
            f"| {int((size < 0.01).sum())} | {float(size.max()):.4f} | {covered} "
            f"| {float(found.deviation.mean()) / dim:.4f} | {time.perf_counter() - began:.0f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", type=Path, help="a folder with problems.py")
    parser.add_argument("--points", type=int, default=64)
    options = parser.parse_args()
    for process in (Gaussian(Linear()), Gaussian(Flow())):
        kind = process.schedule.kind
        compare(own_mixture(process), options.points, f"own mixture, {kind}")
        if options.problems:
            mixture = problem_mixture(options.problems, process)
            compare(mixture, options.points, f"mixture of problems.py, {kind}")


if __name__ == "__main__":
    main()
