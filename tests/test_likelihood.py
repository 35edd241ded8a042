"""Log-likelihood by the probability flow: against densities that are known, and refused where it would be none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from demo_model import make_demo_run
from sfumato.bundle import load
from sfumato.denoisers import ClassifierFree, Denoiser, GaussianMixture
from sfumato.errors import SolverError
from sfumato.noise import Noise
from sfumato.processes import CLEAN, EDM, Cosine, Flow, Gaussian, Linear, Prediction, ZeroTerminalSNR
from sfumato.solvers import log_likelihood
from sfumato.solvers.laws import fitted_order
from sfumato.solvers.likelihood import bits_per_dimension, divergence, student


def ball(schedule, dim=3):
    """Data N(mu, C) in turned axes with deviations from 0.1 to 1.5."""
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    deviation = torch.linspace(0.1, 1.5, dim).double()
    mean = 0.5 * torch.randn(1, dim, generator=generator, dtype=torch.float64)
    return GaussianMixture(Gaussian(schedule), mean, ((basis * deviation**2) @ basis.T)[None])


def wide(schedule, dim=64, components=5):
    """Turned components in 64 dimensions, deviations from 1.4 to 0.03."""
    generator = torch.Generator().manual_seed(11)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(normal(components, dim, dim))[0]
    deviation = torch.exp(torch.linspace(math.log(1.4), math.log(0.03), dim) + 0.2 * normal(components, dim))
    covariances = (basis * deviation[:, None] ** 2) @ basis.mT
    return GaussianMixture(Gaussian(schedule), 0.6 * normal(components, dim), covariances)


@pytest.mark.parametrize(
    "schedule", [Flow(), Linear(), Cosine(), EDM(), ZeroTerminalSNR()], ids=lambda schedule: schedule.kind
)
def test_the_error_falls_with_order_5_to_that_of_the_ends(schedule):
    model = ball(schedule)
    x = model.sample(Noise(1, 6))
    fine = log_likelihood(model, x, steps=40).nats
    steps, errors = (4, 8, 16), []
    for number in steps:
        found = log_likelihood(model, x, steps=number)
        errors.append(float((found.nats - fine).abs().max()))
        assert found.evaluations == 6 * number + 1
        assert bool(((found.nats - fine).abs() <= found.error).all())
    assert fitted_order(steps, errors) > 4, errors
    # what stays is the blur of sigma_min = 0.002, (0.002 / 0.1)^2 / 2 for each squared standard deviation in the
    # narrowest direction, and that the prior knows no mean: z |mean| / 80 at the noisiest level of EDM
    truth = model.log_density(x, CLEAN)
    assert float((fine - truth).abs().max()) < 0.03


def test_the_density_is_that_of_data_with_the_least_noise():
    model = ball(Flow())
    x = model.sample(Noise(1, 6))
    for sigma_min in (0.3, 0.05):
        level = model.process.schedule.level_at(-2 * math.log(sigma_min))
        # p of x_t / alpha at that level, in the units of x
        want = model.log_density(level.alpha * x, level) + x.shape[1] * math.log(level.alpha)
        got = log_likelihood(model, x, steps=32, sigma_min=sigma_min)
        assert float((got.nats - want).abs().max()) < 1e-4


def test_64_dimensions_within_a_hundredth_of_a_nat_per_dimension_in_a_hundred_evaluations():
    model = wide(Linear())
    x = model.sample(Noise(2, 12))
    truth = model.log_density(x, CLEAN)
    found = log_likelihood(model, x)
    assert found.evaluations <= 100
    assert abs(float((found.nats - truth).mean())) / 64 < 0.01
    assert float((found.nats - truth).abs().max()) / 64 < 0.01
    low, high = found.interval()
    assert bool(((low < truth) & (truth < high)).all())


def test_the_interval_of_the_probes_covers_the_exact_trace_as_often_as_it_says():
    model = wide(Flow(), dim=12)
    x = model.sample(Noise(2, 300))
    exact = log_likelihood(model, x, steps=4)
    found = log_likelihood(model, x, steps=4, probes=6, noise=Noise(4, 300))
    # the same steps on both sides, so that probes alone differ
    half = student(0.95, 5) * found.deviation
    inside = float(((found.nats - exact.nats).abs() <= half).double().mean())
    assert inside == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / 300) ** 0.5)
    low, high = found.interval()
    assert torch.allclose(high - low, 2 * (half + found.error))
    assert bool((exact.deviation == 0).all())


def test_probes_belong_to_the_sample():
    model = wide(Flow(), dim=8)
    x = model.sample(Noise(2, 5))
    many = log_likelihood(model, x, steps=4, probes=4, noise=Noise(9, 5))
    one = log_likelihood(model, x[3:4], steps=4, probes=4, noise=Noise(9, [3]))
    assert float((many.nats[3] - one.nats[0]).abs()) < 1e-9
    other = log_likelihood(model, x, steps=4, probes=4, noise=Noise(10, 5))
    assert float((many.nats - other.nats).abs().min()) > 1e-6


def test_divergences_are_the_trace_of_the_jacobian():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(3, 2, 3, generator=generator, dtype=torch.float64).requires_grad_()
    g = torch.sin(y.flatten(1) @ weights).reshape(y.shape)
    want = torch.stack([
        torch.autograd.functional.jacobian(lambda v: torch.sin(v @ weights), row.flatten()).trace()
        for row in y.detach()
    ])  # fmt: skip
    signs = [2.0 * torch.randint(0, 2, y.shape, generator=generator).double() - 1 for _ in range(4000)]
    assert torch.allclose(divergence(g.clone(), y, [])[:, 0], want)
    g = torch.sin(y.flatten(1) @ weights).reshape(y.shape)
    each = divergence(g, y, signs)
    assert torch.allclose(each.mean(1), want, atol=5 * float(each.std()) / 4000**0.5)


@pytest.mark.parametrize("freedom", [3, 5, 9, 30])
def test_students_quantile(freedom):
    from scipy.stats import t

    assert student(0.95, freedom) == pytest.approx(t.ppf(0.975, freedom), rel=0.01)


# -- bits per dimension ----------------------------------------------------------------------------------------------


def test_bits_of_a_wide_normal_are_those_of_its_bins():
    """Where the density hardly changes over a bin, dequantising loses nothing: -log2 P(k) is that of the bin's mass."""
    deviation, width = 0.25, 2 / 255
    model = GaussianMixture(Gaussian(Flow()), torch.zeros(1, 4), torch.full((1, 4), deviation**2))
    x = model.sample(Noise(0, 200)).clamp(-1, 1)
    x = ((x + 1) / width).round() * width - 1
    bits = bits_per_dimension(model, x, Noise(5, 200), steps=8)
    normal = torch.distributions.Normal(0.0, deviation)
    mass = normal.cdf(x + width / 2) - normal.cdf(x - width / 2)
    want = -mass.log2().mean(1)
    # the slope of log p over a bin, times the place in it: at most 3 sigma / 0.25 * width / 2 = 0.05 nats a number
    assert float((bits - want).abs().max()) < 0.08
    assert float((bits - want).mean()) == pytest.approx(0, abs=0.005)
    again = bits_per_dimension(model, x[7:8], Noise(5, [7]), steps=8)
    assert float(again[0] - bits[7]) == pytest.approx(0, abs=1e-9)


