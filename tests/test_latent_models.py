"""Models of latents: they are trained, judged and edited on pictures as any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from latent_cases import coder, model_of
from sfumato import bundle
from sfumato.codec import LatentCodec
from sfumato.domains.images import Images
from sfumato.editing import Decoded, Mask, change, check_operator, interpolate, restore
from sfumato.errors import RecipeError, RunError, SolverError
from sfumato.model import Model, Sampling
from sfumato.networks import build
from sfumato.noise import Noise
from sfumato.objectives import Apprentice
from sfumato.processes import Flow, Gaussian
from sfumato.recipes import read_recipe, recipe_from
from sfumato.recipes.codec import finished_codec
from sfumato.recipes.judge import Bench
from sfumato.recipes.judge_codec import bench_of, judge_codec
from sfumato.recipes.run import train
from sfumato.solvers import DPMpp2M, FlowGrid

CODEC = {
    "name": "tiny-codec",
    "data": {"held_out": 0.4},
    "network": {"kind": "autoencoder", "patch": 2, "width": 8, "multipliers": [1], "blocks": [1], "latent_channels": 2},
    "objective": {"kind": "autoencoder"},
    "training": {"images": 640, "batch": 32, "learning_rate": 5e-3, "warmup": 0, "ema": [0.1], "log_every": 320},
    "evaluation": {"features": "pixels", "samples": 30},
}  # fmt: skip

LATENT = {
    "name": "tiny-latent",
    "data": {"held_out": 0.4},
    "network": {"kind": "unet", "patch": 1, "width": 8, "multipliers": [1], "blocks": 1},
    "training": {"images": 64, "batch": 16, "warmup": 0, "preview_every": 32, "validate_every": 32},
    "sampling": {"steps": 2},
    "evaluation": {"features": "pixels", "samples": 20},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec and a model of its latents, trained for a moment on 100 pictures."""
    folder = tmp_path_factory.mktemp("runs")
    ramp = np.linspace(0, 255, 8)[None, :] * np.random.default_rng(0).uniform(0.2, 1, (100, 1, 1))
    np.savez(folder / "ramps.npz", images=ramp.repeat(8, axis=1).astype(np.uint8))
    data = {"source": str(folder / "ramps.npz"), "held_out": 0.4}
    train(recipe_from({**CODEC, "data": data}), folder / "codec")
    where = {"bundle": str(folder / "codec" / "model")}
    train(recipe_from({**LATENT, "data": data, "codec": where}), folder / "latent")
    return folder


def test_an_autoencoder_is_trained_judged_and_its_receipt_agrees(runs: Path):
    codec = bundle.load_codec(runs / "codec" / "model")
    data = Images.from_json(codec.info["domain"]).read(runs / "ramps.npz")
    z = codec.encode(data.tensor())
    assert float(z.mean((0, 2, 3)).abs().max()) < 0.2  # over all, not just the 60 it was scaled by
    assert float((z.std((0, 2, 3)) - 1).abs().max()) < 0.2
    x = data.tensor()
    gap = float((codec.decode(z) - x).abs().mean())
    assert gap < 0.5 * float((x - x.mean(0)).abs().mean()) + 0.2  # it has begun to learn
    figures, path = judge_codec(runs / "codec" / "model", runs / "codec")
    assert [m.name for m in figures] == ["PSNR", "absolute error", "frechet", "kernel"]
    assert figures[2].floor is not None
    from sfumato.evaluation.receipts import Receipt

    bench = bench_of(runs / "codec" / "model")
    assert all(row.agrees for row in bench.recompute(Receipt.read(path)))
    assert "PSNR" in (runs / "codec" / "model" / "README.md").read_text()


def test_a_model_of_latents_is_trained_shown_and_judged_on_pictures(runs: Path):
    folder = runs / "latent" / "model"
    model = bundle.load(folder)
    assert isinstance(model.codec, LatentCodec)
    assert model.codec.fingerprint == bundle.load_codec(runs / "codec" / "model").fingerprint
    assert model.sample(2).shape == (2, 1, 8, 8)
    assert list((runs / "latent" / "previews").glob("*.png"))
    assert isinstance(bench_of(folder), Bench)
    settings = {"what": "quality", **model.sampling.to_json(), "seed": 0, "batch": 20}
    found = bench_of(folder).figures(settings | {"samples": 20, "measures": ["frechet"]})
    assert found[0].n == 20
    assert "decoded by the codec `tiny-codec`" in (folder / "README.md").read_text()


def test_a_run_goes_on_with_the_codec_it_began_with(runs: Path, tmp_path: Path):
    import shutil

    shutil.copytree(runs / "latent", tmp_path / "latent")
    recipe = read_recipe(str(runs / "latent" / "recipe.toml"), ["training.images=96"])
    gone = recipe.model_copy(update={"codec": recipe.codec.model_copy(update={"bundle": "not/there"})})
    _, result = train(gone, tmp_path / "latent", resume=True)
    assert result.images == 96
    bundle.save_codec(LatentCodec(coder(seed=3)), Images(size=8, channels=1), tmp_path / "other")
    other = recipe.codec.model_copy(update={"bundle": str(tmp_path / "other")})
    with pytest.raises(RunError, match="whose latents mean other things"):
        train(recipe.model_copy(update={"codec": other}), tmp_path / "latent", resume=True)
    with pytest.raises(RecipeError, match="there is no such folder; train it first"):
        train(gone, tmp_path / "fresh")


