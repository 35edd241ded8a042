"""Objectives: minimised by the truth, one number in every row, and a bound that bounds and tightens."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from objective_cases import Says
from sfumato.denoisers import Denoiser, GaussianMixture
from sfumato.errors import RecipeError
from sfumato.noise import BatchNoise, Noise
from sfumato.objectives import (
    SNR,
    TIMES,
    WEIGHTINGS,
    Bound,
    Denoising,
    EDMWeighting,
    LogitNormal,
    LogNormal,
    MinSNR,
    Plain,
    SigmoidWeighting,
    Uniform,
    build_objective,
    build_times,
    build_weighting,
    drop_condition,
)
from sfumato.processes import (
    EDM,
    PARAMETERISATIONS,
    Cosine,
    Flow,
    Gaussian,
    Linear,
    ZeroTerminalSNR,
)

WEIGHTS = [Plain(space) for space in PARAMETERISATIONS] + [
    SNR(),
    SNR(floor=0.0),
    MinSNR(),
    EDMWeighting(),
    SigmoidWeighting(),
    SigmoidWeighting(bias=-3.0),
]

each_weighting = pytest.mark.parametrize(
    "weighting", WEIGHTS, ids=lambda w: "-".join(map(str, w.to_json().values()))
)


def two_hills(process):
    return GaussianMixture(
        process,
        torch.tensor([[-0.6, 0.2], [0.5, -0.1]]),
        torch.tensor([[0.04, 0.01], [0.02, 0.09]]),
        torch.tensor([1.0, 2.0]),
    )


# -- the denoising loss ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Flow(), Linear(), EDM()], ids=lambda s: s.kind)
@each_weighting
def test_the_exact_denoiser_has_the_least_loss(schedule, weighting):
    exact = two_hills(Gaussian(schedule, 0.6))
    batch, noise = {"x": exact.sample(Noise(0, 3000))}, BatchNoise(1, 0)
    loss = Denoising(
        weighting, LogNormal(-0.3, 0.4)
    )  # a narrow band, that no weight of 1 / sigma^2 drowns the rest
    best, _ = loss(exact, batch, noise)
    changes = [
        lambda x: x + 0.15,
        lambda x: 0.8 * x,
        lambda x: x - 0.15 * torch.sign(x),
        lambda x: x + 0.3 * torch.sin(5 * x),
    ]
    for change in changes:
        worse, _ = loss(Says(exact, change), batch, noise)
        gap = worse - best
        assert float(gap.mean()) > 3 * float(gap.std()) / len(gap) ** 0.5


@pytest.mark.parametrize("schedule", [Flow(), Linear(), Cosine(), EDM()], ids=lambda s: s.kind)
@each_weighting
def test_a_loss_is_one_number_in_every_row_and_that_of_its_paper(schedule, weighting):
    process = Gaussian(schedule, 0.6)
    exact = two_hills(process)
    x0, noise = exact.sample(Noise(0, 200)), BatchNoise(5, 3)
    objective = Denoising(weighting, LogNormal(-0.5, 1.0))
    losses, errors = [], []
    for kind in PARAMETERISATIONS:
        loss, figures = objective(Says(exact, lambda x: 0.9 * x + 0.02, kind), {"x": x0}, noise)
        losses.append(loss)
        errors.append(figures["error"])
    for loss, error in zip(losses, errors, strict=True):
        assert torch.allclose(loss, losses[0], rtol=1e-6)
        assert torch.allclose(error, errors[0], rtol=1e-6)
    # the same written by hand, with the draws made again
    level = process.level(objective.times.sample(x0, schedule, noise, 1))
    alpha, sigma = level.alpha[:, None], level.sigma[:, None]
    eps = noise.normal(x0)
    x_t = alpha * x0 + sigma * eps
    guess = 0.9 * exact(x_t, level).x0 + 0.02
    eps_guess = (x_t - alpha * guess) / sigma
    clean, noisy = (x0 - guess) ** 2, (eps - eps_guess) ** 2
    snr, ratio, sd = (alpha / sigma) ** 2, sigma / alpha, 0.6
    by_hand = {
        "snr": torch.maximum(snr, torch.tensor(getattr(weighting, "floor", 0.0))) * clean,
        "min-snr": torch.minimum(snr, torch.tensor(5.0)) * clean,
        "edm": (ratio**2 + sd**2) / (ratio * sd) ** 2 * clean,
        "sigmoid": 1 / (1 + torch.exp(snr.log() - getattr(weighting, "bias", 0.0))) * noisy,
    }
    spaces = {
        "x0": clean,
        "eps": noisy,
        "score": noisy / sigma**2,
        "v": (alpha * (eps - eps_guess) - sigma * (x0 - guess)) ** 2,
    }
    assert torch.allclose(errors[0], spaces["v"].mean(1), rtol=1e-6)
    want = spaces.get(weighting.space) if weighting.kind == "plain" else by_hand[weighting.kind]
    if want is None:  # velocity and edm: d x_t / dt, and F = (D - c_skip x) / c_out
        step = 1e-6
        a, s = (
            (after - before)[:, None] / (2 * step)
            for after, before in zip(
                schedule.alpha_sigma(level.time + step), schedule.alpha_sigma(level.time - step), strict=True
            )
        )
        total = (ratio**2 + sd**2) / (ratio * sd) ** 2
        want = (
            (a * (x0 - guess) + s * (eps - eps_guess)) ** 2
            if weighting.space == "velocity"
            else total * clean
        )
    assert torch.allclose(losses[0], want.mean(1), rtol=1e-4 if weighting.space == "velocity" else 1e-6)


def test_at_alpha_zero_a_loss_in_its_own_row_is_finite():
    """A row's error is its own error, also where it says nothing of x_0."""
    process = Gaussian(Cosine())
    level = process.level(torch.tensor([0.5, 1.0]))
    assert Plain("eps").in_row("eps", level, process).tolist() == [1, 1]
    assert torch.isfinite(Plain("velocity").in_row("v", level, process)).all()