# -- what is refused -------------------------------------------------------------------------------------------------


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.ones(1))

    def forward(self, x, noise_level, condition=None):
        return self.weight * x


def test_a_guided_flow_is_refused():
    denoiser, x = Denoiser(Tiny(), Gaussian(Flow())), torch.zeros(2, 3)
    with pytest.raises(SolverError, match="is not a likelihood"):
        log_likelihood(ClassifierFree(denoiser, 2.0, 3), x, {"label": torch.zeros(2).long()})
    free = log_likelihood(ClassifierFree(denoiser, 1.0, 3), x)
    assert torch.equal(free.nats, log_likelihood(denoiser, x).nats)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 1}, "even number of steps"),
        ({"steps": 2.5}, "whole number"),
        ({"probes": 2}, "at least 4"),
        ({"probes": True}, "at least 4"),
        ({"sigma_min": 1e9}, "smallest < largest"),
    ],
)
def test_wrong_values_are_refused(settings, words):
    with pytest.raises(SolverError, match=words):
        log_likelihood(Denoiser(Tiny(), Gaussian(Flow())), torch.zeros(2, 3), **settings)


def test_what_has_no_derivative_or_no_value_is_refused():
    exact = ball(Flow())

    class Says:
        process = exact.process

        def __init__(self, change):
            self.change = change

        def __call__(self, x_t, t, condition=None):
            found = exact(x_t, t)
            return Prediction(self.change(found.value), "x0", x_t, found.level, self.process)

    x = exact.sample(Noise(0, 3))
    with pytest.raises(SolverError, match="no derivatives"):
        log_likelihood(Says(lambda value: value.detach()), x)
    with pytest.raises(SolverError, match="not finite"):
        log_likelihood(Says(lambda value: value * math.nan), x)


def test_it_works_inside_no_grad_and_leaves_no_graph():
    model = ball(Flow())
    x = model.sample(Noise(0, 2))
    with torch.no_grad():
        found = log_likelihood(model, x, steps=4)
    assert not found.nats.requires_grad
    assert torch.equal(found.nats, log_likelihood(model, x, steps=4).nats)


def test_a_model_gives_the_likelihood_of_pictures(tmp_path):
    make_demo_run(tmp_path)
    model = load(tmp_path / "model")
    x = model.sample(2, steps=4)
    found = model.log_likelihood(x, {"label": [0, 1]}, steps=2, probes=4, seed=3)
    alone = log_likelihood(
        model.denoiser, x[1:], {"label": torch.tensor([1])}, steps=2, probes=4, noise=Noise(3, [1])
    )
    assert float(found.nats[1] - alone.nats[0]) == pytest.approx(0, abs=1e-3)
    other = model.log_likelihood(x, {"label": [1, 0]}, steps=2, probes=4, seed=3)
    assert float((other.nats - found.nats).abs().min()) > 1e-3
