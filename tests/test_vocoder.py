"""A vocoder: its network, how its phases settle, and the sounds that it makes of the bands it is told."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato import bundle
from sfumato.domains import Sounds
from sfumato.domains.hearing import words
from sfumato.domains.spectra import (
    frames,
    log_mels,
    magnitudes,
    mel_bands,
    settle,
    sound_of,
)
from sfumato.errors import DataError, SfumatoError
from sfumato.evaluation.sounds import sound_measures, spectral_distances
from sfumato.evaluation.speech import word_errors
from sfumato.networks import build
from sfumato.noise import Noise
from sfumato.recipes import recipe_from
from sfumato.recipes.bench import Bench
from sfumato.recipes.run import train
from sound_cases import SMALL, file, tone

# --- the network ---


def test_the_network_takes_any_number_of_frames_and_reaches_as_far_as_it_says():
    torch.manual_seed(0)
    network = build("wave", in_channels=2, size=(8, 20), width=16, depth=2, kernel=5, spectrum=3)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x, told = torch.randn(1, 2, 8, 50), torch.randn(1, 3, 50)
    level = torch.zeros(1)
    whole = network(x, level, {"spectrum": told})
    assert whole.shape == x.shape
    changed = x.clone()
    changed[..., 25] += 1
    moved = (network(changed, level, {"spectrum": told}) - whole).abs().amax((0, 1, 2)) > 1e-6
    assert moved.nonzero().flatten().tolist() == list(
        range(21, 30)
    )  # depth (kernel - 1) / 2 = 4 to either side
    part = network(x[..., 10:], level, {"spectrum": told[..., 10:]})
    assert torch.allclose(part[..., 4:], whole[..., 14:], atol=1e-5)


def test_the_network_wants_its_spectrum():
    network = build("wave", in_channels=2, size=(8, 20), width=16, depth=1, spectrum=3)
    x = torch.randn(2, 2, 8, 20)
    for condition in (None, {"spectrum": torch.zeros(2, 3, 19)}):
        with pytest.raises(ValueError, match=r"'spectrum' must be \(2, 3, 20\)"):
            network(x, torch.zeros(2), condition)
    with pytest.raises(ValueError, match="odd"):
        build("wave", in_channels=2, size=(8, 20), kernel=4)


def test_phases_settle_with_magnitudes_never_further_from_them():
    torch.manual_seed(0)
    x = torch.randn(2, 512, dtype=torch.float64)
    size = frames(x, 64, 16).abs()
    turned, off = torch.polar(torch.ones_like(size), 6.28 * torch.rand_like(size)), []
    for _ in range(12):
        off.append(float((frames(sound_of(size * turned, 64, 16), 64, 16).abs() - size).square().sum()))
        turned = settle(turned, size, 64, 16, 1)
    assert all(b <= a for a, b in pairwise(off))
    assert off[-1] < off[0] / 2
    own = frames(x, 64, 16) / size  # a sound's own phases need no settling
    assert torch.allclose(settle(own, size, 64, 16, 3), own, atol=1e-6)


@pytest.mark.parametrize(
    "setting", [(12, 64, 16, 2000), (64, 256, 80, 8000), (80, 512, 128, 16000), (64, 256, 80, 16000)]
)
@pytest.mark.parametrize("said", ["exactly", "in steps"])
def test_magnitudes_come_to_have_their_bands_whatever_they_come_from(setting: tuple, said: str):
    bands, window, hop, rate = setting
    torch.manual_seed(0)
    weights, count = mel_bands(bands, window, rate), 40 * hop
    noise = 0.1 * torch.randn(1, count)
    for sound in (torch.from_numpy(tone(440, rate, count))[None] + 0.01 * noise, 0.01 * noise, noise.flip(1)):
        told = log_mels(frames(sound, window, hop), bands, rate)
        if said == "in steps":
            told = (20 * told).round() / 20
        near = frames(noise, window, hop).abs()
        found = magnitudes(told, window, rate, near)
        off, before = (20 * (weights @ x).log10() - 20 / np.log(10) * (3 * told - 4) for x in (found, near))
        assert float(off.abs().mean()) < 0.5 < 3 < float(before.abs().mean())  # dB
        assert (found >= 0).all()
        # the nearest have logarithms that moved along the bands, each at its share, and no other way
        moved = ((found / near).log() * weights.sum(0)[:, None]).mT[..., 1:].double()
        basis = torch.linalg.qr(weights.mT[1:].double())[0]
        across = moved - moved @ basis @ basis.mT
        assert float(across.square().mean()) < 1e-4 * float(moved.square().mean())
    even = magnitudes(told, window, rate)
    assert float((20 * (weights @ even).log10() - 20 / np.log(10) * (3 * told - 4)).abs().mean()) < 0.5


def test_an_estimate_gets_the_magnitudes_and_keeps_its_phases():
    domain = Sounds(**SMALL, mels=12, agreement=1, scale=tuple(np.linspace(0.1, 2, 32).tolist()))
    torch.manual_seed(0)
    sound, other = 0.1 * torch.randn(2, 2, 512)
    told, x0 = {"spectrum": domain.mel(sound)}, domain.encode(other)
    before, s = map(domain._spectrum, (x0, domain.agree(x0, told)))
    assert torch.allclose(s.abs(), magnitudes(told["spectrum"], 64, 2000, before.abs()), atol=1e-5)
    assert torch.allclose(s * before.conj(), (s.abs() * before.abs()).to(s.dtype), atol=1e-5)
    same = domain.encode(sound)  # a sound that has the bands stays
    assert torch.allclose(domain.agree(same, told), same, atol=1e-3)
    assert Sounds(**SMALL, mels=32).agree is None
    with pytest.raises(DataError, match="agreement of sounds must be a whole number from 0 to 0"):
        Sounds(**SMALL, agreement=1)


# --- a vocoder, whole ---


@pytest.fixture(scope="module")
def vocoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocoder")
    draw = np.random.default_rng(0)
    for k in range(60):
        rise = np.cumsum(2 * np.pi * (200 + 500 * draw.random() + draw.random() * np.arange(700)) / 2000)
        hiss = 0.003 * draw.normal(size=700)
        file(folder / "data" / f"{k:02d}.wav", (0.4 * np.sin(rise) + hiss).astype(np.float32))
    recipe = recipe_from(
        {
            "name": "glides",
            "data": {"domain": "sounds", "source": str(folder / "data"), "held_out": 0.4,
                     "settings": {**SMALL, "stride": 128, "mels": 12}},
            "network": {"kind": "wave", "width": 64, "depth": 3, "expansion": 2},
            "training": {"images": 3200, "batch": 16, "learning_rate": 4e-3, "warmup": 160, "ema": [0.1]},
            "sampling": {"steps": 4},
            "evaluation": {"bound_images": 0},
        }
    )  # fmt: skip
    train(recipe, folder / "run")
    return folder / "run" / "model"


def test_a_vocoder_makes_a_sound_of_the_spectrum_it_is_told(vocoder: Path):
    model = bundle.load(vocoder)
    assert model.sample(3).shape == (3, *model.domain.shape)  # left open, it is shown by what it keeps
    # a little noise, as all real sounds have: silence is something that this model has not seen
    hiss = 0.003 * np.random.default_rng(0).normal(size=512).astype(np.float32)
    low, high = (model.domain.mel((tone(hertz) + hiss)[None])[0] for hertz in (250, 650))
    made = model.domain.decode(model.sample(2, condition={"spectrum": torch.stack([low, high])}))
    heard = model.domain.mel(made)
    for k, (own, other) in enumerate(((low, high), (high, low))):
        near, far = ((heard[k] - x).mean(1).square().mean() for x in (own, other))
        assert float(near) < float(far)
    with pytest.raises(SfumatoError, match="a spectrum must be"):
        model.sample(2, condition={"spectrum": low[:, :5]})


def test_a_vocoder_that_agrees_has_the_bands_it_is_told(vocoder: Path):
    model = bundle.load(vocoder)
    told = model.conditions.tensors(None, 8, Noise(0, 8))["spectrum"]
    off = {}
    for agreement in (0, 1, 5):
        own = replace(model.domain, agreement=agreement)
        drawn = replace(model, domain=own).sample(8)
        # of the state, and of the sound that it is
        ways = (own._spectrum(drawn), frames(own.decode(drawn), own.window, own.hop))
        off[agreement] = [float((log_mels(x, 12, 2000) - told).square().mean()) for x in ways]
    assert off[1][0] < 0.05 * off[0][0]
    assert off[5][1] < off[0][1]


def test_a_vocoder_makes_sounds_of_any_length(vocoder: Path):
    model = bundle.load(vocoder)
    domain = model.domain.of_length(1000)
    mels = domain.mel(np.pad(tone(300, samples=1000), (0, domain.length - 1000))[None])
    made = replace(model, domain=domain).sample(1, condition={"spectrum": mels})
    assert domain.decode(made).shape == (1, 1008)
    with pytest.raises(DataError, match="1008 samples is asked for a 'spectrum'"):
        replace(model, domain=domain).sample(1)


def test_a_vocoder_is_judged_beside_the_recordings_it_was_told_of(vocoder: Path):
    bench = Bench(vocoder)
    plan = bench.model.sampling
    settings = {
        "solver": plan.solver,
        "grid": plan.grid,
        "steps": 4,
        "guidance": 1.0,
        "seed": 0,
        "batch": 64,
        "measures": None,
    }
    found = {m.name: m for m in bench.quality({**settings, "samples": 24})}
    assert set(found) == {"spectral distance", "mel distance"}
    assert found["mel distance"].n == 24
    told = bench.model.domain.questions(bench.held, 24)
    drawn = bench.model.sample(24, condition=told, steps=4)
    own, others = (
        {m.name: m for m in sound_measures(bench.model.domain, x, None, bench.train, bench.held)}
        for x in (drawn, drawn.roll(1, 0))
    )
    for name in found:
        assert abs(own[name].value - found[name].value) < 1e-3
        assert own[name].value < 0.8 * others[name].value


def test_spectral_distance_is_zero_for_the_same_and_hears_what_mels_do_not():
    x = torch.from_numpy(np.stack([tone(300), tone(500)]))
    assert float(spectral_distances(x, x).max()) == 0
    louder = spectral_distances(2 * x, x)
    assert float(louder.max()) < 6.1  # 6 dB where anything is heard, none where nothing is
    crackling = x * torch.where(torch.arange(512) % 37 == 0, 0.0, 1.0)
    assert float(spectral_distances(crackling, x).min()) > float(louder.max())


def test_word_errors_are_the_least_changes():
    said = words("Press 12, followed by the pound-key; then 305!")
    assert said == [
        "press",
        "twelve",
        "followed",
        "by",
        "the",
        "pound",
        "key",
        "then",
        "three",
        "zero",
        "five",
    ]
    assert word_errors(said, said) == 0
    assert word_errors(said, said[1:]) == 1
    assert word_errors(said, ["press", "eleven", *said[2:], "please"]) == 2
    assert word_errors([], said) == word_errors(said, []) == len(said)
    assert words("twenty 21 Don't") == ["twenty", "twenty", "one", "dont"]
