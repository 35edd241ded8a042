"""Tensors in files: the safetensors format, written in one pass, and what is not of that format refused.

The format (8 bytes of header length, a JSON header, raw tensors) is written here directly: the data are hashed while
they are written, without a second copy in memory, and a full disk shows as an OSError.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
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
