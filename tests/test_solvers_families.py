"""Families of solvers: which are one method under two names, and what others' implementations of them say."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from family_cases import apart, hills, name, run
from sfumato.denoisers import GaussianMixture
from sfumato.noise import Noise
from sfumato.processes import CLEAN, EDM, VE, Cosine, Flow, Gaussian, Linear
from sfumato.solvers import (
    DDIM,
    DEIS,
    PLMS,
    PNDM,
    RATES,
    TABLEAUX,
    Adams,
    DPMpp2M,
    DPMpp3M,
    DPMppS,
    DPMSolver,
    EDMSolver,
    Euler,
    FlowGrid,
    Heun,
    KarrasGrid,
    LogSNRGrid,
    RungeKutta,
    UniPC,
    adams_weights,
    integrate,
)
from sfumato.solvers.laws import fitted_order, fitting, gaussian_errors, gaussian_flow, interior_levels
from sfumato.solvers.solver import FRAMES

SCHEDULES = [Flow(), Linear(), Cosine(), EDM()]

each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.kind)


# -- weights ---------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    gaps=st.lists(st.floats(0.05, 2.0), min_size=1, max_size=5),
    h=st.floats(0.01, 6.0),
    sign=st.sampled_from([-1, 1]),
    rate=st.sampled_from([0.0, 1.0, -1.0]),
    implicit=st.booleans(),
)
def test_weights_integrate_every_polynomial_that_they_should(gaps, h, sign, rate, implicit):
    start = 0.7
    nodes = [start - sign * gap for gap in [0.0, *itertools.accumulate(gaps)]]
    end = start + sign * h
    nodes = [end, *nodes] if implicit else nodes
    weights = adams_weights(nodes, start, end, rate)
    size = sum(map(abs, weights))
    for k in range(len(nodes)):
        want = quad(
            lambda u, k=k: math.exp(rate * (u - end)) * (u - start) ** k, start, end, epsabs=0, epsrel=1e-12
        )[0]
        got = sum(w * (node - start) ** k for w, node in zip(weights, nodes, strict=True))
        scale = size * max(abs(node - start) for node in nodes) ** k
        assert got == pytest.approx(want, rel=1e-9, abs=1e-11 * scale)


def test_weights_on_an_even_grid_are_those_of_the_books():
    for order, want in {
        2: (3 / 2, -1 / 2),
        3: (23 / 12, -16 / 12, 5 / 12),
        4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    }.items():
        assert adams_weights(range(0, -order, -1), 0, 1) == pytest.approx(want, rel=1e-13)
    assert adams_weights([1, 0, -1], 0, 1) == pytest.approx([5 / 12, 8 / 12, -1 / 12], rel=1e-13)  # Moulton's


@pytest.mark.parametrize("rate", [1.0, -1.0])
def test_exponential_weights_are_plain_ones_when_steps_vanish(rate):
    nodes = [0.0, -1.0, -2.5, -3.0]
    plain = adams_weights(nodes, 0.0, 0.8)
    for h, tolerance in ((1e-3, 2e-3), (1e-6, 2e-6), (1e-12, 1e-11)):
        got = [w / h for w in adams_weights([h * node for node in nodes], 0.0, 0.8 * h, rate)]
        assert got == pytest.approx(plain, abs=tolerance)


# -- orders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("frame", [*FRAMES, *RATES])
def test_adams_is_of_every_order_in_every_frame(frame, order):
    solver = Adams(order, frame)
    grid, steps = fitting(solver)
    errors = gaussian_errors(solver, Flow() if frame != "time" else Linear(), steps, grid)
    slack = {5: 0.5, 6: 1.1}.get(order, 0.15)  # their errors come near rounding at the finest steps
    assert fitted_order(steps, errors) > order - slack, errors


@pytest.mark.parametrize(
    "solver",
    [
        *(DEIS(d, v) for d in (1, 3) for v in ("time", "rho", "log-rho")),
        *(UniPC(p, v) for p in (1, 2, 3, 4) for v in ("bh1", "bh2")),
        *(UniPC(p, "bh1", corrector=False) for p in (1, 2)),
        *(RungeKutta(m, f) for m in TABLEAUX for f in ("flow", "sigma", "angle")),
    ],
    ids=name,
)
def test_the_order_stated_is_reached(solver):
    grid, steps = fitting(solver)
    errors = gaussian_errors(solver, Linear(), steps, grid)
    assert fitted_order(steps, errors) > solver.order - 0.15, errors


@pytest.mark.parametrize("order", [3, 4])
def test_a_low_first_step_keeps_equal_steps_to_the_order_that_is_said(order):
    """Most of a long memory's error on equal steps is its first step's, h^2: `start_order` says so, and no less."""
    steps = (96, 192, 384)
    for solver in (Adams(order), Adams(order, "angle")):
        got = fitted_order(steps, gaussian_errors(solver, Flow(), steps))
        assert got == pytest.approx(solver.start_order, abs=0.15)
    solver = UniPC(4)
    got = fitted_order(steps, gaussian_errors(solver, Flow(), steps))
    assert solver.start_order - 0.15 < got < solver.order


def even_in_ratio(process, steps):
    ratio = torch.linspace(2.0, 0.2, steps + 1, dtype=torch.float64)
    return [process.schedule.level_at(value) for value in (-2 * ratio.log()).tolist()]


def test_pndm_is_of_order_four_where_sigma_over_alpha_falls_evenly():
    for schedule in (VE(), Linear()):
        steps = (96, 192, 384)
        errors = gaussian_errors(PNDM(), schedule, steps, even_in_ratio)
        assert fitted_order(steps, errors) == pytest.approx(4, abs=0.4), errors
    errors = gaussian_errors(PNDM(), Flow(), steps, interior_levels)
    assert fitted_order(steps, errors) == pytest.approx(2, abs=0.15), errors


@pytest.mark.parametrize("method", ["heun", "midpoint", "ralston", "kutta3", "ralston3", "rk4"])
def test_the_last_step_to_clean_data_does_not_lower_the_order(method):
    solver = RungeKutta(method)
    model = GaussianMixture(
        Gaussian(Flow()), torch.tensor([[0.3, -0.5]]), torch.tensor([[0.2, 1.7]]).double()
    )
    mean, variances = model.means, torch.tensor([[0.2, 1.7]], dtype=torch.float64)
    steps, errors = (12, 24, 48), []
    for count in steps:
        levels = [*FlowGrid(0.9).levels(model.process, count)]
        x = Noise(5, 8).normal(torch.empty(8, 2, dtype=torch.float64))
        exact = gaussian_flow(mean, variances, x, levels[0], CLEAN)
        errors.append(apart(integrate(model, solver, levels, x, Noise(0, 8)), exact))
    assert fitted_order(steps, errors) > solver.order - 0.25, errors


# -- one method, two names -------------------------------------------------------------------------------------------


@each_schedule
@pytest.mark.parametrize("grid", [FlowGrid(0.95), LogSNRGrid(0.95), KarrasGrid(0.95)], ids=name)
def test_every_family_begins_with_ddim(schedule, grid):
    model = hills(schedule)
    levels = grid.levels(model.process, 6)
    ddim = run(DDIM(), model, levels)
    firsts = [Adams(1, frame) for frame in ("flow", "sigma", *RATES)]
    firsts += [
        DPMSolver(1),
        DPMppS(1),
        DEIS(0),
        DEIS(0, "rho"),
        UniPC(1, corrector=False),
        RungeKutta("euler"),
    ]
    for solver in firsts:
        assert apart(run(solver, model, levels), ddim) < 1e-12, solver
    for frame in ("angle", "time"):
        assert apart(run(Adams(1, frame), model, levels), run(Euler(frame), model, levels)) < 1e-12
        assert apart(run(RungeKutta("heun", frame), model, levels), run(Heun(frame), model, levels)) < 1e-12


@each_schedule
def test_methods_that_are_one(schedule):
    model = hills(schedule)
    for levels in (FlowGrid(0.95).levels(model.process, 7), KarrasGrid(0.9).levels(model.process, 7)):
        pairs = [
            (DEIS(2, "rho"), Adams(3, "sigma")),
            (DEIS(2, "log-rho"), Adams(3, "eps-exponential")),
            (DPMpp3M(), Adams(3, "x0-exponential")),
            (RungeKutta("heun", "sigma"), EDMSolver(churn=0.0)),
        ]
        for one, other in pairs:
            assert apart(run(one, model, levels), run(other, model, levels)) < 1e-11, (one, other)
        # with more differences than one, UniP is Adams
        nodes = [level.log_snr / 2 for level in levels[4:0:-1]]
        step = nodes[1:], nodes[1], nodes[0], 1.0
        assert UniPC(3)._weights(*step) == adams_weights(*step)
        # the last step, to clean data, is 2M's own
        two_m, uni_p = DPMpp2M(), UniPC(2, "bh2", corrector=False)
        assert apart(run(uni_p, model, levels[:-1]), run(two_m, model, levels[:-1])) < 1e-12
        # B(h) is felt by one difference only: UniP-2, UniC-1
        assert apart(run(UniPC(2, "bh1"), model, levels), run(UniPC(2), model, levels)) > 1e-6
        levels = levels[:3]
        assert (
            apart(run(UniPC(3, "bh1", False), model, levels), run(UniPC(3, "bh2", False), model, levels))
            > 1e-6
        )


def test_dpmpp2m_and_exponential_adams_of_order_two_differ_by_the_cube_of_the_step():
    """2M holds the line at mid-step instead of integrating it: one step differs by alpha (m_0 - m_1) / r times
    h phi_2(-h) - (1 - e^-h) / 2 = h^2 / 2 - h^3 / 6 - (h - h^2 / 2 + h^3 / 6) h / 2 + ... = O(h^3) with r h fixed."""
    model = hills(Flow())
    gaps, steps = [], (16, 32, 64)
    for count in steps:
        levels = interior_levels(model.process, count, 0.7, 0.3)
        middle = count // 2
        levels = levels[middle : middle + 3]  # a first step that is the same for both, and one that is not
        gaps.append(apart(run(DPMpp2M(), model, levels), run(Adams(2, "x0-exponential"), model, levels)))
    assert fitted_order(steps, gaps) == pytest.approx(3, abs=0.15), gaps


def test_plms_and_pndm_have_the_weights_of_adams_where_sigma_over_alpha_falls_evenly():
    model = hills(VE())
    levels = even_in_ratio(model.process, 12)
    adams, seen = Adams(4, "sigma"), []

    def denoise(x, level):
        seen.append(model(x, level))
        return seen[-1]

    for solver, evaluations in ((PLMS(), 13), (PNDM(), 21)):
        seen.clear()
        x = Noise(1, 4).normal(torch.empty(4, 2, dtype=torch.float64))
        carry, told = solver.init(x), ()
        for i, (t, s) in enumerate(itertools.pairwise(levels)):
            first = len(seen)
            x_s, carry = solver.step(denoise, model.process, x, t, s, carry, Noise(0, 4).at(i))
            # Adams after the same history
            want, told = adams.step(
                lambda x, t, k=first: seen[k], model.process, x, t, s, told, Noise(0, 4).at(i)
            )
            if i >= 3:
                assert apart(x_s, want) < 1e-12
            x = x_s
        assert len(seen) == evaluations


# -- others' implementations -----------------------------------------------------------------------------------------


def by_dpm_formulas(order, data, model, levels, x):
    """DPM-Solver-3 and ++(3S) as their papers write them (Lu et al. 2022a alg. 2; 2022b, third order)."""
    for t, s in itertools.pairwise(levels):
        lam = [level.log_snr / 2 for level in (t, s)]
        h = lam[1] - lam[0]
        r1, r2 = (1 / 2, 1.0) if order == 2 else (1 / 3, 2 / 3)
        mid = [model.process.schedule.level_at(2 * (lam[0] + r * h)) for r in (r1, r2)]

        def said(x, level):
            return model(x, level).x0 if data else model(x, level).eps

        def ratio(a, b):
            return b.sigma / a.sigma if data else b.alpha / a.alpha

        def size(level):
            return -level.alpha if data else -level.sigma

        sign = -1 if data else 1
        m0 = said(x, t)
        e1 = math.expm1(sign * r1 * h)
        m1 = said(ratio(t, mid[0]) * x + size(mid[0]) * e1 * m0, mid[0])
        e = math.expm1(sign * h)
        if order == 2:
            x = ratio(t, s) * x + size(s) * e * m0 + size(s) / (2 * r1) * e * (m1 - m0)
            continue
        e2 = math.expm1(sign * r2 * h)
        d1 = m1 - m0
        x2 = ratio(t, mid[1]) * x + size(mid[1]) * e2 * m0
        x2 = x2 + sign * size(mid[1]) * r2 / r1 * (e2 / (r2 * h) - sign) * d1
        d2 = said(x2, mid[1]) - m0
        x = ratio(t, s) * x + size(s) * e * m0 + sign * size(s) / r2 * (e / h - sign) * d2
    return x


@each_schedule
@pytest.mark.parametrize("order", [2, 3])
def test_singlestep_solvers_are_the_formulas_of_their_papers(schedule, order):
    model = hills(schedule)
    levels = interior_levels(model.process, 5, 0.9, 0.05)
    x = 2 * Noise(1, 4).normal(torch.empty(4, 2, dtype=torch.float64))
    for solver, data in ((DPMSolver(order), False), (DPMppS(order), True)):
        got = integrate(model, solver, levels, x, Noise(0, 4))
        want = by_dpm_formulas(order, data, model, levels, x)
        assert apart(got, want) < 1e-11 * float(want.abs().max())


def by_diffusers(scheduler, model, levels, x):
    """A scheduler of diffusers made to visit our levels of rectified flow, in float64."""
    count = len(levels) - 1
    scheduler.set_timesteps(count)
    scheduler.sigmas = torch.tensor([level.sigma for level in levels], dtype=torch.float64)
    scheduler.timesteps = torch.arange(1000, 1000 - count, -1)
    if hasattr(scheduler, "order_list"):
        scheduler.order_list = scheduler.get_order_list(count)
    for k, level in zip(scheduler.timesteps, levels[:-1], strict=True):
        velocity = model(x.double(), level).combine(-1.0, 1.0)
        x = scheduler.step(velocity, k, x).prev_sample
    return x.double()


def flow_settings(**settings):
    return {
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "lower_order_final": False,
        "num_train_timesteps": 1000,
        **settings,
    }


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("predictor", [1, 2, 3])
def test_unipc_is_that_of_diffusers(variant, predictor):
    diffusers = pytest.importorskip("diffusers")
    model = hills(Flow())
    levels = interior_levels(model.process, 9, 0.95, 0.05)
    x = Noise(1, 4).normal(torch.empty(4, 2, dtype=torch.float64))
    scheduler = diffusers.UniPCMultistepScheduler(
        **flow_settings(solver_order=predictor, solver_type=variant, final_sigmas_type="zero")
    )
    got = integrate(model, UniPC(predictor, variant), levels, x, Noise(0, 4))
    assert apart(got, by_diffusers(scheduler, model, levels, x)) < 1e-6


def test_dpm_solvers_and_deis_are_those_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    model = hills(Flow())
    levels = interior_levels(model.process, 8, 0.95, 0.05)
    x = Noise(1, 4).normal(torch.empty(4, 2, dtype=torch.float64))
    multistep, single = diffusers.DPMSolverMultistepScheduler, diffusers.DPMSolverSinglestepScheduler
    # they step in float32: a dozen roundings of states up to 3
    two_m = by_diffusers(
        multistep(**flow_settings(solver_order=2, final_sigmas_type="sigma_min")), model, levels, x
    )
    assert apart(integrate(model, DPMpp2M(), levels, x, Noise(0, 4)), two_m) < 3e-6
    deis = by_diffusers(diffusers.DEISMultistepScheduler(**flow_settings(solver_order=3)), model, levels, x)
    assert apart(integrate(model, DEIS(2, "log-rho"), levels, x, Noise(0, 4)), deis) < 3e-6
    # diffusers' singlestep visits the middle of each step as a level of the grid
    lam = [level.log_snr for level in levels]
    middle = [model.process.schedule.level_at((a + b) / 2) for a, b in itertools.pairwise(lam)]
    woven = [level for pair in zip(levels, middle, strict=False) for level in pair] + [levels[-1]]
    scheduler = single(**flow_settings(solver_order=2, final_sigmas_type="sigma_min"))
    two_s = by_diffusers(scheduler, model, woven, x)
    assert apart(integrate(model, DPMppS(2), levels, x, Noise(0, 4)), two_s) < 3e-6


@dataclass(frozen=True)
class Published3M(DPMpp3M):
    """3M as k-diffusion and diffusers have it: the second difference of x0 is taken once where Taylor has it twice."""

    order: ClassVar[int] = 2

    def step(self, denoise, process, x, t, s, carry, noise):
        h, old, m = (s.log_snr - t.log_snr) / 2, carry or (), denoise(x, t).x0
        phi = -math.expm1(-h)
        out = (s.sigma / t.sigma) * x + s.alpha * phi * m
        r = [(t.log_snr - one[0]) / 2 / h for one in old]
        if old:
            first = (m - old[0][1]) / r[0]
            if len(old) == 1:
                out = out + s.alpha * phi / 2 * first
            else:
                second = (first - (old[0][1] - old[1][1]) / (r[1] - r[0])) / r[1]
                out = out + s.alpha * (1 - phi / h) * (first + r[0] * second)
                out = out - s.alpha * ((h - phi) / h**2 - 0.5) * second
        return out, ((t.log_snr, m), *old)[:2]


def test_the_3m_of_others_is_of_order_two():
    diffusers = pytest.importorskip("diffusers")
    model = hills(Flow())
    levels = interior_levels(model.process, 12, 0.95, 0.05)
    x = Noise(1, 4).normal(torch.empty(4, 2, dtype=torch.float64))
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **flow_settings(solver_order=3, final_sigmas_type="sigma_min")
    )
    theirs = by_diffusers(scheduler, model, levels, x)
    assert apart(integrate(model, Published3M(), levels, x, Noise(0, 4)), theirs) < 3e-6
    assert apart(integrate(model, DPMpp3M(), levels, x, Noise(0, 4)), theirs) > 1e-3
    grid, steps = fitting(DPMpp3M())
    errors = [gaussian_errors(solver, Flow(), steps, grid) for solver in (Published3M(), DPMpp3M())]
    assert fitted_order(steps, errors[0]) == pytest.approx(2, abs=0.15), errors
    assert fitted_order(steps, errors[1]) == pytest.approx(3, abs=0.15), errors
