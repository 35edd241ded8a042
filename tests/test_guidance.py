"""Guidance against what is known: exact mixtures, tilted Gaussians, two calls, finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from guidance_cases import points
from sfumato.denoisers import (
    ClassifierFree,
    Denoiser,
    GaussianMixture,
    Guidance,
    ScoreGuided,
    check_denoiser,
)
from sfumato.denoisers.guidance import thresholded
from sfumato.errors import SolverError
from sfumato.noise import Noise
from sfumato.processes import Flow, Gaussian, Linear, Prediction
from sfumato.solvers import AdamsMoulton, AngleGrid, DPMpp2M, log_likelihood, sample
from test_denoisers import SCHEDULES, Small, mixture

each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)

LABELS = {"label": torch.tensor([0, 1, 2, 0, 1])}


def network_denoiser(process=None, dim: int = 4) -> tuple[Small, Denoiser]:
    network = Small(dim).double()
    return network, Denoiser(network, process or Gaussian(Linear(), 0.7), "v")


def gaussians(schedule, count: int = 3) -> tuple[GaussianMixture, torch.Tensor, torch.Tensor]:
    """One Gaussian a label, and one that stands for no label."""
    generator = torch.Generator().manual_seed(3)
    factors = 0.5 * torch.randn(count, 2, 2, generator=generator, dtype=torch.float64)
    covariances = factors @ factors.mT + 0.2 * torch.eye(2)
    means = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return GaussianMixture(Gaussian(schedule), means, covariances), means, covariances


class Chosen(nn.Module):
    """A model whose answer without a label is that of its first component, so that every factor is one Gaussian."""

    def __init__(self, model: GaussianMixture):
        super().__init__()
        self.model, self.process, self.calls = model, model.process, 0

    def forward(self, x_t, t, condition=None):
        self.calls += 1
        label = torch.full((len(x_t),), 3) if condition is None else condition["label"]
        return self.model(x_t, t, {"label": torch.where(label == 3, 0, label)})


# -- the law ----------------------------------------------


@each_schedule
@settings(max_examples=4)
@given(w=st.floats(-1, 2), also=st.floats(-0.5, 0.5), t=st.floats(0.05, 0.95))
def test_guidance_and_composition_are_the_tilted_gaussian(schedule, w, also, t):
    """p(x|b)^(1-w-v) p(x|1)^w p(x|2)^v of Gaussians is one: its score, written out, is what is asked for."""
    model, means, covariances = gaussians(schedule)
    level = schedule.level(t)
    x = points() * (1 + level.sigma)
    guided = ClassifierFree(
        Chosen(model), Guidance(w, also=((also, {"label": 2}),)), 3, also=[{"label": torch.tensor([2])}]
    )
    got = guided(x, t, {"label": torch.ones(5, dtype=torch.long)})
    inverse = torch.linalg.inv(
        level.alpha**2 * covariances + level.sigma**2 * torch.eye(2, dtype=torch.float64)
    )
    powers = torch.tensor([1 - w - also, w, also], dtype=torch.float64)
    precision = torch.einsum("k,kij->ij", powers, inverse)
    linear = torch.einsum("k,kij,kj->i", powers, inverse, level.alpha * means)
    want = (x + level.sigma**2 * (linear - x @ precision)) / level.alpha
    size = max(1.0, level.sigma / level.alpha) ** 2 * (1 + abs(w))
    assert float((got.x0 - want).abs().max()) < 1e-8 * size


@pytest.mark.parametrize("form", [0.6, torch.tensor([0.1, 0.4, 0.6, 0.8, 0.9])])
def test_weight_1_is_the_conditional_and_0_the_unconditional_bit_for_bit(form):
    network, denoiser = network_denoiser()
    x = points(dim=4)
    plain = denoiser(x, form, LABELS)
    for guidance in ("1", "1:rescale=1", "1:parallel=0,norm=.1", "1:threshold=.5", "1:interval=.1..1"):
        assert torch.equal(ClassifierFree(denoiser, guidance, 3)(x, form, LABELS).value, plain.value)
    exact = mixture(Gaussian(Linear()))
    label = {"label": torch.tensor([0, 1, 2, 0, 1])}
    at_0 = ClassifierFree(exact, 0.0, 3)(points(), 0.5, label).value
    assert torch.equal(at_0, exact(points(), 0.5).value)
    assert network.calls == 6


@pytest.mark.parametrize("kind", ["rescale=.7", "parallel=.2,norm=.3", "threshold=.9", ""])
def test_outside_the_interval_it_is_the_plain_conditional_bit_for_bit_at_its_cost(kind):
    network, denoiser = network_denoiser(Gaussian(Flow()))
    guided = ClassifierFree(denoiser, f"4:interval=0.5..2,{kind}".rstrip(","), 3)
    x = points(dim=4)
    for t, there in ((0.2, False), (1 / 3, False), (0.5, True), (2 / 3, True), (0.7, False), (1.0, False)):
        network.calls = 0
        got = guided(x, t, LABELS).value
        assert (network.calls, len(network.seen[0])) == (1, 10 if there else 5)
        assert torch.equal(got, denoiser(x, t, LABELS).value) != there
    mixed = torch.tensor([0.2, 0.5, 0.7, 0.6, 0.9])
    got, plain = guided(x, mixed, LABELS).x0, denoiser(x, mixed, LABELS).x0
    alone = [
        guided(x[i : i + 1], float(mixed[i].double()), {"label": LABELS["label"][i : i + 1]}).x0
        for i in range(5)
    ]
    assert torch.allclose(got, torch.cat(alone), atol=1e-6)
    assert [bool((got[i] - plain[i]).abs().max() > 1e-6) for i in range(5)] == [
        False,
        True,
        False,
        True,
        False,
    ]


# -- repairs ----------------------------------------------


def test_rescaling_gives_the_conditionals_deviation():
    _, denoiser = network_denoiser()
    x = points(dim=4)
    own, plain = denoiser(x, 0.6, LABELS).x0, ClassifierFree(denoiser, 4.0, 3)(x, 0.6, LABELS).x0
    full = ClassifierFree(denoiser, "4:rescale=1", 3)(x, 0.6, LABELS).x0
    half = ClassifierFree(denoiser, "4:rescale=.5", 3)(x, 0.6, LABELS).x0
    assert torch.allclose(full.std(1), own.std(1))
    assert not torch.allclose(plain.std(1), own.std(1), rtol=0.05)
    assert torch.allclose(half, (full + plain) / 2)


def test_projection_removes_the_part_along_the_conditional():
    _, denoiser = network_denoiser()
    x = points(dim=4)
    own = denoiser(x, 0.6, LABELS).x0
    push = ClassifierFree(denoiser, "4", 3)(x, 0.6, LABELS).x0 - own
    across = ClassifierFree(denoiser, "4:parallel=0", 3)(x, 0.6, LABELS).x0 - own
    assert float((push * own).detach().sum(1).abs().max()) > 1e-3
    assert float((across * own).sum(1).abs().max()) < 1e-10
    along = push - across
    assert torch.allclose(along, (along * own).sum(1, keepdim=True) * own / own.square().sum(1, keepdim=True))
    half = ClassifierFree(denoiser, "4:parallel=.5", 3)(x, 0.6, LABELS).x0 - own
    assert torch.allclose(half, across + along / 2)


def test_the_norm_bounds_each_sample_and_leaves_short_differences():
    _, denoiser = network_denoiser()
    x = points(dim=4)
    own = denoiser(x, 0.6, LABELS).x0
    free = ClassifierFree(denoiser, "3", 3)(x, 0.6, LABELS).x0 - own
    bound = float(free.norm(dim=1).median()) / 2
    short = ClassifierFree(denoiser, Guidance(3.0, norm=bound), 3)(x, 0.6, LABELS).x0 - own
    assert torch.allclose(short.norm(dim=1), free.norm(dim=1).clamp(max=2 * bound))
    assert torch.allclose(short / short.norm(dim=1, keepdim=True), free / free.norm(dim=1, keepdim=True))


@given(quantile=st.floats(0.5, 1), size=st.floats(0.1, 5), seed=st.integers(0, 99))
def test_thresholding_brings_a_quantile_to_the_edge(quantile, size, seed):
    x0 = size * points(seed, 3, 50)
    got = thresholded(x0, quantile)
    level = x0.abs().quantile(quantile, dim=1)
    assert float(got.abs().max()) <= 1
    for before, after, s in zip(x0, got, level, strict=True):
        if s <= 1:  # nothing to bring back: plain clipping
            assert torch.equal(after, before.clamp(-1, 1))
        else:
            inside = before.abs() <= s
            assert torch.allclose(after[inside] * s, before[inside])
            assert (after[~inside].abs() == 1).all()
            assert float((after.abs() == 1).double().mean()) <= 1 - quantile + 1 / 50 + 1e-9


# -- bases and terms ----------------------------------------------


def test_a_negative_takes_the_place_of_nothing_and_terms_add_up_in_one_call():
    network, denoiser = network_denoiser()
    x, one = points(dim=4), lambda label: {"label": torch.full((5,), label)}
    own, base, other = (denoiser(x, 0.6, c).x0 for c in (LABELS, one(2), one(1)))
    guidance = Guidance(2.5, negative={"label": 2}, also=((-0.5, {"label": 1}),))
    row = [{"label": torch.tensor([k])} for k in (2, 1)]
    guided = ClassifierFree(denoiser, guidance, 3, negative=row[0], also=row[1:])
    network.calls = 0
    got = guided(x, 0.6, LABELS).x0
    assert (network.calls, len(network.seen[0])) == (1, 15)
    assert torch.allclose(got, base + 2.5 * (own - base) - 0.5 * (other - base))
    # without a condition: away from the negative, and terms alone, where two branches that say nothing are one
    nothing = denoiser(x, 0.6, one(3)).x0
    away = ClassifierFree(denoiser, Guidance(2.0, negative={"label": 2}), 3, negative=row[0])
    assert torch.allclose(away(x, 0.6).x0, 2 * nothing - base)
    both = ClassifierFree(denoiser, Guidance(1, also=((1.0, {"label": 2}), (1.0, {"label": 1}))), 3, also=row)
    network.calls = 0
    assert torch.allclose(both(x, 0.6).x0, base + other - nothing)
    assert (network.calls, len(network.seen[0])) == (1, 15)
    check_denoiser(guided, x, LABELS)
    check_denoiser(both, x)


def test_texts_of_different_lengths_share_a_call():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.process = Gaussian(Flow())

        def forward(self, x_t, t, condition=None):
            text, mask = condition["text"], condition["text_mask"]
            said = torch.where(mask[..., None], text, torch.zeros_like(text)).sum(1)
            return Prediction(x_t + said, "x0", x_t, self.process.level(t), self.process)

    x, long, short = points(dim=3), torch.randn(5, 6, 3).double(), torch.randn(1, 2, 3).double()
    guidance = Guidance(2.0, negative={"text": "blurry"})
    got = ClassifierFree(Reads(), guidance, 0, negative={"text": short})(x, 0.5, {"text": long}).x0
    assert torch.allclose(got, x + 2 * long.sum(1) - short.sum(1))


def test_a_weak_model_that_is_the_strong_one_changes_nothing_at_any_weight():
    _, strong = network_denoiser()
    _, weak = network_denoiser()
    x, plain = points(dim=4), strong(points(dim=4), 0.6, LABELS)
    for weight in (-2.0, 0.0, 3.0, 100.0):
        got = ClassifierFree(strong, weight, 3, weak=weak)(x, 0.6, LABELS)
        assert torch.equal(got.value, plain.value)
    with torch.no_grad():
        weak.network.weight.mul_(0.5)
    worse = weak(x, 0.6, LABELS).x0
    got = ClassifierFree(strong, 2.0, 3, weak=weak)(x, 0.6, LABELS).x0
    assert torch.allclose(got, worse + 2 * (plain.x0 - worse))
    with pytest.raises(SolverError, match="same process"):
        ClassifierFree(strong, 2.0, 3, weak=network_denoiser(Gaussian(Flow()))[1])


# -- scores ----------------------------------------------


@each_schedule
@given(t=st.floats(0.05, 0.95), seed=st.integers(0, 99))
@settings(max_examples=4)
def test_the_exact_classifier_makes_the_conditional(schedule, t, seed):
    model = mixture(Gaussian(schedule), seed=seed % 5)

    def log_posterior(x_t, level, condition):
        return model.log_density(x_t, level, condition) - model.log_density(x_t, level)

    x, level = points(seed), schedule.level(t)
    got = ScoreGuided(model, log_posterior, of="state", hidden=("label",))(x, t, LABELS).x0
    want = model(x, t, LABELS).x0
    assert float((got - want).abs().max()) < 1e-7 * max(1, level.sigma / level.alpha) ** 2


@each_schedule
@given(t=st.floats(0.05, 0.95), tilt=st.tuples(st.floats(-2, 2), st.floats(-2, 2)))
@settings(max_examples=4)
def test_a_linear_wish_tilts_a_gaussian_exactly(schedule, t, tilt):
    """p(x_0 | x_t) e^(b x_0) of a Gaussian has the mean E[x_0 | x_t] + Cov[x_0 | x_t] b."""
    _, means, covariances = gaussians(schedule, 1)
    model, b = GaussianMixture(Gaussian(schedule), means, covariances), torch.tensor(tilt).double()
    level, x = schedule.level(t), points()
    posterior = torch.linalg.inv(
        torch.linalg.inv(covariances[0])
        + (level.alpha / level.sigma) ** 2 * torch.eye(2, dtype=torch.float64)
    )
    got = ScoreGuided(model, lambda x0, level, condition: x0 @ b)(x, t).x0
    assert torch.allclose(got, model(x, t).x0 + posterior @ b, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("of", ["state", "x0"])
def test_the_derivative_is_that_of_finite_differences_and_one_call_a_step(of):
    network, denoiser = network_denoiser(Gaussian(Flow()))
    x, h, level = points(dim=4), 1e-5, Flow().level(0.6)

    def score(z, level, condition):
        return torch.sin(z).sum(1) + level.sigma * z[:, 0] ** 3

    def f(x_t):
        return score(denoiser(x_t, level, LABELS).x0 if of == "x0" else x_t, level, LABELS)

    steps = h * torch.eye(4, dtype=torch.float64)
    slope = torch.stack([(f(x + e) - f(x - e)) / (2 * h) for e in steps], 1)
    plain = denoiser(x, level, LABELS).x0
    network.calls = 0
    got = ScoreGuided(denoiser, score, 0.7, of=of)(x, level, LABELS)
    assert network.calls == 1
    assert torch.allclose(got.x0, plain + 0.7 * level.sigma**2 / level.alpha * slope, rtol=1e-7, atol=1e-8)
    assert not got.x0.requires_grad
    check_denoiser(ScoreGuided(denoiser, score, of=of), x, LABELS)


def test_scores_that_cannot_be_are_refused():
    _, denoiser = network_denoiser(Gaussian(Flow()))
    x = points(dim=4)
    for score, t, words in (
        (lambda z, level, condition: z.sum(), 0.5, r"\(5,\)"),
        (lambda z, level, condition: z.detach().sum(1), 0.5, "without a derivative"),
        (lambda z, level, condition: (z * math.inf).sum(1), 0.5, "not finite"),
        (lambda z, level, condition: z.sum(1), 1.0, "alpha = 0"),
    ):
        with pytest.raises(SolverError, match=words):
            ScoreGuided(denoiser, score, of="state")(x, t)
    with pytest.raises(SolverError, match="scale"):
        ScoreGuided(denoiser, score, math.inf)
    with pytest.raises(SolverError, match="not a likelihood"):
        log_likelihood(ScoreGuided(denoiser, score), x)


def test_sampling_composes_all_of_them():
    """Interval, negative and a score around an exact mixture, solved; sample 3 alone is sample 3 of five."""
    model = mixture(Gaussian(Flow()))
    guided = ClassifierFree(
        model,
        Guidance(2.0, interval=(0.1, 5), negative={"label": 1}),
        3,
        negative={"label": torch.tensor([1])},
    )
    wished = ScoreGuided(guided, lambda x0, level, condition: x0[:, 0])
    for solver, grid in ((DPMpp2M(), AngleGrid()), (AdamsMoulton(), AngleGrid())):
        levels, like = grid.levels(model.process, 6), torch.empty(0, dtype=torch.float64)
        label = {"label": torch.zeros(5, dtype=torch.long)}
        ask = {"solver": solver, "levels": levels, "like": like}
        five = sample(wished, Noise(1, 5), (2,), condition=label, **ask)
        third = sample(wished, Noise(1, [3]), (2,), condition={"label": label["label"][:1]}, **ask)
        assert torch.allclose(five[3:4], third, atol=1e-10)
        unwished = sample(guided, Noise(1, 5), (2,), condition=label, **ask)
        assert float((five - unwished)[:, 0].mean()) > 0.05
