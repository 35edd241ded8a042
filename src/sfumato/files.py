"""Files that are either whole or not there: written aside, flushed to the disk, then renamed.

A rename within one file system is atomic, so a reader sees the old file or the new one. Data are flushed (fsync)
before the rename and the folder after it, so this holds for a power cut as for a killed process.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from .errors import RunError


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_folder(folder: Path) -> None:
    """Raise RunError if nothing could be written into a folder, there or not: before the work, so that none is lost."""
    whole = folder.absolute()
    there = next(path for path in (whole, *whole.parents) if path.exists())
    if not there.is_dir():
        raise RunError(f"nothing can be written into {folder}: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise RunError(f"nothing can be written into {folder}: {there} is not yours to write into")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A new file, flushed to the disk when the block ends."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes | Callable[[IO[bytes]], Any]) -> None:
    """Write a file that appears under its name only when it is whole; OSErrors become RunErrors.

    content: the bytes, or a function that writes them into the open file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f".{path.name}.{os.getpid()}.part"
    try:
        with opened(aside) as file:
            _ = file.write(content) if isinstance(content, bytes) else content(file)
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        raise RunError(f"could not write {path}: {reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_atomically(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name when the block ends; on an exception it vanishes, `path` as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f".{path.name}.{os.getpid()}.part"
    old = path.parent / f".{path.name}.{os.getpid()}.old"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        yield aside
        sync_folder(aside)
        if path.exists():
            os.rename(path, old)
        os.rename(aside, path)
        sync_folder(path.parent)
    finally:
        if old.exists() and not path.exists():
            os.rename(old, path)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process had begun to write in a folder. Only for the holder of the run's lock."""
    for path in [*folder.glob(".*.part"), *folder.glob(".*.old")]:
        whole = folder / path.name[1:].rsplit(".", 2)[0]
        if path.suffix == ".old" and not whole.exists():
            os.rename(path, whole)  # killed between the two renames
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def reason(error: OSError) -> str:
    """What an OSError means to a person."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    return error.strerror or str(error)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_atomically(path, json.dumps(value, indent=1, allow_nan=False).encode())