def test_the_scale_is_measured_after_training(runs: Path):
    data = Images().read(runs / "ramps.npz")
    apprentice = Apprentice(coder())

    class Result:
        weights = apprentice.state_dict()

    codec = finished_codec(apprentice, Result(), data, "a")  # type: ignore[arg-type]
    z = codec.encode(data.tensor())
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(2), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"network": {"kind": "autoencoder"}}, "both or neither"),
        ({"objective": {"kind": "autoencoder"}}, "both or neither"),
        ({"codec": {"bundle": "x"}, "evaluation": {"bound_images": 5}}, "no likelihood of pictures"),
        ({**CODEC, "codec": {"bundle": "x"}}, "leave codec.bundle out"),
        ({**CODEC, "objective": {"kind": "autoencoder", "losses": {"perceptul": 1}}}, "perceptual"),
    ],
)
def test_recipes_that_cannot_be(recipe: dict, says: str):
    with pytest.raises(RecipeError, match=says):
        recipe_from({"name": "a", **recipe, "data": {"source": "digits"}})


def test_the_emoji_recipes_fit_each_other():
    codec, latent = read_recipe("emoji-codec-128"), read_recipe("emoji-latent-128")
    given = codec.network.model_dump()
    network = build(given.pop("kind"), in_channels=3, size=128, **given)
    assert 8 * np.prod(network.latent_shape()) == 3 * 128 * 128
    assert latent.codec.bundle == "runs/emoji-codec-128/model"
    assert latent.data == codec.data


# --- editing and fine-tuning go through the codec ---


def mixture_of_latents(codec) -> Model:
    """A model whose latents are few: what it makes of any measurement is one of three pictures, nearly."""
    from sfumato import GaussianMixture

    process = Gaussian(Flow())
    means = Noise(1, 3).normal(torch.empty(3, 32))
    law = GaussianMixture(process, means, torch.full((3, 32), 1e-3))

    class Latent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.process, self.network, self.unused = process, torch.nn.Identity(), torch.nn.Linear(1, 1)

        def forward(self, x_t, t, condition=None):
            from sfumato.processes import Prediction

            level = process.level(t)
            found = law(x_t.flatten(1), level)
            return Prediction(found.x0.view_as(x_t), "x0", x_t, level, process)

    model = Model(
        Latent(), Images(size=8, channels=1), Sampling(DPMpp2M(), FlowGrid(), steps=30), codec=codec
    )
    model.info["means"] = means.view(3, 2, 4, 4)
    return model


def test_half_of_a_decoded_picture_finds_the_latent_that_it_was_made_of():
    codec = LatentCodec(coder())
    model = mixture_of_latents(codec)
    pictures = codec.decode(model.info["means"])
    half = Mask(torch.arange(64).view(1, 8, 8) % 8 < 4, (1, 8, 8))
    found = restore(model, half, half(pictures), sigma=0.01, steps=30)
    blind = model.sample(3, steps=30)

    def gaps(x):
        return (x[:, None] - pictures[None]).flatten(2).norm(dim=2)

    assert gaps(found).argmin(1).tolist() == [0, 1, 2]
    assert gaps(blind).argmin(1).tolist() != [0, 1, 2]  # else the measurement would prove nothing
    # what was measured without noise is kept to rounding
    kept = restore(model, half, half(pictures), steps=30)
    torch.testing.assert_close(half(kept), half(pictures), rtol=0, atol=1e-5)
    with pytest.raises(SolverError, match="linear operator"):
        restore(model, half, half(pictures), method="ddnm")


def test_a_measurement_of_a_decoded_picture_obeys_the_laws_of_operators():
    codec = LatentCodec(coder().double())
    check_operator(Decoded(Mask(torch.arange(64).view(1, 8, 8) % 3 < 1, (1, 8, 8)), codec))


def test_the_ends_of_an_interpolation_are_what_the_codec_makes_of_the_two_pictures():
    codec = LatentCodec(coder())
    model = model_of(codec)
    x = codec.decode(Noise(2, 2).normal(torch.empty(2, 2, 4, 4)))
    film = interpolate(model, x[0], x[1], frames=3, steps=60)
    whole = codec.decode(codec.encode(x))
    assert film.shape == (3, 1, 8, 8)
    assert (film[[0, 2]] - whole).abs().max() < 0.02 * whole.abs().max()


def test_a_model_of_latents_changes_pictures_and_goes_beyond_their_borders():
    codec = LatentCodec(coder())
    model = model_of(codec)
    x = codec.decode(Noise(2, 3).normal(torch.empty(3, 2, 4, 4)))
    same = change(model, x, None, None, steps=60)
    assert (same - codec.decode(codec.encode(x))).abs().max() < 0.02 * x.abs().max()
    model = mixture_of_latents(codec)
    canvas = torch.zeros(1, 8, 11, dtype=torch.bool)
    canvas[..., 3:] = True
    wider = Mask(canvas, (1, 8, 11))  # a width that the codec's factor does not divide
    known = torch.zeros(3, 1, 8, 11)
    known[..., 3:] = x
    found = restore(model, wider, wider(known), steps=8)
    assert found.shape == (3, 1, 8, 11)
    torch.testing.assert_close(wider(found), wider(known), rtol=0, atol=1e-5)
