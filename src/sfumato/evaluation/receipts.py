"""A receipt for every reported number: what was computed, from what, by which versions, and how to do it again.

A receipt is one JSON file. It holds the measures, the hashes of the model, the data and the features, all
settings of the sampling, the versions, the machine, the time taken, and the exact command that reproduces it.

`digest` is the SHA-256 of everything else in canonical form (sorted keys, no spaces): a figure changed by hand is
found on reading. It is a checksum against accidents and edits, not a signature: who wants to forge can compute a
new one. What a forger cannot do is make the command reproduce the number, and that is what `compare` is for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from sfumato.errors import DataError
from sfumato.evaluation.measure import Measure
from sfumato.files import write_atomically

SCHEMA = 1
KIND = "sfumato-receipt"
_REQUIRED = ("kind", "schema", "digest", "measures", "model", "data", "features", "sampling", "command", "versions",
             "machine", "seconds", "created")  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of sfumato, torch, numpy and Python that produced a number."""
    import torch  # reading receipts needs no torch

    try:
        own = metadata.version("sfumato")
    except metadata.PackageNotFoundError:
        own = "not installed"
    return {
        "sfumato": own,
        "torch": torch.__version__,
        "numpy": metadata.version("numpy"),
        "python": platform.python_version(),
    }


def machine() -> dict[str, Any]:
    """Processor, cores, threads used by torch, system, and the GPU if there is one. No host name."""
    import torch

    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


@dataclass(frozen=True)
class Receipt:
    """Everything needed to believe, and to repeat, a set of measures.

    `model`, `data` and `features` name what was used and carry its hash; `sampling` holds seeds, number of
    samples, solver, grid, steps, guidance and the rule that chose the labels; `command` is what to type.
    """

    measures: tuple[Measure, ...]
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    features: Mapping[str, Any]
    sampling: Mapping[str, Any]
    command: str
    seconds: float
    versions: Mapping[str, str] = field(default_factory=versions)
    machine: Mapping[str, Any] = field(default_factory=machine)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    notes: str = ""

    def __post_init__(self) -> None:
        if not self.measures:
            raise DataError("a receipt without a measure has nothing to attest")
        names = [m.name for m in self.measures]
        if len(set(names)) != len(names):
            raise DataError(f"a receipt names each measure once, got {', '.join(names)}")
        for what in ("model", "data", "features"):
            if not getattr(self, what).get("hash"):
                raise DataError(
                    f"the receipt's {what} must carry a 'hash', got {sorted(getattr(self, what))}"
                )
        if not self.command.strip():
            raise DataError("a receipt needs the command that reproduces it")

    def to_json(self) -> dict[str, Any]:
        """The whole receipt as JSON values, its digest included."""
        body = {
            "kind": KIND,
            "schema": SCHEMA,
            "measures": [m.to_json() for m in self.measures],
            "model": dict(self.model),
            "data": dict(self.data),
            "features": dict(self.features),
            "sampling": dict(self.sampling),
            "command": self.command,
            "seconds": self.seconds,
            "versions": dict(self.versions),
            "machine": dict(self.machine),
            "created": self.created,
            "notes": self.notes,
        }
        return body | {"digest": _digest(body)}

    def write(self, path: Path | str) -> Path:
        """Write whole or not at all; returns the path."""
        path = Path(path)
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(path, text.encode())
        return path

    @classmethod
    def from_json(cls, data: Any, where: str = "receipt") -> Receipt:
        """The receipt in parsed JSON; foreign, incomplete or edited ones raise `DataError` saying which."""
        if not isinstance(data, dict) or data.get("kind") != KIND:
            raise DataError(f"{where} is not a sfumato receipt")
        if data.get("schema") != SCHEMA:
            raise DataError(
                f"{where} has schema {data.get('schema')!r}, this version reads {SCHEMA}: update sfumato"
            )
        missing = [key for key in _REQUIRED if key not in data]
        if missing:
            raise DataError(f"{where} is incomplete: {', '.join(missing)} missing")
        body = {key: value for key, value in data.items() if key != "digest"}
        if _digest(body) != data["digest"]:
            raise DataError(f"{where} was changed after it was written: its digest does not fit its content")
        try:
            fields = {key: value for key, value in body.items() if key not in ("kind", "schema", "measures")}
            return cls(measures=tuple(Measure.from_json(m) for m in data["measures"]), **fields)
        except (TypeError, AttributeError) as error:
            raise DataError(f"{where} is not as a receipt of schema {SCHEMA} should be: {error}") from error

    @classmethod
    def read(cls, path: Path | str) -> Receipt:
        """Read and check a receipt file; every way in which it can be wrong is a `DataError` that names it."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as a receipt: {error}") from error
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path} is cut short or not JSON: {error.msg} at line {error.lineno}") from error
        return cls.from_json(data, str(path))

    def with_notes(self, notes: str) -> Receipt:
        """The same receipt with other notes (and so another digest)."""
        return replace(self, notes=notes)


def _digest(body: Mapping[str, Any]) -> str:
    try:
        canonical = json.dumps(
            body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"a receipt holds JSON values only: {error}") from error
    return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True)
class Agreement:
    """Whether a recomputed figure agrees with the receipt's: `verdict` is one of `VERDICTS`."""

    name: str
    stated: float
    found: float | None
    difference: float | None
    verdict: str

    @property
    def agrees(self) -> bool:
        """True for bit-equal and for within tolerance."""
        return self.verdict in VERDICTS[:2]


VERDICTS = ("bit-equal", "within tolerance", "disagrees", "not recomputed")


def compare(receipt: Receipt, recomputed: Sequence[Measure], tolerance: float = 1e-6) -> list[Agreement]:
    """For each figure of the receipt: does the recomputed one agree?

    `tolerance` is relative to the stated value (absolute below 1e-12). The interval's ends must agree as well, and
    `difference` is the largest relative one among them. A figure that was not recomputed never counts as agreeing.
    """
    if not tolerance >= 0:
        raise DataError(f"tolerance must be >= 0, got {tolerance}")
    found = {m.name: m for m in recomputed}
    rows = []
    for stated in receipt.measures:
        again = found.get(stated.name)
        if again is None:
            rows.append(Agreement(stated.name, stated.value, None, None, VERDICTS[3]))
            continue
        pairs = [(stated.value, again.value), (stated.low, again.low), (stated.high, again.high)]
        if any((a is None) != (b is None) for a, b in pairs) or stated.n != again.n:
            rows.append(Agreement(stated.name, stated.value, again.value, None, VERDICTS[2]))
            continue
        scale = max(abs(stated.value), 1e-12)
        worst = max(abs(a - b) / scale for a, b in pairs if a is not None and b is not None)
        verdict = VERDICTS[0] if worst == 0 else VERDICTS[1] if worst <= tolerance else VERDICTS[2]
        rows.append(Agreement(stated.name, stated.value, again.value, worst, verdict))
    return rows
