"""Text to speech: letters put beside what is heard, and a made-up language in which every letter is a tone."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato import bundle
from sfumato.cli import main
from sfumato.domains.alignment import align, best_path, even
from sfumato.domains.speech import ALPHABET, Speech, letters
from sfumato.domains.waves import to_wav
from sfumato.errors import DataError, SfumatoError
from sfumato.evaluation.sounds import sound_measures
from sfumato.recipes import recipe_from
from sfumato.recipes.run import read_data, train

SMALL = {"rate": 2000, "length": 1280, "stride": 640, "window": 64, "hop": 16, "mels": 12, "reach": 1}
FRAMES = {"a": 4, "b": 9, "c": 14, " ": 6}
HERTZ = {"a": 200, "b": 450, "c": 800}


def spoken(text: str) -> np.ndarray:
    """A text in the made-up language."""
    draw = np.random.default_rng(len(text))
    parts = []
    for letter in f" {text} ":
        t = np.arange(FRAMES[letter] * 16) / 2000
        parts.append(0.4 * np.sin(2 * np.pi * HERTZ[letter] * t) if letter in HERTZ else 0 * t)
    whole = np.concatenate(parts)
    return whole + 0.003 * draw.normal(size=len(whole))


def sentences(count: int) -> list[str]:
    draw = np.random.default_rng(0)
    return [
        " ".join(
            "".join(draw.choice(list("abc"), draw.integers(1, 4))) for _ in range(1 + draw.integers(0, 3))
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("spoken")
    rows = []
    for k, text in enumerate(sentences(60)):
        (place / f"{k:02d}.wav").write_bytes(to_wav(spoken(text), 2000))
        rows.append(f"{k:02d}|{text}")
    (place / "metadata.csv").write_text("\n".join(rows))
    return place


def test_the_best_path_is_the_best_of_all():
    scores = np.random.default_rng(0).normal(size=(7, 3))
    found = best_path(scores)
    paths = [
        np.concatenate([np.zeros(a, int), np.ones(b - a, int), np.full(7 - b, 2)])
        for a, b in itertools.combinations(range(1, 7), 2)
    ]
    totals = [scores[np.arange(7), path].sum() for path in paths]
    assert scores[np.arange(7), found].sum() == pytest.approx(max(totals))
    assert best_path(np.zeros((3, 3))).tolist() == [0, 1, 2]


def test_letters_are_found_where_they_are_spoken():
    domain = Speech(**SMALL)
    texts = sentences(60)
    sounds, true = [], []
    for text in texts:
        sounds.append(domain.mel(spoken(text)[None])[0].T.numpy())
        true.append(np.repeat(np.arange(len(text) + 2), [FRAMES[letter] for letter in f" {text} "]))
    said = [letters(text) for text in texts]

    def right(paths: list[np.ndarray]) -> float:
        """Share of frames on the letter that is spoken: which of two equal ones in a row, nobody can hear."""
        same = [text[p] == text[t] for text, p, t in zip(said, paths, true, strict=True)]
        return float(np.concatenate(same).mean())

    assert right([even(len(s), len(x)) for s, x in zip(said, sounds, strict=True)]) < 0.75
    assert right(align(sounds, said, len(ALPHABET))) > 0.88


def test_reading_finds_how_long_letters_take(folder: Path):
    data = Speech(**SMALL).read(folder)
    times = dict(zip(ALPHABET, data.domain.times, strict=True))
    assert times["a"] < times["b"] < times["c"]
    assert times["c"] == pytest.approx(14, abs=3)
    stored = data.at([0, 1])
    told = data.domain.told(stored)["spectrum"]
    assert told.shape == (2, data.domain.network["spectrum"], 80)
    assert bool((told[:, :-1].sum(1) == 3).all())  # one letter of the alphabet at each of three places
    assert data.domain.encode(stored).shape == (2, *data.domain.shape)
    assert type(data.domain).from_json(json.loads(json.dumps(data.domain.to_json()))) == data.domain


def test_a_folder_whose_texts_miss_a_file_is_refused(folder: Path, tmp_path: Path):
    (tmp_path / "x.wav").write_bytes(to_wav(spoken("abc"), 2000))
    (tmp_path / "metadata.csv").write_text("y|abc")
    with pytest.raises(DataError, match=r"says nothing of x\.wav"):
        Speech(**SMALL).read(tmp_path)
    (tmp_path / "metadata.csv").write_text("x|123 !\n")
    assert len(Speech(**SMALL).read(tmp_path)) == 1  # one two three
    (tmp_path / "metadata.csv").write_text("x|...")
    with pytest.raises(DataError, match="has words that fit"):
        Speech(**SMALL).read(tmp_path)


def test_a_model_says_what_it_is_asked_to(folder: Path, tmp_path: Path):
    recipe = recipe_from(
        {
            "name": "tones",
            "data": {"domain": "speech", "source": str(folder), "settings": SMALL},
            "network": {"kind": "wave", "width": 48, "depth": 2, "kernel": 5, "expansion": 2},
            "training": {"images": 2400, "batch": 16, "learning_rate": 4e-3, "warmup": 160, "ema": [0.1]},
            "sampling": {"steps": 4},
            "evaluation": {"bound_images": 0},
        }
    )
    train(recipe, tmp_path / "run")
    model = bundle.load(tmp_path / "run" / "model")
    domain = model.domain
    assert model.sample(2).shape == (2, *domain.shape)
    texts = ["ab ca", "cc a"]
    mels = model.sample(2, condition={"text": texts})[:, 0]
    heard = []
    for k, text in enumerate(texts):
        path, said = domain._path(text)
        for place, letter in enumerate(said):
            if ALPHABET[letter] in HERTZ:
                middle = np.flatnonzero(path == place)[len(path[path == place]) // 2]
                own = domain.mel(spoken(ALPHABET[letter])[None])[0][:, 6 + FRAMES[ALPHABET[letter]] // 2]
                heard.append(int(mels[k, :, middle].argmax()) == int(own.argmax()))
    assert np.mean(heard) > 0.7
    with pytest.raises(SfumatoError, match=r"takes .* s, and a sample has 0.6 s"):
        model.sample(1, condition={"text": "abc " * 20})
    longer = domain.of_length(domain.samples_of("abc " * 20))
    assert replace(model, domain=longer).sample(1, condition={"text": "abc " * 20}).shape[3] > 300
    with pytest.raises(SfumatoError, match="holds no word"):
        model.sample(1, condition={"text": "?!"})
    with pytest.raises(SystemExit) as left:
        main(
            [
                "sample",
                str(tmp_path / "run" / "model"),
                "--prompt",
                "ab",
                "--count",
                "2",
                "--out",
                str(tmp_path / "o"),
            ]
        )
    assert not left.value.code
    assert len(list((tmp_path / "o").glob("*.wav"))) == 2
    train_, held = read_data(recipe, domain)
    (distance, *_) = sound_measures(domain, domain.encode(train_.raw), None, train_, held)
    noise = 3 * torch.randn(len(held), *domain.shape)
    assert distance.value < sound_measures(domain, noise, None, train_, held)[0].value
    with pytest.raises(SfumatoError, match="one text"):
        model.sample(3, condition={"text": ["a", "b"]})


def test_a_sample_does_not_depend_on_its_batch():
    domain = Speech(**SMALL, times=(5.0,) * len(ALPHABET), shown="ab\nba")

    class At:
        def __init__(self, *indices: int):
            self.indices = indices

    many, one = domain.asked({}, At(0, 1, 2, 3))["spectrum"], domain.asked({}, At(3))["spectrum"]
    assert torch.equal(many[3:], one)
