"""The variational bound and learned variances: bounds bound, meet their limits, and teach what they should."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from torch import nn

from objective_cases import Says
from sfumato.denoisers import Denoiser, GaussianMixture
from sfumato.errors import RecipeError
from sfumato.noise import BatchNoise, Noise
from sfumato.objectives import (
    Bound,
    Denoising,
    Hybrid,
    Plain,
    discretised_log_likelihood,
    gaussian_kl,
)
from sfumato.processes import (
    DDPM,
    EDM,
    VE,
    Cosine,
    Flow,
    Gaussian,
    Linear,
    Prediction,
    ZeroTerminalSNR,
)

# -- the bound -------------------------------------------------------------------------------------------------------


GRID = np.linspace(-1, 1, 256)


def mass(cdf):
    """The probability of each of the 256 values, end bins open."""
    edges = np.concatenate([[-np.inf], (GRID[1:] + GRID[:-1]) / 2, [np.inf]])
    return np.diff(cdf(edges))


def draw(probability, count, seed=0):
    rows = np.random.default_rng(seed).choice(256, size=count, p=probability)
    return torch.tensor(GRID[rows]), -np.log2(probability[rows])


class KnowsVariance(Says):
    """The exact denoiser of N(mean, var) with the reverse chain's exact variance, said as a network says it."""

    def __init__(self, exact, var, steps):
        super().__init__(exact)
        self.var, self.steps = var, steps

    def __call__(self, x_t, t, condition=None):
        prediction = super().__call__(x_t, t, condition)
        index = (t.time * self.steps).round()
        t, s = Bound(self.steps).levels(self.process, index)
        first = [self.process.level(torch.full_like(t.time, k / self.steps)) for k in (2, 1)]
        chain = t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2
        lag, share = s.sigma**2 * chain / t.sigma**2, s.alpha * chain / t.sigma**2
        known = lag + share**2 * self.var * t.sigma**2 / (self.var * t.alpha**2 + t.sigma**2)
        low = torch.where(index == 1, self.process.lag(*first), lag)
        weight = (known / low).log() / (chain / low).log()
        variance = (2 * weight - 1)[:, None].expand_as(x_t)
        return Prediction(prediction.value, prediction.kind, x_t, prediction.level, self.process, variance)


def gaussian_data(schedule, rows=24, dim=64):
    process = Gaussian(schedule, 0.3)
    exact = GaussianMixture(process, torch.full((1, dim), 0.1), torch.full((1, dim), 0.09))
    x, bits = draw(mass(stats.norm(0.1, 0.3).cdf), rows * dim)
    return exact, x.reshape(rows, dim), bits.mean()


@pytest.mark.parametrize("schedule", [EDM(0.002, 80), VE(0.004, 30)], ids=lambda s: s.kind)
def test_the_bound_lies_above_the_entropy_and_tightens(schedule):
    exact, x0, truth = gaussian_data(schedule)
    gaps = [
        float(Bound(steps).bits_per_dimension(exact, x0, Noise(0, 24)).mean()) - truth
        for steps in (10, 40, 160)
    ]
    assert gaps[0] > gaps[1] > gaps[2] > 0, gaps
    assert gaps[2] < 0.35 * gaps[1] + 0.02, "four times the steps leave a quarter of the gap"


@pytest.mark.parametrize(
    "schedule", [Flow(), Linear(), Cosine(), DDPM(), ZeroTerminalSNR()], ids=lambda s: s.kind
)
def test_the_bound_is_the_entropy_if_the_variance_is_known_too(schedule):
    """The reverse chain of Gaussian data is Gaussian: with its mean and variance known no step loses anything."""
    exact, x0, truth = gaussian_data(schedule, rows=300)
    for steps in (8, 25):
        known = Bound(steps).bits_per_dimension(KnowsVariance(exact, 0.09, steps), x0, Noise(0, 300)).mean()
        assert float(known) == pytest.approx(truth, abs=0.03)
        assert float(Bound(steps).bits_per_dimension(exact, x0, Noise(0, 300)).mean()) > truth + 0.05


