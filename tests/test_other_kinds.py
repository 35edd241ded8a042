"""What is of pictures alone, or of numbers alone, says so in one line to a model of anything else."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato import bundle
from sfumato.cli import main
from sfumato.editing import Identity, change, interpolate, restore, restyle
from sfumato.errors import BundleError
from sfumato.noise import Noise
from sfumato.recipes import recipe_from
from sfumato.recipes.run import train

SMALL = {"width": 16, "depth": 1, "head": 8}
KINDS = {
    "table": {
        "process": {"kind": "joint"},
        "network": {"kind": "joint", **SMALL, "embedding": 16},
        "objective": {"kind": "joint"},
        "sampling": {"solver": {"kind": "ancestral"}, "grid": {"kind": "uniform"}, "steps": 3},
    },
    "sequences": {
        "process": {"kind": "categorical", "law": "masked"},
        "network": {"kind": "transformer", **SMALL},
        "objective": {"kind": "categorical"},
        "sampling": {"solver": {"kind": "ancestral"}, "grid": {"kind": "uniform"}, "steps": 3},
    },
    "series": {"network": {"kind": "transformer", **SMALL}, "sampling": {"steps": 3}},
}


def written(kind: str, folder: Path) -> Path:
    """Forty examples of a kind in a file."""
    draw = np.random.default_rng(0)
    if kind == "sequences":
        path, lines = folder / "made.txt", ["".join(draw.choice(list("ACGT"), 8)) for _ in range(40)]
    else:
        path, lines = folder / f"{kind}.csv", ["t0,t1,t2,t3" if kind == "series" else "a,b,c,side"]
        numbers = [",".join(f"{x:.3f}" for x in draw.normal(size=3)) for _ in range(40)]
        last = [f"{x:.3f}" if kind == "series" else "up" if x > 0 else "down" for x in draw.normal(size=40)]
        lines += [f"{row},{end}" for row, end in zip(numbers, last, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """A bundle of each kind, hardly trained."""
    folder, found = tmp_path_factory.mktemp("kinds"), {}
    for kind, own in KINDS.items():
        settings = {"dialect": "dna"} if kind == "sequences" else {}
        data = {"domain": kind, "source": str(written(kind, folder)), "settings": settings}
        training = {"images": 64, "batch": 32, "warmup": 0, "ema": [0.1], "validate_every": 0}
        train(recipe_from({"name": kind, "data": data, "training": training, **own}), folder / kind)
        found[kind] = folder / kind / "model"
    return found


def called(capsys: pytest.CaptureFixture, *words: object) -> str:
    """The one line that a command ends in, with exit code 1."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    assert left.value.code == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("sfumato: ")
    assert "Traceback" not in said
    return " ".join(said.split())


@pytest.mark.parametrize(("kind", "way"), [("table", "--given"), ("sequences", "edit fill")])
def test_what_takes_numbers_is_refused_of_symbols_and_joint_states(models, kind, way):
    model = bundle.load(models[kind])
    x = model.sample(2)
    for work in (
        lambda: model.sample(2, start=(x, 0.5)),
        lambda: model.log_likelihood(x),
        lambda: model.tune(5),
        lambda: restyle(model, x),
        lambda: change(model, x, None, None),
        lambda: interpolate(model, x, x),
        lambda: restore(model, Identity((8,)), torch.zeros(2, 8)),
    ):
        with pytest.raises(BundleError, match=f"of states of numbers.*{way}"):
            work()


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_spreads_is_drawn_on_a_canvas(models, kind, tmp_path: Path, capsys):
    said = called(capsys, "sample", models[kind], "--canvas", 9, "--count", 1, "--out", tmp_path / "wide")
    assert said == f"sfumato: a canvas is for pictures, clips and fields, and this model makes {kind}"


@pytest.mark.parametrize(
    ("kind", "instead"),
    [("table", "sample --given"), ("sequences", "edit fill"), ("series", "sfumato.editing")],
)
def test_edits_of_other_kinds_say_what_there_is_instead(models, kind, instead, tmp_path: Path, capsys):
    asked = (models[kind], "ACGT??AC", "--out", tmp_path / "made")
    assert instead in called(capsys, "edit", "restyle", *asked)
    if kind != "sequences":
        assert instead in called(capsys, "edit", "fill", *asked)


def test_gaps_are_filled_by_a_seed_and_at_least_once(models, tmp_path: Path, capsys):
    asked = ("edit", "fill", models["sequences"], "ACGT??AC", "--out", tmp_path / "made")
    assert "seed must be a whole number from 0" in called(capsys, *asked, "--seed", -1)
    assert "at least one answer for each" in called(capsys, *asked, "--count", 0)


def test_a_file_that_is_not_there_is_no_sequence(models, tmp_path: Path, capsys):
    said = called(
        capsys, "edit", "fill", models["sequences"], tmp_path / "nofile.fasta", "--out", tmp_path / "made"
    )
    assert "nofile.fasta does not exist" in said


def test_a_given_number_beyond_the_data_is_told(models):
    model = bundle.load(models["table"])
    (column, about), *_ = [(n, c) for n, c in model.domain.leaves.items() if c["kind"] == "number"]
    low, *_, high = about["quantiles"]
    with pytest.warns(UserWarning, match=f"{column} was .* is put at the end"):
        beyond = model.domain.asked({column: high + 1e6}, Noise(0, 2))[column]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ends in (low, high):
            model.domain.asked({column: ends}, Noise(0, 2))
        assert torch.equal(beyond, model.domain.asked({column: high}, Noise(0, 2))[column])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("taught", [("--label", "x"), ("--word", "x")])
def test_only_pictures_are_taught(models, kind, taught, tmp_path: Path, capsys):
    said = called(capsys, "finetune", models[kind], "--data", tmp_path, *taught, "--out", tmp_path / "run")
    assert said == f"sfumato: only models of pictures are fine-tuned, and this one makes {kind}"


@pytest.mark.parametrize("command", [("sample", "series"), ("edit", "fill", "sequences")])
def test_where_nothing_can_be_written_nothing_is_drawn(models, command, tmp_path: Path, capsys, monkeypatch):
    def lost(*_: object, **__: object) -> None:
        raise AssertionError("it was drawn")

    monkeypatch.setattr("sfumato.model.draw", lost)
    monkeypatch.setattr("sfumato.editing.filling.integrate", lost)
    (tmp_path / "file").write_text("mine")
    words = (*command[:-1], models[command[-1]], *["ACGT??AC"] * (command[0] == "edit"))
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert called(capsys, *words, "--out", out).endswith(f"{tmp_path / 'file'} is a file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("command", ["evaluate", "study", "directions"])
def test_where_nothing_can_be_written_nothing_is_measured(demo_folder, command, tmp_path: Path, capsys):
    (tmp_path / "file").write_text("mine")
    said = called(
        capsys, command, demo_folder / "runs" / "demo" / "model", "--out", tmp_path / "file" / "below"
    )
    assert said.startswith(f"sfumato: nothing can be written into {tmp_path / 'file'}")
