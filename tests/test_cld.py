"""Critically-damped Langevin diffusion: moments, score, solvers and training against what is known of them exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import nn

from phase_cases import exact, float64, law
from sfumato.denoisers import ClassifierFree, Denoiser, GaussianMixture, InPhase
from sfumato.errors import RecipeError, SolverError
from sfumato.networks import build
from sfumato.noise import BatchNoise, Noise
from sfumato.objectives import Denoising, PhaseScoreMatching, build_objective, check_trains
from sfumato.processes import (
    CriticallyDamped,
    Flow,
    Gaussian,
    Langevin,
    LawBroken,
    Linear,
    build_process,
    check_langevin,
)

settings_of = st.builds(
    CriticallyDamped,
    beta=st.floats(4, 12),
    mass=st.floats(0.05, 0.4),
    gamma=st.floats(1e-3, 1),
)


# -- the process -----------------------------------------------------------------------------------------------------


@given(settings_of)
@settings(max_examples=15)
def test_the_process_obeys_its_laws(schedule):
    check_langevin(Langevin(schedule))


def test_laws_catch_a_wrong_process():
    @dataclass(frozen=True)
    class Heavy(CriticallyDamped):
        def covariance(self, t, gamma=None):
            return super().covariance(t, gamma) * 1.001

    with pytest.raises(LawBroken, match="covariance"):
        check_langevin(Langevin(Heavy()))
    with pytest.raises(LawBroken, match="prior"):
        check_langevin(Langevin(CriticallyDamped(beta=1.0)))


@pytest.mark.parametrize("gamma", [0.04, 0.0])
def test_moments_are_those_of_the_moment_equations(gamma):
    process = Langevin()
    beta, mass = 4.0, 0.25
    a = np.array([[0, beta / mass], [-beta, -beta * 2 * math.sqrt(mass) / mass]])
    g = np.diag([0, 2 * 2 * math.sqrt(mass) * beta])

    def rates(t, y):
        mean, sigma = y[:2], y[2:].reshape(2, 2)
        return np.concatenate([a @ mean, (a @ sigma + sigma @ a.T + g).ravel()])

    start = [1, 0, 0, 0, 0, gamma * mass]
    times = [0.01, 0.2, 0.6, 1.0]
    found = solve_ivp(rates, (0, 1), start, "DOP853", times, rtol=1e-11, atol=1e-13).y.T
    for t, y in zip(times, found, strict=True):
        at = process.at(t)
        np.testing.assert_allclose(process.schedule.mean(at), y[:2], atol=1e-9)
        np.testing.assert_allclose(process.schedule.covariance(at, gamma).ravel(), y[2:], atol=1e-9)


def test_simulating_the_sde_gives_the_marginal():
    process, steps, many = Langevin(), 400, 20_000
    generator = torch.Generator().manual_seed(0)
    v0 = math.sqrt(0.04 * 0.25) * torch.randn(many, 1, generator=generator, dtype=torch.float64)
    state = torch.cat([torch.full_like(v0, 0.8), v0], 1)
    h = 0.3 / steps
    for _ in range(steps):
        kicked = (
            process.diffusion() * math.sqrt(h) * torch.randn(many, generator=generator, dtype=torch.float64)
        )
        state = state + h * process.drift(state)
        state[:, 1] += kicked
    mean, sigma = law(process, 0.3, 0.8)
    # 20,000 paths: 3 standard errors are 0.02 deviations of a mean and 0.03 of a variance; steps add 0.01
    assert ((state.mean(0) - mean).abs() / sigma.diagonal().sqrt()).max() < 0.03
    assert (
        (state.T.cov() - sigma).abs() / sigma.diagonal().sqrt().outer(sigma.diagonal().sqrt())
    ).max() < 0.04


@given(st.floats(1e-7, 1.0))
def test_nothing_cancels_at_small_times(t):
    law_, s = CriticallyDamped(), 8 * t
    low = law_.cholesky(torch.tensor(t, dtype=torch.float64))
    if s < 1e-3:
        # leading terms: Sigma_xx = gamma s^2 + 4 s^3 / 3, det = 4 gamma s^3 / 3 + 4 s^4 / 3; the next are O(s) smaller
        top = math.sqrt(0.04 * s**2 + 4 / 3 * s**3)
        last = math.sqrt(4 / 3 * 0.04 * s**3 + s**4 * 4 / 3) / top * 0.5
        assert float(low[0, 0]) == pytest.approx(top, rel=3 * s + 1e-9)
        assert float(-low[1, 1]) == pytest.approx(last, rel=5 * s / (0.04 + s) * s + 5 * s + 1e-9)
    assert low.isfinite().all()
    assert float(low[0, 0]) > 0 > float(low[1, 1])


def test_corrupt_has_the_marginal_and_the_prior_is_its_end():
    process = Langevin(sigma_data=0.6)
    noise = Noise(3, 4000)
    x0 = torch.full((4000, 1), 0.5, dtype=torch.float64)
    state = process.corrupt(x0, 0.2, noise.at(1).normal(torch.cat([x0, x0], 1)))
    mean, sigma = law(process, 0.2, 0.5)
    assert ((state.mean(0) - mean).abs() / sigma.diagonal().sqrt()).max() < 0.06  # 4 standard errors
    assert (state.T.cov() - sigma).abs().max() < 0.06
    start = process.prior(state, noise.at(0))
    want = torch.tensor([[1.0, 0.0], [0.0, 0.25]], dtype=torch.float64)
    assert (start.T.cov() - want).abs().max() < 0.08


def test_json_makes_the_process_again():
    process = Langevin(CriticallyDamped(beta=5.0, mass=0.2, gamma=0.1), 0.7)
    assert build_process(**process.to_json()) == process
    assert build_process("cld", schedule={}) == Langevin()
    with pytest.raises(SolverError, match="schedule of its own"):
        build_process("cld", schedule={"kind": "flow"})
    with pytest.raises(SolverError, match="did you mean 'gamma'"):
        build_process("cld", schedule={"gama": 0.1})


@pytest.mark.parametrize("wrong", [{"gamma": 0.0}, {"gamma": 2.0}, {"mass": -1.0}, {"beta": 0.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(SolverError, match="gamma <= 1"):
        CriticallyDamped(**wrong)


# -- what is predicted -----------------------------------------------------------------------------------------------


@given(st.floats(0.001, 1.0), st.floats(-2, 2), st.floats(0.01, 2))
def test_the_exact_denoiser_of_a_gaussian_is_its_closed_form(t, mean, variance):
    process, denoiser = Langevin(), exact(mean, variance)
    state = Noise(0, 5).normal(torch.empty(5, 2, dtype=torch.float64))
    centre, whole = law(process, t, mean, variance)
    precision = torch.linalg.inv(whole)
    prediction = denoiser(state, t)
    score = -((state - centre) @ precision)[:, 1:]
    scale = float(precision[1, 1].sqrt())
    torch.testing.assert_close(process.score(prediction) / scale, score / scale, atol=1e-5, rtol=1e-5)
    x0 = mean + variance * ((state - centre) @ precision @ process.schedule.mean(process.at(t)))[:, None]
    torch.testing.assert_close(prediction.x0, x0, atol=1e-6, rtol=1e-6)


def test_the_exact_denoiser_of_a_mixture_is_the_mean_of_its_posterior():
    process, t = Langevin(), 0.15
    mixture = GaussianMixture(Gaussian(Linear()), *float64([[-1.0], [0.8]], [[0.05], [0.1]], [0.3, 0.7]))
    state = torch.tensor([[0.1, 0.3], [-0.5, 0.2]], dtype=torch.float64)
    grid = torch.linspace(-5, 5, 20_001, dtype=torch.float64)[:, None]
    prior = mixture.log_density(grid)
    a, sigma = law(process, t, 1.0)
    normal = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), sigma)
    for row, found in zip(state, InPhase(mixture, process)(state, t).x0, strict=True):
        weight = torch.softmax(prior + normal.log_prob(row - grid * a), 0)
        assert float(found) == pytest.approx(float((weight * grid[:, 0]).sum()), abs=1e-6)


class Zero(nn.Module):
    def forward(self, x, noise_level, condition=None):
        return 0 * x.chunk(2, 1)[0]


@pytest.mark.parametrize("t", [1e-3, 0.1, 0.5, 1.0])
def test_mixed_score_of_a_silent_network_is_that_of_white_data(t):
    process = Langevin(sigma_data=0.6)
    state = Noise(0, 6).normal(torch.empty(6, 2, dtype=torch.float64))
    got = process.score(Denoiser(Zero(), process, "mixed")(state, t))
    want = process.score(exact(0.0, 0.36, process)(state, t))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("t", [1e-4, 1e-2, 0.1, 0.4, 0.9])
def test_what_the_mixed_network_must_say_has_unit_size(t):
    process = Langevin(sigma_data=0.6)
    x0 = 0.6 * Noise(1, 4000).normal(torch.empty(4000, 1, dtype=torch.float64))
    noises = Noise(2, 4000).normal(x0.repeat(1, 2))
    level = process.level(t)
    state = process.corrupt(x0, level, noises)
    silent, loud = (process.mixed(torch.full_like(x0, k), state, level) for k in (0.0, 1.0))
    target = (noises[:, 1:] - silent) / (loud - silent)
    assert float(target.square().mean()) == pytest.approx(1, abs=0.1)  # 4 standard errors of 4,000
    inputs = process.view(state, level)[0]
    assert ((inputs.square().mean(0) - 1).abs() < 0.1).all()


@pytest.mark.parametrize("kind", ["mixed", "x0", "eps", "v", "edm"])
def test_denoisers_of_every_row_hold_the_laws(kind):
    torch.manual_seed(0)
    network = build(
        "unet", in_channels=2, out_channels=1, size=8, width=8, multipliers=[1], blocks=[1], embedding=16
    )
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    denoiser = Denoiser(network, Langevin(), kind)
    state = Noise(0, 3).normal(torch.empty(3, 2, 8, 8))
    prediction = denoiser(state, 0.3)
    assert prediction.x0.shape == (3, 1, 8, 8)
    alone = denoiser(state[:1], torch.tensor([0.3])).x0
    assert (alone - prediction.x0[:1]).abs().max() < 1e-4
    assert not torch.equal(denoiser(torch.cat([state[:, :1], 0 * state[:, 1:]], 1), 0.3).x0, prediction.x0)


def test_what_phase_space_has_not_is_refused():
    with pytest.raises(SolverError, match="parameterisation"):
        Denoiser(Zero(), Langevin(), "velocity")
    with pytest.raises(SolverError, match="parameterisation"):
        Denoiser(Zero(), Gaussian(Flow()), "mixed")
    with pytest.raises(SolverError, match="learned variance"):
        Denoiser(Zero(), Langevin(), "mixed", learned_variance=True)
    with pytest.raises(SolverError, match="InPhase takes"):
        InPhase(exact(), Langevin())
    with pytest.raises(SolverError, match="t = 0"):
        exact()(torch.zeros(1, 2), 0.0)
    with pytest.raises(SolverError, match="hsm"):
        Langevin().corrupt(torch.zeros(2, 1), 0.5, torch.zeros(2, 1))


def test_guidance_composes():
    process = Langevin()
    mixture = GaussianMixture(Gaussian(Flow()), *float64([[-1.0], [1.0]], [[0.1], [0.1]]))
    denoiser = InPhase(mixture, process)
    state, label = torch.randn(3, 2, dtype=torch.float64), {"label": torch.tensor([0, 1, 1])}
    got = ClassifierFree(denoiser, 2.0, 2)(state, 0.2, label)
    conditional, free = denoiser(state, 0.2, label), denoiser(state, 0.2)
    torch.testing.assert_close(got.x0, 2 * conditional.x0 - free.x0)
    torch.testing.assert_close(got.eps, 2 * conditional.eps - free.eps)


# -- the objective ---------------------------------------------------------------------------------------------------


class Line(nn.Module):
    """An affine guess of the row from the network's scaled input: enough for Gaussian data at one time."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(2, 1, dtype=torch.float64)

    def forward(self, x, noise_level, condition=None):
        return self.map(x)


