"""The command line, as people meet it: real processes, their output and their exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.cli import main

pytest.importorskip("sklearn")
pytest.importorskip("jinja2")

SMALL = [
    "network.width=8", "network.multipliers=[1]", "network.blocks=[1]", "training.images=1280", "training.warmup=64",
    "training.checkpoint_every=320", "training.validate_every=640", "training.log_every=320",
    "training.optimizer=adamw",
    "training.compile=false", "sampling.steps=2", "evaluation.samples=60", "evaluation.curve_samples=40",
    "evaluation.steps=[1]", "evaluation.bound_images=20", "evaluation.bound_terms=4",
]  # fmt: skip


def run(capsys: pytest.CaptureFixture, *words: object) -> tuple[int, str, str]:
    """A command in this process: exit code, output, errors."""
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    seen = capsys.readouterr()
    return int(left.value.code or 0), seen.out, seen.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the digits recipe with a very small network."""
    out = tmp_path_factory.mktemp("cli") / "run"
    with pytest.raises(SystemExit) as left:
        main(["train", "digits", *SMALL, "--out", str(out)])
    assert not left.value.code
    return out


def test_train_sample_evaluate_and_check_the_receipt(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert {"model", "checkpoints", "log.jsonl", "recipe.toml"} <= {path.name for path in trained.iterdir()}
    assert "Data card" in (trained / "model" / "README.md").read_text()

    code, out, err = run(
        capsys, "sample", trained / "model", "--count", 3, "--label", 7, "--film", "--out", tmp_path / "s"
    )
    assert code == 0, err
    names = {path.name for path in (tmp_path / "s").iterdir()}
    assert names == {f"sample-0000{k}-label-7.png" for k in range(3)}
    assert {path.name for path in tmp_path.iterdir()} == {"s", "s-grid.png", "s-film.png"}
    code, out, err = run(
        capsys, "sample", trained / "model", "--indices", 2, "--label", 7, "--out", tmp_path / "one"
    )
    assert code == 0, err
    alone, among = (
        np.asarray(Image.open(tmp_path / f / "sample-00002-label-7.png"), dtype=int) for f in ("one", "s")
    )
    assert np.abs(alone - among).max() <= 1

    code, out, err = run(capsys, "evaluate", trained / "model")
    assert code == 0, err
    assert "http" not in (trained / "report.html").read_text().replace("https://doi.org", "")
    card = (trained / "model" / "README.md").read_text()
    assert "| frechet |" in card
    receipt = trained / "receipts" / "quality.json"
    stated = {m["name"]: m["value"] for m in json.loads(receipt.read_text())["measures"]}
    assert {"frechet", "kernel", "precision", "recall", "agreement", "copying"} <= set(stated)
    assert {"quality.json", "bound.json", "cost.json", "steps-001.json"} == {
        p.name for p in (trained / "receipts").iterdir()
    }
    for path in (trained / "receipts").iterdir():
        code, out, err = run(capsys, "evaluate", "--receipt", path)
        assert code == 0, err
        assert "The receipt agrees" in out

    # a figure made up and sealed anew is found out by computing it again; one merely edited, at once
    from dataclasses import replace

    from sfumato.evaluation.receipts import Receipt

    honest = Receipt.read(receipt)
    first = honest.measures[0]
    made_up = replace(first, value=first.value * 0.9, low=None, high=None)
    forged = replace(honest, measures=(made_up, *honest.measures[1:]))
    code, out, err = run(
        capsys, "evaluate", trained / "model", "--receipt", forged.write(tmp_path / "forged.json")
    )
    assert code == 1
    assert "disagrees" in out
    (tmp_path / "edited.json").write_text(receipt.read_text().replace('"n": 60', '"n": 61'))
    code, out, err = run(capsys, "evaluate", trained / "model", "--receipt", tmp_path / "edited.json")
    assert code == 1
    assert "changed after it was written" in err


def test_inspect_shows_a_whole_bundle(trained: Path, capsys: pytest.CaptureFixture):
    code, out, _ = run(capsys, "inspect", trained / "model")
    assert code == 0
    assert "unet" in out
    code, out, _ = run(capsys, "inspect", trained / "model", "--json")
    assert json.loads(out)["format"] == "sfumato-bundle"


def test_recipes_and_data(tmp_path: Path, capsys: pytest.CaptureFixture):
    code, out, _ = run(capsys, "recipes", "list")
    assert code == 0
    assert {"digits", "fashion-mnist"} <= set(out.split())
    code, out, _ = run(capsys, "recipes", "show", "digits", "training.batch=77")
    assert code == 0
    assert "batch = 77" in out
    mine = tmp_path / "mine.toml"
    assert run(capsys, "recipes", "copy", "digits", mine)[0] == 0
    code, _, err = run(capsys, "recipes", "copy", "digits", mine)
    assert code == 1
    assert "exists already" in err
    assert run(capsys, "data", "list")[0] == 0
    assert run(capsys, "data", "fetch", "digits")[0] == 0
    code, out, _ = run(capsys, "data", "check", "digits")
    assert code == 0
    assert "1,797" in out
    code, _, err = run(capsys, "data", "check", "digits", "size=8")
    assert code == 1
    assert "without 'size=8'" in err
    table = tmp_path / "trees.csv"
    table.write_text("height,kind\n" + "".join(f"{k},{'oak' if k % 2 else 'elm'}\n" for k in range(40)))
    for told in ((), ("--domain", "table")):  # the name of a file says what is in it
        code, out, _ = run(capsys, "data", "check", table, "target=kind", *told)
        assert code == 0
        assert "height, kind (2)" in out
    code, _, err = run(capsys, "data", "check", table, "target=size")
    assert code == 1
    assert "size" in err
    bases = tmp_path / "BASES.FASTA"
    bases.write_text("".join(f">{k}\n{'ACGT' * (k + 1)}\n" for k in range(4)))
    code, out, _ = run(capsys, "data", "check", bases, "dialect=dna", "length=20")
    assert code == 0
    assert "(sequences)" in out
    music = tmp_path / "music"
    music.mkdir()
    (music / "README").write_text("two pieces, neither whole")
    for name in ("a.MID", "b.mid"):
        (music / name).write_bytes(b"MThd")
    code, _, err = run(capsys, "data", "check", music)
    assert code == 1
    assert "MIDI" in err


def pictures(folder: Path, count: int = 30, size: int = 12) -> Path:
    """A folder of pictures in two classes."""
    for k in range(count):
        part = folder / ("light" if k % 2 else "dark")
        part.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 128, (size, size), dtype=np.uint8) + 127 * (k % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(part / f"{k:03d}.png")
    return folder


def bad_inputs(folder: Path, trained: Path) -> dict[str, tuple[list[str], str]]:
    """Command lines that cannot work, and a part of what each must say."""
    good = pictures(folder / "good")
    corrupt = pictures(folder / "corrupt")
    next((corrupt / "dark").iterdir()).write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    mixed = pictures(folder / "mixed")
    Image.new("RGB", (20, 9)).save(mixed / "dark" / "zz.png")
    (folder / "empty").mkdir()
    floats = np.full((20, 8, 8), 0.5, dtype=np.float32)
    floats[13, 2, 2] = np.nan
    np.save(folder / "nan.npy", floats)
    (folder / "broken").mkdir()
    for name in ("bundle.json", "weights.safetensors"):
        content = (trained / "model" / name).read_bytes()
        (folder / "broken" / name).write_bytes(content[: len(content) // (2 if "weights" in name else 1)])

    def train(source: Path, *more: str) -> list[str]:
        words = ["train", "digits", *SMALL, f"data.source={source}", "training.batch=8", *more]
        return [*words, "--out", str(folder / "out")]

    model = str(trained / "model")
    return {
        "unknown key": (["train", "digits", "training.bach=2", "--out", str(folder / "out")], "did you mean"),
        "wrong type": (["train", "digits", "training.batch=x", "--out", str(folder / "out")], "training.batch"),
        "missing folder": (train(folder / "nowhere"), "nowhere"),
        "empty folder": (train(folder / "empty"), "empty"),
        "corrupt picture": (train(corrupt), ".png"),
        "mixed sizes": (train(mixed), "size"),
        "NaN in data": (train(folder / "nan.npy"), "13"),
        "resume nothing": (["train", "--resume", "--out", str(folder / "out")], "no run to resume"),
        "run again": (["train", "digits", *SMALL, "--out", str(trained)], "--resume"),
        "no bundle": (["inspect", str(good)], "no bundle"),
        "truncated bundle": (["sample", str(folder / "broken"), "--out", str(folder / "out")], "truncated"),
        "label out of range": (["sample", model, "--label", "11", "--out", str(folder / "out")], "labels 0 to 9"),
        "steps 0": (["sample", model, "--steps", "0", "--out", str(folder / "out")], "steps"),
        "steps -1": (["sample", model, "--steps", "-1", "--out", str(folder / "out")], "steps"),
        "count 0": (["sample", model, "--count", "0", "--out", str(folder / "out")], "at least one"),
        "no such solver": (["sample", model, "--solver", "hein", "--out", str(folder / "out")], "did you mean 'heun'"),
        "seed -1": (["sample", model, "--seed", "-1", "--out", str(folder / "out")], "seed must be"),
        "index -1": (["sample", model, "--indices", "-1", "--out", str(folder / "out")], "index must be"),
        "strength of nothing": (["sample", model, "--strength", "0.4", "--out", str(folder / "out")], "--from"),
        "strength 0": (
            ["sample", model, "--from", str(good), "--label", "1", "--strength", "0", "--out", str(folder / "out")],
            "(0, 1]",
        ),
        "from too few": (
            ["sample", model, "--from", str(good), "--label", "1", "--count", "31", "--out", str(folder / "out")],
            "30 pictures",
        ),
        "nowhere to write": (["sample", model, "--out", str(good / "dark" / "000.png")], "000.png"),
        "evaluate none": (["evaluate", model, "--samples", "0", "--out", str(folder / "out")], "n=0"),
        "no such optimizer": (["train", "digits", "training.optimizer=adamx", "--out", str(folder / "out")], "adamw"),
        "refused resume": (
            ["train", "digits", *SMALL, "network.width=16", "--resume", "--out", str(trained)], "another network",
        ),
        "no such split": (train(good, "data.held_out=test"), "no split 'test'"),
        "no such data": (["data", "fetch", "digit"], "did you mean 'digits'"),
        "no model": (["evaluate"], "which model"),
        "no receipt": (["evaluate", model, "--receipt", str(folder / "none.json")], "none.json"),
    }  # fmt: skip


def test_bad_input_is_one_line_and_leaves_nothing(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    before = sorted(path.relative_to(trained) for path in trained.rglob("*"))
    recipe = (trained / "recipe.toml").read_bytes()
    for what, (words, says) in bad_inputs(tmp_path, trained).items():
        code, _, err = run(capsys, *words)
        assert code == 1, what
        assert says in err, f"{what}: {err}"
        assert err.count("\n") == 1, f"{what}: {err}"
        assert not (tmp_path / "out").exists(), what
    assert sorted(path.relative_to(trained) for path in trained.rglob("*")) == before
    assert (trained / "recipe.toml").read_bytes() == recipe


def test_a_name_in_brackets_is_shown_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = pictures(tmp_path / "some", 4)
    (folder / "dark" / "a[old] [b].png").write_bytes(b"nothing")
    code, out, _ = run(capsys, "data", "check", folder)
    assert code == 1
    assert "a[old] [b].png" in out


def test_a_film_of_one_sample_is_of_that_sample(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    for words, name in ((["--indices", 5], "one"), (["--count", 6], "six")):
        words = ["sample", trained / "model", *words, "--film", "--label", 3, "--out", tmp_path / name]
        code, _, err = run(capsys, *words)
        assert code == 0, err
    one, six = (np.asarray(Image.open(tmp_path / f"{n}-film.png"), dtype=int) for n in ("one", "six"))
    tall = one.shape[0] - 24  # captions above, a margin below
    assert np.abs(one[20 : 20 + tall] - six[-tall - 4 : -4]).max() <= 1


def test_samples_from_pictures_keep_their_labels_and_their_numbers(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    words = ["sample", trained / "model", "--from", tmp_path / "a", "--strength", 0.3, "--seed", 5]
    assert run(capsys, "sample", trained / "model", "--count", 4, "--out", tmp_path / "a")[0] == 0
    code, out, err = run(capsys, *words, "--out", tmp_path / "b")
    assert code == 0, err
    assert "4 samples" in out
    names = [f"sample-0000{k}-label-{k}.png" for k in range(4)]
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == names
    assert {"b-grid.png", "b-from.png"} <= {path.name for path in tmp_path.iterdir()}
    assert run(capsys, *words, "--indices", 3, "--label", 3, "--out", tmp_path / "c")[0] == 0
    given, drawn, alone = (
        np.asarray(Image.open(tmp_path / folder / names[3]), dtype=int) for folder in ("a", "b", "c")
    )
    assert np.abs(alone - drawn).max() <= 1
    assert np.abs(drawn - given).max() > 1
    assert run(capsys, *words[:4], "--strength", 0.001, "--out", tmp_path / "d")[0] == 0
    back = np.asarray(Image.open(tmp_path / "d" / names[3]), dtype=int)
    assert np.abs(back - given).mean() < np.abs(drawn - given).mean() / 4


def test_inspecting_writes_what_each_step_does(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["sample", trained / "model", "--count", 3, "--steps", 4, "--inspect", "--out", tmp_path / "s"]
    code, out, err = run(capsys, *words)
    assert code == 0, err
    assert "s-steps.png" in out
    found = json.loads((tmp_path / "s-steps.json").read_text())
    assert found["steps"] == len(found["trace"]) == 4
    assert found["samples"] == 3
    times = [row["time"] for row in found["trace"]]
    assert times == sorted(times, reverse=True)
    assert Image.open(tmp_path / "s-steps.png").width > 900


def test_a_study_is_a_receipt_that_can_be_computed_again(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    words = ["study", trained / "model", "--steps", 2, 4, "--examples", 64, "--out", tmp_path]
    code, out, err = run(capsys, *words)
    assert code == 0, err
    assert "score error" in out
    assert "At 2 steps" in out
    assert Image.open(tmp_path / "study.png").width > 900
    code, out, err = run(capsys, "evaluate", trained / "model", "--receipt", tmp_path / "study.json")
    assert code == 0, err
    assert "The receipt agrees" in out
    code, _, err = run(capsys, "study", trained / "model", "--solver", "ancestral", "--out", tmp_path / "no")
    assert code == 1
    assert "heun" in err
    assert not (tmp_path / "no").exists()


def test_a_damaged_picture_may_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = pictures(tmp_path / "some", 40)
    next((folder / "dark").iterdir()).write_bytes(b"nothing")
    out = tmp_path / "run"
    words = [f"data.source={folder}", "data.skip_corrupt=true", "training.batch=8", "--out", out]
    code, _, err = run(capsys, "train", "digits", *SMALL, *words)
    assert code == 0, err
    record = json.loads((out / "model" / "bundle.json").read_text())
    assert len(record["data"]["train"]["skipped_corrupt"]) == 1
    assert record["domain"]["classes"] == ["dark", "light"]


def test_two_processes_cannot_share_a_run_and_a_signal_saves(tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "run"
    words = ["train", "digits", *SMALL, "training.images=2000000", "--out", str(out)]
    first = subprocess.Popen(
        [sys.executable, "-m", "sfumato", *words], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        deadline = time.monotonic() + 60
        while not (out / "checkpoints").is_dir() or not any((out / "checkpoints").iterdir()):
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        code, _, err = run(capsys, "train", "--resume", "--out", out)
        assert code == 1
        assert f"in use by process {first.pid}" in err
        asked = (out / "recipe.toml").read_bytes()
        code, _, err = run(capsys, "train", "digits", *SMALL, "training.seed=9", "--resume", "--out", out)
        assert code == 1
        assert (out / "recipe.toml").read_bytes() == asked  # what is refused leaves nothing behind
        first.send_signal(signal.SIGTERM)
        said, _ = first.communicate(timeout=60)
        assert first.returncode == 130
        assert "--resume" in said
    finally:
        first.kill()
    assert not (out / "model").exists()


def test_resuming_a_finished_run_keeps_its_bundle(trained: Path, capsys: pytest.CaptureFixture):
    """Receipts name a bundle by its hash, so a bundle must not be written anew without a reason."""
    before = (trained / "model" / "bundle.json").read_bytes()
    code, _, err = run(capsys, "train", "--resume", "--out", trained)
    assert code == 0, err
    assert (trained / "model" / "bundle.json").read_bytes() == before


def test_pictures_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = tmp_path / "flat"
    pictures(folder, 60)
    for path in folder.rglob("*.png"):
        path.rename(folder / path.name)
    for part in ("light", "dark"):
        (folder / part).rmdir()
    words = ["train", "digits", *SMALL, f"data.source={folder}", "training.batch=8", "sampling.guidance=1.0"]
    code, _, err = run(capsys, *words, "objective.drop=0", "--out", tmp_path / "run")
    assert code == 1
    assert "evaluation.features=pixels" in err
    words += [
        "objective.drop=0",
        "evaluation.features=pixels",
        "data.held_out=0.5",
        "--out",
        tmp_path / "run",
    ]
    assert run(capsys, *words)[0] == 0
    code, out, err = run(capsys, "evaluate", tmp_path / "run" / "model", "--samples", "24")
    assert code == 0, err
    assert "frechet" in out
    assert "agreement" not in out