def test_the_bound_of_a_mixture_comes_close_to_its_likelihood():
    process = Gaussian(VE(0.004, 30), 0.5)
    exact = GaussianMixture(process, torch.tensor([[-0.5], [0.4]]), torch.tensor([[0.01], [0.02]]))
    both = mass(lambda x: 0.5 * stats.norm(-0.5, 0.1).cdf(x) + 0.5 * stats.norm(0.4, 0.02**0.5).cdf(x))
    x, bits = draw(both, 500)
    gaps = [
        Bound(steps).bits_per_dimension(exact, x[:, None], Noise(1, 500)).numpy() - bits
        for steps in (50, 200)
    ]
    error = gaps[1].std() / 500**0.5
    assert -4 * error < gaps[1].mean() < 0.3 + 4 * error
    assert gaps[0].mean() > 2 * gaps[1].mean()


@pytest.mark.parametrize("schedule", [Flow(), DDPM(), EDM()], ids=lambda s: s.kind)
def test_the_bound_is_the_sum_written_by_hand(schedule):
    """Expectation over eps by quadrature in numpy, against a Monte Carlo of the package's terms."""
    steps, x0, mu, var = 12, GRID[170], -0.1, 0.2
    process = Gaussian(schedule, 0.5)
    exact = GaussianMixture(process, torch.tensor([[mu]]), torch.tensor([[var]]))
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    level = [process.level(i / steps) for i in range(steps + 1)]
    alpha, sigma = (np.array([getattr(row, name) for row in level]) for name in ("alpha", "sigma"))
    alpha[0], sigma[0] = 1, 0
    own = sigma[-1] ** 2 + (0.5 * alpha[-1]) ** 2
    total = 0.5 * (np.log(own / sigma[-1] ** 2) - 1 + (sigma[-1] ** 2 + (alpha[-1] * x0) ** 2) / own)
    for i in range(1, steps + 1):
        a_t, s_t, a_s, s_s = alpha[i], sigma[i], alpha[i - 1], sigma[i - 1]
        x_t = a_t * x0 + s_t * nodes
        guess = mu + var * a_t / (var * a_t**2 + s_t**2) * (x_t - a_t * mu)
        if i == 1:
            width = s_t * np.ones_like(nodes)
            # the far side's logarithms, where the two distribution functions both round to 1
            side = np.sign(guess - x0) + (guess == x0)
            near, far = ((side * (x0 - guess) + h) / width for h in (1 / 255, -1 / 255))
            near, far = stats.norm.logcdf(near), stats.norm.logcdf(far)
            total += weights @ -(near + np.log1p(-np.exp(far - near)))
        else:
            ratio = a_t / a_s
            chain = s_t**2 - ratio**2 * s_s**2
            posterior = s_s**2 * chain / s_t**2  # Ho et al. 2020, eq. 7
            share = a_s * chain / s_t**2
            total += weights @ (0.5 * (share * (guess - x0)) ** 2 / posterior)
    rows = 3000
    each = Bound(steps).bits_per_dimension(
        exact, torch.full((rows, 1), x0, dtype=torch.float64), Noise(3, rows)
    )
    error = float(each.std()) / rows**0.5
    assert float(each.mean()) == pytest.approx(total / math.log(2), abs=5 * error)
    # a few strata of terms, and one random term as training takes it, have the same mean
    some = Bound(steps).bits_per_dimension(
        exact, torch.full((rows, 1), x0, dtype=torch.float64), Noise(4, rows), terms=5
    )
    assert float(some.mean()) == pytest.approx(total / math.log(2), abs=5 * float(some.std()) / rows**0.5)
    single, _ = Bound(steps)(exact, {"x": torch.full((20_000, 1), x0, dtype=torch.float64)}, BatchNoise(0, 1))
    assert float(single.mean()) == pytest.approx(total, abs=5 * float(single.std()) / 20_000**0.5)


@settings(max_examples=25)
@given(mean=st.floats(-3, 3), deviation=st.floats(1e-4, 30))
def test_the_decoder_spreads_one_over_its_256_values(mean, deviation):
    x = torch.tensor(GRID)
    log_var = torch.full_like(x, 2 * math.log(deviation))
    log_p = discretised_log_likelihood(x, torch.full_like(x, mean), log_var)
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-9)
    want = mass(stats.norm(mean, deviation).cdf)
    assert np.allclose(log_p.exp(), want, rtol=1e-4, atol=1e-12)
    single = discretised_log_likelihood(x.float(), torch.full_like(x, mean).float(), log_var.float())
    seen = log_p > -40
    assert torch.allclose(single[seen].double(), log_p[seen], rtol=1e-3, atol=1e-3)


