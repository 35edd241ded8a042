"""Reading a tarball that is not trusted: names and sizes are held against bounds, and nothing is written to the disk.

An archive can name files outside the folder it is unpacked in, links that lead there, devices, or a petabyte of zeros.
Here its plain files are read into memory, those that are wanted, and whatever has no business in a package is
refused by its name, wanted or not.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from sfumato.domains.cache import open_content
from sfumato.errors import DataError

MOST_FILES, MOST_BYTES = 100_000, 1 << 30
"""Files that an archive may hold, and bytes that may be read out of it."""


def _opened(path: Path | bytes) -> Any:
    return gzip.GzipFile(fileobj=io.BytesIO(path)) if isinstance(path, bytes) else open_content(path)


def read_members(
    path: Path | bytes, wanted: Callable[[str], bool], most_bytes: int = MOST_BYTES
) -> dict[str, bytes]:
    """name -> content of the files in a tarball (gzipped or not) whose names are wanted, in their order there.

    path: or the bytes of a gzipped one, which another held. Raises DataError for a name that is absolute or leads
    upwards, a link, a device, a file that is there twice, more than `MOST_FILES` files or `most_bytes` wanted bytes,
    and for a damaged archive.
    """
    found: dict[str, bytes] = {}
    shown = "the archive within" if isinstance(path, bytes) else str(path)
    names: set[str] = set()
    total = 0
    try:
        with _opened(path) as content, tarfile.open(fileobj=content, mode="r|") as archive:
            for member in archive:
                name = member.name
                if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
                    raise DataError(f"{shown} holds the unsafe name {name!r}: nothing of it was read")
                if member.isdir():
                    continue
                if not member.isreg():
                    raise DataError(f"{shown} holds {name!r}, which is no plain file: nothing of it was read")
                if name in names or len(names) == MOST_FILES:
                    more = "twice" if name in names else f"and more than {MOST_FILES} files"
                    raise DataError(f"{shown} holds {name!r} {more}: nothing of it was read")
                names.add(name)
                if not wanted(name):
                    continue
                total += member.size
                if total > most_bytes:
                    raise DataError(f"{shown} holds more than {most_bytes} bytes: nothing of it was read")
                file = archive.extractfile(member)
                found[name] = b"" if file is None else file.read()
    except (tarfile.TarError, EOFError, zlib.error) as problem:
        raise DataError(f"{shown} is no sound tarball ({problem}): get it again") from problem
    except FileNotFoundError as problem:
        raise DataError(f"{shown} is missing") from problem
    return found
