"""A model that is asked in words and by label: either, or both, and nothing that was not asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato import bundle
from sfumato.cli import main
from sfumato.evaluation import attribution
from sfumato.recipes import recipe_from
from sfumato.recipes.run import train

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Columns and rows of white, in a folder a class, with captions; hardly trained."""
    folder, lines = tmp_path_factory.mktemp("both"), []
    for k in range(32):
        name, pixels = ("column", "row")[k % 2], np.zeros((8, 8), np.uint8)
        (pixels.T if k % 2 == 0 else pixels)[k // 2 % 8] = 255
        path = folder / "pictures" / name / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        lines.append(json.dumps({"file_name": f"{name}/{k}.png", "text": f"a {name}"}))
    (folder / "pictures" / "captions.jsonl").write_text("\n".join(lines))
    network = {"kind": "unet", "width": 16, "multipliers": [1], "blocks": [1], "attention": [0], "head": 8}
    training = {"images": 256, "batch": 32, "warmup": 0, "ema": [0.1], "learning_rate": 3e-3}
    recipe = {
        "name": "both", "data": {"source": str(folder / "pictures")}, "network": network, "training": training,
        "objective": {"drop": 0.2}, "sampling": {"steps": 3},
    }  # fmt: skip
    train(recipe_from(recipe), folder / "run")
    return folder / "run" / "model"


def call(*words: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    return int(left.value.code or 0)


def test_a_prompt_alone_is_not_joined_by_labels(model: Path, tmp_path: Path):
    assert call("sample", model, "--prompt", "a row", "--count", 2, "--out", tmp_path / "drawn") == 0
    made = bundle.load(model)
    alone = made.domain.to_uint8(made.sample(2, condition={"text": "a row"}))[..., 0]
    paths = sorted((tmp_path / "drawn").iterdir())
    assert [path.name for path in paths] == ["sample-00000-a-row.png", "sample-00001-a-row.png"]
    drawn = np.stack([np.asarray(Image.open(path)) for path in paths])
    assert np.abs(drawn.astype(int) - np.asarray(alone).astype(int)).max() <= 1
    assert (
        call("sample", model, "--prompt", "a row", "--count", 1, "--label", "row", "-o", tmp_path / "b") == 0
    )
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["sample-00000-a-row-label-1.png"]


def test_words_are_shown_of_the_samples_that_are_written(model: Path, tmp_path: Path, monkeypatch):
    shown = []
    monkeypatch.setattr(attribution, "picture", lambda x, maps, words: shown.append(x) or b"")
    asked = ("--prompt", "a row", "--label", "column", "--count", 2, "--words", "--out", tmp_path / "drawn")
    assert call("sample", model, *asked) == 0
    drawn = np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / "drawn").iterdir())])
    assert np.abs(drawn.astype(int) - np.asarray(shown[0])[..., 0].astype(int)).max() <= 1


@pytest.mark.parametrize(
    "asked",
    [
        ("--given", "label=row", "--given", "label=column"),
        ("--label", "row", "--given", "label=column"),
        ("--prompt", "a row", "--given", "text=a column"),
    ],
)
def test_what_is_given_twice_is_refused(model: Path, asked, tmp_path: Path, capsys):
    assert call("sample", model, *asked, "--count", 1, "--out", tmp_path / "no") == 1
    assert "is given twice" in capsys.readouterr().err
