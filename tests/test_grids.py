"""The loop around a solver, and the grids that it walks along."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from sfumato.denoisers import Denoiser, GaussianMixture
from sfumato.errors import SolverError
from sfumato.noise import Noise
from sfumato.processes import (
    CLEAN,
    EDM,
    Flow,
    Gaussian,
    Linear,
    Prediction,
    Shifted,
)
from sfumato.solvers import (
    DDIM,
    GRIDS,
    Ancestral,
    EDMSolver,
    Euler,
    FlowGrid,
    Heun,
    KarrasGrid,
    LogSNRGrid,
    UniformGrid,
    build_grid,
    build_solver,
    integrate,
    sample,
)
from solver_cases import DETERMINISTIC, SCHEDULES, STOCHASTIC, Small, apart, each_schedule, hills, run

# -- the loop --------------------------------------------------------------------------------------------------------


def test_the_callback_sees_every_step():
    process, seen = Gaussian(Flow()), []
    denoiser = Denoiser(Small(), process)

    def callback(done, steps, x, prediction):
        seen.append((done, steps, x.clone(), prediction.level.time))

    levels = UniformGrid().levels(process, 4)
    out = sample(denoiser, Noise(0, 2), (3, 2, 2), solver=Euler(), levels=levels, callback=callback)
    assert [row[:2] for row in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert torch.equal(seen[-1][2], out)
    assert [row[3] for row in seen] == pytest.approx([1.0, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_state_that_stops_being_finite_names_its_step(value):
    process = Gaussian(Flow())

    class Fails(Small):
        def forward(self, x, noise_level, condition=None):
            out = super().forward(x, noise_level, condition)
            return out * value if float(noise_level[0]) < 0 else out

    with pytest.raises(SolverError, match=r"not finite after step 4 of 6 \(time 0.5 to 0.3333\)"):
        sample(
            Denoiser(Fails(), Gaussian(Shifted(Flow(), 0.99))),
            Noise(0, 2),
            (3, 2, 2),
            solver=Euler(),
            levels=UniformGrid().levels(Gaussian(Shifted(Flow(), 0.99)), 6),
        )
    del process


def test_a_process_that_is_not_served_is_refused():
    class Masked:
        """Another kind of process."""

    class Model:
        process = Masked()

    levels = FlowGrid().levels(Gaussian(Flow()), 3)
    for solver in (Euler(), Ancestral()):
        words = f"the {solver.kind} solver serves Gaussian.* processes, not Masked"
        with pytest.raises(SolverError, match=words):
            integrate(Model(), solver, levels, torch.zeros(2, 2), Noise(0, 2))  # type: ignore[arg-type]
        with pytest.raises(SolverError, match=words):
            sample(Model(), Noise(0, 2), (2,), solver=solver, levels=levels)  # type: ignore[arg-type]


# -- grids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GRIDS)
@each_schedule
def test_grids_rise_from_the_start_to_clean_data_in_so_many_steps(kind, schedule):
    process = Gaussian(schedule)
    for steps in (1, 2, 7, 50):
        for start in (1.0, 0.6):
            levels = build_grid(kind, start=start).levels(process, steps)
            assert len(levels) == steps + 1
            assert levels[-1].sigma == 0
            assert levels[-1].alpha == 1
            assert all(s.log_snr > t.log_snr for t, s in pairwise(levels))
            first = process.level(start)
            if kind in (
                "angle",
                "karras",
                "log-snr",
            ):  # they stop at sigma / alpha = 80 on the way to infinity
                assert levels[0].sigma / levels[0].alpha == pytest.approx(
                    80 if first.alpha == 0 else first.sigma / first.alpha, rel=1e-9
                )
            else:
                assert levels[0] == first


def test_grids_are_the_formulas_of_their_papers():
    process = Gaussian(EDM())
    karras = KarrasGrid().levels(process, 18)
    i = np.arange(18)
    want = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert [row.sigma for row in karras[:-1]] == pytest.approx(want.tolist(), rel=1e-9)
    uniform = UniformGrid().levels(process, 18)  # EDM's own time is that of its grid
    assert [row.sigma for row in uniform] == pytest.approx([row.sigma for row in karras], rel=1e-9)
    even = LogSNRGrid().levels(Gaussian(Linear()), 10)
    gaps = np.diff([row.log_snr for row in even[:-1]])
    assert np.allclose(gaps, gaps[0])
    for schedule in SCHEDULES:
        u = [row.sigma / (row.sigma + row.alpha) for row in FlowGrid().levels(Gaussian(schedule), 8)]
        assert np.allclose(np.diff(u), -u[0] / 8)
    same = FlowGrid().levels(Gaussian(Flow()), 8)
    assert [row.time for row in same] == pytest.approx([1 - k / 8 for k in range(9)])


@pytest.mark.parametrize("highest", [None, 80.0, 300.0, 3000.0])
def test_what_the_start_of_a_grid_hides_is_the_share_of_a_wide_deviation_that_is_drawn(highest):
    """The mean of 64 x 64 heights is known at noise that hides each of them: its share is s^2 / (s^2 + D^2)."""
    wide = 62.0
    mixture = GaussianMixture(Gaussian(Flow()), torch.zeros(1, 1).double(), torch.full((1, 1), wide**2))
    levels = LogSNRGrid(sigma_max=highest).levels(mixture.process, 60)
    x = torch.linspace(-2, 2, 9)[:, None].double()
    start = mixture.process.prior(x, Noise(0, 9).at(0), levels[0])
    s = highest or 80.0
    assert levels[0].sigma / levels[0].alpha == pytest.approx(s)
    made = integrate(mixture, Heun(), levels, start, Noise(0, 9))
    share = (made.square().sum() / (start / levels[0].sigma).square().sum()).item() / wide**2
    assert share == pytest.approx(s**2 / (s**2 + wide**2), rel=0.02)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "8", 100_001])
@pytest.mark.parametrize("kind", GRIDS)
def test_a_wrong_number_of_steps_is_refused(kind, steps):
    with pytest.raises(SolverError, match="steps must be a whole number from 1"):
        build_grid(kind).levels(Gaussian(Flow()), steps)


def test_lists_of_levels_that_go_wrong_are_refused():
    process = Gaussian(Flow())
    denoiser, x, noise = Denoiser(Small(), process), torch.zeros(2, 3, 2, 2), Noise(0, 2)
    levels = UniformGrid().levels(process, 5)
    with pytest.raises(SolverError, match="reverse it"):
        integrate(denoiser, Euler(), levels[::-1], x, noise)
    with pytest.raises(SolverError, match="from entry 1 to 2"):
        integrate(denoiser, Euler(), [levels[0], levels[2], levels[2], levels[3]], x, noise)
    with pytest.raises(SolverError, match="reverse it"):
        sample(denoiser, noise, (3, 2, 2), solver=Euler(), levels=[CLEAN, levels[0]])
    with pytest.raises(SolverError, match="at least two levels"):
        integrate(denoiser, Euler(), levels[:1], x, noise)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: build_solver("dpm++"), r"did you mean 'dpm\+\+"),
        (lambda: build_solver("ddim", etta=1.0), "did you mean 'eta'"),
        (lambda: DDIM(eta=1.5), r"\[0, 1\]"),
        (lambda: DDIM(eta=math.nan), r"\[0, 1\]"),
        (lambda: Euler("flwo"), "did you mean 'flow'"),
        (lambda: Heun("x"), "allowed are flow, sigma, angle, mixed, time"),
        (lambda: Ancestral("larg"), "allowed are lag, chain, learned"),
        (lambda: EDMSolver(churn=-1.0), "churn >= 0"),
        (lambda: build_grid("karas"), "did you mean 'karras'"),
        (lambda: build_grid("karras", rhoo=7), "did you mean 'rho'"),
        (lambda: FlowGrid(start=1.5), r"\(0, 1\]"),
        (lambda: UniformGrid(start=0.0), r"\(0, 1\]"),
        (lambda: FlowGrid(rho=0.0), "rho of a flow grid"),
        (lambda: KarrasGrid(rho=0.0), "rho of a Karras grid"),
        (lambda: KarrasGrid(sigma_min=5.0, sigma_max=1.0).levels(Gaussian(Flow()), 5), "smallest < largest"),
    ],
)
def test_wrong_values_are_refused(make, words):
    with pytest.raises(SolverError, match=words):
        make()


def test_the_learned_variance_lies_between_its_bounds():
    process = Gaussian(Linear())
    with pytest.raises(SolverError, match="no learned variance"):
        run(Ancestral("learned"), process, FlowGrid(0.98).levels(process, 3))
    model = hills(process)

    class Says:
        def __init__(self, weight):
            self.process, self.weight = process, weight

        def __call__(self, x_t, t, condition=None):
            said = model(x_t, t)
            return Prediction(said.value, "x0", x_t, said.level, process, torch.full_like(x_t, self.weight))

    x, levels = torch.randn(4, 2, dtype=torch.float64), FlowGrid(0.98).levels(process, 6)
    for weight, variance in ((-1.0, "lag"), (1.0, "chain")):
        learned = integrate(Says(weight), Ancestral("learned"), levels, x, Noise(0, 4))
        assert apart(learned, integrate(model, Ancestral(variance), levels, x, Noise(0, 4))) < 1e-9


def test_solvers_and_grids_are_made_again_from_what_they_write():
    for solver in DETERMINISTIC + STOCHASTIC:
        assert build_solver(**solver.to_json()) == solver
    for cls in GRIDS.values():
        assert build_grid(**cls().to_json()) == cls()
