"""A cascade: two stages compose to the law of one, the small picture is trusted as far as its noise says, and a run,
a bundle and a guided sample of two stages are what they are of one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sfumato import GaussianMixture, bundle
from sfumato.cascade import APART, Base, enlarged
from sfumato.denoisers import Denoiser, Guidance
from sfumato.domains.images import Images
from sfumato.errors import BundleError, RecipeError, RunError, SolverError
from sfumato.model import Model, Sampling
from sfumato.networks import build
from sfumato.noise import Noise
from sfumato.processes import Flow, Gaussian
from sfumato.recipes import read_recipe, recipe_from
from sfumato.recipes.bench import Bench, sampling_cost
from sfumato.recipes.cascade import Pairs
from sfumato.recipes.run import read_data, set_up, train
from sfumato.solvers import AdamsMoulton, AngleGrid, DPMpp2M, FlowGrid

PROCESS = Gaussian(Flow())


# --- the law ---


class Pair(nn.Module):
    """E[x_0 | x_t, y'] for jointly normal x and y', where y is the mean of the four pixels.

    x = F w with w of 4 standard normals, and y' = alpha_u mean(x) + sigma_u eps in each pixel.
    """

    kind = "exact"

    def __init__(self, factor: torch.Tensor, u: float):
        super().__init__()
        self.factor, self.unused = factor, nn.Linear(1, 1)
        level = PROCESS.level(u)
        self.alpha, self.sigma = level.alpha, level.sigma
        self.seen = 1 / math.hypot(level.alpha * PROCESS.sigma_data, level.sigma)

    def forward(self, x, noise_level, condition=None):
        lam = float(-8 * noise_level[0])
        alpha = 1 / (1 + math.exp(-lam / 2))
        sigma = 1 - alpha
        x_t = x.flatten(1) * math.hypot(alpha * PROCESS.sigma_data, sigma)
        noisy = condition["image"][:, :1].flatten(1) / self.seen
        mean = torch.full((4, 4), 0.25, dtype=x.dtype)
        cov = self.factor @ self.factor.T
        measure = torch.cat([alpha * torch.eye(4, dtype=x.dtype), self.alpha * mean])
        spread = torch.diag(torch.tensor([sigma**2] * 4 + [self.sigma**2] * 4, dtype=x.dtype) + 1e-12)
        gain = cov @ measure.T @ torch.linalg.inv(measure @ cov @ measure.T + spread)
        return (torch.cat([x_t, noisy], 1) @ gain.T).view_as(x)


@pytest.mark.parametrize("u", [0.05, 0.3, 0.8])
def test_two_stages_draw_what_one_would(u):
    torch.manual_seed(0)
    factor = torch.linalg.qr(torch.randn(4, 4).double())[0] * torch.tensor([0.9, 0.5, 0.3, 0.1]).double()
    cov = factor @ factor.T
    own = torch.nn.Linear(1, 1).double()  # what says in which precision a model computes

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.process, self.own, self.network = PROCESS, own, nn.Identity()
            self.law = GaussianMixture(PROCESS, torch.zeros(1, 1), torch.full((1, 1), float(cov.mean())))

        def forward(self, x_t, t, condition=None):
            found = self.law(x_t.flatten(1), t)
            return replace(found, value=found.value.view_as(x_t), x_t=x_t)

    fine = Sampling(AdamsMoulton(), AngleGrid(), 40)
    base = Model(Small(), Images(size=1, channels=1), fine)
    big = Denoiser(Pair(factor, u).double(), PROCESS, "x0")
    model = Model(big, Images(size=2, channels=1), fine, base=Base(base, u))
    n = 6000
    x = model.sample(n, batch=n).flatten(1)
    found = x.T @ x / n
    assert (found - cov).abs().max() < 4 * cov.max() / math.sqrt(n)
    # and what was enlarged is in it, the more the less noise there was
    low = base.sample(n, seed=APART, batch=n).flatten()
    kept = float(torch.corrcoef(torch.stack([low, x.mean(1)]))[0, 1])
    level = PROCESS.level(u)
    signal = level.alpha**2 * float(cov.mean())
    # both are as far from what is seen, so the correlation is the square of that with it
    assert abs(kept - signal / (signal + level.sigma**2 / 4)) < 4 / math.sqrt(n)


def test_the_slot_says_how_much_of_it_is_noise():
    low = torch.rand(3, 1, 4, 4) * 2 - 1
    u = torch.tensor([0.0, 0.2, 1.0])
    made = enlarged(low, (8, 8), PROCESS, u, Noise(0, 3).at(0))
    assert made.shape == (3, 2, 8, 8)
    told = made[:, 1].flatten(1)
    assert (told == told[:, :1]).all()
    assert told[0, 0] == -2.5
    assert told[:, 0].diff().min() > 0
    clean = torch.nn.functional.interpolate(low, size=(8, 8), mode="bicubic")
    torch.testing.assert_close(made[0, :1] * PROCESS.sigma_data, clean[0])
    # at t = 1 it says nothing of the picture
    other = enlarged(-low, (8, 8), PROCESS, u, Noise(0, 3).at(0))
    torch.testing.assert_close(made[2], other[2])


# --- a model of two stages ---


def stage(size: int, image: int = 0, classes: int = 2, seed: int = 0) -> Denoiser:
    torch.manual_seed(seed)
    network = build(
        "unet", in_channels=1, size=size, patch=1, width=16, multipliers=[1], blocks=1, classes=classes,
        image_channels=image,
    )  # fmt: skip
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return Denoiser(network.eval().requires_grad_(False), PROCESS, "velocity")


def cascade(u: float = 0.2) -> Model:
    plan = Sampling(DPMpp2M(), FlowGrid(), steps=3)
    classes = ("a", "b")
    base = Model(stage(4), Images(size=4, channels=1, classes=classes), plan.with_(guidance=2.0))
    return Model(stage(8, 2, seed=1), Images(size=8, channels=1, classes=classes), plan, base=Base(base, u))


def test_a_sample_of_two_stages_depends_on_its_own_seed_alone():
    model = cascade()
    asked = {"label": ["a", "b", "b", "a", "b"]}
    whole = model.sample(5, condition=asked, seed=3)
    alone = model.sample(indices=[3], condition={"label": "a"}, seed=3)
    torch.testing.assert_close(whole[3:4], alone, rtol=0, atol=1e-5)
    parts = model.sample(5, condition=asked, seed=3, batch=2)
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-5)


def test_the_first_stage_is_the_base_as_it_samples_itself():
    model = cascade()
    assert model.base is not None
    low = model.base.model.sample(4, condition={"label": "b"}, seed=3 ^ APART)
    given = model.sample(condition={"label": "b", "image": low}, count=4, seed=3)
    torch.testing.assert_close(given, model.sample(4, condition={"label": "b"}, seed=3))
    other = model.sample(condition={"label": "b", "image": -low}, count=4, seed=3)
    assert (given - other).abs().max() > 1e-3
    for wrong in (low[:, :, :3], low.numpy()):
        with pytest.raises(BundleError, match=r"enlarges pictures of \(1, 4, 4\)"):
            model.sample(condition={"image": wrong}, count=4)
    with pytest.raises(BundleError, match="of 4 of them"):
        model.sample(condition={"image": low[:2]}, count=4)


def test_guidance_leaves_the_small_picture_in_every_branch():
    model = cascade()
    seen = []
    inner = model.denoiser

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.process, self.inner, self.network = inner.process, inner, inner.network

        def forward(self, x_t, t, condition=None):
            seen.append(condition)
            return self.inner(x_t, t, condition)

    spied = replace(model, denoiser=Spy())
    spied.sample(2, condition={"label": "a"}, guidance=3.0)
    for condition in seen:
        assert condition["label"].tolist() == [0, 0, 2, 2]  # asked for, and nothing asked for
        a, b = condition["image"].chunk(2)
        assert torch.equal(a, b)
        assert a.abs().max() > 0


def test_a_negative_condition_is_of_words_and_keeps_the_small_picture():
    model = cascade()
    away = model.sample(2, condition={"label": "a"}, guidance=Guidance(2.0, negative={"label": "b"}))
    plain = model.sample(2, condition={"label": "a"}, guidance=2.0)
    assert away.isfinite().all()
    assert (away - plain).abs().max() > 1e-3
    same = model.sample(2, condition={"label": "a"}, guidance=Guidance(1.7, negative={"label": "a"}))
    torch.testing.assert_close(same, model.sample(2, condition={"label": "a"}, guidance=1.0))


def test_a_bundle_holds_both_stages(tmp_path):
    model = cascade()
    bundle.save(model, tmp_path / "m")
    again = bundle.load(tmp_path / "m")
    assert again.base is not None
    assert again.base.level == 0.2
    asked = {"label": ["a", "b"]}
    assert torch.equal(again.sample(2, condition=asked), model.sample(2, condition=asked))
    other = replace(model.base.model, denoiser=stage(4, seed=5))
    bundle.save(other, tmp_path / "m" / "base")
    with pytest.raises(BundleError, match="another model than the one"):
        bundle.load(tmp_path / "m")


def test_what_cannot_be_enlarged_is_refused():
    model = cascade()
    for base, message in (
        (replace(model.base.model, domain=replace(model.base.model.domain, classes=("a", "c"))), "labels"),
        (Model(stage(8), Images(size=8, channels=1), model.sampling), "cannot be enlarged"),
    ):
        with pytest.raises(BundleError, match=message):
            replace(model, base=Base(base))
    with pytest.raises(BundleError, match="a time in"):
        Base(model.base.model, 1.5)
    broken = replace(model.base.model, denoiser=replace_weights(stage(4)))
    with pytest.raises(SolverError, match=r"not finite|NaN|stopped being"):
        replace(model, base=Base(broken)).sample(2, condition={"label": "a"})


def replace_weights(denoiser: Denoiser) -> Denoiser:
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.fill_(float("nan"))
    return denoiser


# --- runs ---

SHORT = [
    "training.warmup=100",
    "training.validate_every=0",
    "training.preview_every=0",
    "training.log_every=500",
]


@pytest.fixture(scope="module")
def base_run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("base")
    train(read_recipe("digits", ["data.size=4", "network.patch=1", "training.images=2000", *SHORT]), out)
    return out


def enlarging(base: Path, images: int = 6000):
    own = [f"cascade.bundle={base / 'model'}", f"training.images={images}", "evaluation.bound_images=0"]
    return read_recipe("digits", [*own, "network.width=32", "evaluation.likelihood_images=0", *SHORT])


@pytest.fixture(scope="module")
def run(base_run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cascade")
    train(enlarging(base_run), out)
    return out


def test_pairs_follow_from_seed_and_position(base_run):
    data, _ = read_data(enlarging(base_run))
    pairs = Pairs(data, (4, 4), PROCESS, 0.5)
    whole = pairs.batch(range(20), 5, 100)["condition"]["image"]
    halves = [pairs.batch(range(a, b), 5, 100 + a)["condition"]["image"] for a, b in ((0, 7), (7, 20))]
    assert torch.equal(whole, torch.cat(halves))
    assert not torch.equal(whole, pairs.batch(range(20), 6, 100)["condition"]["image"])
    told = (
        -8
        * pairs.batch(range(400) if len(data) > 400 else range(len(data)), 5)["condition"]["image"][
            :, -1, 0, 0
        ]
    )
    u = 1 / (1 + (told / 2).exp())  # of the flow schedule
    assert u.max() < 0.5
    assert abs(float(u.mean()) - 0.25) < 0.03


def test_a_trained_model_enlarges_what_it_is_given(run, base_run):
    model = bundle.load(run / "model")
    _, held = read_data(enlarging(base_run))
    x = held.tensor(range(100))
    low = torch.nn.functional.interpolate(x, size=(4, 4), mode="bicubic", antialias=True).clamp(-1, 1)
    labels = torch.from_numpy(held.targets[:100])
    made = model.sample(100, condition={"label": labels, "image": low}, steps=8)
    again = torch.nn.functional.interpolate(made, size=(4, 4), mode="bicubic", antialias=True)
    gaps = (again[:, None] - low[None]).flatten(2).square().mean(2)
    assert float((gaps.argmin(1) == torch.arange(100)).float().mean()) > 0.6  # .01 by chance
    drawn = model.sample(4, condition={"label": [1, 2, 3, 4]})
    assert drawn.shape == (4, 1, 8, 8)


def test_a_run_of_a_cascade_is_a_run(run, base_run, tmp_path):
    assert (run / "base" / "bundle.json").is_file()
    assert (run / "model" / "base" / "bundle.json").is_file()
    assert (run / "model" / "figures" / "samples.png").is_file()
    cost = sampling_cost(bundle.load(run / "model"), 4, 1)
    assert cost.nfe > 0
    with pytest.raises(RecipeError, match="train it first"):
        set_up(enlarging(tmp_path / "nowhere"))
    other = tmp_path / "other"
    train(read_recipe("digits", ["data.size=4", "network.patch=1", "training.images=500", *SHORT]), other)
    with pytest.raises(RunError, match="was begun with the base"):
        train(enlarging(other), run, resume=True)
    plain = enlarging(base_run).model_dump()
    for section, name, value in (("evaluation", "bound_images", 8), ("codec", "bundle", "somewhere")):
        with pytest.raises(RecipeError, match="enlarges"):
            recipe_from(plain | {section: {**plain[section], name: value}})


def test_a_cascade_is_judged_and_its_receipt_agrees(run):
    bench = Bench(run / "model")
    plan = bench.model.sampling
    settings = {"solver": plan.solver, "grid": plan.grid, "steps": 4, "guidance": plan.guidance, "seed": 0}
    settings |= {"batch": 64, "samples": 200, "measures": ["frechet"]}
    (first,), (second,) = bench.quality(settings), bench.quality(settings)
    assert first.value == second.value
    assert math.isfinite(first.value)


def test_a_picture_is_restyled_from_itself_made_small():
    from sfumato.editing import restyle

    model = cascade()
    x = torch.linspace(-1, 1, 128).view(2, 1, 8, 8)
    small = F.interpolate(x, (4, 4), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
    expected = model.sample(2, start=(x, 0.4), condition={"image": small})
    torch.testing.assert_close(restyle(model, x, strength=0.4), expected)