# -- times -----------------------------------------------------------------------------------------------------------


def coordinate(times, schedule, t):
    """What the distribution is simple in, and its law there."""
    if isinstance(times, LogNormal):
        return -0.5 * schedule.log_snr(t), stats.norm(times.mean, times.std)
    if isinstance(times, LogitNormal):
        return torch.logit(t), stats.norm(times.mean, times.std)
    return t, stats.uniform()


@pytest.mark.parametrize("schedule", [Flow(), EDM(0.0001, 1000), ZeroTerminalSNR()], ids=lambda s: s.kind)
@pytest.mark.parametrize("kind", TIMES)
@pytest.mark.parametrize("stratified", [False, True])
def test_times_follow_their_law(schedule, kind, stratified):
    times = build_times(kind, stratified=stratified)
    if stratified:  # draws of one batch depend on each other: take one row of many batches
        t = torch.cat([times.sample(torch.empty(3, 1), schedule, BatchNoise(0, i))[1:2] for i in range(1500)])
    else:
        t = times.sample(torch.empty(5000, 1), schedule, BatchNoise(0, 0))
    value, law = coordinate(times, schedule, t)
    assert t.dtype == torch.float64
    assert stats.kstest(value.numpy(), law.cdf).pvalue > 1e-4


def test_low_discrepancy_lowers_the_variance_of_a_mean():
    def means(stratified):
        times = Uniform(stratified=stratified)
        return np.var(
            [float(times.sample(torch.empty(32, 1), Flow(), BatchNoise(1, i)).mean()) for i in range(200)]
        )

    assert means(False) == pytest.approx(1 / 12 / 32, rel=0.4)
    assert means(True) == pytest.approx(1 / 12 / 32**2, rel=0.4)  # n times less again
    one = Uniform().sample(torch.empty(32, 1), Flow(), BatchNoise(1, 0))
    assert torch.equal((one * 32).floor().sort().values, torch.arange(32.0, dtype=torch.float64)), (
        "one in each stratum"
    )
    assert not torch.equal(one, one.sort().values), "the strata are not in the data's order"


# -- conditions ------------------------------------------------------------------------------------------------------


