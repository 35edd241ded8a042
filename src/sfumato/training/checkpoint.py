"""Checkpoints that are whole, checked, and never a pickle.

`<run>/checkpoints/<images, 9 digits>/` holds `state.safetensors` (weights, averages, moments, random state:
every tensor, under "part/name") and `state.json` (every number). The JSON names the SHA-256 of the tensors
and carries its own in "sha256", so a file that was cut short, edited, or put there by another program is
found when it is read:

    truncated   fewer bytes than the JSON says            edited     the hash differs
    foreign     not our format, or a newer version        a pickle   refused by name, never opened

The folder is written aside, flushed and renamed (`files.py`), so it is there whole or not at all, and a full
disk leaves the last good checkpoint as it was. Resuming takes the newest one that is valid and *says* which
it skipped and why.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sfumato.errors import RunError
from sfumato.files import folder_atomically, opened, reason, remove_leftovers, sha256_of

from .tensors import refuse_foreign, write_safetensors

FORMAT, VERSION = "sfumato checkpoint", 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory. tensors: "part/name" -> tensor. about: JSON values, with "images" and
    "held_out" (or None)."""

    images: int
    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any]
    path: Path | None = None

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of one part ("weights", "ema", "optimizer", ...), without its name."""
        return {k.removeprefix(name + "/"): t for k, t in self.tensors.items() if k.startswith(name + "/")}


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint under `folder`; returns its path. Raises RunError, leaving all others alone, if it
    cannot."""
    path = folder / f"{checkpoint.images:09d}"
    try:
        with folder_atomically(path) as aside:
            tensors = aside / "state.safetensors"
            with opened(tensors) as file:
                digest = write_safetensors(file, checkpoint.tensors, {"format": FORMAT})
            files = {"state.safetensors": {"sha256": digest, "bytes": tensors.stat().st_size}}
            about = {
                "format": FORMAT,
                "version": VERSION,
                **checkpoint.about,
                "images": checkpoint.images,
                "files": files,
            }
            about["sha256"] = _own_hash(about)
            with opened(aside / "state.json") as file:
                file.write(json.dumps(about, indent=1, allow_nan=False).encode())
    except OSError as error:
        good = [c for c in checkpoints_in(folder) if c != path]
        rest = f"the last good checkpoint is {good[-1]}" if good else "there is no earlier checkpoint"
        raise RunError(f"could not save the checkpoint {path}: {reason(error)}; {rest}") from error
    return path


def read_about(path: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint, checked; raises RunError with the reason if it is damaged or foreign."""
    try:
        about = json.loads((path / "state.json").read_bytes())
    except FileNotFoundError:
        raise RunError(f"{path} has no state.json: it is not a whole checkpoint") from None
    except (ValueError, OSError) as error:
        raise RunError(f"{path / 'state.json'} cannot be read: {error}") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise RunError(f"{path} is not a checkpoint that sfumato wrote")
    if about.get("version") != VERSION:
        raise RunError(f"{path} has version {about.get('version')}; this sfumato reads version {VERSION}")
    if about.get("sha256") != _own_hash(about):
        raise RunError(f"{path / 'state.json'} was edited or damaged: its hash differs")
    return about


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, with every byte checked; raises RunError with the reason if it is not whole."""
    path = Path(path)
    about = read_about(path)
    for name, facts in about["files"].items():
        file = path / name
        if not file.is_file():
            raise RunError(f"{path} lacks {name}")
        refuse_foreign(file)
        if file.stat().st_size != facts["bytes"]:
            raise RunError(f"{file} is truncated: it has {file.stat().st_size} bytes of {facts['bytes']}")
        if sha256_of(file) != facts["sha256"]:
            raise RunError(f"{file} was edited or damaged: its hash differs")
    try:
        tensors = load_file(path / "state.safetensors")
    except SafetensorError as error:
        raise RunError(f"{path / 'state.safetensors'} cannot be read: {error}") from None
    return Checkpoint(about["images"], tensors, about, path)


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first, whether or not they are whole."""
    found = [path for path in Path(folder).glob("[0-9]*") if path.is_dir() and path.name.isdigit()]
    return sorted(found, key=lambda path: int(path.name))


def newest_valid(folder: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None if there is none at all.

    Each one that is skipped is told to `report` with the reason. Raises RunError if there are checkpoints,
    but none is whole: to start from nothing then is a decision for the user.
    """
    paths = checkpoints_in(folder)
    for path in reversed(paths):
        try:
            return load_checkpoint(path)
        except RunError as error:
            report(f"skipped a damaged checkpoint: {error}")
    if paths:
        raise RunError(
            f"none of the {len(paths)} checkpoints in {folder} is whole; to start anew, remove them"
        )
    return None


class Keeper:
    """Saves the checkpoints of one run and removes those no longer needed: keeps the newest few and the best
    one."""

    def __init__(self, folder: Path, keep_last: int, report: Callable[[str], None]):
        self.folder, self.keep_last, self._report = folder, keep_last, report
        self.last: Path | None = None

    def open(self, resume: bool = True) -> Checkpoint | None:
        """Clean up after a killed process and find where to resume. Only for the holder of the run's lock."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        found = newest_valid(self.folder, self._report) if resume else None
        self.last = found.path if found else None
        return found

    def save(self, checkpoint: Checkpoint) -> Path:
        self.last = save_checkpoint(self.folder, checkpoint)
        self._prune()
        return self.last

    def best(self) -> Path | None:
        """The checkpoint with the lowest held-out loss, if any was measured."""
        known: list[tuple[float, Path]] = []
        for path in checkpoints_in(self.folder):
            try:
                loss = read_about(path).get("held_out")
            except RunError:
                continue
            if loss is not None:
                known.append((loss, path))
        return min(known, key=lambda pair: pair[0])[1] if known else None

    def _prune(self) -> None:
        paths = checkpoints_in(self.folder)
        # A damaged newer checkpoint may lie beyond the one just saved; it must not push that one out.
        mine = [p for p in paths if self.last is None or int(p.name) <= int(self.last.name)]
        kept = {*mine[-self.keep_last :], self.best()}
        for path in mine:
            if path not in kept:
                try:
                    shutil.rmtree(path)
                except OSError as error:
                    self._report(f"could not remove the old checkpoint {path}: {reason(error)}")


def _own_hash(about: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in about.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
