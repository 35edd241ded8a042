"""Particles: their weighted law is the tilted one, and without a reward they are plain samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato.denoisers import GaussianMixture
from sfumato.errors import SolverError
from sfumato.noise import Noise
from sfumato.processes import Flow, Gaussian, Linear
from sfumato.solvers import DDIM, Ancestral, EDMSolver, FlowGrid, Heun, Solver, Steering, sample, steer
from sfumato.solvers.laws import output_law

MEANS = torch.tensor([[-1.0, 0.4], [0.9, -0.2]], dtype=torch.float64)
COVARIANCES = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.15, -0.05], [-0.05, 0.35]]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.35, 0.65], dtype=torch.float64)
LIKE = torch.empty(0, dtype=torch.float64)


def hills(schedule=None):
    return GaussianMixture(Gaussian(schedule or Flow()), MEANS, COVARIANCES, WEIGHTS)


def tilted_by_line(b, tau):
    """p(x) exp(b.x / tau): weights, means, covariances of the mixture that it is, and log Z."""
    slope = torch.tensor(b, dtype=torch.float64) / tau
    log = WEIGHTS.log() + MEANS @ slope + 0.5 * torch.einsum("d,kde,e->k", slope, COVARIANCES, slope)
    return torch.softmax(log, 0), MEANS + COVARIANCES @ slope, COVARIANCES, float(torch.logsumexp(log, 0))


def tilted_by_bowl(centre, tau):
    """p(x) exp(-|x - c|^2 / 2 tau): products of Gaussians; the factor (2 pi tau) makes the bowl one."""
    c = torch.tensor(centre, dtype=torch.float64)
    sums = COVARIANCES + tau * torch.eye(2, dtype=torch.float64)
    gap = c - MEANS
    solved = torch.linalg.solve(sums, gap[..., None])[..., 0]
    log = WEIGHTS.log() - 0.5 * (gap * solved).sum(1) - 0.5 * torch.logdet(sums / tau)
    means = MEANS + torch.einsum("kde,ke->kd", COVARIANCES, solved)
    covariances = COVARIANCES - COVARIANCES @ torch.linalg.solve(sums, COVARIANCES)
    return torch.softmax(log, 0), means, covariances, float(torch.logsumexp(log, 0))


def moments(weights, means, covariances):
    mean = weights @ means
    spread = means - mean
    whole = torch.einsum("k,kde->de", weights, covariances) + torch.einsum(
        "k,kd,ke->de", weights, spread, spread
    )
    # the share of the component on the right: the mass of x_1 > 0 is close to it, and is what particles can tell
    z = means[:, 0] / covariances[:, 0, 0].sqrt()
    right = float(weights @ torch.special.ndtr(z))
    return torch.tensor([*mean, whole[0, 0], whole[1, 1], whole[0, 1], right])


def weighted_moments(particles, group):
    w, x = particles.log_weights[group].exp(), particles.samples[group]
    mean = w @ x
    spread = x - mean
    whole = torch.einsum("n,nd,ne->de", w, spread, spread)
    return torch.tensor([*mean, whole[0, 0], whole[1, 1], whole[0, 1], float(w @ (x[:, 0] > 0).double())])


LINE, BOWL = (-1.2, 0.5), (-0.6, -0.4)
CASES = {
    "line": (lambda x: x @ torch.tensor(LINE, dtype=torch.float64), 1.2, tilted_by_line(LINE, 1.2)),
    "bowl": (
        lambda x: -0.5 * (x - torch.tensor(BOWL, dtype=torch.float64)).square().sum(1), 0.2, tilted_by_bowl(BOWL, 0.2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("threshold", [0.0, 0.6])
def test_weighted_particles_have_the_tilted_law(case, threshold):
    reward, tau, exact = CASES[case]
    levels = FlowGrid(rho=1.5).levels(hills().process, 50)
    steering = Steering(1200, tau, threshold)
    found = steer(
        hills(), Noise(1, 1), (2,), reward, solver=Ancestral(), levels=levels, steering=steering, like=LIKE
    )
    assert bool(found.resampled[0] > 0) == (threshold > 0)
    plain = moments(WEIGHTS, MEANS, COVARIANCES)
    want = moments(*exact[:3])
    # standard errors are about 1 / sqrt(effective), some 0.05 here; what the reward changes is several times that
    assert float((want - plain).abs().max()) > 0.3
    assert float((weighted_moments(found, 0) - want).abs().max()) < 0.1
    assert abs(float(found.log_normaliser[0]) - exact[3]) < 0.15


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_the_law_is_that_of_the_solvers_own_output_tilted(threshold):
    """On a Gaussian a run's output is a Gaussian known exactly, however few the steps, and so is its tilted law."""
    mean, variance, slope, tau = 0.7, 0.4, 1.1, 0.8
    model = GaussianMixture(Gaussian(Flow()), torch.tensor([[mean]]), torch.tensor([[variance]]))
    levels = FlowGrid().levels(model.process, 6)
    m, v = output_law(Ancestral(), model, levels, 0.0, 1.0)
    assert abs(v - variance) > 0.03  # six steps are few
    found = steer(
        model, Noise(8, 1), (1,), lambda x: slope * x[:, 0], solver=Ancestral(), levels=levels, like=LIKE,
        steering=Steering(8000, tau, threshold),
    )  # fmt: skip
    w, x = found.log_weights[0].exp(), found.samples[0, :, 0]
    got = float(w @ x)
    # the standard error is about sqrt(v / 4000) = 0.01
    assert abs(got - (m + v * slope / tau)) < 0.04
    assert abs(float(w @ (x - got).square()) / v - 1) < 0.1
    assert abs(float(found.log_normaliser[0]) - (m * slope / tau + 0.5 * v * (slope / tau) ** 2)) < 0.05


