"""Tuned solvers: a table that holds the known methods, and tuning that never makes a model's sampling worse."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato import bundle
from sfumato.cli import app
from sfumato.denoisers import GaussianMixture
from sfumato.errors import BundleError, SolverError
from sfumato.noise import Noise
from sfumato.processes import CLEAN, EDM, Flow, Gaussian, Linear, Prediction, ZeroTerminalSNR
from sfumato.solvers import (
    DDIM,
    AdamsMoulton,
    AngleGrid,
    FlowGrid,
    Heun,
    KarrasGrid,
    Tuned,
    adams,
    build_grid,
    build_solver,
    integrate,
)
from sfumato.solvers.laws import fitted_order
from sfumato.solvers.tuned import table
from sfumato.solvers.tuning import Effort, Errors, Tuning, _Fit, _Runner, tune

PROCESSES = [Gaussian(schedule) for schedule in (Flow(), Linear(), EDM(), ZeroTerminalSNR())]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.schedule.kind)


def mixture(process):
    means = torch.tensor([[-1.0, 0.4], [0.9, -0.2], [0.1, 1.2]])
    return GaussianMixture(process, means, torch.tensor([[0.3, 0.1], [0.05, 0.2], [0.1, 0.02]]))


def starts(process, count, seed=1):
    like = torch.empty(count, 2, dtype=torch.float64)
    return process.prior(like, Noise(seed, count).at(0))


def run(denoiser, solver, x, grid=None, indices=None):
    levels = (grid or solver.grid).levels(denoiser.process, solver.steps if grid is None else 6)
    return integrate(denoiser, solver, levels, x, Noise(0, indices or len(x)))


@each_process
def test_the_table_of_order_one_is_ddim(process):
    x = starts(process, 5)
    euler = adams(process, 6, 1, 1.5)
    ddim = integrate(mixture(process), DDIM(), euler.grid.levels(process, 6), x, Noise(0, 5))
    assert float((run(mixture(process), euler, x) - ddim).abs().max()) < 1e-9


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_tables_of_adams_have_their_order(order):
    process, x = Gaussian(Flow()), starts(Gaussian(Flow()), 6)
    exact = run(mixture(process), adams(process, 600, 3, 1.2), x)
    counts = (32, 64, 128) if order < 3 else (24, 48, 96)
    gaps = [float((run(mixture(process), adams(process, n, order, 1.2), x) - exact).norm()) for n in counts]
    # the corrector gains up to half an order before the law sets in
    assert order - 0.2 < fitted_order(counts, gaps) < order + 0.6


def test_the_corrector_costs_no_evaluation():
    class Counted:
        process, calls = PROCESSES[0], 0

        def __call__(self, x, t, condition=None):
            self.calls += 1
            return mixture(self.process)(x, t)

    denoiser = Counted()
    run(denoiser, adams(denoiser.process, 9, 3), starts(denoiser.process, 2))
    assert denoiser.calls == 9


@each_process
def test_a_sample_alone_equals_the_same_in_a_batch_and_the_carry_is_no_memory(process):
    solver, x = adams(process, 5, 2), starts(process, 4)
    together = run(mixture(process), solver, x)
    for i in range(4):
        assert float((run(mixture(process), solver, x[i : i + 1]) - together[i : i + 1]).abs().max()) < 1e-12


@settings(max_examples=20, deadline=None)
@given(steps=st.integers(1, 12), order=st.integers(1, 3), rho=st.floats(0.8, 2.0))
def test_tables_survive_json(steps, order, rho):
    solver = dataclasses.replace(adams(PROCESSES[1], steps, order, rho), weights="ab", guidance=1.5)
    again = build_solver(**json.loads(json.dumps(solver.to_json())))
    assert again == solver
    assert build_grid(**json.loads(json.dumps(solver.grid.to_json()))) == solver.grid


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"nodes": (0.0,), "rows": ((1.0, 2.0),)}, "0 nodes"),
        ({"nodes": (), "rows": ((1.0, 2.0, 3.0),)}, "rows of 2"),
        ({"nodes": (), "rows": ()}, "rows of 2"),
        ({"nodes": (), "rows": ((1.0, math.nan),)}, "finite"),
        ({"nodes": (1.0, 0.5), "rows": ((1, 2), (1, 2, 3), (1, 2, 3, 4))}, "must rise"),
    ],
)
def test_a_table_that_is_none_is_refused(values, said):
    with pytest.raises(SolverError, match=said):
        Tuned(**values)


def test_other_grids_and_names_are_refused():
    process = PROCESSES[0]
    solver, x = adams(process, 6), starts(process, 2)
    for grid, said in ((KarrasGrid(), "its own grid"), (FlowGrid(rho=1.3), "its own grid")):
        with pytest.raises(SolverError, match=said):
            run(mixture(process), solver, x, grid)
    with pytest.raises(SolverError, match="tuned to 6 steps, not 7"):
        solver.grid.levels(process, 7)
    longer = [*solver.grid.levels(process, 6)[:-1], process.schedule.level_at(8.0), CLEAN]
    with pytest.raises(SolverError, match="its own grid"):
        integrate(mixture(process), solver, longer, x, Noise(0, 2))
    with pytest.raises(SolverError, match="sfumato tune"):
        build_solver("tuned")


# -- fitting ---------------------------------------------------------------------------------------------------------


@each_process
def test_the_jacobian_is_that_of_central_differences(process):
    x = starts(process, 3)
    fit = _Fit(_Runner(mixture(process), None, 7), x, torch.zeros_like(x), adams(process, 4, 2))
    jacobian, end = fit.jacobian(fit.all)
    assert float((end - run(mixture(process), fit.solver(), x)).abs().max()) < 1e-12
    assert len(jacobian) == len(fit.theta) == 3 + 2 + 3 + 4 + 5
    for k in range(len(fit.theta)):
        step = torch.zeros_like(fit.theta)
        step[k] = 1e-5
        ends = [fit.run(fit.theta + sign * step, fit.all)[1] for sign in (1, -1)]
        central = (ends[0] - ends[1]) / 2e-5
        # forward differences of 5e-7 are wrong by as much times the curvature
        assert float((jacobian[k] - central).abs().max()) < 1e-4 * (1 + float(central.abs().max()))


def test_what_a_table_can_do_exactly_is_found():
    """For one Gaussian the flow map is linear, so two evaluations and a free table reproduce it: the error vanishes."""
    process = PROCESSES[0]
    one = GaussianMixture(process, torch.tensor([[0.3, -0.5]]), torch.tensor([[0.4, 0.1]]))
    found = tune(one, starts(process, 64), 3, effort=Effort(seconds=60, rounds=40))
    assert found.errors["tuned"].rms < 1e-3 * found.errors["untuned Adams"].rms


def test_tuning_is_better_on_start_points_that_it_never_saw():
    process = PROCESSES[2]
    denoiser, fresh = mixture(process), starts(process, 200, seed=9)
    levels = FlowGrid().levels(process, 5)
    found = tune(
        denoiser, starts(process, 120), 5, rivals={"ddim": (DDIM(), levels)}, effort=Effort(rounds=15)
    )
    exact = run(denoiser, adams(process, 200, 3), fresh)
    ends = {
        "tuned": run(denoiser, found.solver, fresh),
        "ddim": integrate(denoiser, DDIM(), levels, fresh, Noise(0, 200)),
    }
    gaps = {name: Errors.of(end, exact) for name, end in ends.items()}
    assert found.better
    assert (found.fitted, found.held_out) == (99, 21)  # 36 of the fitted are hard
    assert gaps["tuned"].median < 0.2 * gaps["ddim"].median
    assert found.errors["tuned"].median == pytest.approx(gaps["tuned"].median, rel=1)


def test_the_error_of_a_solver_is_that_of_the_median_trajectory():
    ends = torch.zeros(101, 2)
    ends[:, 0] = torch.arange(101.0)
    errors = Errors.of(ends, torch.zeros(101, 2))
    assert errors.median == pytest.approx(50 / math.sqrt(2))
    assert errors.low < errors.median < errors.high
    assert errors.rms == pytest.approx(math.sqrt(float((ends**2).mean())))


def test_a_rival_that_is_as_good_wins():
    process = PROCESSES[0]
    denoiser, x = mixture(process), starts(process, 32)
    teacher = adams(process, 40, 3)
    rivals = {"teacher": (teacher, teacher.grid.levels(process, 40))}
    found = tune(denoiser, x, 3, rivals=rivals, effort=Effort(rounds=2))
    assert found.errors["teacher"].rms < 1e-12
    assert not found.better


def test_a_slow_model_is_tuned_in_its_time_on_fewer_trajectories():
    import time

    class Slow:
        process = PROCESSES[0]

        def __call__(self, x, t, condition=None) -> Prediction:
            time.sleep(2e-5 * len(x))
            return mixture(self.process)(x, t)

    began = time.monotonic()
    found = tune(Slow(), starts(Slow.process, 400), 4, effort=Effort(seconds=1.0, batch=50))
    assert time.monotonic() - began < 4  # the machine may be busy
    assert found.fitted + found.held_out < 400
    assert found.rounds > 0


def test_nonsense_is_refused():
    process = PROCESSES[0]
    for steps, count in ((1, 100), (5, 10)):
        with pytest.raises(SolverError, match="at least 2 steps and 16 start points"):
            tune(mixture(process), starts(process, count), steps)
    with pytest.raises(SolverError, match="seconds > 0"):
        Effort(seconds=0)


# -- models ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    from demo_model import make_demo_run

    make_demo_run(tmp_path)
    return tmp_path / "model"


def kept(model, steps=3, guidance=1.0, better=True, **changes) -> Tuning:
    """What tuning would have found, in a moment."""
    own = {"weights": model.fingerprint, "guidance": guidance, "conditional": True} | changes
    solver = dataclasses.replace(adams(model.denoiser.process, steps, 2), **own)
    good, bad = Errors(0.1, 0.1, 0.1, 0.1, 0.1), Errors(0.2, 0.2, 0.2, 0.2, 0.2)
    return Tuning(
        solver,
        solver,
        {"tuned": good, "other": bad} if better else {"tuned": bad, "other": good},
        9,
        3,
        1,
        1.0,
    )


def test_a_bundle_keeps_tuned_solvers_and_sampling_uses_them(folder):
    model = bundle.load(folder)
    digest = model.info["sha256"]
    for found in (kept(model, 3), kept(model, 4), kept(model, 3, guidance=2.0), kept(model, 4)):
        bundle.save_tuned(folder, found)
    model = bundle.load(folder)
    assert model.info["sha256"] == digest  # the same model, and receipts about it still hold
    assert sorted((t.steps, t.guidance) for t in model.tuned) == [(3, 1.0), (3, 2.0), (4, 1.0)]
    ask = {"condition": {"label": 3}, "steps": 3}
    by_itself = model.sample(2, **ask)
    assert torch.equal(by_itself, model.sample(2, solver=kept(model, 3).solver, **ask))
    assert torch.equal(by_itself, model.sample(2, solver="tuned", **ask))
    assert not torch.equal(by_itself, model.sample(2, grid="flow", **ask))
    assert model.plan(steps=5, conditional=True).solver == model.sampling.solver
    assert model.plan(steps=3, guidance=3.0, conditional=True).solver == model.sampling.solver
    assert model.plan(steps=3).solver == model.sampling.solver
    assert model.plan(solver="heun", steps=3, conditional=True).solver == Heun()


def test_a_tuned_solver_of_something_else_is_refused(folder):
    model = bundle.load(folder)
    ask = {"condition": {"label": 3}}
    for changes, said in (
        ({"weights": "ab" * 32}, "another model"),
        ({"guidance": 2.0}, "guidance 2, not 1"),
        ({"conditional": False}, "without a condition"),
    ):
        with pytest.raises(BundleError, match=said):
            model.sample(1, solver=kept(model, **changes).solver, **ask)
    with pytest.raises(SolverError, match="tuned to 3 steps, not 4"):
        model.sample(1, solver=kept(model).solver, steps=4, **ask)
    with pytest.raises(BundleError, match="sfumato tune BUNDLE --steps 6"):
        model.sample(1, solver="tuned", steps=6, **ask)
    model.tuned = (kept(model).solver,)
    with pytest.raises(BundleError, match="guidance 1, not 2"):
        model.sample(1, solver="tuned", steps=3, guidance=2.0, **ask)
    with torch.no_grad():
        next(model.denoiser.parameters()).add_(1e-3)
    with pytest.raises(BundleError, match="another model"):
        model.sample(1, steps=3, **ask)


def test_what_is_worse_is_never_kept_and_a_damaged_file_is_refused(folder):
    model = bundle.load(folder)
    with pytest.raises(BundleError, match="no better"):
        bundle.save_tuned(folder, kept(model, better=False))
    assert not (folder / "tuned.json").exists()
    path = bundle.save_tuned(folder, kept(model))
    path.write_text(path.read_text().replace('"guidance": 1.0', '"guidance": 2.0'))
    with pytest.raises(BundleError, match="edited or damaged"):
        bundle.load(folder)


def test_the_command_tunes_says_what_it_found_and_sampling_follows(folder, tmp_path, capsys):
    code = app(["tune", str(folder), "--steps", "3", "--trajectories", "32", "--seconds", "5"])
    told = capsys.readouterr().out
    assert code == 0
    assert "held-out" in told
    model = bundle.load(folder)
    assert ("nothing is changed" in told) == (model.tuned == ())
    for own in model.tuned:
        assert (own.steps, own.guidance, own.conditional, own.weights) == (3, 1.0, True, model.fingerprint)
    assert app(["inspect", str(folder)]) == 0
    assert ("3 steps at guidance 1" in capsys.readouterr().out) == (model.tuned != ())


def test_an_interrupted_tuning_leaves_the_bundle_as_it_was(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    calls = []

    def stop(self, number, deadline):
        calls.append(number)
        raise KeyboardInterrupt

    monkeypatch.setattr(_Fit, "step", stop)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        app(["tune", str(folder), "--steps", "3", "--trajectories", "16", "--seconds", "5"])
    assert calls
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_tuning_starts_from_other_noise_than_sampling(folder, monkeypatch):
    model, seen = bundle.load(folder), {}
    monkeypatch.setattr("sfumato.model.tune", lambda d, x, *a, **k: seen.update(x=x) or kept(model))
    model.tune(3, trajectories=16, seed=0)
    sampled = model.denoiser.process.prior(torch.empty(16, 1, 8, 8), Noise(0, 16).at(0))
    assert float((seen["x"] - sampled).abs().min(0).values.max()) > 0
    assert float(torch.cdist(seen["x"].flatten(1), sampled.flatten(1)).min()) > 1


@pytest.mark.parametrize("steps", [5, 8, 15])
def test_the_table_of_a_linear_solver_is_that_solver(steps):
    process = Gaussian(EDM())
    model = GaussianMixture(process, torch.tensor([[-1.0, 0.4], [0.9, -0.2]]), torch.full((2, 2), 0.2))
    levels = AngleGrid().levels(process, steps)
    written = table(AdamsMoulton(), levels)
    x = 80 * Noise(0, 5).normal(torch.empty(5, 2, dtype=torch.float64))
    got = integrate(model, written, written.grid.levels(process, steps), x, Noise(0, 5))
    assert torch.allclose(got, integrate(model, AdamsMoulton(), levels, x, Noise(0, 5)), atol=1e-12, rtol=0)
