"""Score matching: without being told the noise, the same loss in expectation, the same gradient, the same score."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from sfumato.denoisers import Denoiser, GaussianMixture
from sfumato.errors import RecipeError
from sfumato.networks import build
from sfumato.noise import BatchNoise, Noise
from sfumato.objectives import (
    Denoising,
    ImplicitScoreMatching,
    LogNormal,
    MinSNR,
    Plain,
    SlicedScoreMatching,
    Uniform,
    build_objective,
)
from sfumato.objectives.score_matching import MOST_DIMENSIONS, PROJECTIONS, slopes
from sfumato.processes import EDM, VE, Flow, Gaussian, Linear, Prediction, SubVP
from sfumato.recipes import read_recipe
from sfumato.training import TrainingConfig
from sfumato.training.step import Stepper
from sfumato.training.validation import held_out_loss

MATCHING = [SlicedScoreMatching, ImplicitScoreMatching]


def hills(process):
    return GaussianMixture(
        process,
        torch.tensor([[-1.0, 0.4], [0.9, -0.2]]),
        torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.15, -0.05], [-0.05, 0.35]]]),
        torch.tensor([0.35, 0.65]),
    )


class MLP(nn.Module):
    """A small network of points in the plane."""

    def __init__(self, width=32, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        sizes = [3, width, width, 2]
        self.layers = nn.ParameterList(
            torch.randn(a + 1, b, generator=generator, dtype=dtype) / a**0.5
            for a, b in itertools.pairwise(sizes)
        )

    def forward(self, x, noise_level, condition=None):
        z = torch.cat([x, 4 * noise_level[:, None]], 1)
        for i, layer in enumerate(self.layers):
            z = (nn.functional.silu(z) if i else z) @ layer[:-1] + layer[-1]
        return z


class Affine(nn.Module):
    """eps^ = A x_t + b, which on Gaussian data at one level can be the true one. Remembers the x_t it was shown."""

    def __init__(self, process, dim):
        super().__init__()
        self.process = process
        self.A = nn.Parameter(torch.zeros(dim, dim, dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros(dim, dtype=torch.float64))

    def forward(self, x_t, t, condition=None):
        self.seen = x_t.detach()
        return Prediction(x_t @ self.A.T + self.b, "eps", x_t, self.process.level(t), self.process)


class Signs:
    """Noise whose projections are given, one tensor of signs a projection."""

    def __init__(self, noise, signs):
        self.noise, self.signs = noise, signs

    def normal(self, like, stream=0):
        return self.noise.normal(like, stream)

    def uniform(self, like, stream=0):
        if stream < PROJECTIONS:
            return self.noise.uniform(like, stream)
        return torch.where(self.signs[stream - PROJECTIONS] > 0, 0.25, 0.75).expand_as(like).to(like)


def gradients(denoiser, objective, batch, noise):
    loss, _ = objective(denoiser, batch, noise)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss.mean(), list(denoiser.parameters()))])


# -- the exact laws --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Flow(), Linear(), VE(), SubVP()], ids=lambda s: s.kind)
def test_the_best_linear_score_is_that_of_the_moments(schedule):
    """d/dA of the implicit loss is E[(A x + b) x^T] - sigma I: zero at A = sigma C^-1, b = -A m of the sample."""
    process = Gaussian(schedule)
    model = Affine(process, 3)
    at = LogNormal(-0.2, 1e-9)  # one level
    sigma = process.schedule.level_at(0.4).sigma
    data = torch.tensor([[0.5, -0.2, 0.1]]) + Noise(0, 500).normal(
        torch.empty(500, 3).double()
    ) @ torch.tensor([[0.5, 0.2, 0.0], [0.0, 0.3, 0.1], [0.1, 0.0, 0.7]], dtype=torch.float64)
    batch, noise = {"x": data}, BatchNoise(1, 0)
    signs = torch.tensor(
        list(itertools.product([1.0, -1.0], repeat=3))
    )  # all of them: the mean of v v^T is I
    for objective, draws in (
        (ImplicitScoreMatching(times=at), noise),
        (SlicedScoreMatching(times=at, projections=8), Signs(noise, signs)),
    ):
        assert gradients(model, objective, batch, draws).abs().max() > 0.1
        seen, kept = model.seen, [p.detach().clone() for p in model.parameters()]
        with torch.no_grad():
            model.A.copy_(sigma * torch.linalg.inv(seen.T.cov(correction=0)))
            model.b.copy_(-model.A @ seen.mean(0))
        assert gradients(model, objective, batch, draws).abs().max() < 1e-8
        with torch.no_grad():
            for p, old in zip(model.parameters(), kept, strict=True):
                p.copy_(old)


def test_along_every_axis_or_every_diagonal_sliced_is_implicit():
    process = Gaussian(Linear())
    denoiser = Denoiser(MLP(), process)
    batch, noise = {"x": hills(process).sample(Noise(0, 64))}, BatchNoise(0, 7)
    exact, _ = ImplicitScoreMatching()(denoiser, batch, noise)
    diagonals = Signs(noise, torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    both, _ = SlicedScoreMatching(projections=2)(denoiser, batch, diagonals)
    assert torch.allclose(both, exact, rtol=1e-12)
    one, _ = SlicedScoreMatching()(denoiser, batch, diagonals)
    assert not torch.allclose(one, exact, rtol=1e-3)


def test_slopes_are_the_quadratic_form_of_the_jacobian():
    x = Noise(2, 5).normal(torch.empty(5, 2, 3, dtype=torch.float64)).requires_grad_()
    weight = Noise(3, 6).normal(torch.empty(6, 6, dtype=torch.float64))
    values = torch.sin(x.flatten(1) @ weight).reshape(x.shape)
    v = Noise(4, 5).normal(torch.empty(5, 2, 3, dtype=torch.float64))
    got = slopes(values, x, [v], False)
    for row in range(5):
        jacobian = torch.cos(x[row].flatten() @ weight)[:, None] * weight.T
        flat = v[row].flatten()
        assert float(got[row]) == pytest.approx((flat @ jacobian @ flat).item(), rel=1e-12)


@pytest.mark.parametrize(
    ("parameterisation", "schedule"),
    [("eps", EDM(0.1, 5.0)), ("velocity", Flow()), ("x0", Linear()), ("score", EDM(0.1, 5.0))],
    ids=str,
)
@pytest.mark.parametrize(
    "weighting", [Plain("eps"), Plain("score"), MinSNR()], ids=lambda w: w.kind + w.space
)
def test_all_three_have_one_loss_and_one_gradient_in_expectation(schedule, parameterisation, weighting):
    """Denoising with a weighting *is* denoising score matching with it: the differences are noise of mean zero."""
    process = Gaussian(schedule)
    denoiser = Denoiser(MLP(8), process, parameterisation)
    data = hills(process).sample(Noise(0, 32 * 200)).split(200)
    at = LogNormal(-0.2, 0.3)  # levels at which no weight of 1 / sigma^2 drowns the rest
    differences, sizes = [], []
    for step, x in enumerate(data):
        batch, noise = {"x": x}, BatchNoise(5, step)
        rows = []
        for cls in (Denoising, *MATCHING):
            objective = cls(weighting, at)
            loss = objective(denoiser, batch, noise)[0].mean()
            rows.append(torch.cat([loss.detach()[None], gradients(denoiser, objective, batch, noise)]))
        differences.append(torch.stack([rows[1] - rows[0], rows[2] - rows[0]]))
        sizes.append(rows[0])
    size = torch.stack(sizes).mean(0)
    found = torch.stack(differences)
    mean, error = found.mean(0), found.std(0) / len(found) ** 0.5
    # some two hundred figures, of which the largest of as many normals stays below 4.5
    assert bool((mean.abs() <= 4.5 * error + 1e-12).all()), (mean / error).abs().max()
    # and the noise is small enough for the law to be a statement
    assert float(error.norm(dim=1).max()) < 0.35 * float(size.norm())


def test_the_weightings_are_the_papers():
    """NCSN: sigma^2 |s + eps/sigma|^2 is the plain loss in eps, |s + eps/sigma|^2 the plain loss in the score."""
    process = Gaussian(VE(0.2, 4.0))
    exact = hills(process)
    batch, noise = {"x": exact.sample(Noise(0, 50))}, BatchNoise(2, 0)
    x0 = batch["x"]
    level = process.level(Uniform().sample(x0, process.schedule, noise, 1))
    eps, sigma = noise.normal(x0), level.sigma[:, None]
    x = (x0 + sigma * eps).requires_grad_()
    (score,) = torch.autograd.grad(exact.log_density(x, level).sum(), x)
    for space, weight in (("eps", sigma**2), ("score", 1.0)):
        loss, _ = Denoising(Plain(space))(exact, batch, noise)
        assert torch.allclose(loss, (weight * (score + eps / sigma) ** 2).mean(1), rtol=1e-8)


# -- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective", [Denoising(Plain("eps")), SlicedScoreMatching(), ImplicitScoreMatching()]
)
def test_each_learns_the_score_of_a_mixture(objective):
    process = Gaussian(VE(0.3, 3.0))
    exact = hills(process)
    denoiser = Denoiser(MLP(48, torch.float32), process, "eps")
    optimizer = torch.optim.Adam(denoiser.parameters(), 1e-2, betas=(0.9, 0.99))
    pool = exact.sample(Noise(0, 8000)).float()

    def error():
        """E |sigma (s - s*)|^2 / dim over the levels; a model that says s = 0 has about 0.6."""
        x0 = exact.sample(Noise(10**6, 2000)).float()
        t = torch.linspace(0, 1, 2000)
        x = process.corrupt(x0, t, BatchNoise(3, 0).normal(x0))
        with torch.no_grad():
            return float((denoiser(x, t).eps - exact(x, t).eps).square().mean())

    steps = 400
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        loss, _ = objective(denoiser, {"x": pool[step % 31 * 256 :][:256]}, BatchNoise(1, step))
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    assert error() < 0.01


# -- under the trainer -----------------------------------------------------------------------------------------------


class Pictures:
    def __init__(self, count=12):
        self.x = Noise(0, count).normal(torch.empty(count, 1, 8, 8))

    def __len__(self):
        return len(self.x)

    def batch(self, rows, seed, position):
        return {"x": self.x[rows], "condition": {"label": torch.arange(len(rows)) % 3}}


def network(kind):
    settings = {"unet": {"width": 32, "multipliers": [1], "blocks": [1], "attention": [0]}}
    settings["dit"] = {"width": 32, "depth": 1, "patch": 2}
    net = build(kind, in_channels=1, size=[8, 8], classes=3, **settings[kind])
    for k, weight in enumerate(net.parameters()):
        with torch.no_grad():  # last layers start at zero, where every divergence is zero too
            weight.copy_(0.3 * BatchNoise(9, k).normal(weight))
    return net


@pytest.mark.parametrize("kind", ["unet", "dit"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_trains_our_networks_whole_or_in_parts(kind, precision):
    """Attention, autocast, accumulated gradients, and the held-out loss, which is measured under no_grad."""
    denoiser = Denoiser(network(kind), Gaussian(Flow(), 0.5), "velocity")
    objective = SlicedScoreMatching(drop=0.3, classes=3)
    batch = Pictures().batch(torch.arange(12), 0, 0)
    losses, grads = [], []
    for micro in (None, 4):
        config = TrainingConfig(
            batch=12, micro_batch=micro, precision=precision, validate_images=12, warmup=0
        )
        optimizer = torch.optim.SGD(denoiser.parameters(), 0.1)
        stepper = Stepper(denoiser, objective, optimizer, config, torch.device("cpu"))
        optimizer.zero_grad()
        loss, figures = stepper.gradient(batch, 0, 0)
        losses.append(float(loss))
        grads.append(torch.cat([p.grad.flatten().clone() for p in denoiser.parameters()]))
        assert not any(row["error"].requires_grad for row in figures)
    near = 1e-4 if precision == "float32" else 0.05  # half precision rounds sums of 4 and of 12 differently
    assert losses[0] == pytest.approx(losses[1], rel=near)
    assert float((grads[0] - grads[1]).norm() / grads[0].norm()) < near
    held = held_out_loss(denoiser.eval(), objective, Pictures(), config, torch.device("cpu"))  # type: ignore[arg-type]
    again = held_out_loss(denoiser, objective, Pictures(), config, torch.device("cpu"))  # type: ignore[arg-type]
    assert held.loss == again.loss
    assert all(bool(p.grad.isfinite().all()) for p in denoiser.parameters())


def test_without_gradients_the_loss_is_the_same_and_holds_no_graph():
    denoiser = Denoiser(MLP(), Gaussian(Flow()))
    batch = {"x": hills(denoiser.process).sample(Noise(0, 8))}
    for cls in MATCHING:
        with_graph, _ = cls()(denoiser, batch, BatchNoise(0, 0))
        with torch.no_grad():
            without, _ = cls()(denoiser, batch, BatchNoise(0, 0))
        assert with_graph.requires_grad
        assert not without.requires_grad
        assert torch.allclose(with_graph, without, rtol=1e-12)


def test_the_error_logged_is_that_of_the_denoising_loss():
    denoiser = Denoiser(MLP(), Gaussian(Flow()))
    batch, noise = {"x": hills(denoiser.process).sample(Noise(0, 8))}, BatchNoise(0, 0)
    _, want = Denoising()(denoiser, batch, noise)
    for cls in MATCHING:
        _, figures = cls()(denoiser, batch, noise)
        assert torch.allclose(figures["error"], want["error"], rtol=1e-12)
        assert torch.equal(figures["log_snr"], want["log_snr"])


# -- recipes ---------------------------------------------------------------------------------------------------------


def test_recipes_name_them():
    recipe = read_recipe("digits", ["objective.kind=sliced", "objective.projections=3", "objective.drop=0.2"])
    objective = build_objective(**recipe.objective.model_dump(exclude={"losses"}), classes=10)
    assert isinstance(objective, SlicedScoreMatching)
    assert (objective.projections, objective.drop, objective.classes) == (3, 0.2, 10)
    assert objective.weighting == Plain("velocity")
    assert (
        type(build_objective("implicit", weighting={"kind": "plain", "space": "eps"}))
        is ImplicitScoreMatching
    )


@pytest.mark.parametrize("kind", ["sliced", "implicit"])
def test_a_compiled_network_is_refused(kind):
    pytest.importorskip("sklearn")
    from sfumato.recipes.run import set_up

    overrides = [f"objective.kind={kind}", "training.compile=true"]
    with pytest.raises(RecipeError, match=r"set training\.compile=false"):
        set_up(read_recipe("digits", overrides))
    set_up(read_recipe("digits", overrides[:1]))


def test_wrong_values_are_refused():
    with pytest.raises(RecipeError, match="at least one projection"):
        SlicedScoreMatching(projections=0)
    with pytest.raises(RecipeError, match="share of dropped"):
        SlicedScoreMatching(drop=1.5)
    with pytest.raises(RecipeError, match="did you mean 'sliced'"):
        build_objective("slised")
    wide = {"x": torch.zeros(2, MOST_DIMENSIONS + 1)}

    class Wide(nn.Module):
        def forward(self, x, noise_level, condition=None):
            return x

    with pytest.raises(RecipeError, match="use 'sliced'"):
        ImplicitScoreMatching()(Denoiser(Wide(), Gaussian(Flow())), wide, BatchNoise(0, 0))
