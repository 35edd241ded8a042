"""Forward processes: schedules, the processes over them, and the laws they obey."""

from __future__ import annotations

from typing import Any

from ..errors import SolverError, choose
from .gaussian import PARAMETERISATIONS, Gaussian, Prediction, Rows
from .langevin import CriticallyDamped, Langevin, build_critically_damped
from .langevin_laws import check_langevin
from .laws import LawBroken, check_process
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
    "CLEAN",
    "DDPM",
    "EDM",
    "PARAMETERISATIONS",
    "SCHEDULES",
    "VE",
    "Cosine",
    "CriticallyDamped",
    "Flow",
    "Gaussian",
    "Langevin",
    "Laplace",
    "LawBroken",
    "Level",
    "Linear",
    "Prediction",
    "Rows",
    "Schedule",
    "Shifted",
    "Sigmoid",
    "SubVP",
    "Table",
    "ZeroTerminalSNR",
    "build_process",
    "build_schedule",
    "check_langevin",
    "check_process",
]


def build_process(
    kind: str = "gaussian", *, schedule: dict[str, Any], sigma_data: float = 1.0
) -> Gaussian | Langevin:
    """A process from the values a recipe or bundle writes: "gaussian" or "cld"."""
    if choose(kind, ["gaussian", "cld"], "process", SolverError) == "cld":
        return Langevin(build_critically_damped(**schedule), sigma_data)
    return Gaussian(build_schedule(**schedule), sigma_data)
