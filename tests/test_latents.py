"""Latent diffusion: an autoencoder's losses are what they say they are, and a model of latents is a model like any."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latent_cases import coder, model_of
from sfumato import bundle
from sfumato.codec import IDENTITY, LatentCodec
from sfumato.domains.images import Images
from sfumato.errors import BundleError, DataError, RecipeError
from sfumato.film import film
from sfumato.networks import PatchCritic, RandomFeatures
from sfumato.networks.autoencoder import gaussian_kl_to_standard, quantise
from sfumato.noise import BatchNoise, Noise
from sfumato.objectives import Apprentice, Autoencoding
from sfumato.objectives.autoencoding import perceptual, reverse
from sfumato.recipes.codec import LatentData
from sfumato.solvers import sample as draw

# --- the bottleneck ---


def test_the_kl_is_that_of_the_two_normals():
    torch.manual_seed(0)
    mean, log_variance = torch.randn(3, 2, 4, 4).double(), torch.randn(3, 2, 4, 4).double()
    law = torch.distributions.Normal(mean, (log_variance / 2).exp())
    standard = torch.distributions.Normal(torch.zeros(()).double(), torch.ones(()).double())
    exact = torch.distributions.kl_divergence(law, standard).flatten(1).sum(1)
    torch.testing.assert_close(gaussian_kl_to_standard(mean, log_variance), exact)
    assert gaussian_kl_to_standard(torch.zeros(1, 5), torch.zeros(1, 5)).item() == 0


@given(st.integers(2, 17), st.lists(st.floats(-3, 3), min_size=1, max_size=8))
def test_quantising_twice_is_quantising_once_and_lands_on_the_nearest_level(levels: int, values: list[float]):
    z = torch.tensor(values, dtype=torch.float64)
    once = quantise(z, levels)
    torch.testing.assert_close(quantise(once, levels), once, rtol=0, atol=1e-12)
    grid = torch.linspace(-1, 1, levels, dtype=torch.float64)
    nearest = (z.clamp(-1, 1)[:, None] - grid).abs().amin(1)
    torch.testing.assert_close((once - z.clamp(-1, 1)).abs(), nearest, rtol=0, atol=1e-12)


def test_the_gradient_goes_through_rounding_as_if_it_were_not_there():
    z = torch.tensor([-0.7, 0.1, 0.4, 1.5], requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    (quantise(z, 5) * weights).sum().backward()
    assert z.grad is not None
    assert z.grad.tolist() == [1.0, 2.0, 3.0, 0.0]  # 1.5 is clamped, where nothing passes


# --- shapes, tiles, scale ---


@given(
    st.sampled_from(["kl", "fsq"]), st.integers(1, 3), st.sampled_from([1, 2]),
    st.integers(1, 13), st.integers(1, 13),
)  # fmt: skip
def test_any_size_comes_back_as_it_was(bottleneck: str, levels: int, patch: int, height: int, width: int):
    network = coder(
        patch=patch, multipliers=[1] * levels, blocks=1, size=(height, width), bottleneck=bottleneck
    )
    x = torch.randn(2, 1, height, width)
    z = network.encode(x)
    f = patch * 2 ** (levels - 1)
    assert tuple(z.shape) == (2, 2, -(-height // f), -(-width // f)) == (2, *network.latent_shape())
    assert network.decode(z).shape == network(x)[0].shape == x.shape
    torch.testing.assert_close(network.decode(z[:1]), network.decode(z)[:1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("bottleneck", ["kl", "fsq"])
@pytest.mark.parametrize(("multipliers", "blocks"), [([1], 1), ([1, 2], [1, 2]), ([1, 1, 2], [2, 1, 1])])
def test_tiles_with_the_halo_are_the_whole_and_with_less_they_are_not(bottleneck, multipliers, blocks):
    network = coder(size=8, multipliers=multipliers, blocks=blocks, bottleneck=bottleneck)
    z = torch.randn(1, 2, 23, 38)
    whole = network.decode(z)
    # the same sums in another order
    torch.testing.assert_close(network.decode(z, tile=9), whole, rtol=0, atol=2e-5)
    torch.testing.assert_close(network.decode(z, tile=7, overlap=network.halo + 2), whole, rtol=0, atol=2e-5)
    gaps = [float((network.decode(z, tile=9, overlap=k) - whole).abs().max()) for k in (0, network.halo - 1)]
    assert gaps[0] > 1e-3
    assert gaps[0] >= gaps[1]


def test_the_halo_is_no_more_than_what_a_pixel_depends_on():
    network = coder(size=8, multipliers=[1, 2], blocks=[1, 2]).double()
    z = torch.randn(1, 2, 40, 40, dtype=torch.float64, requires_grad=True)
    f, place = network.factor, 20
    (grad,) = torch.autograd.grad(
        network.decode(z)[0, 0, f * place : f * (place + 1), f * place : f * (place + 1)].sum(), z
    )
    rows = grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert (place - int(rows.min()), int(rows.max()) - place) == (network.halo, network.halo)


def test_scaled_latents_have_unit_size_and_decode_to_the_same():
    network, x = coder(), torch.randn(64, 1, 8, 8)
    before, z = network.decode(network.encode(x)), network.moments(x)[0]
    network.set_scale(z.mean((0, 2, 3)), z.std((0, 2, 3)))
    scaled = network.encode(x)
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(2), rtol=1e-4, atol=0)
    torch.testing.assert_close(network.decode(scaled), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"bottleneck": "vq"}, "kl, fsq"),
        ({"blocks": [1, 2]}, "one a level"),
        ({"levels": 1}, "at least 2"),
        ({"latent_channels": 0}, "latent_channels"),
    ],
)
def test_an_impossible_autoencoder_is_refused(arguments: dict, says: str):
    with pytest.raises(ValueError, match=says):
        coder(**arguments)


# --- the losses ---


def test_the_reversed_gradient_has_its_share_and_the_critic_its_own():
    torch.manual_seed(0)
    x = torch.randn(3, 1, 6, 6, requires_grad=True)
    own, judged = reverse(x, 0.3)
    a, b = torch.randn_like(x), torch.randn_like(x)
    (own * a + judged * b).sum().backward()
    size = [g.flatten(1).norm(dim=1)[:, None, None, None] for g in (a, b)]
    assert x.grad is not None
    torch.testing.assert_close(x.grad, a - 0.3 * size[0] / size[1] * b)
    silent = torch.randn(2, 4, requires_grad=True)  # a critic that has nothing to say
    own, judged = reverse(silent, 0.3)
    (own.sum() + 0 * judged.sum()).backward()
    assert silent.grad is not None
    torch.testing.assert_close(silent.grad, torch.ones(2, 4))


def test_the_critic_descends_what_the_autoencoder_ascends():
    x, torch_noise = torch.randn(8, 1, 8, 8), BatchNoise(0, 0)
    network = coder().requires_grad_()
    apprentice = Apprentice(network, PatchCritic(1, 8))
    critic = apprentice.critic
    assert critic is not None
    # a share so large that the errors hardly matter
    loss, _ = Autoencoding(kl=0, perceptual=0, adversarial=1e4)(apprentice, {"x": x}, torch_noise)
    loss.mean().backward()

    def score(part: torch.nn.Module, step: float) -> float:
        """fake minus real after a step of plain gradient descent of one player."""
        moved = copy.deepcopy(apprentice)
        whole = sum(float(p.grad.square().sum()) for p in part.parameters() if p.grad is not None) ** 0.5
        with torch.no_grad():
            for (name, p), twin in zip(
                apprentice.named_parameters(), dict(moved.named_parameters()).values(), strict=True
            ):
                mine = name.startswith("critic") == (part is critic)
                if mine and p.grad is not None:
                    twin.sub_(step * p.grad / whole)
            made = moved.network(x, torch_noise.normal(torch.empty(8, 2, 4, 4), 0))[0]
            assert moved.critic is not None
            return float((moved.critic(made) - moved.critic(x)).mean())

    still = score(critic, 0.0)
    assert score(critic, 1e-2) < still - 1e-4
    assert score(network, 1e-2) > still + 1e-4


def test_cutting_a_batch_leaves_the_gradient_alone():
    x = torch.randn(4, 1, 8, 8)
    network = coder(bottleneck="fsq").requires_grad_()
    apprentice = Apprentice(network, PatchCritic(1, 8), RandomFeatures(1, 4))

    def gradient(parts: list[torch.Tensor]) -> torch.Tensor:
        apprentice.zero_grad()
        for part in parts:
            losses, _ = Autoencoding(adversarial=0.5)(apprentice, {"x": part}, BatchNoise(0, 0))
            (losses.sum() / 4).backward()
        return torch.cat([p.grad.flatten() for p in apprentice.parameters() if p.grad is not None])

    torch.testing.assert_close(gradient([x]), gradient([x[:1], x[1:]]), rtol=1e-3, atol=1e-6)


def test_the_held_out_loss_is_without_critic_and_noise():
    x = torch.randn(4, 1, 8, 8)
    apprentice = Apprentice(coder(), PatchCritic(1, 8), RandomFeatures(1, 4))
    objective = Autoencoding(adversarial=0.5)
    with torch.no_grad():
        one, figures = objective(apprentice, {"x": x}, BatchNoise(0, 0))
        two, _ = objective(apprentice, {"x": x}, BatchNoise(0, 1))
        made, kl = apprentice.network(x)
    assert torch.equal(one, two)
    assert "critic" not in figures
    expected = (made - x).abs().mean((1, 2, 3)) + 1e-3 * kl / 64
    assert apprentice.features is not None
    torch.testing.assert_close(one, expected + 0.1 * perceptual(apprentice.features, made, x))


def test_features_see_edges_more_than_greys_and_nothing_where_nothing_differs():
    features, x = RandomFeatures(1), torch.rand(2, 1, 16, 16) * 2 - 1
    assert perceptual(features, x, x).abs().max() == 0
    blurred = torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    shift = (x - blurred).square().mean().sqrt()
    assert bool((perceptual(features, blurred, x) > 2 * perceptual(features, x + shift, x)).all())


def test_features_stay_as_they_are_while_the_rest_trains():
    apprentice = Apprentice(coder(), None, torch.nn.Sequential(torch.nn.BatchNorm2d(1)))
    apprentice.train()
    assert apprentice.features is not None
    assert not any(part.training for part in apprentice.features.modules())
    assert not any(p.requires_grad for p in apprentice.features.parameters())


@pytest.mark.parametrize("weights", [{"kl": -1}, {"adversarial": float("inf")}, {"perceptual": float("nan")}])
def test_weights_that_are_none_are_refused(weights: dict):
    with pytest.raises(RecipeError, match="must be at least 0"):
        Autoencoding(**weights)


# --- a model of latents ---


def test_a_sample_is_the_decoded_sample_of_the_latents():
    codec = LatentCodec(coder())
    model = model_of(codec)
    levels = model.sampling.grid.levels(model.denoiser.process, 3)
    weights = next(model.denoiser.parameters())
    z = draw(
        model.denoiser, Noise(5, 3), (2, 4, 4), like=weights, solver=model.sampling.solver, levels=levels
    )
    torch.testing.assert_close(model.sample(3, seed=5), codec.decode(z), rtol=0, atol=1e-5)
    assert model.sample(3, seed=5).shape == (3, 1, 8, 8)
    alone = model.sample(indices=[2], seed=5)
    torch.testing.assert_close(alone, model.sample(3, seed=5)[2:], rtol=0, atol=1e-5)


def test_pictures_to_start_from_and_films_are_pictures():
    model = model_of(LatentCodec(coder()))
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    assert model.sample(start=(x, 0.3)).shape == x.shape
    # hardly any noise: what comes out is what the codec makes of what went in
    near = model.sample(start=(x, 1e-4))
    torch.testing.assert_close(near, model.codec.decode(model.codec.encode(x)), rtol=0, atol=1e-2)
    shots, _ = film(model, 2, frames=3)
    assert all(shot.shape == x.shape for shot in shots)
    torch.testing.assert_close(shots[-1], model.sample(2))


def test_a_model_of_latents_has_no_likelihood_of_pictures():
    with pytest.raises(BundleError, match="not invertible"):
        model_of(LatentCodec(coder())).log_likelihood(torch.zeros(1, 1, 8, 8))


def test_without_a_codec_nothing_changes():
    model = model_of(IDENTITY, channels=1, size=8)
    assert model.latent_shape == (1, 8, 8)
    x = torch.randn(2, 1, 8, 8)
    assert model.codec.decode(model.codec.encode(x)) is x


@pytest.mark.parametrize("changes", [{"latent_channels": 3}, {"patch": 4}, {"multipliers": [1, 1]}])
def test_a_codec_with_other_latents_than_the_models_is_refused(changes: dict):
    with pytest.raises(BundleError, match="the model is one of 2×4×4"):
        model_of(LatentCodec(coder(**changes)))
    model = model_of(LatentCodec(coder()))
    with pytest.raises(BundleError, match="takes pictures of 1 channels, these have 3"):
        replace(model, domain=Images(size=8, channels=3))
    with pytest.raises(BundleError, match="decodes"):
        model.codec.decode(torch.zeros(1, 5, 4, 4))


def test_a_codec_goes_into_its_models_bundle_and_out_again(tmp_path: Path):
    codec = LatentCodec(coder())
    codec.network.set_scale(torch.tensor([0.1, -0.2]), torch.tensor([2.0, 0.5]))
    model = model_of(codec)
    record = bundle.save(model, tmp_path / "model")
    assert set(record["files"]) == {"weights.safetensors", "codec.safetensors"}
    again = bundle.load(tmp_path / "model")
    assert torch.equal(again.sample(2), model.sample(2))
    assert isinstance(again.codec, LatentCodec)
    assert again.codec.fingerprint == codec.fingerprint == record["codec"]["fingerprint"]
    assert bundle.load_codec(tmp_path / "model").fingerprint == codec.fingerprint
    path = tmp_path / "model" / "codec.safetensors"
    bundle.save(replace(model, codec=LatentCodec(coder(seed=9))), tmp_path / "other")
    path.write_bytes((tmp_path / "other" / "codec.safetensors").read_bytes())
    with pytest.raises(BundleError, match=r"not the file that bundle\.json describes"):
        bundle.load(tmp_path / "model")
    path.unlink()
    with pytest.raises(BundleError, match=r"has no codec\.safetensors"):
        bundle.load(tmp_path / "model")


def test_a_codecs_bundle_is_no_model_and_a_models_no_codec(tmp_path: Path):
    codec = LatentCodec(coder())
    bundle.save_codec(codec, Images(size=8, channels=1), tmp_path / "codec")
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(bundle.load_codec(tmp_path / "codec").encode(x), codec.encode(x))
    with pytest.raises(BundleError, match="holds a codec"):
        bundle.load(tmp_path / "codec")
    bundle.save(model_of(IDENTITY, channels=1, size=8), tmp_path / "model")
    with pytest.raises(BundleError, match="has no codec"):
        bundle.load_codec(tmp_path / "model")


# --- training ---


def test_cached_latents_are_those_of_the_pictures_mirrored_or_not():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8)
    data = Images(flip=True).of(pixels, labels=np.arange(9) % 3)
    codec = LatentCodec(coder())
    shown, rows = LatentData.of(data, codec), np.array([4, 0, 8, 2, 4, 1])
    for seen in (0, 96):
        latent, pictures = shown.batch(rows, 3, seen), data.batch(rows, 3, seen)
        torch.testing.assert_close(latent["x"], codec.encode(pictures["x"]), rtol=0, atol=1e-5)
        assert torch.equal(latent["condition"]["label"], pictures["condition"]["label"])
    assert len({bool(m) for m in data.mirrored(64, 3, 0)}) == 2
    with pytest.raises(DataError, match="cropped at random"):
        LatentData.of(replace(data, domain=replace(data.domain, size=(7, 7), crop="random")), codec)
