"""Solvers of phase space: their orders, their limits, and whole runs from noise to data."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from scipy.integrate import solve_ivp

from phase_cases import exact, float64, law
from sfumato import bundle
from sfumato.denoisers import Denoiser, GaussianMixture, InPhase
from sfumato.domains.images import Images
from sfumato.errors import SfumatoError, SolverError
from sfumato.film import film
from sfumato.model import Model, Sampling
from sfumato.networks import build
from sfumato.noise import BatchNoise, Noise
from sfumato.objectives import build_objective
from sfumato.processes import (
    CLEAN,
    Flow,
    Gaussian,
    Langevin,
    LawBroken,
)
from sfumato.recipes import read_recipe, recipe_from
from sfumato.solvers import (
    SSCS,
    DPMpp2M,
    FlowGrid,
    LogSNRGrid,
    PhaseBridge,
    PhaseEuler,
    PhaseHeun,
    QuadraticGrid,
    UniformGrid,
    check_solver,
    integrate,
    sample,
)
from sfumato.solvers.laws import STEPS, affine_law, fitted_order, interior_levels, phase_errors

PHASE = [SSCS(), SSCS(midpoint=True), PhaseEuler(), PhaseHeun(), PhaseBridge()]

each_solver = pytest.mark.parametrize("solver", PHASE, ids=lambda solver: f"{solver.kind}-{solver.order}")


# -- the solvers -----------------------------------------------------------------------------------------------------


def test_check_solver_passes_the_variant_of_order_two():  # the others' defaults are in test_solvers.py
    check_solver(SSCS(midpoint=True))


def test_check_solver_catches_a_wrong_one():
    @dataclass(frozen=True)
    class Halved(SSCS):
        def move(self, denoise, process, state, t, s, noise):
            return super().move(denoise, process, 0.999 * state, t, s, noise)

    with pytest.raises(LawBroken, match="errs with order"):
        check_solver(Halved(midpoint=True))


def test_splitting_is_much_nearer_than_euler_at_one_evaluation():
    euler, splitting = (phase_errors(solver, (48,))[0] for solver in (PhaseEuler(), SSCS()))
    assert splitting < euler / 5


def test_heun_meets_the_probability_flow():
    process, denoiser = Langevin(), exact()
    levels = interior_levels(process, 2)
    state = torch.tensor([[0.4, -0.2]], dtype=torch.float64)

    def rates(t, u):
        row = torch.from_numpy(u)[None]
        push = process.diffusion() ** 2 / 2 * process.score(denoiser(row, float(t)))
        out = process.drift(row)
        out[:, 1:] -= push
        return out[0].numpy()

    ends = (levels[0].time, levels[-1].time)
    truth = solve_ivp(rates, ends, state[0].numpy(), rtol=1e-8, atol=1e-10).y[:, -1]
    ends = [integrate(denoiser, PhaseHeun(), interior_levels(process, n), state, Noise(0, 1)) for n in STEPS]
    errors = [float((end[0] - torch.from_numpy(truth)).abs().max()) for end in ends]
    assert fitted_order(STEPS, errors) == pytest.approx(2, abs=0.2)


@each_solver
def test_whole_runs_reach_the_data(solver):
    process = Langevin()
    levels = LogSNRGrid().levels(process, 120)
    denoiser = exact(0.7, 0.3)
    mean, sigma = affine_law(solver, denoiser, levels, *law(process, levels[0], 0.7, 0.3))
    assert float(mean[0]) == pytest.approx(0.7, abs=0.01)
    assert float(sigma[0, 0]) == pytest.approx(0.3, rel=0.1)


def test_the_last_step_is_the_papers_to_first_order():
    process, denoiser = Langevin(), exact(0.7, 0.3)
    gaps = []
    for t in (2e-4, 1e-4, 5e-5):
        state = process.corrupt(
            torch.tensor([[0.5]], dtype=torch.float64), t, torch.tensor([[0.4, -1.2]]).double()
        )
        ours = process.data(integrate(denoiser, SSCS(), [process.level(t), CLEAN], state, Noise(0, 1)))
        papers = state[:, :1] - t * process.drift(state)[:, :1]
        moved = float((state[:, :1] - papers).abs())
        gaps.append(float((ours - papers).abs()) / moved)
    # the gap is O(h^2 / gamma) where the step itself is O(h), so their ratio falls with h
    assert gaps[0] > 1.7 * gaps[1] > 2.9 * gaps[2]


@pytest.mark.parametrize("grid", [UniformGrid(), QuadraticGrid(), FlowGrid()], ids=lambda grid: grid.kind)
def test_samples_are_data_and_depend_on_their_seed_alone(grid):
    mixture = GaussianMixture(
        Gaussian(Flow()), *float64([[-1.0, 0.5], [1.0, 0.0]], [[0.04, 0.04], [0.04, 0.04]])
    )
    denoiser = InPhase(mixture, Langevin())
    levels = grid.levels(denoiser.process, 12)
    like = torch.empty(0, dtype=torch.float64)
    together = sample(denoiser, Noise(7, 6), (2,), solver=SSCS(midpoint=True), levels=levels, like=like)
    assert together.shape == (6, 2)
    alone = sample(denoiser, Noise(7, (4,)), (2,), solver=SSCS(midpoint=True), levels=levels, like=like)
    assert (alone - together[4:5]).abs().max() < 1e-10


def test_solvers_refuse_what_they_do_not_serve():
    plain = GaussianMixture(Gaussian(Flow()), *float64([[0.0]], [[1.0]]))
    with pytest.raises(SolverError, match=r"sscs solver serves Langevin processes, not Gaussian"):
        sample(plain, Noise(0, 1), (1,), solver=SSCS(), levels=FlowGrid().levels(plain.process, 4))
    with pytest.raises(SolverError, match=r"dpm\+\+2m solver serves Gaussian processes, not Langevin"):
        sample(exact(), Noise(0, 1), (1,), solver=DPMpp2M(), levels=FlowGrid().levels(Langevin(), 4))


# -- the whole -------------------------------------------------------------------------------------------------------


def small_model(process):
    torch.manual_seed(0)
    network = build(
        "unet",
        in_channels=2,
        out_channels=1,
        size=8,
        classes=3,
        width=8,
        multipliers=[1],
        blocks=[1],
        embedding=16,
    )
    domain = Images(size=8, channels=1, classes=("a", "b", "c"))
    return Model(
        Denoiser(network, process, "mixed"), domain, Sampling(SSCS(), FlowGrid(), steps=5, guidance=1.5)
    )


def test_models_sample_pictures_and_survive_the_bundle(tmp_path):
    model = small_model(Langevin(sigma_data=0.5))
    pictures = model.sample(3, condition={"label": [0, 1, 2]})
    assert pictures.shape == (3, 1, 8, 8)
    bundle.save(model, tmp_path / "model")
    assert torch.equal(bundle.load(tmp_path / "model").sample(3, condition={"label": [0, 1, 2]}), pictures)
    shots, captions = film(model, 2, frames=3)
    assert {shot.shape for shot in shots} == {(2, 1, 8, 8)}
    assert captions[-1] == "sample"


def test_recipes_say_which_process():
    recipe = read_recipe("digits-cld")
    assert (recipe.process.kind, recipe.process.schedule, recipe.objective.kind) == (
        "cld",
        {"kind": "cld"},
        "hsm",
    )
    assert recipe_from(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("objective.kind=denoising", "'hsm' or 'dsm'"),
        ('sampling.solver={kind="heun"}', "heun solver serves Gaussian"),
        ("denoiser.parameterisation=velocity", "parameterisation"),
        ('process.schedule={kind="flow"}', "schedule of its own"),
    ],
)
def test_recipes_that_cannot_be_are_refused_before_training(override, says):
    from sfumato.recipes.run import set_up

    with pytest.raises(SfumatoError, match=says):
        set_up(read_recipe("digits-cld", [override]))


def test_there_is_no_bound_in_phase_space():
    from sfumato.errors import DataError
    from sfumato.recipes.bench import Bench

    bench = object.__new__(Bench)
    bench.model = small_model(Langevin())
    with pytest.raises(DataError, match="gaussian process"):
        bench.bound({"images": 1, "terms": 1, "steps": 10, "seed": 0, "batch": 1})


def test_training_keeps_its_error_by_noise_level():
    model = small_model(Langevin(sigma_data=0.5))
    objective = build_objective("hsm", weighting={"kind": "plain", "space": "v"})
    batch = {
        "x": torch.randn(16, 1, 8, 8).clamp(-1, 1),
        "condition": {"label": torch.zeros(16, dtype=torch.long)},
    }
    loss, figures = objective(model.denoiser, batch, BatchNoise(0, 0))
    assert loss.shape == figures["log_snr"].shape == figures["error"].shape == (16,)
    assert figures["log_snr"].isfinite().all()
    assert figures["error"].isfinite().all()
    loss.mean().backward()
    assert replace(objective, drop=0.1, classes=3).drop == 0.1