def test_the_normaliser_is_unbiased_even_with_few_particles():
    mean, variance, slope = 0.7, 0.4, 1.5
    model = GaussianMixture(Gaussian(Flow()), torch.tensor([[mean]]), torch.tensor([[variance]]))
    levels = FlowGrid().levels(model.process, 4)
    m, v = output_law(Ancestral(), model, levels, 0.0, 1.0)
    found = steer(
        model, Noise(9, 1500), (1,), lambda x: slope * x[:, 0], solver=Ancestral(), levels=levels, like=LIKE,
        steering=Steering(3, 1.0, 0.9),
    )  # fmt: skip
    assert float((found.resampled > 0).double().mean()) > 0.5
    z = found.log_normaliser.exp() / math.exp(m * slope + 0.5 * v * slope**2)
    assert abs(float(z.mean()) - 1) < 4 * float(z.std()) / math.sqrt(len(z)) < 0.1


def test_the_error_falls_as_particles_are_added():
    reward, tau, exact = CASES["line"]
    levels = FlowGrid(rho=1.5).levels(hills().process, 40)
    errors = []
    for count, groups in ((8, 60), (128, 6)):
        found = steer(
            hills(), Noise(2, groups), (2,), reward, solver=Ancestral(), levels=levels, like=LIKE,
            steering=Steering(count, tau),
        )  # fmt: skip
        gaps = [weighted_moments(found, g)[:2] - moments(*exact[:3])[:2] for g in range(groups)]
        errors.append(float(torch.stack(gaps).square().mean().sqrt()))
    # 1 / sqrt(K) over a factor of 16 is a factor of 4
    assert 2.0 < errors[0] / errors[1] < 8.0


def test_one_pick_a_group_is_nearer_the_tilted_law_than_plain_samples():
    reward, tau, exact = CASES["line"]
    levels = FlowGrid(rho=1.5).levels(hills().process, 15)
    found = steer(
        hills(), Noise(4, 150), (2,), reward, solver=Ancestral(), levels=levels, steering=Steering(10, tau), like=LIKE
    )  # fmt: skip
    want, plain = moments(*exact[:3]), moments(WEIGHTS, MEANS, COVARIANCES)
    mean = found.picked.mean(0)
    assert float((mean - want[:2]).norm()) < 0.3 * float((plain[:2] - want[:2]).norm())


