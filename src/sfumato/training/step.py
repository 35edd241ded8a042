"""One optimiser step, and the watch that stops a run whose numbers are no longer finite.

    gradient = sum over micro-batches of grad( sum_i loss_i ) / batch

The loss is a mean over the whole batch, so cutting the batch changes nothing but memory. Under bfloat16 or
float16 only the forward pass is cast (autocast); weights, moments and averages stay float32. float16 scales
the loss by a power of two that adapts (GradScaler) and skips steps whose scaled gradient overflowed.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sfumato.errors import RunError
from sfumato.noise import BatchNoise

from .config import TrainingConfig
from .logbook import Meter
from .optimizers import set_rate
from .order import Rows, count_of, mixed, rows_of

Objective = Callable[..., tuple[Tensor, Mapping[str, Tensor]]]
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class NonFinite(Exception):
    """A loss or a gradient stopped being a number in the step that began with `images` images seen."""

    def __init__(self, images: int, loss: float, norm: float):
        super().__init__(f"loss {loss}, norm of the gradient {norm}")
        self.images, self.loss, self.norm = images, loss, norm


class Precision:
    """How the forward pass is cast, and how the loss is scaled.

    Raises RunError for float16 anywhere but on CUDA: it would overflow without loss scaling, or be slow, or
    both.
    """

    def __init__(self, name: str, device: torch.device):
        if name == "float16" and device.type != "cuda":
            raise RunError(
                f"training.precision float16 needs a CUDA device, not {device.type}: use bfloat16 or float32"
            )
        self._dtype, self._device = _DTYPES.get(name), device.type
        self.scaler = torch.amp.GradScaler("cuda") if name == "float16" else None

    def cast(self) -> contextlib.AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device, dtype=self._dtype)


class Stepped(NamedTuple):
    """What a step measured: mean loss and norm of the gradient before clipping, tensors on the device."""

    loss: Tensor
    norm: Tensor


class FiniteWatch:
    """Looks whether losses and gradients are finite without making the device wait at each step.

    On a CPU each step is looked at before the optimiser acts. On other devices figures are kept and looked at
    together, every `patience` steps and whenever the trainer is about to write something down (`flush`),
    which costs one transfer; until then a few steps with ruined weights may pass, but they are never saved.
    """

    def __init__(self, device: torch.device, patience: int = 32):
        self._patience = 1 if device.type == "cpu" else patience
        self._pending: list[tuple[int, Stepped]] = []
        self.loss = math.nan

    def note(self, images: int, stepped: Stepped) -> None:
        self._pending.append((images, stepped))
        if len(self._pending) >= self._patience:
            self.flush()

    def flush(self) -> None:
        """Look at what is pending; raises NonFinite for the first step that was not finite."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        figures = torch.stack([torch.stack([s.loss.float(), s.norm.float()]) for _, s in pending]).tolist()
        for (images, _), (loss, norm) in zip(pending, figures, strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise NonFinite(images, loss, norm)
        self.loss = figures[-1][0]


class Stepper:
    """Takes optimiser steps: forward and backward over the micro-batches, clipping, the optimiser itself."""

    def __init__(
        self,
        denoiser: nn.Module,
        objective: Objective,
        optimizer: Optimizer,
        config: TrainingConfig,
        device: torch.device,
    ):
        self._denoiser, self._objective, self.optimizer = denoiser, objective, optimizer
        self._config, self._device = config, device
        self.precision = Precision(config.precision, device)
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.touched = False  # whether the step in hand has begun to change anything a checkpoint holds

    def gradient(
        self, batch: Mapping[str, Any], images: int, start: int
    ) -> tuple[Tensor, list[Mapping[str, Tensor]]]:
        """Leave the gradient of the batch's mean loss in the parameters; returns that loss, detached, and the
        figures.

        images: seen so far, the key of the noise. start: the first of this process's rows in the whole batch.
        """
        total, count = self._config.batch, count_of(batch)
        micro = min(self._config.micro_batch or count, count)
        loss, every = torch.zeros((), device=self._device), []
        for first in range(0, count, micro):
            part = rows_of(batch, first, micro) if micro < count else batch
            noise = Rows(BatchNoise(self._config.seed, images), start + first, total)
            with self.precision.cast():
                losses, figures = self._objective(self._denoiser, part, noise)
                share = losses.float().sum() / count
            (self.precision.scaler.scale(share) if self.precision.scaler else share).backward()
            loss += share.detach()
            every.append({name: value.detach() for name, value in figures.items()})
        return loss, every

    def take(
        self, batch: Mapping[str, Any], images: int, start: int, rate: float, watch: FiniteWatch, meter: Meter
    ) -> None:
        """One step at learning rate `rate`. Raises NonFinite, on a CPU before the weights are touched."""
        self.touched = False
        self.reseed(images, start)
        loss, every = self.gradient(batch, images, start)
        scaler = self.precision.scaler
        if scaler:
            scaler.unscale_(self.optimizer)
        norm = self._clip()
        # An overflow of the scaled gradient is the scaler's business: it skips the step and halves the scale.
        watch.note(images, Stepped(loss, torch.nan_to_num(norm) if scaler else norm))
        self.touched = True
        meter.add(loss, norm, every)
        set_rate(self.optimizer, rate)
        if scaler:
            scaler.step(self.optimizer)
            scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def reseed(self, images: int, start: int = 0) -> None:
        """Key torch's own generators (dropout) to this step, so that they hold no history."""
        key = mixed(self._config.seed, 4, images, start)
        torch.default_generator.manual_seed(key)
        if self._device.type == "cuda":
            torch.cuda.default_generators[self._device.index or 0].manual_seed(key)

    def _clip(self) -> Tensor:
        """Shorten the gradient to the greatest norm allowed; returns the norm it had."""
        norm = nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        limit = self._config.clip
        # On a CPU the norm can be looked at for nothing, and a gradient that is short enough need not be rewritten.
        if limit and (self._device.type != "cpu" or norm > limit):
            nn.utils.clip_grads_with_norm_(self._parameters, limit, norm)
        return norm


@contextlib.contextmanager
def compiled(network: nn.Module, wanted: bool, device: torch.device) -> Iterator[None]:
    """Run a network through torch.compile for the length of a block, in place: names of weights stay what
    they are.

    Raises RunError if what compiling needs is not installed; it never goes on uncompiled by itself.
    """
    if not wanted:
        yield
        return
    remedy = "or set training.compile = false"
    if device.type == "cpu":
        name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(name) is None:
            raise RunError(
                f"training.compile needs a C++ compiler, and {name} is not installed: install g++ {remedy}"
            )
    network.compile()
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise RunError(f"torch.compile failed: {line}; repair the compiler {remedy}") from error
        raise
    finally:
        network._compiled_call_impl = None


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a device or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in str(error) or "out of memory" in str(error)
    )
