"""Solvers: how noise becomes data."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ..errors import SolverError, choose
from .ancestral import DDIM, Ancestral
from .dpm import DPMpp2M
from .grid import (
    GRIDS,
    CosineGrid,
    FlowGrid,
    Grid,
    KarrasGrid,
    LogSNRGrid,
    QuadraticGrid,
    TunedGrid,
    UniformGrid,
    build_grid,
    check_levels,
)
from .laws import check_solver
from .runge_kutta import EDMSolver, Euler, Heun
from .solver import FRAMES, Callback, Solver, integrate, sample
from .tuned import Tuned, adams

SOLVERS: dict[str, type[Solver]] = {
    cls.kind: cls for cls in (Ancestral, DDIM, Euler, Heun, DPMpp2M, EDMSolver)
}


def build_solver(kind: str, **config: Any) -> Solver:
    """A solver from its name and values; a tuned one from the values of its `to_json` only."""
    if kind == Tuned.kind and not {"nodes", "rows"} <= config.keys():
        raise SolverError(
            "a tuned solver belongs to a model, which `sfumato tune` fits it to: it has no defaults"
        )
    cls = Tuned if kind == Tuned.kind else SOLVERS[choose(kind, SOLVERS, "solver", SolverError)]
    for name in config:
        choose(name, [field.name for field in fields(cls)], f"value of the {kind} solver", SolverError)
    return cls(**config)


__all__ = [
    "DDIM",
    "FRAMES",
    "GRIDS",
    "SOLVERS",
    "Ancestral",
    "Callback",
    "CosineGrid",
    "DPMpp2M",
    "EDMSolver",
    "Euler",
    "FlowGrid",
    "Grid",
    "Heun",
    "KarrasGrid",
    "LogSNRGrid",
    "QuadraticGrid",
    "Solver",
    "Tuned",
    "TunedGrid",
    "UniformGrid",
    "adams",
    "build_grid",
    "build_solver",
    "check_levels",
    "check_solver",
    "integrate",
    "sample",
]