def test_the_decoder_has_a_gradient_however_far_the_guess():
    x = torch.tensor([0.0, 0.5, -1.0, 1.0])
    for distance in (0.1, 10.0, 1e4):
        mean = (x + distance).requires_grad_()
        log_var = torch.full((4,), -9.0, requires_grad=True)
        discretised_log_likelihood(x, mean, log_var).sum().backward()
        assert torch.isfinite(mean.grad).all()
        assert torch.isfinite(log_var.grad).all()
        assert bool((mean.grad[:3] < 0).all()), "the guess is pulled towards the truth"


def test_gaussian_kl_is_that_of_torch():
    m1, l1, m2, l2 = torch.randn(4, 50, dtype=torch.float64)
    normal = torch.distributions.Normal
    want = torch.distributions.kl_divergence(normal(m1, (l1 / 2).exp()), normal(m2, (l2 / 2).exp()))
    assert torch.allclose(gaussian_kl(m1, l1, m2, l2), want, rtol=1e-9)


# -- the hybrid objective --------------------------------------------------------------------------------------------


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean, self.spread = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, noise_level, condition=None):
        return torch.cat([self.mean(x), torch.tanh(self.spread(x))], 1)


@pytest.mark.parametrize("schedule", [Linear(), Flow(), EDM()], ids=lambda s: s.kind)
def test_the_mean_learns_from_the_simple_part_alone(schedule):
    network = TwoHeads()
    denoiser = Denoiser(network, Gaussian(schedule, 0.5), "v", learned_variance=True)
    batch = {"x": 0.5 * torch.randn(64, 4).clamp(-2, 2)}
    grads = []
    for weight in (0.0, 1e-3):
        network.zero_grad()
        loss, figures = Hybrid(Denoising(Plain("eps")), Bound(100), weight)(denoiser, batch, BatchNoise(0, 0))
        loss.mean().backward()
        grads.append([p.grad.clone() for p in (network.mean.weight, network.spread.weight)])
        assert torch.isfinite(loss).all()
        assert set(figures) == {"log_snr", "error", "bound"}
    assert torch.equal(grads[0][0], grads[1][0])
    assert not grads[0][1].any()
    assert torch.isfinite(grads[1][1]).all()
    assert grads[1][1].abs().max() > 0


@pytest.mark.parametrize("index", [2, 5, 9])
def test_the_variance_learns_the_known_posterior(index):
    """For Gaussian data p(x_s | x_t) has variance lag + share^2 Var[x_0 | x_t]; the bound is least just there."""
    var, steps, process = 0.3, 10, Gaussian(Linear(), 0.55)
    exact = GaussianMixture(process, torch.zeros(1, 1), torch.tensor([[var]]))
    bound, x0 = (
        Bound(steps),
        var**0.5 * Noise(0, 1).normal(torch.empty(1, 40_000, dtype=torch.float64))[0][:, None],
    )
    eps = Noise(1, 1).normal(x0.T)[0][:, None]
    at = torch.full((len(x0),), index)

    def loss(v):
        denoiser = Says(exact, variance=torch.tensor(v, dtype=torch.float64))
        return float(bound.term(denoiser, x0, None, at, eps)[0].mean())

    best = optimize.minimize_scalar(loss, bounds=(-1, 1), method="bounded", options={"xatol": 1e-4}).x
    t, s = process.level(index / steps), process.level((index - 1) / steps)
    chain = t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2
    lag, share = s.sigma**2 * chain / t.sigma**2, s.alpha * chain / t.sigma**2
    known = lag + share**2 * var * t.sigma**2 / (var * t.alpha**2 + t.sigma**2)
    weight = (best + 1) / 2
    assert chain**weight * lag ** (1 - weight) == pytest.approx(known, rel=0.01)


def test_the_hybrid_needs_a_learned_variance():
    denoiser = Denoiser(nn.Identity(), Gaussian(Flow()))
    with pytest.raises(RecipeError, match="learned_variance = true"):
        Hybrid()(denoiser, {"x": torch.zeros(2, 4)}, BatchNoise(0, 0))
