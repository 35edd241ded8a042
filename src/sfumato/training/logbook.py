"""What a run writes down: one JSON line a period, and the same for TensorBoard if asked.

The training loss of a diffusion model is nearly blind: its value is dominated by noise levels where nothing
is left to learn. So the error is also kept by noise level, in bins of log-SNR two wide: a model that learns
shows it in the middle bins, and one that is broken at one end shows it there.

The sums of a period that is not yet written belong to the checkpoint (`Meter.state`), and lines after the
checkpoint are cut off on resume (`Log.cut`): the log of a run that was killed nine times reads as that of one
that never was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import MissingExtra
from sfumato.files import reason, write_atomically

EDGES = (-8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0)
"""Bins of log-SNR = 2 log(alpha / sigma): below the first, between neighbours, above the last."""


class Bins:
    """Mean error by noise level: sums and counts for each bin of log-SNR, on the device of what is added."""

    def __init__(self, device: torch.device):
        self._edges = torch.tensor(EDGES, dtype=torch.float32, device=device)
        self.sums = torch.zeros(2, len(EDGES) + 1, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, figures: Mapping[str, Tensor]) -> None:
        """Take in figures {"log_snr": (n,), "error": (n,)}; figures without them are left alone."""
        if "log_snr" in figures and "error" in figures:
            where = torch.bucketize(figures["log_snr"].detach().float(), self._edges)
            error = figures["error"].detach().to(self.sums.dtype)
            self.sums.index_add_(1, where, torch.stack([error, torch.ones_like(error)]))

    def rows(self) -> list[dict[str, float | None]]:
        """The bins that hold something: {"from", "to": log-SNR or None at an open end, "error", "count"}."""
        ends: list[float | None] = [None, *EDGES, None]
        rows = zip(ends, ends[1:], *self.sums.tolist(), strict=False)
        return [{"from": a, "to": b, "error": s / n, "count": int(n)} for a, b, s, n in rows if n]


class Meter:
    """Sums over the steps of one log period."""

    def __init__(self, device: torch.device):
        self._device = device
        self.reset()

    def reset(self) -> None:
        self.sums = torch.zeros(
            3, dtype=torch.float64, device=self._device
        )  # loss, norm of the gradient, steps
        self.bins = Bins(self._device)

    def add(self, loss: Tensor, norm: Tensor, figures: Sequence[Mapping[str, Tensor]] = ()) -> None:
        """Take in a step: its loss, the norm of its gradient, and the figures of its micro-batches."""
        for part in figures:
            self.bins.add(part)
        self.sums += torch.stack(
            [loss.detach().double(), norm.detach().double(), torch.ones_like(self.sums[0])]
        )

    def means(self) -> dict[str, Any]:
        """The period's mean loss, gradient norm and error by noise level."""
        loss, norm, steps = self.sums.tolist()
        if not steps:
            return {}
        return {"loss": loss / steps, "grad_norm": norm / steps, "by_noise": self.bins.rows()}

    def state(self) -> dict[str, Tensor]:
        return {"sums": self.sums, "bins": self.bins.sums}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.sums.copy_(state["sums"])
        self.bins.sums.copy_(state["bins"])


class Log:
    """`<run>/log.jsonl`, and `<run>/tensorboard` if asked; a line that cannot be written is reported, never
    fatal."""

    def __init__(self, folder: Path, tensorboard: bool, report: Callable[[str], None]):
        self.path = folder / "log.jsonl"
        self._report = report
        self._board: Any = None
        self._board_folder = folder / "tensorboard" if tensorboard else None

    def cut(self, images: int) -> None:
        """Drop the lines after `images`, and a last line that was cut short by a kill."""
        if self.path.exists():
            kept = [line for line in self.path.read_bytes().splitlines() if _images(line) <= images]
            write_atomically(self.path, b"".join(line + b"\n" for line in kept))
        if self._board_folder:
            self._board = _board(self._board_folder, images)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; numbers that JSON lacks (infinity) become null."""
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(_finite(record), allow_nan=False) + "\n")
            if self._board:
                for name, value in _scalars(record):
                    self._board.add_scalar(name, value, record["images"])
        except OSError as error:
            self._report(f"the log line at {record['images']} images could not be written: {reason(error)}")

    def close(self) -> None:
        if self._board:
            self._board.close()
            self._board = None


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log, in order; a torn last line is left out."""
    lines = Path(path).read_bytes().splitlines() if Path(path).exists() else []
    return [json.loads(line) for line in lines if _images(line) < math.inf]


def _images(line: bytes) -> float:
    try:
        return float(json.loads(line)["images"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """The numbers of a record under TensorBoard names; bins as "by_noise/<lower edge>"."""
    found: list[tuple[str, float]] = []
    for name, value in record.items():
        if isinstance(value, (int, float)) and name != "images":
            found.append((prefix + name, float(value)))
        elif isinstance(value, Mapping):
            found += _scalars(value, f"{prefix}{name}/")
        elif name == "by_noise" and isinstance(value, list):
            found += [(f"{prefix}by_noise/from {row['from']}", float(row["error"])) for row in value]
    return found


def _board(folder: Path, images: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra("tensorboard", extra="tensorboard") from error
    return SummaryWriter(str(folder), purge_step=images + 1)
