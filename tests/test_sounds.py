"""Sounds: their spectra and back, files of all kinds, what a vocoder is told, and measures that find what is wrong."""

from __future__ import annotations

import io
import json
import tarfile
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.domains import Examples, Sounds, build_domain
from sfumato.domains.spectra import (
    frames,
    griffin_lim,
    log_mels,
    mel_bands,
    sound_of,
)
from sfumato.domains.waves import decode, in_debian_package, to_wav
from sfumato.errors import DataError
from sfumato.evaluation.sounds import features, sound_measures
from sound_cases import SMALL, file, tone


def raw_wav(data: bytes, channels: int, wide: int, rate: int) -> bytes:
    memory = io.BytesIO()
    with wave.open(memory, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(wide)
        out.setframerate(rate)
        out.writeframes(data)
    return memory.getvalue()


# --- spectra ---


def test_the_transform_of_a_sound_leads_back_to_it():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 608)))
    s = frames(x, 64, 16)
    assert s.shape == (3, 32, 38)
    assert torch.allclose(sound_of(s, 64, 16), x, atol=1e-10)


def test_the_way_back_is_the_nearest_sound():
    """The transforms of sounds are a plane, and there and back is a projection onto it."""
    y = torch.randn(2, 32, 20, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    once = frames(sound_of(y, 64, 16), 64, 16)
    assert torch.allclose(frames(sound_of(once, 64, 16), 64, 16), once, atol=1e-10)
    sound = sound_of(y, 64, 16)
    inside = slice(4, -4)  # at the ends the mirrored sound counts twice

    def away(x: torch.Tensor) -> float:
        return float((frames(x, 64, 16) - y)[..., inside].abs().square().sum())

    nudge = torch.zeros_like(sound)
    nudge[:, 120:200] = 1e-3 * torch.randn(2, 80, generator=torch.Generator().manual_seed(1))
    assert away(sound) < min(away(sound + nudge), away(sound - nudge))


@pytest.mark.parametrize("bands", [8, 24, 32])
def test_a_tone_is_in_the_band_of_its_pitch(bands: int):
    weights = mel_bands(bands, 64, 2000)
    assert bool((weights.sum(1) - 1).abs().max() < 1e-5)
    for hertz in (200, 500, 900):
        mels = log_mels(frames(torch.from_numpy(tone(hertz))[None], 64, 16), bands, 2000)[0, :, 8:-8].mean(1)
        top = 2595 * np.log10(1 + 1000 / 700) / (bands + 1)
        middle = 700 * (10 ** ((int(mels.argmax()) + 1) * top / 2595) - 1)
        assert abs(middle - hertz) < 1000 / 32 + 1000 / bands


def test_griffin_lim_finds_a_sound_with_the_bands_asked_for():
    x = torch.from_numpy(tone(300) + tone(700, size=0.2))[None]
    mels = log_mels(frames(x, 64, 16), 24, 2000)
    found = griffin_lim(mels, 64, 16, 2000)
    again = log_mels(frames(found, 64, 16), 24, 2000)
    noise = log_mels(frames(torch.randn_like(x) * x.std(), 64, 16), 24, 2000)
    assert float((again - mels).abs().mean()) < 0.25 * float((noise - mels).abs().mean())


# --- the domain ---


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_states_lead_back_to_sounds(power: float):
    domain = Sounds(**SMALL, power=power, scale=tuple(np.linspace(0.5, 2, 32)))
    x = np.stack([tone(300), tone(617, size=0.01)])
    state = domain.encode(x)
    assert state.shape == (2, *domain.shape)
    assert float((domain.decode(state) - torch.from_numpy(x)).abs().max()) < 1e-5
    assert type(domain).from_json(json.loads(json.dumps(domain.to_json()))) == domain


def test_what_is_written_is_read(tmp_path: Path):
    domain = replace(Sounds(**SMALL, classes=("a", "b")), scale=(1.0,) * 32)
    x = np.stack([tone(300), tone(450)])
    paths = domain.write(domain.encode(x), tmp_path, [1, 0])
    assert [p.name for p in paths] == ["sample-00000-label-1.wav", "sample-00001-label-0.wav"]
    back = domain.read(tmp_path).at([0, 1])
    assert float(np.abs(back / 32768 - x).max()) < 0.51 / 32768
    with pytest.raises(DataError, match="not finite"):
        domain.write(torch.full((1, *domain.shape), float("nan")), tmp_path)


def test_states_have_a_mean_square_of_one_and_quiet_bins_count(tmp_path: Path):
    draw = np.random.default_rng(0)
    for k in range(8):
        file(
            tmp_path / f"{k}.wav", (0.1 * draw.normal(size=512)).astype(np.float32) + tone(100 + 100 * k) / 2
        )
    data = Sounds(**SMALL).read(tmp_path)
    x = data.tensor()
    assert float(x.square().mean()) == pytest.approx(1, abs=1e-3)
    assert float(x.square().mean((0, 1, 3)).min()) == pytest.approx(1, abs=1e-2)


def test_folders_are_classes_and_pieces_of_a_file_stay_together(tmp_path: Path):
    for k in range(10):
        file(tmp_path / ("high" if k % 2 else "low") / f"{k}.wav", tone(100 + 50 * k, samples=1300))
    data = Sounds(**SMALL, stride=256).read(tmp_path)
    assert data.classes == ("high", "low")
    assert len(data) == 10 * 5  # 0, 256, 512, 768 and the last piece, which ends where the file does
    train_, held = data.split(0.3)
    names = [{part.groups[row] for row in part.rows} for part in (train_, held)]
    assert len(names[1]) == 3
    assert not names[0] & names[1]
    whole = Sounds(**SMALL).read(tmp_path)
    assert len(whole) == 10


# --- files ---


def test_channels_become_their_mean_and_other_rates_are_resampled(tmp_path: Path):
    both = np.stack([tone(300, 8000, 2048), np.zeros(2048, np.float32)], 1)
    (tmp_path / "a.wav").write_bytes(raw_wav((both * 32767).astype("<i2").tobytes(), 2, 2, 8000))
    (sound,) = Sounds(**SMALL).clips(tmp_path).sounds
    assert len(sound) == 512
    assert float(np.abs(sound - tone(300) / 2)[40:-40].max()) < 5e-3


@pytest.mark.parametrize("wide", [1, 2, 3, 4])
def test_every_width_of_wav_is_read(wide: int):
    x = tone(300)
    if wide == 1:
        data = ((x + 1) * 128).round().clip(0, 255).astype(np.uint8).tobytes()
    else:
        whole = (x.astype(np.float64) * (2**31 - 1)).astype("<i4").view(np.uint8).reshape(-1, 4)
        data = whole[:, 4 - wide :].tobytes()
    found, rate = decode(raw_wav(data, 1, wide, 2000))
    assert rate == 2000
    assert float(np.abs(found[:, 0] - x).max()) < 1.01 / 2 ** (8 * wide - 1) + 1e-6


def test_flac_is_read_as_wav_is(tmp_path: Path):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.flac", tone(300), 2000)
    file(tmp_path / "b.wav", tone(300))
    a, b = Sounds(**SMALL).clips(tmp_path).sounds
    assert float(np.abs(a - b).max()) < 1e-4


def test_what_is_of_no_use_is_left_out_and_counted(tmp_path: Path):
    file(tmp_path / "good.wav", tone(300, samples=100))  # short: filled up
    file(tmp_path / "silent.wav", np.zeros(512, np.float32))
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "broken.wav").write_bytes(b"RIFF of something else")
    (tmp_path / "rate.wav").write_bytes(raw_wav(b"\0\1" * 600, 1, 2, 200))
    (tmp_path / "notes.txt").write_text("no sound")
    data = Sounds(**SMALL).read(tmp_path)
    assert len(data) == 1
    assert data.about["left_out"] == 4
    assert data.about["left_out_because"]["are silent"] == 1
    assert not data.raw[0, 100:].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 20}, "rate of sounds must be a whole number from 1000"),
        ({"length": 500}, "multiple of hop"),
        ({"hop": 40}, "hop of sounds"),
        ({"power": 0}, "power must be"),
        ({"mels": 33}, "mels of sounds"),
        ({"scale": [1.0]}, "32 bins need as many scales"),
        ({"bands": 3}, "bands"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str):
    with pytest.raises(DataError, match=message):
        build_domain("sounds", **{**SMALL, **settings})


