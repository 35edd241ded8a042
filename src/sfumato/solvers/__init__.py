"""Solvers: how noise becomes data."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ..errors import SolverError, choose
from .adams import DEIS, Adams, adams_weights
from .adams_moulton import AdamsMoulton
from .ancestral import DDIM, Ancestral
from .dpm import DPMpp2M, DPMpp3M, DPMppS, DPMSolver
from .grid import (
    GRIDS,
    AngleGrid,
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
from .pndm import PLMS, PNDM
from .runge_kutta import TABLEAUX, EDMSolver, Euler, Heun, RungeKutta, Tableau
from .solver import FRAMES, RATES, Callback, Solver, integrate, sample, steps_within
from .unipc import UniPC

SOLVERS: dict[str, type[Solver]] = {
    cls.kind: cls
    for cls in (
        *(AdamsMoulton, Ancestral, DDIM, Euler, Heun, RungeKutta, EDMSolver),
        *(Adams, DEIS, DPMSolver, DPMppS, DPMpp2M, DPMpp3M, UniPC, PNDM, PLMS),
    )
}


def build_solver(kind: str, **config: Any) -> Solver:
    """A solver from its name and values."""
    cls = SOLVERS[choose(kind, SOLVERS, "solver", SolverError)]
    for name in config:
        choose(name, [field.name for field in fields(cls)], f"value of the {kind} solver", SolverError)
    return cls(**config)


__all__ = [
    "DDIM",
    "DEIS",
    "FRAMES",
    "GRIDS",
    "PLMS",
    "PNDM",
    "RATES",
    "SOLVERS",
    "TABLEAUX",
    "Adams",
    "AdamsMoulton",
    "Ancestral",
    "AngleGrid",
    "Callback",
    "CosineGrid",
    "DPMSolver",
    "DPMpp2M",
    "DPMpp3M",
    "DPMppS",
    "EDMSolver",
    "Euler",
    "FlowGrid",
    "Grid",
    "Heun",
    "KarrasGrid",
    "LogSNRGrid",
    "QuadraticGrid",
    "RungeKutta",
    "Solver",
    "Tableau",
    "UniPC",
    "UniformGrid",
    "adams_weights",
    "build_grid",
    "build_solver",
    "check_levels",
    "check_solver",
    "integrate",
    "sample",
    "steps_within",
]
