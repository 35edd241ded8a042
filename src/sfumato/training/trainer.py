"""The trainer: batches in, a trained denoiser out, and a run folder from which any kill can be resumed bit
for bit.

A run is a function of (initial weights, data, configuration). Its state between two steps is: the weights,
their averages, the optimiser's moments, the sums of the log line in progress, and one number — images seen —
from which the order of the data, the noise, dropout and the learning rate all follow. A checkpoint holds
exactly that.

Between steps, in this order, whenever `images` passes a multiple of the period: log line, held-out loss,
snapshot of the averages, preview, checkpoint. What is written is written after the figures of every step so
far were found finite.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import RunError
from sfumato.files import reason

from .callbacks import Callback, Callbacks
from .checkpoint import Checkpoint, Keeper
from .compare import same_run
from .config import TrainingConfig
from .ema import Averages, profiles_of
from .interrupts import Interrupts
from .lock import RunLock
from .logbook import Log, Meter
from .optimizers import build_optimizer, flatten, restore
from .order import Order, TrainingData, moved
from .posthoc import save_snapshot
from .rates import rate_of_step
from .result import Interrupted, TrainingResult, save_offender
from .step import FiniteWatch, NonFinite, Objective, Stepper, compiled, out_of_memory
from .validation import HeldOut, Report, held_out_loss

Preview = Callable[[nn.Module, int], None]


class Trainer:
    """Trains a denoiser in a run folder.

    denoiser: module with the weights to start from (seeded by the caller); its `network`, if it has one, is
    what is compiled. objective: (denoiser, batch, noise) -> (loss (n,), figures). data, held_out:
    `TrainingData`; held_out may be None. preview: called as preview(denoiser with averaged weights, images);
    whatever it raises is reported, not raised. callbacks: see `Callback`. device: where to train, default
    where the denoiser is. ranks: (rank, world size), which share of each batch this process shows (keys only:
    gradients are not exchanged here). Raises RunError for what cannot be started.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        objective: Objective,
        data: TrainingData,
        config: TrainingConfig,
        run_folder: str | Path,
        *,
        held_out: TrainingData | None = None,
        preview: Preview | None = None,
        callbacks: Sequence[Callback] = (),
        device: torch.device | str | None = None,
        ranks: tuple[int, int] = (0, 1),
    ):
        self.config, self.folder, self.objective = config, Path(run_folder), objective
        parameters = list(denoiser.parameters())
        self.device = torch.device(device or (parameters[0].device if parameters else "cpu"))
        self.denoiser = denoiser.to(self.device)
        if config.channels_last:
            self.denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.data, self.held_out_data, self.preview = data, held_out, preview
        self.order = Order(len(data), config.seed, *ranks)
        self.start, self.share = self.order.span(config.batch)
        trained = {name: p for name, p in self.denoiser.named_parameters() if p.requires_grad}
        self.optimizer = build_optimizer(
            config.optimizer,
            trained,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=config.betas,
            eps=config.eps,
            **config.optimizer_options,
        )
        self.averages = Averages(trained, profiles_of(config))
        self.stepper = Stepper(self.denoiser, objective, self.optimizer, config, self.device)
        self.callbacks = Callbacks(callbacks)
        self.keeper = Keeper(self.folder / "checkpoints", config.keep_last, self.callbacks.on_message)
        self.meter = Meter(self.device)
        self.images, self.held_out, self._seconds = 0, None, 0.0
        self._shadow: nn.Module | None = None

    def fit(self, resume: bool = True, accepted: Callable[[], None] = lambda: None) -> TrainingResult:
        """Train until `config.images`, from the newest valid checkpoint if `resume` and there is one.

        accepted: called once the folder is this run's own and its checkpoint fits, before the first step.
        Returns a TrainingResult, or an Interrupted after SIGINT or SIGTERM. Raises RunError: folder in use,
        foreign or damaged checkpoints only, checkpoints there but not `resume`, a full disk, a loss that is
        not finite.
        """
        before = torch.get_rng_state()
        network = getattr(self.denoiser, "network", self.denoiser)
        try:
            with (
                RunLock(self.folder),
                self._logging(),
                compiled(network, self.config.compile, self.device),
                Interrupts() as asked,
            ):
                self._begin(resume)
                accepted()
                with self._saved_on_error():
                    self._loop(asked)
                return self._result(asked.signal)
        finally:
            torch.set_rng_state(before)

    def weights(self, average: str | None = None) -> dict[str, Tensor]:
        """The denoiser's state dict with an average (default: the first) in place of the trained weights;
        copies."""
        state = {name: t.detach().clone() for name, t in self.denoiser.state_dict().items()}
        if self.averages.profiles:
            track = self.averages.track(average or self.averages.profiles[0].name)
            state |= {name: t.clone() for name, t in track.items() if name in state}
        return state

    # The course of a run

    def _loop(self, asked: Interrupts) -> None:
        self._mark = time.monotonic()
        self._period = (time.monotonic(), self.images)
        while self.images < self.config.images and not asked.signal:
            before = self.images
            self._step()
            with self._aside():
                self._between(before)
            self._progress()
        with self._aside():
            self._end()

    def _step(self) -> None:
        before = self.images
        batch = moved(self._batch(before), self.device, self.config.channels_last)
        rate = rate_of_step(self.config, before)
        try:
            self.stepper.take(batch, before, self.start, rate, self._watch, self.meter)
        except NonFinite as trouble:
            self._stop_at(trouble)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            size = self.config.micro_batch or self.config.batch
            raise RunError(
                f"memory ran out with {size} images at once: set training.micro_batch to a divisor of "
                f"{self.config.batch} below that, or checkpoint the network's activations"
            ) from error
        self.images = before + self.config.batch
        self.averages.update(before, self.images)
        self.stepper.touched = False  # weights, averages and the count of images agree again

    def _between(self, before: int) -> None:
        config, done = self.config, self.images >= self.config.images

        def due(every: int) -> bool:
            return every > 0 and (done or before // every < self.images // every)

        def passed(every: int) -> bool:
            return every > 0 and before // every < self.images // every

        if due(config.log_every):
            self._look()
            self._write_line(rate_of_step(config, before))
        best = due(config.validate_every) and self._validate()
        if passed(config.snapshot_every):
            self._look()
            save_snapshot(self.folder / "ema", self.averages, self.images)
        if passed(config.preview_every) and self.preview is not None:
            self._look()
            preview, images = self.preview, self.images
            self._report.attempt(f"the preview at {images} images", lambda: preview(self._averaged(), images))
        if best or passed(config.checkpoint_every):
            self.save()

    def _end(self) -> None:
        if self.keeper.last is None or int(self.keeper.last.name) != self.images:
            self.save()

    def _validate(self) -> bool:
        """Measure the held-out loss; whether it is the lowest so far."""
        data = self.held_out_data
        if data is None:
            return False
        self._look()
        what = f"the held-out loss at {self.images} images"
        found: HeldOut | None = self._report.attempt(
            what,
            lambda: held_out_loss(
                self._averaged(), self.objective, data, self.config, self.device, self.images
            ),
        )
        if found is None:
            return False
        self._log.write(found.record() | {"seconds": self._elapsed()})
        self.callbacks.on_validate(found)
        self.held_out = (self.images, found.loss)
        best, self._best_loss = found.loss < self._best_loss, min(found.loss, self._best_loss)
        return best

    def _write_line(self, rate: float) -> None:
        started, images = self._period
        speed = (self.images - images) / max(time.monotonic() - started, 1e-9)
        record = {"images": self.images, "seconds": self._elapsed(), "lr": rate, "images_per_second": speed}
        record |= self.meter.means()
        self.meter.reset()
        self._period = (time.monotonic(), self.images)
        self._log.write(record)
        self.callbacks.on_log(record)

    def _progress(self) -> None:
        now = time.monotonic()
        speed = self.config.batch / max(now - self._mark, 1e-9)
        self._speed = speed if self._speed is None else 0.95 * self._speed + 0.05 * speed
        self._mark = now
        left = max(self.config.images - self.images, 0) / self._speed
        self.callbacks.on_step(self.images, self.config.images, self._watch.loss, self._speed, left)

    # State

    def save(self) -> Path:
        """Write a checkpoint of the state as it is; raises RunError if it cannot, leaving older ones
        alone."""
        self._look()
        tensors, rest = flatten(self.optimizer)
        parts = {
            "weights": self.denoiser.state_dict(),
            "ema": self.averages.state(),
            "optimizer": tensors,
            "log": self.meter.state(),
            "random": {"torch": torch.get_rng_state()},
        }
        about: dict[str, Any] = {
            "seconds": self._elapsed(),
            "optimizer": rest,
            "examples": len(self.data),
            "config": self.config.model_dump(mode="json"),
            "averages": self._names(),
            "best_loss": self._best_loss if self._best_loss < float("inf") else None,
            "held_out": self.held_out[1] if self.held_out and self.held_out[0] == self.images else None,
            "last_held_out": self.held_out,
        }
        if self.stepper.precision.scaler:
            about["scaler"] = self.stepper.precision.scaler.state_dict()
        flat = {f"{part}/{name}": tensor for part, group in parts.items() for name, tensor in group.items()}
        path = self.keeper.save(Checkpoint(self.images, flat, about))
        self.callbacks.on_checkpoint(path)
        return path

    def _begin(self, resume: bool) -> None:
        self._report = Report(self.callbacks.on_message, self.device)
        self._watch = FiniteWatch(self.device)
        self._speed: float | None = None
        self._best_loss = float("inf")
        found = self.keeper.open(resume)
        if not resume and any(self.keeper.folder.iterdir()):
            raise RunError(
                f"{self.folder} already holds checkpoints: resume that run, or choose another folder"
            )
        if found:
            self._restore(found)
        self._started = time.monotonic()
        self._log.cut(self.images)

    def _restore(self, found: Checkpoint) -> None:
        for message in same_run(found, self.config, len(self.data), self.denoiser.state_dict()):
            self.callbacks.on_message(message)
        self.denoiser.load_state_dict(found.part("weights"))
        self.averages.load(found.part("ema"))
        restore(self.optimizer, found.part("optimizer"), found.about["optimizer"])
        self.meter.load(found.part("log"))
        torch.set_rng_state(found.tensors["random/torch"])
        if self.stepper.precision.scaler and "scaler" in found.about:
            self.stepper.precision.scaler.load_state_dict(found.about["scaler"])
        self.images, self._seconds = found.images, found.about["seconds"]
        self.held_out = tuple(found.about["last_held_out"]) if found.about["last_held_out"] else None
        best = found.about["best_loss"]
        self._best_loss = float("inf") if best is None else best

    def _batch(self, images: int) -> dict[str, Any]:
        """This process's rows of the batch that starts with `images` images seen."""
        return self.data.batch(
            self.order.indices(images, self.config.batch), self.config.seed, images + self.start
        )

    def _averaged(self) -> nn.Module:
        """A copy of the denoiser, in evaluation mode, with the first average as its weights: nothing done to
        it can harm the training."""
        if self._shadow is None:
            self._shadow = copy.deepcopy(self.denoiser).eval().requires_grad_(False)
        self._shadow.load_state_dict(self.weights())
        return self._shadow.eval()

    def _names(self) -> list[str]:
        return [profile.name for profile in self.averages.profiles]

    def _result(self, signal: str | None) -> TrainingResult:
        assert self.keeper.last is not None
        values = (
            self.images,
            self._elapsed(),
            self.held_out[1] if self.held_out else None,
            self.keeper.last,
            self.keeper.best(),
            self.weights(),
        )
        done = self.images >= self.config.images
        return TrainingResult(*values) if done or signal is None else Interrupted(*values, signal=signal)

    def _elapsed(self) -> float:
        return self._seconds + time.monotonic() - self._started

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Time spent here is not training time: it is left out of the images per second."""
        started = time.monotonic()
        yield
        spent = time.monotonic() - started
        self._mark += spent
        self._period = (min(self._period[0] + spent, time.monotonic()), self._period[1])

    @contextlib.contextmanager
    def _logging(self) -> Iterator[None]:
        self._log = Log(self.folder, self.config.tensorboard, self.callbacks.on_message)
        try:
            yield
        finally:
            self._log.close()

    # Trouble

    @contextlib.contextmanager
    def _saved_on_error(self) -> Iterator[None]:
        """If anything but a damaged state ends the run, what was trained so far is saved before the error
        goes on."""
        try:
            yield
        except Exception as error:
            last = int(self.keeper.last.name) if self.keeper.last else 0
            if (
                not self.stepper.touched
                and self.images > last
                and not isinstance(error.__cause__, (NonFinite, OSError))
            ):
                self._report.attempt("saving a checkpoint after an error", self.save)
            raise

    def _look(self) -> None:
        """Make sure that every step so far was finite, before anything is written down."""
        try:
            self._watch.flush()
        except NonFinite as trouble:
            self._stop_at(trouble)

    def _stop_at(self, trouble: NonFinite) -> None:
        """Save the offending batch, which its key gives back, and end the run."""
        step = trouble.images // self.config.batch + 1
        where = f"step {step} (after {trouble.images} images): {trouble}"
        try:
            path = save_offender(self.folder / "nan", trouble, self.data, self.order, self.config)
            kept = f"the batch is in {path}"
        except OSError as error:
            kept = f"the batch could not be saved: {reason(error)}"
        last = self.keeper.last
        good = f"the last good checkpoint is {last}" if last else "no checkpoint was saved before"
        raise RunError(f"the training stopped being finite in {where}; {kept}; {good}") from trouble
