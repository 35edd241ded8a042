"""Laws of editing: operators, posteriors that are known exactly, kept pixels, closed cycles, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from editing_cases import FLOW, normal, one_gaussian
from sfumato import Noise
from sfumato.denoisers import GaussianMixture
from sfumato.editing import (
    Channels,
    Clip,
    Convolution,
    FourierLines,
    Function,
    Identity,
    Jpeg,
    Linear,
    LinearOperator,
    Magnitude,
    Mask,
    MatrixFree,
    Measurement,
    Posterior,
    Quantise,
    Separable,
    Statistics,
    Windows,
    blur,
    check_operator,
    downsample,
    exact_posterior,
    grey,
    invert,
    levels_for_inversion,
    measure,
    radon,
    sample_posterior,
    slerp,
    twisted,
)
from sfumato.processes import EDM, VE, Cosine, Gaussian
from sfumato.processes.laws import LawBroken
from sfumato.solvers import AdamsMoulton, Ancestral, AngleGrid, Heun, Steering, integrate, sample

SHAPE = (3, 8, 12)

HALF = torch.zeros(1, 8, 12, dtype=torch.bool)

HALF[..., :5] = True

OPERATORS = {
    "identity": Identity(SHAPE),
    "mask": Mask(HALF, SHAPE),
    "matrix": Linear(normal(50, 288), SHAPE),
    "matrix by channel": Linear(normal(7, 96), SHAPE),
    "channels": Channels(normal(2, 3), SHAPE),
    "grey": grey(SHAPE),
    "separable": Separable(normal(5, 8), normal(6, 12), SHAPE),
    "mean": downsample(SHAPE, 4),
    "bicubic": downsample(SHAPE, 2, "bicubic"),
    "blur": blur(SHAPE, 0.8),
    "convolution": Convolution(normal(3, 5), SHAPE),
    "fourier": FourierLines([0, 1, 3, 7], SHAPE),
    "radon": radon((1, 8, 8), 3),
    "matrix-free": MatrixFree(
        lambda x: x[..., ::2], lambda y: torch.stack([y, torch.zeros_like(y)], -1).flatten(-2), SHAPE
    ),
    "function": Function(torch.sin, SHAPE),
    "clip": Clip(SHAPE),
    "magnitude": Magnitude(SHAPE),
    "quantise": Quantise(SHAPE),
    "jpeg": Jpeg(SHAPE),
    "statistics": Statistics(SHAPE),
}


# --- operators ---


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_obey_their_laws(name: str):
    check_operator(OPERATORS[name])


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.floats(0.3, 3), st.integers(0, 99))
@settings(max_examples=15)
def test_operators_obey_their_laws_at_any_size(c: int, h: int, w: int, width: float, seed: int):
    shape = (c, 2 * h, 2 * w)
    for operator in (
        blur(shape, width),
        downsample(shape, 2),
        FourierLines([seed % (2 * h)], shape),
        Linear(normal(3, c * 4 * h * w, seed=seed), shape),
    ):
        check_operator(operator, 1e-6)


class Wrong(LinearOperator):
    """A law broken on purpose: the adjoint of another operator."""

    shape = (4,)

    def __call__(self, x):
        return x.roll(1, 1)

    def adjoint(self, y):
        return y


def test_broken_operators_are_caught():
    with pytest.raises(LawBroken, match="A"):
        check_operator(Wrong())
    mixes = Function(lambda x: x - x.mean(0), (4,))
    with pytest.raises(LawBroken, match="alone"):
        check_operator(mixes)


def test_a_blur_keeps_the_mean_and_a_reduction_averages():
    x = normal(2, *SHAPE)
    flat = torch.ones(1, *SHAPE, dtype=torch.float64)
    assert torch.allclose(blur(SHAPE, 2.0)(flat), flat)
    means = downsample(SHAPE, 4)(x)
    assert torch.allclose(means, torch.nn.functional.avg_pool2d(x, 4))
    # a disc's shadow is the same from every side, up to how pixels sample it
    place = torch.arange(16).double() - 7.5
    disc = ((place[:, None] ** 2 + place**2) < 36).double()[None, None]
    shadows = radon((1, 16, 16), 8)(disc).reshape(8, -1)
    assert torch.allclose(shadows.sum(1), torch.full((8,), float(disc.sum()) / 16).double())


@pytest.mark.parametrize("process", [FLOW, Gaussian(Cosine()), Gaussian(VE()), Gaussian(EDM())])
def test_moments_are_exact_on_a_gaussian(process: Gaussian):
    """E[x_0 | x_t, y] by Kalman's gain is that of the exact posterior's own denoiser, at every level and schedule."""
    prior, operator = one_gaussian(process), Linear(normal(2, 4, seed=3), (4,))
    y = normal(1, 2, seed=4)
    exact = exact_posterior(prior, operator, y, 0.3)
    x_t = 0.7 * normal(5, 4, seed=5)
    for iterations, dense in ((8, 0), (1, 8)):  # by conjugate gradients, directly
        guided = Posterior(
            prior,
            Measurement(operator, y.expand(5, -1), 0.3),
            "moments",
            iterations=iterations,
            dense=dense,
            damping=0.0,
        )
        for t in (0.9, 0.5, 0.1):
            gap = (guided(x_t, t).x0 - exact(x_t, t).x0).abs().max()
            assert float(gap) < 1e-6, (t, dense)


def test_all_four_are_exact_on_white_data():
    """Where C = r^2 and A A* = 1 the four agree with the exact posterior, and with each other."""
    prior = GaussianMixture(FLOW, torch.zeros(1, 4), torch.ones(1, 4))
    operator = Mask(torch.tensor([True, False, True, False]), (4,))
    y = normal(1, 2)
    exact = exact_posterior(prior, operator, y, 0.2)
    x_t = normal(6, 4, seed=3)
    for kind in ("moments", "pigdm", "ddnm", "dps"):
        guided = Posterior(prior, Measurement(operator, y.expand(6, -1), 0.2), kind)
        for t in (0.999, 0.6, torch.tensor([0.1, 0.2, 0.3, 0.5, 0.8, 0.9])):
            assert torch.allclose(guided(x_t, t).x0, exact(x_t, t).x0, atol=1e-6), kind
        # at alpha = 0 nothing is seen, and the answer is the posterior mean
        assert torch.allclose(guided(x_t, 1.0).x0, exact(x_t, 1.0).x0, atol=1e-6), kind


def test_the_exact_posterior_is_bayes_rule():
    """log p(x | y) - log p(x) - log p(y | x) is the same for all x."""
    prior = GaussianMixture(FLOW, normal(3, 4, seed=6), torch.full((3, 4), 0.3))
    operator, sigma = Linear(normal(2, 4, seed=7), (4,)), 0.4
    y = normal(1, 2, seed=8)
    exact = exact_posterior(prior, operator, y, sigma)
    x = normal(20, 4, seed=9)
    likelihood = -((y - operator(x)) ** 2).sum(1) / (2 * sigma**2)
    constant = exact.log_density(x) - prior.log_density(x) - likelihood
    assert float(constant.max() - constant.min()) < 1e-8


def test_linear_methods_do_not_go_astray_on_fields_whose_power_falls_steeply():
    """Powers fall as k^-3: the mean is 100 times as uncertain as white data would have it, details a hundredth."""
    side = 16
    k = torch.fft.fftfreq(side, dtype=torch.float64)
    power = (k[:, None].square() + k.square() + 0.2 / side**2) ** -1.5
    line = torch.fft.ifft2(power).real
    i, j = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    covariance = line[(i[:, None] - i) % side, (j[:, None] - j) % side] / line[0, 0]
    fields = GaussianMixture(FLOW, torch.zeros(1, side * side).double(), covariance[None])
    means = torch.nn.functional.avg_pool2d(
        torch.eye(side * side).double().view(-1, 1, side, side), 2
    ).flatten(1)
    operator = Linear(means.T, (side * side,))
    x = normal(24, side * side) @ torch.linalg.cholesky(covariance).T
    y = operator(x) + 0.01 * normal(24, means.shape[1], seed=5)  # with noise, nothing is put on y at the end
    inner = means.T @ covariance @ means + 1e-4 * torch.eye(means.shape[1])
    gain = covariance @ means @ torch.linalg.inv(inner)
    spread = float((covariance - gain @ means.T @ covariance).diagonal().mean().sqrt())
    far = {}
    for method in ("ddnm", "pigdm", "moments"):
        made = sample_posterior(
            fields, Measurement(operator, y, 0.01), Noise(0, 24), method=method, solver=AdamsMoulton(),
            levels=AngleGrid().levels(FLOW, 20), like=x[:0],
        )  # fmt: skip
        far[method] = float((made - y @ gain.T).square().mean().sqrt()) / spread
    assert 0.97 < far["moments"] < 1.03  # draws lie about their mean as far as they should
    assert max(far.values()) < 1.6, far


def test_particles_find_the_shares_of_modes_that_guidance_misses():
    """Two modes of which y prefers one three to two; the standard error of 200 draws is .035."""
    prior = GaussianMixture(
        FLOW, torch.tensor([[-1.0, 1.0], [1.0, -0.4]]), torch.full((2, 2), 0.02), torch.tensor([0.5, 0.5])
    )
    operator = Linear(torch.tensor([[0.3, 1.0]]), (2,))
    y = torch.tensor([[0.25]], dtype=torch.float64)
    exact = exact_posterior(prior, operator, y, 0.3)
    share = float(exact.weights[0])
    levels = AngleGrid().levels(FLOW, 30)
    with torch.no_grad():
        found = twisted(
            prior, Measurement(operator, y.expand(200, -1), 0.3), Noise(0, 200), levels=levels,
            steering=Steering(16), kind="moments",
        )  # fmt: skip
    assert 0.1 < share < 0.9
    assert abs(float((found.picked[:, 0] < 0).double().mean()) - share) < 0.1
    weighed = (found.log_weights.exp() * (found.samples[..., 0] < 0)).sum(1).mean()
    assert abs(float(weighed) - share) < 0.08


METHODS = ["replacement", "repaint:repeats=2", "ddnm", "pigdm", "dps", "moments", "particles:particles=3"]


@pytest.mark.parametrize("method", METHODS)
def test_known_numbers_are_kept_and_samples_do_not_know_of_each_other(method: str):
    prior = GaussianMixture(FLOW, normal(3, 6, seed=6), torch.full((3, 6), 0.2))
    operator = Mask(torch.tensor([True, True, False, False, False, True]), (6,))
    measured = measure(operator, normal(4, 6, seed=1))
    settings = {"method": method, "solver": Ancestral(), "levels": AngleGrid().levels(FLOW, 8)}
    together = sample_posterior(prior, measured, Noise(3, 4), **settings)
    assert torch.allclose(operator(together), measured.y, atol=1e-12)
    alone = sample_posterior(prior, measured.rows([2]), Noise(3, [2]), **settings)
    assert torch.allclose(alone[0], together[2], atol=1e-5)
    other = sample_posterior(prior, measured, Noise(4, 4), **settings)
    assert not torch.allclose(other, together, atol=1e-3)


def test_replacement_is_bounded_where_the_operator_passes_next_to_nothing():
    """Of a blur with noise RePaint comes near a Gaussian's posterior: what a step is told has the state's noise."""
    shape = (1, 8, 8)
    gap = torch.arange(8.0).double()
    rows = torch.exp(-0.5 * (gap[:, None] - gap) ** 2 / 4)
    cov = torch.kron(rows, rows) + 1e-3 * torch.eye(64).double()
    prior = GaussianMixture(FLOW, torch.zeros(1, 64).double(), cov[None])
    operator = blur(shape, 1.5)
    truth = torch.distributions.MultivariateNormal(torch.zeros(64).double(), cov).sample((1,)).view(1, *shape)
    y = operator(truth) + 0.05 * normal(1, 1, 8, 8, seed=4)
    matrix = operator(torch.eye(64).double().view(64, *shape)).flatten(1).mT
    exact = cov - cov @ matrix.mT @ torch.linalg.solve(
        matrix @ cov @ matrix.mT + 0.0025 * torch.eye(64), matrix @ cov
    )
    found = sample_posterior(
        prior, Measurement(operator, y.expand(64, -1, -1, -1), 0.05), Noise(0, 64), method="repaint",
        solver=Ancestral(), levels=AngleGrid().levels(FLOW, 40),
    )  # fmt: skip
    ratio = found.flatten(1).var(0).sum() / exact.diagonal().sum()
    assert 0.4 < ratio < 2
    plain = sample_posterior(
        prior, Measurement(operator, y, 0.05), Noise(0, 1), method="replacement", solver=Ancestral(),
        levels=AngleGrid().levels(FLOW, 40),
    )  # fmt: skip
    assert plain.abs().max() < 3 * truth.abs().max() + 2


def test_guidance_falls_asleep_as_the_noise_of_y_grows():
    """With sigma_y without end a measurement says nothing, and every method is plain sampling."""
    prior = one_gaussian(FLOW)
    operator = Linear(normal(2, 4, seed=3), (4,))
    y, levels = normal(3, 2), AngleGrid().levels(FLOW, 6)
    plain = sample(
        prior, Noise(0, 3), (4,), solver=AdamsMoulton(), levels=levels, like=torch.zeros(1).double()
    )
    for method in ("ddnm", "pigdm", "dps", "moments"):
        x = sample_posterior(
            prior,
            Measurement(operator, y, 1e5),
            Noise(0, 3),
            method=method,
            solver=AdamsMoulton(),
            levels=levels,
        )
        assert torch.allclose(x, plain, atol=1e-6), method


def test_a_nonlinear_measurement_is_met_by_dps():
    """A saturated measurement of a Gaussian: what is drawn measures like y, which plain draws do not."""
    prior = one_gaussian(FLOW)
    operator = Clip((4,), gain=2.0)
    y = operator(prior.sample(Noise(5, 1))).expand(60, -1)
    levels = AngleGrid().levels(FLOW, 30)
    x = sample_posterior(
        prior, Measurement(operator, y, 0.05), Noise(0, 60), method="dps", solver=Ancestral(), levels=levels
    )
    plain = prior.sample(Noise(6, 60))
    assert (operator(x) - y).abs().mean() < 0.3 * (operator(plain) - y).abs().mean()


# --- inversion ---


def test_the_cycle_of_inversion_closes_with_the_order_of_the_solver():
    prior = GaussianMixture(FLOW, normal(2, 3, seed=1), torch.full((2, 3), 0.3))
    x = prior.sample(Noise(0, 8))

    def gap(steps: int) -> float:
        levels = levels_for_inversion(FLOW, steps)
        z = invert(prior, x, levels=levels)
        return float((integrate(prior, Heun(), levels, z, Noise(0, 8)) - x).square().mean().sqrt())

    few, many = gap(20), gap(40)
    assert many < 0.02
    assert math.log2(few / many) > 1.4  # Heun's order is 2


def test_inversion_gives_noise():
    """The state that the flow comes from has the law of the prior: variance alpha^2 C + sigma^2."""
    prior = GaussianMixture(FLOW, torch.zeros(1, 2), torch.full((1, 2), 0.25))
    levels = levels_for_inversion(FLOW, 30)
    z = invert(prior, prior.sample(Noise(0, 2000)), levels=levels)
    want = (levels[0].alpha ** 2 * 0.25 + levels[0].sigma ** 2) ** 0.5
    assert abs(float(z.std()) / want - 1) < 0.05  # 1 / sqrt(2 * 4000) is .011


@given(st.floats(0, 1), st.integers(0, 100))
def test_slerp_goes_along_the_sphere(share: float, seed: int):
    a, b = normal(2, 5, seed=seed), normal(2, 5, seed=seed + 1000)
    found = slerp(a, b, share)
    length = (1 - share) * a.norm(dim=1) + share * b.norm(dim=1)
    assert torch.allclose(found.norm(dim=1), length)
    assert torch.allclose(slerp(a, b, 0.0), a)
    assert torch.allclose(slerp(a, 2 * a, share), (1 + share) * a)


# --- windows ---


def test_windows_of_one_size_are_the_denoiser_itself():
    prior = GaussianMixture(FLOW, normal(2, 16, seed=1), torch.full((2, 16), 0.3))
    x = normal(3, 1, 4, 4)
    assert torch.allclose(Windows(prior, (1, 4, 4), (1, 4, 4))(x, 0.5).x0, prior(x, 0.5).x0)


def test_windows_of_white_data_are_exact_on_any_canvas():
    small = GaussianMixture(FLOW, torch.zeros(1, 16), torch.full((1, 16), 0.3))
    large = GaussianMixture(FLOW, torch.zeros(1, 63), torch.full((1, 63), 0.3))
    x, t = normal(3, 1, 7, 9), torch.tensor([0.2, 0.5, 0.8])
    assert torch.allclose(Windows(small, (1, 4, 4), (1, 7, 9))(x, t).x0, large(x, t).x0)


@pytest.mark.parametrize("kind", ["moments", "pigdm", "ddnm", "dps"])
def test_a_sample_without_noise_is_left_as_it_is_among_others_that_have_some(kind: str):
    prior = one_gaussian(FLOW)
    half = Mask(torch.tensor([True, True, False, False]), (4,))
    x = torch.linspace(-1, 1, 8).view(2, 4)
    posterior = Posterior(prior, Measurement(half, torch.ones(2, 2), 0.0), kind)
    both = posterior(x, torch.tensor([0.0, 0.5])).x0
    torch.testing.assert_close(both[:1], x[:1])
    torch.testing.assert_close(both[1:], posterior(x, 0.5).x0[1:])
