"""Denoisers: the exact one against Tweedie's formula, preconditioning against EDM's, guidance against two calls."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sfumato.denoisers import ClassifierFree, Denoiser, GaussianMixture, check_denoiser, nothing
from sfumato.errors import SolverError
from sfumato.noise import Noise
from sfumato.processes import (
    EDM,
    PARAMETERISATIONS,
    VE,
    Cosine,
    Flow,
    Gaussian,
    LawBroken,
    Linear,
    SubVP,
    ZeroTerminalSNR,
)

SCHEDULES = [Flow(), Linear(), Cosine(), SubVP(), EDM(), ZeroTerminalSNR()]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)


def mixture(process: Gaussian, components: int = 3, dim: int = 2, seed: int = 0) -> GaussianMixture:
    generator = torch.Generator().manual_seed(seed)
    factors = 0.6 * torch.randn(components, dim, dim, generator=generator, dtype=torch.float64)
    covariances = factors @ factors.mT + 0.05 * torch.eye(dim)
    means = torch.randn(components, dim, generator=generator, dtype=torch.float64)
    weights = 0.2 + torch.rand(components, generator=generator, dtype=torch.float64)
    return GaussianMixture(process, means, covariances, weights)


class Small(nn.Module):
    """A network that uses all it is given, and counts how often it is called."""

    def __init__(self, dim: int = 4, classes: int = 3, out: int = 1):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(dim, out * dim, generator=generator))
        self.table = nn.Parameter(torch.randn(classes + 1, dim, generator=generator))
        self.calls, self.seen = 0, None

    def forward(self, x, noise_level, condition=None):
        self.calls += 1
        self.seen = (x, noise_level)
        if condition is not None and "label" in condition:
            x = x + self.table[condition["label"]]
        return torch.tanh(x @ self.weight) + noise_level[:, None]


# -- the exact denoiser ----------------------------------------------------------------------------------------------


@each_schedule
@settings(max_examples=10)
@given(t=st.floats(0.02, 0.98), seed=st.integers(0, 999), label=st.sampled_from([None, 0, 1, 2, 3]))
def test_the_mixture_obeys_tweedie(schedule, t, seed, label):
    """E[x_0 | x_t] = (x_t + sigma^2 score) / alpha, with the score by automatic differentiation of log p_t."""
    model = mixture(Gaussian(schedule), seed=seed)
    condition = None if label is None else {"label": torch.full((5,), label)}
    level = schedule.level(t)
    x_t = (1 + level.sigma) * Noise(seed, 5).normal(torch.empty(5, 2, dtype=torch.float64))
    x_t.requires_grad_()
    (score,) = torch.autograd.grad(model.log_density(x_t, t, condition).sum(), x_t)
    prediction = model(x_t.detach(), t, condition)
    want = (x_t.detach() + level.sigma**2 * score) / level.alpha
    scale = max(1.0, level.sigma / level.alpha)
    assert float((prediction.x0 - want).abs().max()) < 1e-9 * scale**2
    assert torch.allclose(prediction.to("score"), score, rtol=1e-6, atol=1e-8)


@each_schedule
def test_the_mixtures_density_is_that_of_torch(schedule):
    model = mixture(Gaussian(schedule))
    level = schedule.level(0.4)
    covariances = model.basis @ torch.diag_embed(model.eigenvalues) @ model.basis.mT
    components = torch.distributions.MultivariateNormal(
        level.alpha * model.means,
        level.alpha**2 * covariances + level.sigma**2 * torch.eye(2, dtype=torch.float64),
    )
    whole = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(model.weights), components)
    x = torch.randn(20, 2, dtype=torch.float64)
    assert torch.allclose(model.log_density(x, 0.4), whole.log_prob(x), rtol=1e-9)


@each_schedule
def test_a_label_leaves_one_component(schedule):
    process = Gaussian(schedule)
    model = mixture(process)
    x = torch.randn(6, 2, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 3, 3])  # 3: none
    together = model(x, 0.5, {"label": labels}).x0
    covariances = model.basis @ torch.diag_embed(model.eigenvalues) @ model.basis.mT
    for i, label in enumerate(labels.tolist()):
        single = (
            model
            if label == 3
            else GaussianMixture(process, model.means[label : label + 1], covariances[label : label + 1])
        )
        assert torch.allclose(single(x[i : i + 1], 0.5).x0, together[i : i + 1], rtol=1e-12, atol=1e-12)


def test_the_ends_are_ordinary_points():
    model = mixture(Gaussian(Cosine()))
    x = torch.randn(4, 2, dtype=torch.float64)
    assert torch.allclose(model(x, 0.0).x0, x), "without noise x_0 is seen"
    assert torch.allclose(model(x, 1.0).x0, (model.weights @ model.means).expand(4, 2)), (
        "without signal it is guessed"
    )
    rows = model(x, torch.tensor([0.0, 0.3, 0.7, 1.0])).x0
    for i, t in enumerate((0.0, 0.3, 0.7, 1.0)):
        assert torch.allclose(rows[i], model(x[i : i + 1], float(torch.tensor(t))).x0[0], atol=1e-6)


def test_the_mixtures_samples_have_its_moments():
    model = mixture(Gaussian(Flow()))
    x = model.sample(Noise(4, 20_000))
    mean = model.weights @ model.means
    covariances = model.basis @ torch.diag_embed(model.eigenvalues) @ model.basis.mT
    offset = model.means - mean
    whole = torch.einsum("k,kij->ij", model.weights, covariances + offset[:, :, None] * offset[:, None, :])
    assert torch.allclose(x.mean(0), mean, atol=5 * float(whole.diagonal().max() / 20_000) ** 0.5)
    assert torch.allclose(x.T.cov(), whole, atol=0.06)
    assert torch.equal(model.sample(Noise(4, [77]))[0], x[77])


@pytest.mark.parametrize(
    ("means", "covariances", "weights"),
    [
        (torch.zeros(2, 3), torch.ones(3, 3), None),
        (torch.zeros(2, 3), -torch.ones(2, 3), None),
        (torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([1.0, -0.5])),
        (torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([1.0])),
    ],
)
def test_an_impossible_mixture_is_refused(means, covariances, weights):
    with pytest.raises(SolverError, match="covariances"):
        GaussianMixture(Gaussian(Flow()), means, covariances, weights)


# -- network + process -----------------------------------------------------------------------------------------------


@given(sigma=st.floats(0.01, 50), sigma_data=st.floats(0.1, 2))
def test_edm_preconditioning_is_the_papers(sigma, sigma_data):
    """Karras et al. 2022, table 1: D = c_skip x + c_out F(c_in x; ln(sigma) / 4)."""
    network = Small().double()
    process = Gaussian(VE(), sigma_data)
    level = process.schedule.level_at(-2 * math.log(sigma))
    x = torch.randn(5, 4, dtype=torch.float64)
    total = sigma**2 + sigma_data**2
    c_skip, c_out, c_in = sigma_data**2 / total, sigma * sigma_data / total**0.5, 1 / total**0.5
    f = network(c_in * x, torch.full((5,), math.log(sigma) / 4, dtype=torch.float64))
    want = c_skip * x + c_out * f
    got = Denoiser(network, process, "edm")(x, level)
    assert torch.allclose(got.x0, want, rtol=1e-9, atol=1e-10)


@each_schedule
def test_the_network_sees_unit_inputs_and_the_log_snr(schedule):
    network, process = Small(), Gaussian(schedule, 0.5)
    denoiser = Denoiser(network, process, "v")
    x0 = 0.5 * Noise(0, 4000).normal(torch.empty(4000, 4))
    for t in (0.0, 0.2, 0.9, 1.0):
        level = process.level(t)
        denoiser(process.corrupt(x0, level, Noise(1, 4000).normal(x0)), t)
        x, noise_level = network.seen
        assert float(x.std()) == pytest.approx(1, abs=0.03)
        want = -max(-20.0, min(20.0, level.log_snr)) / 8
        assert noise_level.tolist() == pytest.approx([want] * 4000, abs=1e-6)
        assert noise_level.dtype == torch.float32


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_every_form_of_time_gives_the_same(parameterisation):
    denoiser = Denoiser(Small(), Gaussian(Linear(), 0.7), parameterisation)
    check_denoiser(denoiser, torch.randn(6, 4))
    check_denoiser(denoiser, torch.randn(6, 4), {"label": torch.tensor([0, 1, 2, 3, 0, 1])})
    x = torch.randn(3, 4)
    rows = denoiser(x, torch.tensor([0.2, 0.5, 0.8])).x0
    for i, t in enumerate((0.2, 0.5, 0.8)):
        assert torch.allclose(rows[i : i + 1], denoiser(x[i : i + 1], t).x0, rtol=1e-4, atol=1e-5)


class Mean(Small):
    def forward(self, x, noise_level, condition=None):
        return super().forward(x - x.mean(0), noise_level, condition)


class Broken(Small):
    def forward(self, x, noise_level, condition=None):
        return super().forward(x, noise_level, condition) * math.nan


class FirstLevel(Denoiser):
    """Reads a tensor of times as its first entry, wrongly."""

    def forward(self, x_t, t, condition=None):
        return super().forward(x_t, 0.4 if isinstance(t, torch.Tensor) else t, condition)


@pytest.mark.parametrize(
    ("denoiser", "words"),
    [
        (Denoiser(Mean(), Gaussian(Flow())), "alone"),
        (Denoiser(Broken(), Gaussian(Flow())), "finite"),
        (FirstLevel(Small(), Gaussian(Flow())), "time given as Tensor"),
    ],
)
def test_check_denoiser_catches_planted_defects(denoiser, words):
    with pytest.raises(LawBroken, match=words):
        check_denoiser(denoiser, torch.randn(6, 4))


def test_what_a_network_says_wrongly_is_refused():
    with pytest.raises(SolverError, match=r"\(5, 8\) of \(5, 4\)"):
        Denoiser(Small(out=2), Gaussian(Flow()))(torch.randn(5, 4), 0.5)
    with pytest.raises(SolverError, match="did you mean 'velocity'"):
        Denoiser(Small(), Gaussian(Flow()), "velocty")
    learned = Denoiser(Small(out=2), Gaussian(Flow()), learned_variance=True)(torch.randn(5, 4), 0.5)
    assert learned.value.shape == learned.variance.shape == (5, 4)
    assert Denoiser(Small(), Gaussian(Flow()))(torch.randn(5, 4), 0.5).variance is None


def test_half_precision_ends_at_the_network():
    class Half(Small):
        def forward(self, x, noise_level, condition=None):
            return super().forward(x, noise_level, condition).bfloat16()

    prediction = Denoiser(Half(), Gaussian(Flow()))(torch.randn(5, 4), 0.5)
    assert prediction.x0.dtype == prediction.value.dtype == torch.float32


# -- guidance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
@pytest.mark.parametrize("form", ["float", "tensor"])
@pytest.mark.parametrize("weight", [-0.5, 0.0, 1.0, 3.0])
def test_guidance_is_the_two_calls_mixed(parameterisation, form, weight):
    process = Gaussian(Linear(), 0.7)
    denoiser = Denoiser(Small().double(), process, parameterisation)
    x = torch.randn(4, 4, dtype=torch.float64)
    t = 0.6 if form == "float" else torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)
    condition = {"label": torch.tensor([0, 1, 2, 3])}
    with_label = denoiser(x, t, condition)
    without = denoiser(x, t, {"label": torch.full((4,), 3)})
    got = ClassifierFree(denoiser, weight, 3)(x, t, condition)
    for kind in ("x0", "eps", "score"):
        want = without.to(kind) + weight * (with_label.to(kind) - without.to(kind))
        assert torch.allclose(got.to(kind), want, rtol=1e-9, atol=1e-9)
    assert torch.allclose(got.x0[3], without.x0[3]), "where there is no label there is nothing to guide by"
    if weight == 1:
        assert torch.equal(got.value, with_label.value)
    if weight == 0:
        assert torch.allclose(got.value, without.value)


def test_guidance_asks_the_network_once():
    network = Small()
    guided = ClassifierFree(Denoiser(network, Gaussian(Flow())), 2.0, 3)
    x, condition = torch.randn(4, 4), {"label": torch.zeros(4, dtype=torch.long)}
    for call, rows in ((lambda: guided(x, 0.5, condition), 8), (lambda: guided(x, 0.5), 4)):
        network.calls = 0
        call()
        assert network.calls == 1
        assert len(network.seen[0]) == rows
    check_denoiser(guided, x, condition)


def test_guidance_keeps_the_conditional_variance():
    denoiser = Denoiser(Small(out=2), Gaussian(Flow()), learned_variance=True)
    x, condition = torch.randn(4, 4), {"label": torch.tensor([0, 1, 2, 0])}
    got = ClassifierFree(denoiser, 2.0, 3)(x, 0.5, condition)
    assert torch.allclose(got.variance, denoiser(x, 0.5, condition).variance, atol=1e-6)


def test_guidance_needs_a_finite_weight():
    with pytest.raises(SolverError, match="finite"):
        ClassifierFree(Denoiser(Small(), Gaussian(Flow())), math.nan, 3)


def test_saying_nothing():
    text = torch.randn(2, 5, 3)
    empty = nothing({"label": torch.tensor([0, 1]), "text": text, "picture": torch.ones(2, 1, 4, 4)}, 7)
    assert empty["label"].tolist() == [7, 7]
    assert not empty["text_mask"].any()
    assert empty["text_mask"].shape == (2, 5)
    assert not empty["text"].any()
    assert not empty["picture"].any()
    assert nothing(None, 3) == {}
