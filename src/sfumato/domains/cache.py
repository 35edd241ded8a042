"""The cache folder: where fetched data and decoded pictures wait, whole or not at all.

A folder appears in the cache by one rename of a finished folder beside it, so a reader never sees half of one,
and a process that is killed leaves only a hidden `.new-…` folder, which the next one sweeps away. Two processes
that want the same thing take turns on a lock file; where the system has no `flock`, both build it and the first
rename wins, which costs time but no correctness.

A check sum here is always that of the *content*: a file compressed again is the same data under other bytes
(Debian's Fashion-MNIST and its authors' differ so), and must pass.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sfumato.errors import DataError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CHUNK = 1 << 20
"""Bytes read at a time, so that a file of any size is hashed in little memory."""


def cache_folder() -> Path:
    """The cache: `$SFUMATO_CACHE`, or the platform's own place for one (`~/.cache/sfumato` on Linux)."""
    if chosen := os.environ.get("SFUMATO_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "sfumato"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "sfumato" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sfumato"


@contextmanager
def _turn(lock: Path) -> Iterator[None]:
    """Hold `lock` against other processes; without flock there is nothing to hold."""
    if fcntl is None:
        yield
        return
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file lets go of the lock, and so does dying


def install(name: str, build: Callable[[Path], None], *, replace: bool = False) -> Path:
    """The cache's folder `name`, made by `build(empty_folder)` unless it is there already.

    replace: build it afresh even so. Whatever `build` raises passes through, and nothing is left behind.
    Raises DataError if the cache cannot be written to.
    """
    final = cache_folder() / name
    if final.is_dir() and not replace:
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = final.parent / f".{final.name}.lock"
        with _turn(lock):
            return _build(final, build, replace)
    except OSError as problem:  # no right, no room, a file where a folder should be
        raise DataError(
            f"the cache {cache_folder()} cannot be written to ({problem.strerror or problem}): "
            "set SFUMATO_CACHE to a folder of yours, with room"
        ) from problem


def _build(final: Path, build: Callable[[Path], None], replace: bool) -> Path:
    prefix = f".new-{final.name}-"
    if fcntl is not None:  # we hold the lock: whoever left these is dead
        for stale in final.parent.glob(f"{prefix}*"):
            shutil.rmtree(stale, ignore_errors=True)
    if final.is_dir() and not replace:  # somebody built it while we waited
        return final
    new = Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
    try:
        new.chmod(0o755)  # mkdtemp's 0700 would keep a shared cache to one user
        build(new)
        if replace and final.is_dir():
            old = Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
            final.rename(old / "old")
            new.rename(final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            try:
                new.rename(final)
            except OSError:
                if not final.is_dir():
                    raise
    finally:
        shutil.rmtree(new, ignore_errors=True)  # nothing is here any more if all went well
    return final


@contextmanager
def open_content(path: Path) -> Iterator[BinaryIO]:
    """Read a file's content, through gzip if it starts as gzip does. Raises DataError for damaged gzip."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not packed:
            yield raw
            return
        try:
            with gzip.GzipFile(fileobj=raw) as file:
                yield file  # type: ignore[misc]  # a GzipFile reads as a BinaryIO does
        except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
            reason = str(problem).split(" before ")[0].lower()
            raise DataError(f"{path} is damaged or cut short ({reason}): get it again") from problem


def sha256_of(path: Path, limit: int | None = None) -> tuple[str, int]:
    """(SHA-256, bytes) of a file's content after gzip; stops past `limit` bytes, since gzip may blow up 1000-fold.

    Raises DataError for a file that is missing, damaged, or longer than `limit`.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with open_content(path) as file:
            while chunk := file.read(CHUNK):
                size += len(chunk)
                if limit is not None and size > limit:
                    raise DataError(f"{path} holds more than the {limit} bytes it should: get it again")
                digest.update(chunk)
    except FileNotFoundError as problem:
        raise DataError(f"{path} is missing") from problem
    return digest.hexdigest(), size
