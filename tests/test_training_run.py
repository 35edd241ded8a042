"""Laws of a run: killed anywhere it resumes bit for bit, cut in pieces it is the same, no error loses the training."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time

import pytest
import torch

import training_stand_ins as stand_ins
from run_cases import After, assert_same_run, kill_and_compare, started, state_of
from sfumato.errors import RunError
from sfumato.training import Interrupted, RunLock, averaged_weights, checkpoints_in, load_checkpoint, read_log
from training_stand_ins import Told, small, trainer


def test_a_run_killed_twice_is_the_run_that_was_not(tmp_path):
    kill_and_compare(tmp_path, 2)


@pytest.mark.slow
def test_a_run_killed_ten_times_is_the_run_that_was_not(tmp_path):
    kill_and_compare(tmp_path, 10)


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
