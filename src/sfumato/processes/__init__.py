"""Forward processes: schedules, the processes over them, and the laws they obey."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ..errors import SolverError, choose
from .categorical import Categorical, CategoricalPrediction, MatrixChain
from .categorical_laws import check_categorical
from .gaussian import PARAMETERISATIONS, Gaussian, Prediction, Rows
from .joint import Joint
from .langevin import CriticallyDamped, Langevin, build_critically_damped
from .langevin_laws import check_langevin
from .laws import LawBroken, check_process
from .replacement import MaskedChain, UniformChain
from .schedule import CLEAN, Level, Schedule
from .schedules import (
    DDPM,
    EDM,
    SCHEDULES,
    VE,
    Cosine,
    Flow,
    Laplace,
    Linear,
    Shifted,
    Sigmoid,
    SubVP,
    ZeroTerminalSNR,
    build_schedule,
)
from .table import Table

__all__ = [
    "CHAINS",
    "CLEAN",
    "DDPM",
    "EDM",
    "PARAMETERISATIONS",
    "SCHEDULES",
    "VE",
    "Categorical",
    "CategoricalPrediction",
    "Cosine",
    "CriticallyDamped",
    "Flow",
    "Gaussian",
    "Joint",
    "Langevin",
    "Laplace",
    "LawBroken",
    "Level",
    "Linear",
    "MaskedChain",
    "MatrixChain",
    "Prediction",
    "Rows",
    "Schedule",
    "Shifted",
    "Sigmoid",
    "SubVP",
    "Table",
    "UniformChain",
    "ZeroTerminalSNR",
    "build_process",
    "build_schedule",
    "check_categorical",
    "check_langevin",
    "check_process",
]


CHAINS: dict[str, type[Categorical]] = {cls.law: cls for cls in (MaskedChain, UniformChain, MatrixChain)}


def build_process(
    kind: str = "gaussian",
    *,
    schedule: dict[str, Any] | None = None,
    sigma_data: float = 1.0,
    law: str = "masked",
    processes: dict[str, dict[str, Any]] | None = None,
    **chain: Any,
) -> Any:
    """A process from the values a recipe or bundle writes: "gaussian", "cld", "categorical" or "joint".

    A categorical one has a law, "masked", "uniform" or "matrix", its number of symbols, and a matrix its rates; a joint
    one has `processes`, the values of each by the name of its leaf, and no schedule of its own.
    """
    choose(kind, ["gaussian", "cld", "categorical", "joint"], "process", SolverError)
    if (kind == "joint") == (processes is None) or (kind == "joint") != (schedule is None):
        raise SolverError(
            "a joint process has `processes` and no schedule of its own, any other a schedule and no `processes`"
        )
    if kind != "categorical":
        for name in chain:
            allowed = ["processes"] if kind == "joint" else ["schedule", "sigma_data"]
            choose(name, allowed, f"value of the {kind} process", SolverError)
    if schedule is None:
        leaves: dict[str, Any] = {name: build_process(**leaf) for name, leaf in (processes or {}).items()}
        return Joint(leaves)
    if kind == "categorical":
        cls = CHAINS[choose(law, CHAINS, "law of a categorical process", SolverError)]
        for name in chain:
            allowed = [field.name for field in fields(cls) if field.name != "schedule"]
            choose(name, allowed, f"value of the {law} process", SolverError)
        if "symbols" not in chain:
            raise SolverError("a categorical process needs its number of symbols")
        return cls(schedule=build_schedule(**schedule), **chain)
    if kind == "cld":
        return Langevin(build_critically_damped(**schedule), sigma_data)
    return Gaussian(build_schedule(**schedule), sigma_data)
