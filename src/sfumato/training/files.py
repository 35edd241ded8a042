"""Files that are either whole or not there: safetensors and JSON, written aside, flushed to the disk, then
renamed.

A rename within one file system is atomic, so a reader sees the old file or the new one. Data are flushed
(fsync) before the rename and the folder after it, so this holds for a power cut as for a killed process.

The safetensors format (8 bytes of header length, a JSON header, raw tensors) is written here directly: the
data are hashed while they are written, in one pass and without a second copy in memory, and a full disk shows
as an OSError.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from sfumato.errors import RunError

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write_safetensors(
    file: IO[bytes], tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None
) -> str:
    """Write tensors (any layout, any device) in safetensors format; returns the SHA-256 of what was written.

    about: strings for the header. Raises RunError for a dtype the format does not know, OSError if the disk
    is full.
    """
    header: dict[str, Any] = {"__metadata__": dict(about)} if about else {}
    offset = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise RunError(f"{name} has dtype {tensor.dtype}, which safetensors cannot hold")
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()

    def put(data: Any) -> None:
        file.write(data)
        digest.update(data)

    put(len(text).to_bytes(8, "little"))
    put(text)
    for tensor in tensors.values():
        if tensor.numel():
            flat = tensor.detach().contiguous().cpu().reshape(-1)
            put(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A new file, flushed to the disk when the block ends."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Let `write` fill a file that appears under its name only when it is whole; OSErrors become
    RunErrors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f".{path.name}.{os.getpid()}.part"
    try:
        with opened(aside) as file:
            write(file)
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        raise RunError(f"could not write {path}: {reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_atomically(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name when the block ends; on any exception it vanishes and `path` is
    as it was."""
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


def refuse_foreign(path: Path) -> None:
    """Raise RunError unless the file begins as safetensors do; a pickle under that name is named as such."""
    with open(path, "rb") as file:
        start = file.read(16)
    # A safetensors header of 640 bytes begins as a pickle does, with b"\x80\x02": but its ninth byte is "{".
    pickled = start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05")
    if pickled and start[8:9] != b"{":
        raise RunError(
            f"{path} is a pickle under a safetensors name: it could run code when opened, so it is refused"
        )
    if len(start) < 9 or start[8:9] != b"{":
        raise RunError(f"{path} is not a safetensors file")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_atomically(path, lambda file: file.write(json.dumps(value, indent=1, allow_nan=False).encode()))
