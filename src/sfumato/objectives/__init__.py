"""Objectives: what training minimises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import RecipeError, choose
from ..processes import Categorical, Joint, Langevin
from .autoencoding import Apprentice, Autoencoding
from .bound import Bound, Hybrid, discretised_log_likelihood, gaussian_kl
from .categorical import CategoricalBound
from .classification import Classification
from .denoising import Batch, Denoising, Objective, drop_condition
from .joint import JointDenoising
from .phase import PhaseScoreMatching
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
    "Apprentice",
    "Autoencoding",
    "Batch",
    "Bound",
    "CategoricalBound",
    "Classification",
    "Denoising",
    "EDMWeighting",
    "Hybrid",
    "ImplicitScoreMatching",
    "JointDenoising",
    "LogNormal",
    "LogitNormal",
    "MinSNR",
    "Objective",
    "PhaseScoreMatching",
    "Plain",
    "SigmoidWeighting",
    "SlicedScoreMatching",
    "Times",
    "Uniform",
    "Weighting",
    "build_objective",
    "build_times",
    "build_weighting",
    "check_trains",
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
    given: Sequence[str] = (),
) -> Objective:
    """An objective from the values a recipe writes: denoising, hybrid, bound, sliced, implicit; for cld hsm, dsm.

    And classifier, for a network that says which class noisy data are of; for symbols categorical, the bound in
    continuous time, and categorical-steps, that of a chain of so many steps; for joint states joint, `given` some
    leaves or none.
    """
    kinds = ["denoising", "hybrid", "bound", "sliced", "implicit", "hsm", "dsm", "classifier"]
    choose(kind, [*kinds, "categorical", "categorical-steps", "joint"], "objective")
    if given and kind != "joint":
        raise RecipeError("leaves are given in an objective of kind 'joint' only")
    if kind.startswith("categorical"):
        return CategoricalBound(None if kind == "categorical" else steps, drop, classes if drop else 0)
    if kind == "classifier":
        return Classification(build_times(**(times or {"kind": "uniform"})))
    phase = kind in ("hsm", "dsm")
    shared = (
        build_weighting(**(weighting or {"kind": "plain", "space": "eps" if phase else "velocity"})),
        build_times(**(times or {"kind": "uniform"})),
        drop,
        classes if drop else 0,
    )
    if kind == "joint":
        return JointDenoising(*shared, given=tuple(given))
    if phase:
        return PhaseScoreMatching(*shared, hybrid=kind == "hsm")
    if kind == "sliced":
        return SlicedScoreMatching(*shared, projections)
    if kind == "implicit":
        return ImplicitScoreMatching(*shared)
    denoising = Denoising(*shared)
    if kind == "denoising":
        return denoising
    return Bound(steps) if kind == "bound" else Hybrid(denoising, Bound(steps))


def check_trains(objective: Objective, process: Any) -> None:
    """Raise RecipeError unless the objective is one for this kind of process."""
    if isinstance(objective, JointDenoising) != isinstance(process, Joint):
        raise RecipeError("a joint process is trained by 'joint', and no other process is")
    if isinstance(objective, JointDenoising):
        objective.check(process)
        return
    if isinstance(objective, CategoricalBound) != isinstance(process, Categorical):
        raise RecipeError(
            "a categorical process is trained by 'categorical' or 'categorical-steps', and no other process is"
        )
    phase = isinstance(process, Langevin)
    if isinstance(objective, PhaseScoreMatching) != phase:
        allowed = "'hsm' or 'dsm'" if phase else "'denoising', 'hybrid' or 'bound'"
        raise RecipeError(
            f"the {'cld' if phase else 'gaussian'} process is trained by {allowed}, not by the other kind"
        )