def test_a_share_of_conditions_is_dropped():
    label = torch.arange(10_000) % 10
    picture = torch.ones(10_000, 1, 2, 2)
    noise = BatchNoise(2, 7)
    got = drop_condition({"label": label, "picture": picture}, 0.3, 10, noise)
    dropped = got["label"] == 10
    assert abs(float(dropped.double().mean()) - 0.3) < 5 * (0.21 / 10_000) ** 0.5
    assert torch.equal(got["label"][~dropped], label[~dropped])
    assert torch.equal(got["picture"].flatten(1).any(1), ~dropped), "a row says all or nothing"
    assert torch.equal(got["label"], drop_condition({"label": label}, 0.3, 10, noise)["label"])
    assert drop_condition({"label": label}, 0.0, 10, noise)["label"] is label
    assert bool((drop_condition({"label": label}, 1.0, 10, noise)["label"] == 10).all())
    assert drop_condition(None, 0.5, 10, noise) is None
    text = drop_condition({"text": torch.ones(10_000, 3, 2)}, 0.5, 0, noise)
    assert torch.equal(text["text_mask"].any(1), text["text"].flatten(1).any(1))


def test_the_dropped_label_reaches_the_network():
    seen = []

    class Listens(nn.Module):
        def forward(self, x, noise_level, condition):
            seen.append(condition["label"])
            return x

    loss = Denoising(drop=0.5, classes=3)
    loss(
        Denoiser(Listens(), Gaussian(Flow())),
        {"x": torch.zeros(1000, 2), "condition": {"label": torch.zeros(1000, dtype=torch.long)}},
        BatchNoise(0, 0),
    )
    assert set(seen[0].tolist()) == {0, 3}
    assert 400 < int((seen[0] == 3).sum()) < 600


# -- recipes ---------------------------------------------------------------------------------------------------------


def test_objectives_are_built_from_what_recipes_write():
    built = build_objective(
        weighting={"kind": "min-snr", "gamma": 3.0}, times={"kind": "log-normal"}, drop=0.1, classes=4
    )
    assert built == Denoising(MinSNR(gamma=3.0), LogNormal(), 0.1, 4)
    assert build_objective("hybrid", steps=50).bound == Bound(50)
    assert build_objective("bound", steps=50) == Bound(50)
    # what a kind adds to its base comes first when given without a name
    assert LogNormal(-0.3, 0.4) == LogNormal(mean=-0.3, std=0.4)
    assert (SNR(2.0).floor, MinSNR(3.0).gamma, SigmoidWeighting(1.0).bias, Plain("v").space) == (
        2.0,
        3.0,
        1.0,
        "v",
    )
    for weighting in WEIGHTS:
        assert build_weighting(**weighting.to_json()) == weighting
    for cls in TIMES.values():
        assert build_times(**cls().to_json()) == cls()
    assert set(WEIGHTINGS) == {"plain", "snr", "min-snr", "edm", "sigmoid"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: build_objective("denoise"), "did you mean 'denoising'"),
        (lambda: build_weighting("minsnr"), "did you mean 'min-snr'"),
        (lambda: build_weighting("min-snr", gama=1.0), "did you mean 'gamma'"),
        (lambda: build_weighting("min-snr", gamma=0.0), "gamma > 0"),
        (lambda: MinSNR(gamma=-1.0), "gamma > 0"),
        (lambda: SNR(floor=-1.0), "floor >= 0"),
        (lambda: build_weighting("plain", space="epsilon"), "did you mean 'eps'"),
        (lambda: MinSNR(space="eps"), "defined on 'x0'"),
        (lambda: build_times("lognormal"), "did you mean 'log-normal'"),
        (lambda: build_times("log-normal", std=0.0), "positive std"),
        (lambda: LogitNormal(std=-1.0), "positive std"),
        (lambda: LogitNormal(mean=math.nan), "finite mean"),
        (lambda: Denoising(drop=1.5), r"\[0, 1\]"),
        (lambda: Bound(steps=1), "at least 2 steps"),
    ],
)
def test_wrong_values_are_refused(make, words):
    with pytest.raises(RecipeError, match=words):
        make()