def test_a_place_without_sounds_is_refused(tmp_path: Path):
    file(tmp_path / "silent.wav", np.zeros(512, np.float32))
    with pytest.raises(DataError, match="no sound that can be used: 1 of them are silent"):
        Sounds(**SMALL).read(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        Sounds(**SMALL).read(tmp_path / "nowhere")


def test_sounds_are_found_in_a_debian_package(tmp_path: Path):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:xz") as archive:
        for name in ("./usr/s/b/two.wav", "./usr/s/one.wav", "./usr/doc/three.wav", "./usr/s/readme"):
            content = to_wav(tone(300), 2000)
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    members = [("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", inner.getvalue())]
    deb = b"!<arch>\n"
    for name, content in members:
        deb += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        deb += b"\n" * (len(content) % 2)
    (tmp_path / "a.deb").write_bytes(deb)
    assert [name for name, _ in in_debian_package(tmp_path / "a.deb", "usr/s")] == ["b/two.wav", "one.wav"]
    (tmp_path / "b.deb").write_bytes(deb[:-200])
    with pytest.raises(DataError, match=r"b\.deb"):
        in_debian_package(tmp_path / "b.deb", "usr/s")


# --- measures ---


def noise_in(band: tuple[float, float], count: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    hertz = np.fft.rfftfreq(512, 1 / 2000)
    size = ((hertz >= band[0]) & (hertz < band[1])) * np.exp(0.3 * draw.normal(size=(count, len(hertz))))
    x = np.fft.irfft(size * np.exp(2j * np.pi * draw.random((count, len(hertz)))), 512)
    return (0.3 * x / np.abs(x).max(1, keepdims=True) * 32767).astype(np.int16)


def by_band(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    both = [noise_in((100, 400), count, seed), noise_in((500, 900), count, seed + 1)]
    return np.concatenate(both), np.repeat([0, 1], count)


def test_measures_find_wrong_classes_copies_and_other_sounds():
    pytest.importorskip("sklearn")
    domain = Sounds(**SMALL, classes=("low", "high"), scale=(1.0,) * 32)
    (a, la), (b, lb), (c, lc) = by_band(60, 0), by_band(60, 10), by_band(60, 20)
    known, held = Examples(domain, a, la), Examples(domain, b, lb)
    good = {m.name: m for m in sound_measures(domain, c / 32767, lc, known, held)}
    assert good["agreement"].value > 0.95
    turned = {m.name: m for m in sound_measures(domain, c / 32767, 1 - lc, known, held)}
    assert turned["agreement"].value < 0.05
    copied = {m.name: m for m in sound_measures(domain, a / 32767, la, known, held)}
    name = next(name for name in good if name not in ("agreement", "frechet, log-mel"))
    assert copied[name].value == 1
    assert good[name].value < 0.2
    flat = {m.name: m for m in sound_measures(domain, 0.1 * np.sign(c / 32767), lc, known, held)}
    assert flat["frechet, log-mel"].value > 5 * good["frechet, log-mel"].value


def test_features_do_not_depend_on_when_a_steady_sound_begins():
    x = noise_in((100, 400), 4, 0) / 32767
    # frames fall on other places, no more
    assert float(np.abs(features(x, 2000) - features(np.roll(x, 7, axis=1), 2000))[:, :24].max()) < 0.6
