"""How a model is sampled: solver, grid, number of steps and guidance weight, as recipes and bundles write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .denoisers import Guidance, build_guidance
from .solvers import Grid, Solver, build_grid, build_solver


@dataclass(frozen=True)
class Sampling:
    """How a model is sampled unless told otherwise.

    guidance: the classifier-free weight, 1 being none, or a `Guidance`, or its text.
    """

    solver: Solver
    grid: Grid
    steps: int = 20
    guidance: float | Guidance = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "guidance", build_guidance(self.guidance))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Sampling:
        """From `to_json`."""
        return cls(
            build_solver(**values["solver"]),
            build_grid(**values["grid"]),
            values["steps"],
            values["guidance"],
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for bundles and receipts."""
        return {
            "solver": self.solver.to_json(),
            "grid": self.grid.to_json(),
            "steps": self.steps,
            "guidance": self.guidance.to_json() if isinstance(self.guidance, Guidance) else self.guidance,
        }

    def with_(
        self,
        solver: Solver | str | None = None,
        grid: Grid | str | None = None,
        steps: int | None = None,
        guidance: float | str | Guidance | None = None,
    ) -> Sampling:
        """The same with some of it replaced; names stand for a solver or grid with its default values."""
        return Sampling(
            build_solver(solver) if isinstance(solver, str) else solver or self.solver,
            build_grid(grid) if isinstance(grid, str) else grid or self.grid,
            self.steps if steps is None else steps,
            self.guidance if guidance is None else build_guidance(guidance),
        )
