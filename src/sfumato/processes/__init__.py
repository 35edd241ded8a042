"""Forward processes: schedules, the Gaussian process over them, and the laws they obey."""

from .gaussian import PARAMETERISATIONS, Gaussian, Prediction, build_process
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
    "Flow",
    "Gaussian",
    "Laplace",
    "LawBroken",
    "Level",
    "Linear",
    "Prediction",
    "Schedule",
    "Shifted",
    "Sigmoid",
    "SubVP",
    "Table",
    "ZeroTerminalSNR",
    "build_process",
    "build_schedule",
    "check_process",
]
