"""Checkpoints: what is damaged is named and the one before used; what resumes goes on exactly."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
from pathlib import Path

import pytest
import torch

import training_stand_ins as stand_ins
from run_cases import After, assert_same_run
from sfumato.errors import RunError
from sfumato.training import checkpoints_in, load_checkpoint, read_log
from training_stand_ins import Told, small, trainer


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def edited(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(data)


def pickled(path: Path) -> None:
    torch.save({"x": torch.zeros(3)}, path)


def old_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"x": list(range(1000))}))


DAMAGES = [
    ("state.safetensors", shortened, "is truncated"),
    ("state.safetensors", edited, "edited or damaged"),
    ("state.safetensors", pickled, "is a pickle"),
    ("state.safetensors", old_pickle, "is a pickle"),
    ("state.safetensors", Path.unlink, "lacks state.safetensors"),
    ("state.json", shortened, "cannot be read"),
    (
        "state.json",
        lambda p: p.write_text(p.read_text().replace('"images": 640', '"images": 64')),
        "its hash differs",
    ),
    ("state.json", lambda p: p.write_text('{"step": 4}'), "not a checkpoint that sfumato wrote"),
    ("state.json", Path.unlink, "has no state.json"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    trainer(folder).fit()
    return folder


@pytest.mark.parametrize(("name", "damage", "reason"), DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(finished, tmp_path, name, damage, reason):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    newest = checkpoints_in(folder / "checkpoints")[-1]
    damage(newest / name)
    with pytest.raises(RunError, match=reason):
        load_checkpoint(newest)
    told = Told()
    trainer(folder, callbacks=[told]).fit()
    assert len(told.messages) == 1
    assert reason in told.messages[0]
    assert_same_run(finished, folder)


def test_only_damaged_checkpoints_do_not_start_from_nothing(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    for path in checkpoints_in(tmp_path / "run/checkpoints"):
        shortened(path / "state.safetensors")
    with pytest.raises(RunError, match="none of the 2 checkpoints"):
        trainer(tmp_path / "run").fit()


def test_another_run_is_refused(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    for changes, reason in [
        ({"seed": 3}, "training.seed = 0"),
        ({"batch": 32}, "training.batch"),
        ({"ema": (0.2,)}, "ema"),
    ]:
        with pytest.raises(RunError, match=reason):
            trainer(tmp_path / "run", small(**changes)).fit()
    with pytest.raises(RunError, match="already holds checkpoints"):
        trainer(tmp_path / "run").fit(resume=False)
    other = trainer(tmp_path / "run")
    other.denoiser.network[0] = torch.nn.Conv2d(1, 8, 5)
    with pytest.raises(RunError, match="of another network"):
        other.fit()
    told = Told()
    longer = trainer(tmp_path / "run", small(images=704), callbacks=[told]).fit()
    assert longer.images == 704
    assert told.messages == ["resumed with training.images = 704, it was 640"]


def test_a_setting_changed_on_resuming_is_the_one_that_acts(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    told = Told()
    changed = trainer(
        tmp_path / "run", small(images=704, weight_decay=0.25, betas=(0.8, 0.9)), callbacks=[told]
    )
    changed.fit()
    groups = changed.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.25, 0.0]  # biases are spared, as before
    assert {group["betas"] for group in groups} == {(0.8, 0.9)}
    assert "resumed with training.weight_decay = 0.25, it was 0.0" in told.messages


def test_old_checkpoints_go_and_the_best_stays(tmp_path):
    result = trainer(tmp_path, small(keep_last=1, learning_rate=1e-3)).fit()
    kept = checkpoints_in(tmp_path / "checkpoints")
    assert set(kept) == {result.best, result.checkpoint}


@pytest.mark.parametrize(
    "changes",
    [
        {"channels_last": True, "images": 320},
        *({"optimizer": kind, "images": 160} for kind in ("adam", "sgd", "muon")),
    ],
    ids=lambda changes: str(next(iter(changes.values()))),
)
def test_other_layouts_and_optimisers_resume_exactly(tmp_path, changes):
    config = small(**changes)
    trainer(tmp_path / "whole", config).fit()
    stop = After(7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    trainer(tmp_path / "cut", config, callbacks=[stop]).fit()
    trainer(tmp_path / "cut", config).fit()
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_real_denoiser_trains_and_resumes_exactly(tmp_path):
    from sfumato.denoisers import Denoiser
    from sfumato.networks import build
    from sfumato.objectives import Denoising
    from sfumato.processes import build_process
    from sfumato.training import Trainer

    def run(folder, **more):
        torch.manual_seed(0)
        network = build(
            "unet",
            in_channels=1,
            size=8,
            width=8,
            head=8,
            multipliers=(1, 2),
            blocks=1,
            classes=3,
            dropout=0.1,
        )
        denoiser = Denoiser(network, build_process(schedule={"kind": "cosine"}))
        return Trainer(denoiser, Denoising(drop=0.1, classes=3), stand_ins.TinyData(size=8), config, folder,
                       held_out=stand_ins.TinyData(20, 8), **more)  # fmt: skip

    config = small(images=320, channels_last=True, snapshot_every=80, learning_rate=2e-3)
    whole = run(tmp_path / "whole").fit()
    run(tmp_path / "cut", callbacks=[After(7, lambda: os.kill(os.getpid(), signal.SIGTERM))]).fit()
    run(tmp_path / "cut").fit()
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    names = [p.name for p in sorted((tmp_path / "cut/ema").iterdir())]
    assert names == [p.name for p in sorted((tmp_path / "whole/ema").iterdir())]
    assert all(
        (tmp_path / "cut/ema" / n).read_bytes() == (tmp_path / "whole/ema" / n).read_bytes() for n in names
    )
    held = [line["held_out"]["loss"] for line in read_log(tmp_path / "cut/log.jsonl") if "held_out" in line]
    assert held[-1] == whole.held_out < held[0]
