"""`check_solver`: solvers obey it and planted defects do not; what solvers write makes them again; what they cost."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import pytest
import torch

from sfumato.denoisers import InPhase
from sfumato.errors import SolverError
from sfumato.noise import Noise
from sfumato.processes import (
    EDM,
    VE,
    Flow,
    Gaussian,
    Langevin,
    LawBroken,
    Linear,
    ZeroTerminalSNR,
)
from sfumato.solvers import (
    DDIM,
    PNDM,
    SOLVERS,
    SSCS,
    TABLEAUX,
    AdamsMoulton,
    Ancestral,
    DPMpp2M,
    DPMppS,
    DPMSolver,
    Driver,
    EDMSolver,
    Euler,
    FlowGrid,
    Heun,
    KarrasGrid,
    PredictorCorrector,
    RungeKutta,
    SASolver,
    UniformGrid,
    build_solver,
    check_solver,
    integrate,
    steps_within,
)
from sfumato.solvers.runge_kutta import heun_step
from sfumato.solvers.solver import frame_at
from solver_cases import hills, name

# -- the law of each solver ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SOLVERS)
def test_check_solver_passes_the_defaults(kind):
    check_solver(build_solver(kind))


@pytest.mark.parametrize(
    "solver",
    [DDIM(eta=1.0), Ancestral("chain"), Ancestral("learned"), Heun("time"), EDMSolver(churn=0.0)],
    ids=name,
)
def test_check_solver_passes_their_variants(solver):
    check_solver(solver)


@dataclass(frozen=True)
class Lopsided(Heun):
    def step(self, denoise, process, x, t, s, carry, noise):
        euler, _ = Euler(self.frame).step(denoise, process, x, t, s, carry, noise)
        heun = heun_step(self.frame, denoise, process, x, t, s)
        return 0.9 * heun + 0.1 * euler, None  # the two slopes at 0.55 and 0.45


@dataclass(frozen=True)
class LopsidedOnce(Heun):
    def step(self, denoise, process, x, t, s, carry, noise):
        c, u, a, b = frame_at(self.frame, process, t)
        c_end, u_end, a_end, b_end = frame_at(self.frame, process, s)
        first = denoise(x, t).combine(a, b)
        x_s = c_end / c * x + c_end * (u_end - u) * first
        if s.sigma == 0:
            return x_s, None
        slope = 0.55 * first + 0.45 * denoise(x_s, s).combine(a_end, b_end)
        return c_end / c * x + c_end * (u_end - u) * slope, None


@dataclass(frozen=True)
class WrongSlope(DPMpp2M):
    def step(self, denoise, process, x, t, s, carry, noise):
        if carry is not None:  # the last level written down wrongly: 1 / 2r comes out 10% too small
            carry = carry[0], t.log_snr - 1.1 * (t.log_snr - carry[1])
        return super().step(denoise, process, x, t, s, carry, noise)


@dataclass(frozen=True)
class TooNoisy(Ancestral):
    @property
    def serves(self):
        return (Gaussian,)

    def step(self, denoise, process, x, t, s, carry, noise):
        x_s, carry = super().step(denoise, process, x, t, s, carry, noise)
        return x_s + 0.3 * math.sqrt(max(process.lag(t, s), 0)) * noise.normal(x), carry


@dataclass(frozen=True)
class Remembers(Euler):
    def step(self, denoise, process, x, t, s, carry, noise):
        object.__setattr__(self, "last", float(x.sum()))
        return super().step(denoise, process, x, t, s, carry, noise)


SHARED: list = []


@dataclass(frozen=True)
class Leaks(Euler):
    """Keeps its carry outside: two runs at once read each other's."""

    def step(self, denoise, process, x, t, s, carry, noise):
        last = SHARED[0] if carry else x
        SHARED[:] = [x]
        return super().step(denoise, process, x + 1e-3 * (x - last), t, s, carry, noise)[0], True


@dataclass(frozen=True)
class Centres(Euler):
    def step(self, denoise, process, x, t, s, carry, noise):
        x, carry = super().step(denoise, process, x, t, s, carry, noise)
        return x - 1e-3 * x.mean(0), carry


@dataclass(frozen=True)
class Boasts(Euler):
    order: ClassVar[int] = 2


@dataclass(frozen=True)
class Divides(DPMpp2M):
    def step(self, denoise, process, x, t, s, carry, noise):
        x, carry = super().step(denoise, process, x, t, s, carry, noise)
        return x * (s.sigma / s.sigma if s.sigma else math.nan), carry


