"""Laws of a run: killed anywhere it resumes bit for bit, cut in pieces it is the same, no error loses the training."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import training_stand_ins as stand_ins
from sfumato.errors import RunError
from sfumato.training import Interrupted, RunLock, averaged_weights, checkpoints_in, load_checkpoint, read_log
from training_stand_ins import Told, small, trainer

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


def test_a_run_killed_twice_is_the_run_that_was_not(tmp_path):
    kill_and_compare(tmp_path, 2)


@pytest.mark.slow
def test_a_run_killed_ten_times_is_the_run_that_was_not(tmp_path):
    kill_and_compare(tmp_path, 10)


class After(Told):
    """Does something after so many steps."""

    def __init__(self, steps, act):
        super().__init__()
        self.after, self.act = steps, act

    def on_step(self, *figures):
        super().on_step(*figures)
        if len(self.steps) == self.after:
            self.act()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_resumed_run_is_the_same(tmp_path, number):
    before = signal.getsignal(number)
    result = trainer(tmp_path / "cut", callbacks=[After(7, lambda: os.kill(os.getpid(), number))]).fit()
    assert isinstance(result, Interrupted)
    assert (result.signal, result.images) == (signal.Signals(number).name, 7 * 16)
    assert signal.getsignal(number) is before
    assert int(result.checkpoint.name) == 7 * 16
    trainer(tmp_path / "cut").fit()
    trainer(tmp_path / "whole").fit()
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_second_interrupt_is_obeyed_at_once(tmp_path):
    def twice():
        # to this thread: two signals to the process may reach another thread and be taken for one
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    # a shell starts what it puts in the background with interrupts ignored, and the tests may be such a job
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer(tmp_path, callbacks=[After(6, twice)]).fit()
        assert [p.name for p in checkpoints_in(tmp_path / "checkpoints")] == ["000000064"]
    finally:
        signal.signal(signal.SIGINT, before)


def test_micro_batches_change_memory_not_the_gradient(tmp_path):
    whole = trainer(tmp_path / "a", dropout=0.0)
    parts = trainer(tmp_path / "b", small(micro_batch=4), dropout=0.0)
    for each in (whole, parts):
        each.stepper.gradient(each._batch(160), 160, 0)
    for p, q in zip(whole.denoiser.parameters(), parts.denoiser.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=2e-5, atol=1e-7)


def test_shares_of_two_processes_make_the_batch_of_one(tmp_path):
    whole = trainer(tmp_path / "a", dropout=0.0)
    halves = [trainer(tmp_path / str(r), dropout=0.0, ranks=(r, 2)) for r in range(2)]
    whole.stepper.gradient(whole._batch(48), 48, 0)
    for half in halves:
        half.stepper.gradient(half._batch(48), 48, half.start)
    sets = zip(whole.denoiser.parameters(), *(h.denoiser.parameters() for h in halves), strict=True)
    for p, q, r in sets:
        torch.testing.assert_close(p.grad, (q.grad + r.grad) / 2, rtol=2e-5, atol=1e-7)


def test_it_learns_and_leaves_the_callers_randomness_alone(tmp_path):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    told = Told()
    result = trainer(tmp_path, small(images=3200, learning_rate=5e-3), callbacks=[told]).fit()
    assert torch.equal(before, torch.get_rng_state())
    assert told.held[-1].loss < 0.92 * told.held[0].loss
    assert result.held_out == told.held[-1].loss
    assert load_checkpoint(result.best).about["held_out"] == min(h.loss for h in told.held)
    assert result.weights.keys() == stand_ins.TinyDenoiser().state_dict().keys()
    again = averaged_weights(load_checkpoint(result.checkpoint))
    assert all(torch.equal(result.weights[k], again[k]) for k in again)
    assert [s[0] for s in told.steps] == list(range(16, 3201, 16))


def test_the_log_adds_up(tmp_path):
    trainer(tmp_path).fit()
    lines = [line for line in read_log(tmp_path / "log.jsonl") if "loss" in line]
    assert [line["images"] for line in lines] == [*range(48, 640, 48), 640]
    assert sum(row["count"] for line in lines for row in line["by_noise"]) == 640
    first = lines[0]
    mean = sum(row["error"] * row["count"] for row in first["by_noise"]) / 48
    assert mean == pytest.approx(first["loss"], rel=1e-5)
    assert first["lr"] == pytest.approx(2e-4 * 40 / 64)


def test_held_out_loss_does_not_depend_on_its_batches(tmp_path):
    from sfumato.training import held_out_loss

    losses = []
    for size in (20, 5, 3):
        run = trainer(tmp_path / str(size))
        config = small(batch=size, warmup=0)
        losses.append(
            held_out_loss(run.denoiser.eval(), run.objective, stand_ins.TinyData(20), config, run.device)
        )
    assert losses[0].loss == pytest.approx(losses[1].loss, rel=1e-5)
    assert losses[0].loss == pytest.approx(losses[2].loss, rel=1e-5)
    assert sum(row["count"] for row in losses[0].by_noise) == 20


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_ends_the_run_and_keeps_the_batch(tmp_path, where):
    objective = stand_ins.TinyObjective()

    def poisoned(denoiser, batch, noise):
        # Held-out measurements call the objective too, without gradients.
        losses, figures = objective(denoiser, batch, noise)
        if torch.is_grad_enabled() and noise.noise.step == 160:
            first = next(denoiser.parameters())
            losses = losses * torch.nan if where == "loss" else losses + (first * 0).sum().sqrt()
        return losses, figures

    with pytest.raises(RunError, match=r"step 11 \(after 160 images\).*nan/000000160.*checkpoints/000000160"):
        trainer(tmp_path, objective=poisoned).fit()
    about = json.loads((tmp_path / "nan/000000160/batch.json").read_text())
    from safetensors.torch import load_file

    kept = load_file(tmp_path / "nan/000000160/batch.safetensors")
    batch = stand_ins.TinyData().batch(kept["indices"].numpy(), about["noise"]["seed"], 160)
    assert torch.equal(kept["x"], batch["x"])
    assert torch.equal(kept["condition/label"], batch["condition"]["label"])
    tensors = load_checkpoint(checkpoints_in(tmp_path / "checkpoints")[-1]).tensors
    assert all(t.isfinite().all() for t in tensors.values())
    trainer(tmp_path).fit()  # with the cause removed it goes on
    trainer(tmp_path / "whole").fit()
    assert_same_run(tmp_path / "whole", tmp_path)


def test_a_failing_preview_or_measurement_is_told_and_survived(tmp_path):
    calls, told = [], Told()

    def preview(denoiser, images):
        calls.append((images, denoiser.training, torch.is_grad_enabled()))
        with torch.no_grad():
            denoiser.network[0].weight.zero_()  # must not reach the training
        torch.manual_seed(0)
        raise torch.OutOfMemoryError("no room")

    trainer(tmp_path / "a", small(preview_every=100), preview=preview, callbacks=[told]).fit()
    assert [c[0] for c in calls] == [112, 208, 304, 400, 512, 608]
    assert "the preview at 112 images failed and was left out: memory ran out" in told.messages
    trainer(tmp_path / "b", small(preview_every=0)).fit()
    a, b = state_of(tmp_path / "a")[0], state_of(tmp_path / "b")[0]
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_memory_that_runs_out_while_measuring_halves_the_batch(tmp_path):
    sizes = []
    inner = stand_ins.TinyObjective()

    def hungry(denoiser, batch, noise):
        if not torch.is_grad_enabled():
            sizes.append(len(batch["x"]))
            if len(batch["x"]) > 4:
                raise torch.OutOfMemoryError("no room")
        return inner(denoiser, batch, noise)

    told = Told()
    trainer(tmp_path, small(images=160), objective=hungry, callbacks=[told]).fit()
    assert sizes[:3] == [16, 8, 4]
    assert told.held[0].count == 20
    assert not told.messages


def test_memory_that_runs_out_in_a_step_names_the_knob(tmp_path):
    def hungry(denoiser, batch, noise):
        if torch.is_grad_enabled() and noise.noise.step >= 80:
            raise torch.OutOfMemoryError("no room")
        return stand_ins.TinyObjective()(denoiser, batch, noise)

    with pytest.raises(RunError, match=r"16 images at once: set training\.micro_batch"):
        trainer(tmp_path, objective=hungry).fit()
    assert checkpoints_in(tmp_path / "checkpoints")[-1].name == "000000080"  # nothing trained is lost


def test_a_callback_that_breaks_costs_nothing(tmp_path):
    class Broken(Told):
        def on_step(self, *figures):
            raise ZeroDivisionError

    assert trainer(tmp_path, callbacks=[Broken()]).fit().images == 640


def full_disk(monkeypatch, after: int = 0):
    import sfumato.training.checkpoint as module

    real, count = module.write_safetensors, []

    def write(file, tensors, about=None):
        count.append(1)
        if len(count) > after:
            file.write(b"partial")
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, tensors, about)

    monkeypatch.setattr(module, "write_safetensors", write)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    full_disk(monkeypatch, after=2)
    with pytest.raises(RunError, match=r"disk is full; the last good checkpoint is .*000000128"):
        trainer(tmp_path, small(validate_every=0)).fit()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["000000064", "000000128"]
    monkeypatch.undo()
    trainer(tmp_path, small(validate_every=0)).fit()
    trainer(tmp_path / "whole", small(validate_every=0)).fit()
    assert_same_run(tmp_path / "whole", tmp_path)


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


def test_two_processes_cannot_share_a_run(tmp_path):
    process = started(tmp_path)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / ".lock").exists() or not (tmp_path / ".lock").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(RunError, match=f"run folder .* is in use by process {process.pid}"):
            trainer(tmp_path).fit()
    finally:
        process.kill()
        process.wait()
    with RunLock(tmp_path):  # a dead owner holds nothing
        pass


def test_channels_last_resumes_exactly(tmp_path):
    config = small(channels_last=True, images=320)
    trainer(tmp_path / "whole", config).fit()
    stop = After(7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    trainer(tmp_path / "cut", config, callbacks=[stop]).fit()
    trainer(tmp_path / "cut", config).fit()
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("kind", ["adam", "sgd", "muon"])
def test_other_optimisers_resume_exactly(tmp_path, kind):
    config = small(optimizer=kind, images=160)
    trainer(tmp_path / "whole", config).fit()
    stop = After(7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    trainer(tmp_path / "cut", config, callbacks=[stop]).fit()
    trainer(tmp_path / "cut", config).fit()
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_bfloat16_trains_and_float16_needs_cuda(tmp_path):
    assert trainer(tmp_path / "a", small(precision="bfloat16", images=64)).fit().images == 64
    with pytest.raises(RunError, match="float16 needs a CUDA device"):
        trainer(tmp_path / "b", small(precision="float16"))


def test_compiling_without_a_compiler_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        RunError, match=r"no-such-compiler is not installed: install g\+\+ or set training.compile = false"
    ):
        trainer(tmp_path, small(compile=True)).fit()


@pytest.mark.slow
def test_compiled_weights_keep_their_names(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    result = trainer(tmp_path, small(compile=True, images=64)).fit()
    assert result.weights.keys() == stand_ins.TinyDenoiser().state_dict().keys()
    assert not [k for k in state_of(tmp_path)[0] if "_orig_mod" in k]


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