@dataclass(frozen=True)
class Fixed:
    """One time for all."""

    t: float

    def sample(self, like, schedule, noise, stream=0):
        return torch.full((len(like),), self.t, dtype=torch.float64)


@pytest.mark.parametrize("hybrid", [True, False])
def test_hybrid_and_denoising_score_matching_have_the_true_score_as_their_minimiser(hybrid):
    process, mean, variance, t = Langevin(sigma_data=0.6), 0.5, 0.3, 0.12
    network = Line()
    denoiser = Denoiser(network, process, "mixed")
    objective = PhaseScoreMatching(build_objective("hsm").weighting, Fixed(t), hybrid=hybrid)
    x0 = mean + math.sqrt(variance) * Noise(0, 20_000).normal(torch.empty(20_000, 1, dtype=torch.float64))

    def loss():
        return objective(denoiser, {"x": x0}, BatchNoise(1, 0))[0].mean()

    optimiser = torch.optim.LBFGS(network.parameters(), line_search_fn="strong_wolfe", max_iter=60)
    optimiser.step(lambda: (optimiser.zero_grad(), value := loss(), value.backward())[1])
    state = process.corrupt(x0[:2000], t, Noise(5, 2000).normal(x0[:2000].repeat(1, 2)))
    gap = denoiser(state, t).eps - exact(mean, variance, process)(state, t).eps
    assert (
        float(gap.detach().square().mean().sqrt()) < 0.03
    )  # 20,000 examples: 1/sqrt(20000) for each of three parameters


def test_the_hybrid_target_varies_less():
    denoiser = exact()
    x0 = 0.7 + math.sqrt(0.3) * Noise(0, 4000).normal(torch.empty(4000, 1, dtype=torch.float64))
    losses = [
        float(PhaseScoreMatching(build_objective("hsm").weighting, Fixed(0.001), hybrid=hybrid)(
            denoiser, {"x": x0}, BatchNoise(0, 0))[1]["error"].mean())
        for hybrid in (True, False)
    ]  # fmt: skip
    assert losses[0] < 0.9 * losses[1]


def test_the_two_kinds_of_objective_and_process_do_not_mix():
    check_trains(PhaseScoreMatching(), Langevin())
    check_trains(Denoising(), Gaussian(Flow()))
    with pytest.raises(RecipeError, match="'hsm' or 'dsm'"):
        check_trains(Denoising(), Langevin())
    with pytest.raises(RecipeError, match="'denoising'"):
        check_trains(PhaseScoreMatching(), Gaussian(Flow()))
    with pytest.raises(RecipeError, match="cld"):
        PhaseScoreMatching()(
            Denoiser(nn.Identity(), Gaussian(Flow())), {"x": torch.zeros(2, 1)}, BatchNoise(0, 0)
        )
