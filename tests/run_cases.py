"""Runs and what is left of them, which tests of training share."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

import training_stand_ins as stand_ins
from sfumato.training import checkpoints_in, load_checkpoint, read_log
from training_stand_ins import Told, trainer

TIMES = ("seconds", "images_per_second")


def state_of(folder: Path):
    checkpoint = load_checkpoint(checkpoints_in(folder / "checkpoints")[-1])
    about = {k: v for k, v in checkpoint.about.items() if k not in ("seconds", "sha256", "files")}
    return checkpoint.tensors, about


def lines_of(folder: Path):
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_log(folder / "log.jsonl")]


def assert_same_run(one: Path, other: Path) -> None:
    (a, about_a), (b, about_b) = state_of(one), state_of(other)
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    assert about_a == about_b
    assert lines_of(one) == lines_of(other)


def started(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, stand_ins.__file__, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill_and_compare(tmp_path: Path, kills: int) -> None:
    lucky = random.Random(kills)
    torch.set_num_threads(1)
    trainer(tmp_path / "whole").fit()
    folder, happened = tmp_path / "killed", 0
    for _ in range(kills):
        process = started(folder)
        time.sleep(lucky.uniform(0.05, 0.35))
        process.kill()
        happened += process.wait() == -signal.SIGKILL
    assert started(folder).wait() == 0
    assert happened >= kills // 2
    assert_same_run(tmp_path / "whole", folder)
    assert not list((folder / "checkpoints").glob(".*"))


class After(Told):
    """Does something after so many steps."""

    def __init__(self, steps, act):
        super().__init__()
        self.after, self.act = steps, act

    def on_step(self, *figures):
        super().on_step(*figures)
        if len(self.steps) == self.after:
            self.act()