@given(
    groups=st.lists(st.integers(0, 50), min_size=1, max_size=3, unique=True),
    count=st.integers(1, 5),
    steps=st.integers(1, 5),
    solver=st.sampled_from([Ancestral(), DDIM(eta=0.5), EDMSolver()]),
)
def test_no_reward_is_plain_sampling_bit_for_bit(groups, count, steps, solver):
    levels = FlowGrid().levels(hills().process, steps)
    found = steer(
        hills(), Noise(5, groups), (2,), lambda x: torch.zeros(len(x)), solver=solver, levels=levels,
        steering=Steering(count, threshold=1.0),
    )  # fmt: skip
    each = [i * count + k for i in groups for k in range(count)]
    plain = sample(hills(), Noise(5, each), (2,), solver=solver, levels=levels)
    assert torch.equal(found.samples.flatten(0, 1), plain)
    assert not found.resampled.any()
    torch.testing.assert_close(found.log_weights.exp(), torch.full((len(groups), count), 1 / count).double())
    assert float(found.log_normaliser.abs().max()) < 1e-12


@dataclass(frozen=True)
class Remembering(Solver):
    """A stochastic solver of two steps, so that its memory must follow its particle."""

    kind: ClassVar[str] = "remembering"
    stochastic: ClassVar[bool] = True

    def step(self, denoise, process, x, t, s, carry, noise):
        prediction = denoise(x, t)
        if carry is not None:
            gap = carry["x"] - x
            assert float(gap.abs().max()) == 0, "the memory is another particle's"
        x = process.bridge(x, prediction, t, s, noise)
        return x, {"x": x, "level": s}


@pytest.mark.parametrize("schedule", [Flow(), Linear()], ids=lambda s: s.kind)
def test_a_group_alone_is_the_group_in_a_batch_and_memory_follows_its_particle(schedule):
    model = hills(schedule)
    levels = FlowGrid(rho=1.5).levels(model.process, 8)
    reward = lambda x: 4 * x[:, 0]  # noqa: E731
    settings = {"solver": Remembering(), "levels": levels, "steering": Steering(6, 1.0, 0.7), "like": LIKE}
    together = steer(model, Noise(3, (2, 9, 4)), (2,), reward, **settings)
    assert bool((together.resampled > 0).any())
    for row, group in enumerate((2, 9, 4)):
        alone = steer(model, Noise(3, (group,)), (2,), reward, **settings)
        torch.testing.assert_close(alone.samples[0], together.samples[row], rtol=0, atol=1e-12)
        torch.testing.assert_close(alone.log_weights[0], together.log_weights[row], rtol=0, atol=1e-10)
        assert int(alone.pick[0]) == int(together.pick[row])


def test_the_guess_costs_no_evaluation_where_the_solver_asks_for_it():
    model, asked = hills(), []

    class Counting:
        process = model.process

        def __call__(self, x_t, t, condition=None):
            asked.append(condition["label"].tolist())
            return model(x_t, t, condition)

    levels = FlowGrid().levels(model.process, 7)
    settings = {"levels": levels, "condition": {"label": torch.tensor([1, 0])}}
    steer(
        Counting(), Noise(0, 2), (2,), lambda x: x[:, 1], solver=Ancestral(), steering=Steering(3), **settings
    )
    assert len(asked) == 7
    assert asked[0] == [1, 1, 1, 0, 0, 0]


def test_what_cannot_be_steered_is_refused():
    model = hills()
    levels = FlowGrid().levels(model.process, 3)

    def run(reward=lambda x: x[:, 0], solver=None, **steering):
        steer(
            model, Noise(0, 2), (2,), reward, solver=solver or Ancestral(), levels=levels, steering=Steering(**steering)
        )  # fmt: skip

    with pytest.raises(SolverError, match=r"heun solver is deterministic.*threshold=0"):
        run(solver=Heun())
    run(solver=Heun(), threshold=0.0)
    with pytest.raises(SolverError, match="one number a sample"):
        run(lambda x: x)
    with pytest.raises(SolverError, match="reward is not finite before step 2"):
        run(lambda x: torch.full((len(x),), -math.inf))
    for bad, says in (
        ({"particles": 0}, "particles"),
        ({"temperature": 0.0}, "temperature"),
        ({"threshold": 1.5}, "threshold"),
    ):
        with pytest.raises(SolverError, match=says):
            replace(Steering(), **bad)