@pytest.mark.parametrize(
    ("solver", "words"),
    [
        (Lopsided(), "3 a step|evaluations"),
        (LopsidedOnce(), "order 2 but .* order 1"),
        (WrongSlope(), "order 2 but .* order 1"),
        (TooNoisy(), "misses the law"),
        (Remembers(), "changed by a run"),
        (Leaks(), "in turns"),
        (Centres(), "alone differs"),
        (Boasts(), "order 2 but"),
        (Divides(), "not finite|clean"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_check_solver_catches_planted_defects(solver, words):
    SHARED.clear()
    with pytest.raises((LawBroken, SolverError), match=words):
        check_solver(solver)


def test_check_solver_wants_a_frozen_dataclass():
    class Melted:
        kind = "melted"

    with pytest.raises(LawBroken, match="frozen"):
        check_solver(Melted())  # type: ignore[arg-type]


def strict(part):
    """What another program makes of a part's JSON, which knows no infinity and no NaN."""
    return json.loads(json.dumps(part.to_json(), allow_nan=False))


@pytest.mark.parametrize("kind", SOLVERS)
def test_what_a_solver_writes_is_json_and_makes_it_again(kind):
    plain = build_solver(kind)
    assert build_solver(**strict(plain)) == plain
    corrected = (
        PredictorCorrector(plain) if kind != "predictor-corrector" else PredictorCorrector(Heun("angle"))
    )
    assert build_solver(**strict(corrected)) == corrected
    # a number that JSON cannot hold is refused, or stands for one that it can
    numbers = [f.name for f in fields(plain) if type(getattr(plain, f.name)) in (int, float)]
    for field in {*numbers, "s_max"} & set(vars(plain)):
        for value in (math.inf, math.nan):
            try:
                other = replace(plain, **{field: value})
            except SolverError:
                continue
            assert build_solver(**strict(other)) == other


class Counts:
    """A denoiser that counts its calls, and predicts a variance half-way between the bounds."""

    def __init__(self, denoiser):
        self.denoiser, self.process, self.calls = denoiser, denoiser.process, 0

    def __call__(self, x_t, t, condition=None):
        self.calls += 1
        return replace(self.denoiser(x_t, t, condition), variance=torch.zeros_like(x_t))


STEPPING = [
    *(
        cls()
        for cls in SOLVERS.values()
        if not issubclass(cls, Driver) and {Gaussian, Langevin} & {*cls().serves}
    ),
    *(RungeKutta(method) for method in TABLEAUX),
    *(Heun("sigma"), DPMSolver(1), DPMppS(2), Ancestral("learned"), AdamsMoulton(4, 5)),
    *(SSCS(midpoint=True), SASolver(3, 0), PredictorCorrector(PNDM(), corrections=2)),
]


@pytest.mark.parametrize("schedule", [Flow(), Linear(), EDM(), VE(), ZeroTerminalSNR()], ids=name)
def test_a_run_asks_as_often_as_its_solver_says(schedule):
    plain = hills(Gaussian(schedule))
    for solver in STEPPING:
        denoiser = Counts(InPhase(plain, Langevin()) if Langevin in solver.serves else plain)
        process = denoiser.process
        like = torch.empty(1, *process.state_shape((2,)), dtype=torch.float64)
        for grid, steps in itertools.product((FlowGrid(), UniformGrid(0.6)), (1, 2, 5)):
            if steps < solver.least_steps:
                continue
            levels = grid.levels(process, steps)
            pure = levels[0].alpha == 0
            if pure and getattr(solver, "frame", "") == "sigma":  # which refuses to start there
                continue
            denoiser.calls = 0
            integrate(denoiser, solver, levels, process.prior(like, Noise(0, 1), levels[0]), Noise(0, 1))
            saved = 1 if pure and steps > 1 and isinstance(solver, EDMSolver) else 0  # as its docstring says
            assert denoiser.calls == solver.cost(steps) - saved, (solver, grid, steps)
            assert steps_within(solver, solver.cost(steps)) == steps, (solver, steps)


@pytest.mark.parametrize("solver", [SASolver(), EDMSolver(churn=0.4)], ids=name)
def test_without_an_upper_end_noise_is_renewed_at_every_level(solver):
    """None, infinity and a number beyond all levels are one interval, and an end among the levels is another."""
    model, x = hills(Gaussian(EDM())), 80 * Noise(0, 4).normal(torch.empty(4, 2, dtype=torch.float64))
    levels = KarrasGrid().levels(model.process, 8)
    ends = [
        integrate(model, replace(solver, s_max=s_max), levels, x, Noise(1, 4))
        for s_max in (None, math.inf, 1e6, 3.0)
    ]
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])
    assert not torch.equal(ends[0], ends[3])
