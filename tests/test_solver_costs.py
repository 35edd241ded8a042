"""What a run costs and needs, defects that the law of solvers catches, and solvers from words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from family_cases import apart, hills, name, run
from sfumato.denoisers import GaussianMixture
from sfumato.errors import SolverError
from sfumato.noise import Noise
from sfumato.processes import Flow, Gaussian, LawBroken, Linear, ZeroTerminalSNR
from sfumato.solvers import (
    DDIM,
    DEIS,
    PLMS,
    PNDM,
    SOLVERS,
    TABLEAUX,
    Adams,
    DPMppS,
    DPMSolver,
    Driver,
    EDMSolver,
    FlowGrid,
    Heun,
    RungeKutta,
    Tableau,
    UniformGrid,
    UniPC,
    build_solver,
    check_solver,
    integrate,
    steps_within,
)

# -- what a run costs, and needs -------------------------------------------------------------------------------------


ALL = [
    solver
    for solver in (cls() for cls in SOLVERS.values())
    if Gaussian in solver.serves and not isinstance(solver, Driver)
] + [
    *(
        Adams(5, "eps-exponential"),
        DEIS(3),
        DPMSolver(2),
        DPMppS(2),
        UniPC(4, "bh1"),
        UniPC(1, corrector=False),
    ),
    *(RungeKutta(method, "angle") for method in TABLEAUX),
]


class Counts:
    def __init__(self, model):
        self.model, self.process, self.calls = model, model.process, 0

    def __call__(self, x_t, t, condition=None):
        self.calls += 1
        return self.model(x_t, t, condition)


@pytest.mark.parametrize("solver", ALL, ids=name)
def test_a_run_costs_what_is_said(solver):
    for schedule in (Flow(), Linear()) if not isinstance(solver, EDMSolver) else (Linear(),):
        for steps in (solver.least_steps, 9):
            model = Counts(hills(schedule))
            run(solver, model, UniformGrid().levels(model.process, steps))
            assert model.calls == solver.cost(steps), steps


@pytest.mark.parametrize("solver", ALL, ids=name)
def test_a_budget_buys_the_most_steps(solver):
    for budget in range(1, 40):
        if budget < solver.cost(solver.least_steps):
            with pytest.raises(SolverError, match=r"needs at least \d+ evaluations, not"):
                steps_within(solver, budget)
        else:
            steps = steps_within(solver, budget)
            assert solver.cost(steps) <= budget < solver.cost(steps + 1)


@pytest.mark.parametrize(("solver", "least"), [(PNDM(), 4), (PLMS(), 2)])
def test_fewer_steps_than_the_warm_up_needs_are_refused(solver, least):
    model = hills(Linear())
    for steps in range(1, least):
        with pytest.raises(
            SolverError, match=rf"{solver.kind} .* needs at least {least} steps for its .* not {steps}"
        ):
            run(solver, model, UniformGrid().levels(model.process, steps))
    assert run(solver, model, UniformGrid().levels(model.process, least)).isfinite().all()


@dataclass(frozen=True)
class Cheaper(RungeKutta):
    def cost(self, steps):
        return 4 * steps - 2


@dataclass(frozen=True)
class Dearer(Adams):
    evaluations: ClassVar[int] = 2

    def cost(self, steps):
        return steps


@dataclass(frozen=True)
class Forgets(Adams):
    """Order 3 in words, with the weights of equal steps."""

    def step(self, denoise, process, x, t, s, carry, noise):
        x_s, carry = super().step(denoise, process, x, t, s, carry, noise)
        return x_s, carry[:1]


@dataclass(frozen=True)
class Blind(UniPC):
    """A corrector that takes the wrong state to correct."""

    def step(self, denoise, process, x, t, s, carry, noise):
        x_s, (level, _, said) = super().step(denoise, process, x, t, s, carry, noise)
        return x_s, (level, x, said)


@pytest.mark.parametrize(
    ("solver", "words"),
    [
        (Cheaper(), "30 evaluations for 8 steps but makes 31"),
        (Dearer(), "2 evaluations a step but 3 for three"),
        (Forgets(), "states order 2 but .* order 1|states order 3 but .* order 1"),
        (Blind(3), "states order"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_check_solver_catches_planted_defects(solver, words):
    with pytest.raises(LawBroken, match=words):
        check_solver(solver)


@pytest.mark.parametrize("solver", [Adams(4, "sigma"), DEIS(3), UniPC(3), RungeKutta("midpoint")], ids=name)
def test_check_solver_passes_variants(solver):
    check_solver(solver)


@pytest.mark.parametrize("solver", ALL, ids=name)
def test_pure_noise_and_clean_data_are_ordinary_ends(solver):
    """From alpha = 0 to sigma = 0: the more steps the nearer to the closed form, and no wild last step."""
    for schedule in (Flow(), ZeroTerminalSNR()):
        model = GaussianMixture(Gaussian(schedule), torch.tensor([[0.3, -0.4]]), torch.tensor([[0.4, 0.2]]))
        z = Noise(2, 4).normal(torch.empty(4, 2, dtype=torch.float64))
        want = model.means + torch.tensor([0.4, 0.2]).double().sqrt() * z
        errors = [
            apart(integrate(model, solver, FlowGrid().levels(model.process, steps), z, Noise(2, 4)), want)
            for steps in (8, 32)
        ]
        if not solver.stochastic:
            assert errors[1] < 0.5 * errors[0] < 0.2, errors


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Adams(0), "whole number from 1 to 8, not 0"),
        (lambda: Adams(2.5), "whole number from 1 to 8"),  # type: ignore[arg-type]
        (lambda: Adams(3, "x0"), "allowed are flow, sigma, angle, mixed, time, x0-exp"),
        (lambda: DEIS(-1), "degree of DEIS"),
        (lambda: DEIS(1, "tme"), "did you mean 'time'"),
        (lambda: DPMSolver(4), "order of dpm-solver is a whole number from 1 to 3"),
        (lambda: DPMppS(0), r"order of dpm\+\+s"),
        (lambda: UniPC(7), "predictor of UniPC"),
        (lambda: UniPC(2, "bh3"), "did you mean"),
        (lambda: RungeKutta("rk5"), "did you mean 'rk4'"),
        (lambda: RungeKutta("rk4", "x0-exponential"), "unknown frame"),
        (lambda: build_solver("unipcc"), "did you mean 'unipc'"),
        (lambda: Tableau(((), (1.0,)), (0.5, 0.4), 2), "sum b = 1; here it is off by -0.1"),
        (lambda: Tableau(((), (0.4,)), (0.0, 1.0), 2), r"b\.c = 1/2"),
        (lambda: Tableau(((), (0.5,), (0.0, 0.7)), (2 / 9, 1 / 3, 4 / 9), 3), "b"),
        (lambda: Tableau(((0.0,), (1.0,)), (0.5, 0.5), 2), "rows of 0 to 1 entries"),
        (lambda: Tableau(((),), (1.0,), 5), "up to order 4"),
    ],
)
def test_wrong_values_are_refused(make, words):
    with pytest.raises(SolverError, match=words):
        make()


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 1.0))
def test_a_tableau_is_believed_only_in_the_order_it_has(c):
    """The one-parameter family of two-stage methods is of order 2 for every c, and never of order 3."""
    b = (1 - 1 / (2 * c), 1 / (2 * c))
    Tableau(((), (c,)), b, 2)
    with pytest.raises(SolverError, match=r"b\.a\.c = 1/6|b\.c\^2 = 1/3"):
        Tableau(((), (c,)), b, 3)


def test_values_may_be_written_behind_the_name():
    assert build_solver("adams:order=4,frame=angle") == Adams(4, "angle")
    assert build_solver("unipc:corrector=false,variant=bh1", predictor=3) == UniPC(3, "bh1", False)
    assert build_solver("ddim:eta=0.5") == DDIM(0.5)
    assert build_solver("edm:churn=.1,s_max=2e1") == EDMSolver(0.1, s_max=20.0)
    assert build_solver("heun:") == Heun()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("adams:order", "written adams:name=value,name=value, not 'order'"),
        ("adams:ordr=3", "did you mean 'order'"),
        ("adams:order=three", "whole number from 1 to 8, not 'three'"),
        ("adams:order=3x", "'order=3x' is neither a number nor a word"),
        ("ddim:eta=much", "ddim solver cannot be made of"),
        ("adam:order=3", "did you mean 'adams'"),
    ],
)
def test_values_that_cannot_be_are_refused(text, words):
    with pytest.raises(SolverError, match=words):
        build_solver(text)


@pytest.mark.parametrize(
    ("solver", "worth"),
    [(Adams(2), 0.5), (Adams(3), 0.5), (Adams(3, "angle"), 0.5), (DEIS(2), 0.5), (UniPC(2), 1.1)],
    ids=lambda value: None if isinstance(value, float) else name(value),
)
def test_the_last_step_at_full_order_is_worth_it(solver, worth):
    """Against the usual last step, x_0 as it was last said: at 20 equal steps nearer to the end of the same path.

    In the exponential frames, whose steps before it are the worst on such a grid, it neither helps nor harms much.
    """
    model = hills(Flow())
    levels = FlowGrid(0.95).levels(model.process, 20)
    seen = []

    class Keeps(Counts):
        def __call__(self, x_t, t, condition=None):
            seen.append(super().__call__(x_t, t, condition))
            return seen[-1]

    exact = run(RungeKutta("rk4"), model, FlowGrid(0.95).levels(model.process, 200), 64)
    full = run(solver, Keeps(model), levels, 64)
    assert float((full - exact).norm()) < worth * float((seen[-1].x0 - exact).norm())


def test_every_solver_is_made_again_from_what_it_writes():
    for solver in ALL:
        assert build_solver(**solver.to_json()) == solver
