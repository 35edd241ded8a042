"""Objectives: what training minimises."""

from __future__ import annotations

from typing import Any

from ..errors import choose
from .bound import Bound, Hybrid, discretised_log_likelihood, gaussian_kl
from .denoising import Batch, Denoising, Objective, drop_condition
from .score_matching import ImplicitScoreMatching, SlicedScoreMatching
from .times import TIMES, LogitNormal, LogNormal, Times, Uniform, build_times
from .weighting import (
    SNR,
    WEIGHTINGS,
    EDMWeighting,
    MinSNR,
    Plain,
    SigmoidWeighting,
    Weighting,
    build_weighting,
)

__all__ = [
    "SNR",
    "TIMES",
    "WEIGHTINGS",
    "Batch",
    "Bound",
    "Denoising",
    "EDMWeighting",
    "Hybrid",
    "ImplicitScoreMatching",
    "LogNormal",
    "LogitNormal",
    "MinSNR",
    "Objective",
    "Plain",
    "SigmoidWeighting",
    "SlicedScoreMatching",
    "Times",
    "Uniform",
    "Weighting",
    "build_objective",
    "build_times",
    "build_weighting",
    "discretised_log_likelihood",
    "drop_condition",
    "gaussian_kl",
]


def build_objective(
    kind: str = "denoising",
    *,
    weighting: dict[str, Any] | None = None,
    times: dict[str, Any] | None = None,
    drop: float = 0.0,
    classes: int = 0,
    steps: int = 1000,
    projections: int = 1,
) -> Objective:
    """An objective from the values a recipe writes: "denoising", "hybrid", "bound", "sliced" or "implicit"."""
    choose(kind, ["denoising", "hybrid", "bound", "sliced", "implicit"], "objective")
    shared = (
        build_weighting(**(weighting or {"kind": "plain", "space": "velocity"})),
        build_times(**(times or {"kind": "uniform"})),
        drop,
        classes if drop else 0,
    )
    if kind == "sliced":
        return SlicedScoreMatching(*shared, projections)
    if kind == "implicit":
        return ImplicitScoreMatching(*shared)
    denoising = Denoising(*shared)
    if kind == "denoising":
        return denoising
    return Bound(steps) if kind == "bound" else Hybrid(denoising, Bound(steps))
