"""Solvers: how noise becomes data."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ..errors import SolverError, choose
from .adaptive import AdaptiveODE
from .adaptive_sde import AdaptiveSDE
from .ancestral import DDIM, Ancestral
from .dpm import DPMpp2M
from .driver import Adaptive, Unfinished
from .grid import (
    GRIDS,
    CosineGrid,
    FlowGrid,
    Grid,
    KarrasGrid,
    LogSNRGrid,
    QuadraticGrid,
    UniformGrid,
    build_grid,
    check_levels,
)
from .laws import check_solver
from .likelihood import LogLikelihood, log_likelihood
from .runge_kutta import EDMSolver, Euler, Heun
from .solver import FRAMES, Callback, Driver, Run, Solver, integrate, sample

SOLVERS: dict[str, type[Solver]] = {
    cls.kind: cls for cls in (Ancestral, DDIM, Euler, Heun, DPMpp2M, EDMSolver, AdaptiveODE, AdaptiveSDE)
}


def build_solver(kind: str, **config: Any) -> Solver:
    """A solver from its name and values."""
    cls = SOLVERS[choose(kind, SOLVERS, "solver", SolverError)]
    for name in config:
        choose(name, [field.name for field in fields(cls)], f"value of the {kind} solver", SolverError)
    return cls(**config)


__all__ = [
    "DDIM",
    "FRAMES",
    "GRIDS",
    "SOLVERS",
    "Adaptive",
    "AdaptiveODE",
    "AdaptiveSDE",
    "Ancestral",
    "Callback",
    "CosineGrid",
    "DPMpp2M",
    "Driver",
    "EDMSolver",
    "Euler",
    "FlowGrid",
    "Grid",
    "Heun",
    "KarrasGrid",
    "LogLikelihood",
    "LogSNRGrid",
    "QuadraticGrid",
    "Run",
    "Solver",
    "Unfinished",
    "UniformGrid",
    "build_grid",
    "build_solver",
    "check_levels",
    "check_solver",
    "integrate",
    "log_likelihood",
    "sample",
]
