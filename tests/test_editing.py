"""Laws of editing: operators, posteriors that are known exactly, kept pixels, closed cycles, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sfumato import Noise, load
from sfumato.cli import app
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
    build_method,
    change,
    check_operator,
    downsample,
    exact_posterior,
    grey,
    interpolate,
    invert,
    levels_for_inversion,
    measure,
    radon,
    restore,
    sample_posterior,
    slerp,
    twisted,
)
from sfumato.errors import BundleError, DataError, SfumatoError, SolverError
from sfumato.processes import EDM, VE, Cosine, Flow, Gaussian
from sfumato.processes.laws import LawBroken
from sfumato.solvers import AdamsMoulton, Ancestral, AngleGrid, Heun, Steering, integrate, sample

SHAPE = (3, 8, 12)
FLOW = Gaussian(Flow())


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return Noise(seed, shape[0]).normal(torch.empty(shape, dtype=torch.float64))


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


# --- posteriors that are known ---


def one_gaussian(process: Gaussian, dim: int = 4) -> GaussianMixture:
    basis = torch.linalg.qr(normal(dim, dim, seed=1))[0]
    return GaussianMixture(
        process,
        normal(1, dim, seed=2),
        ((basis * torch.tensor([1.0, 0.5, 0.2, 0.05]).double()) @ basis.mT)[None],
    )


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


# --- models, and the command line ---


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name, size in (("a", 8), ("b", 8), ("small", 2)):
        Image.fromarray(random.integers(0, 255, (size, size), dtype=np.uint8)).save(folder / f"{name}.png")
    mask = np.zeros((8, 8), np.uint8)
    Image.fromarray(mask).save(folder / "empty.png")
    mask[:, 4:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(mask[:4]).save(folder / "wrong.png")
    (folder / "bad.png").write_text("not a picture")
    return folder


def edit(demo: Path, *words: object) -> int:
    return app(["edit", str(words[0]), str(demo / "runs" / "demo" / "model"), *map(str, words[1:])])


def grey_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_inpainting_keeps_what_the_mask_does_not_cover(demo_folder: Path, pictures: Path, tmp_path: Path):
    out = tmp_path / "out"
    words = (
        pictures / "a.png",
        pictures / "b.png",
        "--mask",
        pictures / "mask.png",
        "--out",
        out,
        "--count",
        2,
    )
    assert edit(demo_folder, "inpaint", *words, "--steps", 3) == 0
    assert sorted(path.name for path in out.iterdir()) == ["a-0.png", "a-1.png", "b-0.png", "b-1.png"]
    assert (tmp_path / "out-sheet.png").is_file()
    kept, found = grey_of(pictures / "a.png")[:, :4], grey_of(out / "a-0.png")
    assert (found[:, :4] == kept).all()
    assert (found != grey_of(out / "a-1.png"))[:, 4:].any()


def test_outpainting_goes_on_beyond_the_borders(demo_folder: Path, pictures: Path, tmp_path: Path):
    words = (pictures / "a.png", "--left", 3, "--bottom", 2, "--steps", 3, "--out", tmp_path / "out")
    assert edit(demo_folder, "outpaint", *words) == 0
    found = grey_of(tmp_path / "out" / "a.png")
    assert found.shape == (10, 11)
    assert (found[:8, 3:] == grey_of(pictures / "a.png")).all()


@pytest.mark.parametrize(
    "words",
    [
        ("super-resolve", "small.png", "--factor", 4),
        ("deblur", "a.png", "--method", "pigdm"),
        ("denoise", "a.png", "--label", 3),
        ("restyle", "a.png", "--style", "b.png"),
        ("variations", "a.png", "--count", 2),
        ("interpolate", "a.png", "b.png", "--frames", 3),
        ("change", "a.png", "--old", 3, "--new", 5),
    ],
    ids=lambda words: words[0],
)
def test_every_edit_writes_pictures_and_a_sheet(
    words: tuple, demo_folder: Path, pictures: Path, tmp_path: Path
):
    places = [pictures / word if str(word).endswith(".png") else word for word in words]
    assert edit(demo_folder, *places, "--steps", 3, "--out", tmp_path / "out") == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == {"variations": 2, "interpolate": 3}.get(words[0], 1)
    assert (tmp_path / "out-sheet.png").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("inpaint", "a.png", "--mask", "wrong.png"), "8x4.*8x8"),
        (("inpaint", "a.png", "--mask", "empty.png"), "mask is empty"),
        (("inpaint", "a.png", "--mask", "nowhere.png"), "no such picture"),
        (("inpaint", "bad.png", "--mask", "mask.png"), "bad.png.*not a picture"),
        (("inpaint", "a.png", "--mask", "mask.png", "--method", "pigdn"), "did you mean 'pigdm'"),
        (("inpaint", "a.png", "--mask", "mask.png", "--label", "eleven"), "unknown class"),
        (("outpaint", "a.png"), "--left"),
        (("super-resolve", "a.png", "--factor", 3), "whole factor"),
        (("colourise", "a.png"), "cannot be colourised"),
        (("change", "a.png", "--old", 3, "--new", 12), "out of range"),
        (("variations", "a.png", "--strength", 2), r"\(0, 1\]"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    words: tuple, said: str, demo_folder: Path, pictures: Path, tmp_path: Path
):
    places = [pictures / word if str(word).endswith(".png") else word for word in words]
    with pytest.raises(SfumatoError, match=said) as error:
        edit(demo_folder, *places, "--steps", 2, "--out", tmp_path / "out")
    assert "\n" not in str(error.value)


def test_an_unreadable_picture_leaves_the_others_finished(demo_folder: Path, pictures: Path, tmp_path: Path):
    words = (pictures / "bad.png", pictures / "a.png", "--steps", 2, "--out", tmp_path / "out")
    with pytest.raises(DataError, match=r"bad\.png.*the 1 others are finished"):
        edit(demo_folder, "denoise", *words)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_pictures_of_one_name_are_all_written(demo_folder: Path, pictures: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    for place, source in (("a.png", "b.png"), ("a-2.png", "a.png")):
        (other / place).write_bytes((pictures / source).read_bytes())
    words = (pictures / "a.png", other / "a.png", other / "a-2.png", "--steps", 2, "--out", tmp_path / "out")
    assert edit(demo_folder, "denoise", *words) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a-2.png", "a-3.png", "a.png"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("change", "a.png", "--old", 3, "--new", 5, "--seed", 4), "no use for --seed"),
        (("interpolate", "a.png", "b.png", "--guidance", 2), "no use for --guidance"),
        (("denoise", "a.png", "--prompt", "a heart"), "unknown condition 'text'"),
        (("denoise", "a.png", "--method", "dps:scale=x"), "scale must be a finite number"),
        (("denoise", "a.png", "--method", "moments:damping=-5"), "damping must be"),
        (("denoise", "a.png", "--guidance", "2:interval=3..1"), "interval"),
        (("interpolate", "a.png", "b.png", "--steps", 0), "steps must be"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    words: tuple, said: str, demo_folder: Path, pictures: Path, tmp_path: Path
):
    places = [pictures / word if str(word).endswith(".png") else word for word in words]
    steps = () if "--steps" in words else ("--steps", 2)
    with pytest.raises(SfumatoError, match=said):
        edit(demo_folder, *places, *steps, "--out", tmp_path / "out")


def test_edits_pass_a_filter_on_their_way_out(demo_folder: Path, pictures: Path, tmp_path: Path, monkeypatch):
    from sfumato import safeguards

    monkeypatch.setattr(
        safeguards, "build_filter", lambda text, action: safeguards.Filter(lambda picture: 1.0, 0.5, action)
    )
    words = (
        pictures / "a.png",
        pictures / "b.png",
        "--steps",
        2,
        "--out",
        tmp_path / "out",
        "--filter",
        "own",
    )
    assert edit(demo_folder, "denoise", *words) == 0
    record = json.loads((tmp_path / "out-filter.json").read_text())
    assert record["rejected"] == 2
    first, second = (grey_of(tmp_path / "out" / name) for name in ("a.png", "b.png"))
    assert (first == second).all(), "what is rejected is crossed out"


def test_restoring_does_not_depend_on_the_batch(demo_folder: Path):
    model = load(demo_folder / "runs" / "demo" / "model")
    operator = downsample(model.domain.shape, 4)
    y = normal(5, *operator.measured).float()
    for method in ("pigdm", "particles:particles=2"):
        whole = restore(model, operator, y, sigma=0.1, steps=3, method=method)
        parts = restore(model, operator, y, sigma=0.1, steps=3, method=method, batch=2)
        assert torch.allclose(whole, parts, atol=1e-5), method


def test_interpolation_and_change_of_a_model(demo_folder: Path):
    model = load(demo_folder / "runs" / "demo" / "model")
    x = 0.5 * normal(2, *model.domain.shape).float()
    way = interpolate(model, x[0], x[1], frames=3, steps=40)
    assert (way[0] - x[0]).square().mean().sqrt() < 0.05
    assert (way[2] - x[1]).square().mean().sqrt() < 0.05
    same = change(model, x, {"label": 3}, {"label": 3}, steps=40)
    other = change(model, x, {"label": 3}, {"label": 7}, steps=40)
    assert (same - x).square().mean().sqrt() < 0.05
    assert (other - x).square().mean() > 2 * (same - x).square().mean()
    parts = change(model, x, {"label": 3}, {"label": 7}, steps=40, batch=1)
    assert torch.allclose(parts, other, atol=1e-4)
    with pytest.raises(BundleError, match="2 frames"):
        interpolate(model, x[0], x[1], frames=1)
    with pytest.raises(BundleError, match="this model's pictures are"):
        interpolate(model, x[0], x[1, :, :4], frames=2)


def test_what_does_not_fit_is_refused():
    with pytest.raises(SolverError, match="does not fit"):
        Mask(torch.ones(1, 3, 3), (1, 4, 4))
    for mask in (torch.zeros(1, 4, 4), torch.ones(1, 4, 4)):
        with pytest.raises(SolverError, match="empty"):
            Mask(mask, (1, 4, 4))
    with pytest.raises(SolverError, match="measures"):
        Measurement(Identity((4,)), torch.zeros(2, 3))
    with pytest.raises(SolverError, match="finite"):
        Measurement(Identity((2,)), torch.tensor([[0.0, math.nan]]))
    prior = one_gaussian(FLOW)
    with pytest.raises(SolverError, match="linear operator"):
        Posterior(prior, Measurement(Clip((4,)), torch.zeros(1, 4)), "pigdm")
    with pytest.raises(SolverError, match="repeats"):
        build_method("repaint:repeats=0")
    with pytest.raises(SolverError, match="unknown value"):
        build_method("dps:scala=2")
    with pytest.raises(SolverError, match="at least as large"):
        Windows(prior, (1, 4, 4), (1, 3, 8))


# --- what users did that ended badly ---


def test_pictures_that_were_given_are_not_overwritten(demo_folder: Path, pictures: Path, tmp_path: Path):
    own = tmp_path / "own"
    own.mkdir()
    before = (pictures / "a.png").read_bytes()
    (own / "a.png").write_bytes(before)
    with pytest.raises(BundleError, match="would be overwritten"):
        edit(demo_folder, "denoise", own, "--out", own, "--steps", 2)
    assert (own / "a.png").read_bytes() == before


@pytest.mark.parametrize("kind", ["moments", "pigdm", "ddnm", "dps"])
def test_a_sample_without_noise_is_left_as_it_is_among_others_that_have_some(kind: str):
    prior = one_gaussian(Gaussian(Flow()))
    half = Mask(torch.tensor([True, True, False, False]), (4,))
    x = torch.linspace(-1, 1, 8).view(2, 4)
    posterior = Posterior(prior, Measurement(half, torch.ones(2, 2), 0.0), kind)
    both = posterior(x, torch.tensor([0.0, 0.5])).x0
    torch.testing.assert_close(both[:1], x[:1])
    torch.testing.assert_close(both[1:], posterior(x, 0.5).x0[1:])


def test_a_mask_is_not_white_where_it_is_transparent(demo_folder: Path, pictures: Path, tmp_path: Path):
    painted = np.full((8, 8, 4), 255, np.uint8)
    painted[:, :4, 3] = 0
    Image.fromarray(painted).save(tmp_path / "mask.png")
    words = (pictures / "a.png", "--mask", tmp_path / "mask.png", "--out", tmp_path / "out", "--steps", 2)
    assert edit(demo_folder, "inpaint", *words) == 0
    kept, given = grey_of(tmp_path / "out" / "a.png"), grey_of(pictures / "a.png")
    assert (kept[:, :4] == given[:, :4]).all()
