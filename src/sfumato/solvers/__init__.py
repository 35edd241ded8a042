"""Solvers: how noise becomes data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..errors import SolverError, choose
from .adams import DEIS, Adams, adams_weights
from .adams_moulton import AdamsMoulton
from .adaptive import AdaptiveODE
from .adaptive_sde import AdaptiveSDE
from .ancestral import DDIM, Ancestral
from .categorical import PositionWise, Remasking, TauLeaping, Unmasking
from .categorical_laws import chain_errors, chain_law, check_chain_solver, total_variation
from .dpm import DPMpp2M, DPMpp3M, DPMppS, DPMSolver
from .driver import Adaptive, Unfinished
from .estimate import sample_from
from .euler_maruyama import EulerMaruyama
from .grid import (
    GRIDS,
    AngleGrid,
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
    noisiest,
)
from .joint import check_paths, integrate_joint, sample_joint
from .langevin import AnnealedLangevin, PredictorCorrector
from .laws import check_solver
from .likelihood import LogLikelihood, log_likelihood
from .particles import Particles, Steering, steer
from .phase import SSCS, PhaseBridge, PhaseEuler, PhaseHeun
from .pndm import PLMS, PNDM
from .runge_kutta import TABLEAUX, EDMSolver, Euler, Heun, RungeKutta, Tableau
from .sa import SASolver
from .sde_dpm import SDEDPMpp, brownian
from .solver import (
    FRAMES,
    RATES,
    Callback,
    Driver,
    Run,
    Solver,
    check_served,
    integrate,
    sample,
    steps_within,
)
from .tuned import Tuned, adams
from .unipc import UniPC

SOLVERS: dict[str, type[Solver]] = {
    cls.kind: cls
    for cls in (
        *(AdamsMoulton, Ancestral, DDIM, Euler, Heun, RungeKutta, EDMSolver),
        *(Adams, DEIS, DPMSolver, DPMppS, DPMpp2M, DPMpp3M, UniPC, PNDM, PLMS),
        *(EulerMaruyama, SDEDPMpp, SASolver, AnnealedLangevin, PredictorCorrector),
        *(AdaptiveODE, AdaptiveSDE),
        *(SSCS, PhaseEuler, PhaseHeun, PhaseBridge),
        *(TauLeaping, Remasking, Unmasking),
    )
}


def _value(item: str, text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    if not text[:1] or text[0] not in "-.0123456789":
        return text
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError:
        raise SolverError(f"{item!r} is neither a number nor a word") from None


def values_of(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the values of "name:value=1,other=word". Raises SolverError for what is not written so."""
    kind, _, rest = text.partition(":")
    config = {}
    for item in filter(None, rest.split(",")):
        name, equals, value = item.partition("=")
        if not equals:
            raise SolverError(f"values are written {kind}:name=value,name=value, not {item!r}")
        config[name] = _value(item, value)
    return kind, config


def build_solver(kind: str, **config: Any) -> Solver:
    """A solver from its name and values, which may also be written behind the name: "adams:order=4,frame=angle".

    A solver in a solver, under `predictor`, is made from its own values; a tuned solver from those of its `to_json`.
    Raises SolverError for a name or value that does not exist.
    """
    kind, written = values_of(kind)
    config |= written
    if kind == Tuned.kind and not {"nodes", "rows"} <= config.keys():
        raise SolverError(
            "a tuned solver belongs to a model, which `sfumato tune` fits it to: it has no defaults"
        )
    cls = Tuned if kind == Tuned.kind else SOLVERS[choose(kind, SOLVERS, "solver", SolverError)]
    if isinstance(config.get("predictor"), dict):
        config["predictor"] = build_solver(**config["predictor"])
    return filled(cls, config, f"{kind} solver")


def filled(cls: Any, config: Mapping[str, Any], what: str) -> Any:
    """A frozen dataclass with these values. Raises SolverError for a name or value that it does not have."""
    for name in config:
        choose(name, [field.name for field in fields(cls)], f"value of the {what}", SolverError)
    try:
        return cls(**config)
    except TypeError as error:  # a word compared with a number
        raise SolverError(f"the {what} cannot be made of {config}: {error}") from None


__all__ = [
    "DDIM",
    "DEIS",
    "FRAMES",
    "GRIDS",
    "PLMS",
    "PNDM",
    "RATES",
    "SOLVERS",
    "SSCS",
    "TABLEAUX",
    "Adams",
    "AdamsMoulton",
    "Adaptive",
    "AdaptiveODE",
    "AdaptiveSDE",
    "Ancestral",
    "AngleGrid",
    "AnnealedLangevin",
    "Callback",
    "CosineGrid",
    "DPMSolver",
    "DPMpp2M",
    "DPMpp3M",
    "DPMppS",
    "Driver",
    "EDMSolver",
    "Euler",
    "EulerMaruyama",
    "FlowGrid",
    "Grid",
    "Heun",
    "KarrasGrid",
    "LogLikelihood",
    "LogSNRGrid",
    "Particles",
    "PhaseBridge",
    "PhaseEuler",
    "PhaseHeun",
    "PositionWise",
    "PredictorCorrector",
    "QuadraticGrid",
    "Remasking",
    "Run",
    "RungeKutta",
    "SASolver",
    "SDEDPMpp",
    "Solver",
    "Steering",
    "Tableau",
    "TauLeaping",
    "Tuned",
    "TunedGrid",
    "Unfinished",
    "UniPC",
    "UniformGrid",
    "Unmasking",
    "adams",
    "adams_weights",
    "brownian",
    "build_grid",
    "build_solver",
    "chain_errors",
    "chain_law",
    "check_chain_solver",
    "check_levels",
    "check_paths",
    "check_served",
    "check_solver",
    "integrate",
    "integrate_joint",
    "log_likelihood",
    "noisiest",
    "sample",
    "sample_from",
    "sample_joint",
    "steer",
    "steps_within",
    "total_variation",
    "values_of",
]
