"""What a sample costs: denoiser calls, floating-point operations, seconds, memory, and joules if watts are known.

NFE      number of calls of the denoiser, counted where the counter sits: inside guidance it sees two a step; under an
         adaptive solver, which stops asking about samples that have arrived, the mean over the samples
FLOPs    multiply and add each count one, so a matrix product is 2·m·n·k; counted by torch on one forward pass
         of one image; element-wise operations, normalisation and softmax are not in it
seconds  median of repeats after one warm-up; with the machine's own matrix-product peak beside it, so that
         seconds on one machine can be compared with seconds on another
memory   on the CPU the process's high-water mark since it started (the system keeps no other), on CUDA the
         allocator's peak during the call
joules   seconds × watts, an *estimate*, and only when the user gives the watts
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sfumato.errors import DataError


class CallCounter:
    """Wraps a denoiser (or any callable) and counts: `calls`, and `samples` (the batch sizes summed).

    Same signature and attributes as what it wraps. NFE per sample is `samples` / number of samples drawn.
    """

    def __init__(self, denoiser: Callable[..., Any]):
        self._wrapped = denoiser
        self.calls = 0
        self.samples = 0

    def __call__(self, x_t: Any, *args: Any, **kwargs: Any) -> Any:
        """Count one call and pass it on."""
        self.calls += 1
        self.samples += len(x_t)
        return self._wrapped(x_t, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "_wrapped":  # not set yet, while being copied: no endless search
            raise AttributeError(name)
        return getattr(self._wrapped, name)

    def reset(self) -> None:
        """Count from zero again."""
        self.calls = self.samples = 0


@dataclass(frozen=True)
class Cost:
    """What drawing `samples` samples cost: all figures measured, except `joules`, which is seconds × watts."""

    samples: int
    nfe: float
    flops_per_call: int | None
    parameters: int | None
    seconds: float
    seconds_spread: tuple[float, float]
    repeats: int
    peak_memory: int
    memory_kind: str
    device: str
    threads: int
    watts: float | None = None

    @property
    def flops_per_sample(self) -> int | None:
        """FLOPs of one call and image, times the calls."""
        return None if self.flops_per_call is None else round(self.flops_per_call * self.nfe)

    @property
    def joules(self) -> float | None:
        """Energy estimate for all samples, or None when no watts were given."""
        return None if self.watts is None else self.seconds * self.watts

    def rows(self) -> list[tuple[str, str]]:
        """(what, how much) for a table."""
        low, high = self.seconds_spread
        rows = [
            ("samples", f"{self.samples}"),
            ("denoiser calls (NFE) per sample", f"{self.nfe:g}"),
            (
                "wall seconds, median",
                f"{self.seconds:.3g} (from {low:.3g} to {high:.3g} over {self.repeats})",
            ),
            ("samples per second", f"{self.samples / self.seconds:.3g}"),
            (f"peak memory, {self.memory_kind}", f"{self.peak_memory / 2**20:.0f} MiB"),
            ("device", f"{self.device}, {self.threads} threads"),
        ]
        if self.flops_per_call is not None:
            rows.insert(2, ("GFLOP per call and image", f"{self.flops_per_call / 1e9:.4g}"))
            rows.insert(3, ("GFLOP per sample", f"{self.flops_per_call * self.nfe / 1e9:.4g}"))
        if self.parameters is not None:
            rows.insert(1, ("parameters", f"{self.parameters:,}"))
        if self.joules is not None:
            rows.append(("energy, estimated", f"{self.joules:.3g} J ({self.watts:g} W as given × seconds)"))
        return rows

    def to_json(self) -> dict[str, Any]:
        """JSON values, the derived ones included."""
        derived = {"flops_per_sample": self.flops_per_sample, "joules": self.joules}
        return asdict(self) | {"seconds_spread": list(self.seconds_spread)} | derived


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def count_flops(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """FLOPs of one call of `forward` (convolutions, matrix products, attention): give it a batch of one image.

    Attention is counted in its plain form, whose matrix products are the same, because fused CPU kernels are
    not in torch's table and would count as nothing.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward(*args, **kwargs)
    return int(counter.get_total_flops())


def peak_memory(device: torch.device | str = "cpu") -> tuple[int, str]:
    """Peak bytes and what they are the peak of."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "allocated on the GPU during the call"
    try:
        import resource  # not on Windows
    except ImportError:
        return 0, "unknown on this system"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024, "whole process since its start"


def measure_cost(
    draw: Callable[[], Tensor],
    counter: CallCounter,
    *,
    network: nn.Module | None = None,
    flops_per_call: int | None = None,
    repeats: int = 3,
    watts: float | None = None,
) -> Cost:
    """Time `draw()`, which draws a batch through `counter` and returns it (n, ...).

    One warm-up, then `repeats` timed draws. `network` is for the parameters; `flops_per_call` comes from
    `count_flops`; `watts` (of the whole machine or device) turns seconds into joules. Raises `DataError` for
    arguments that cannot be, and when `draw` makes no call through the counter.
    """
    if repeats < 1 or (watts is not None and watts <= 0):
        raise DataError(f"cost needs repeats >= 1 and watts > 0, got repeats={repeats}, watts={watts}")
    counter.reset()
    drawn = draw()
    device, n = drawn.device, len(drawn)
    nfe = counter.samples / n
    if not counter.calls:
        raise DataError("no denoiser call was counted: draw through the counter that is given")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        draw()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    memory, kind = peak_memory(device)
    return Cost(
        samples=n,
        nfe=int(nfe) if nfe.is_integer() else nfe,
        flops_per_call=flops_per_call,
        parameters=None if network is None else count_parameters(network),
        seconds=statistics.median(seconds),
        seconds_spread=(min(seconds), max(seconds)),
        repeats=repeats,
        peak_memory=memory,
        memory_kind=kind,
        device=str(device),
        threads=torch.get_num_threads(),
        watts=watts,
    )


def machine_peak(size: int = 1024, seconds: float = 0.5, device: torch.device | str = "cpu") -> float:
    """GFLOP/s of a float32 matrix product of size × size: the best of as many as fit into `seconds`, at least 3."""
    a = torch.ones(size, size, device=device)
    best, began, runs = float("inf"), time.perf_counter(), 0
    while runs < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        torch.matmul(a, a)
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        best, runs = min(best, time.perf_counter() - start), runs + 1
    return 2 * size**3 / best / 1e9
