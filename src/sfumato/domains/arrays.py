"""Pictures kept as arrays: NPY, NPZ and IDX files, read without trusting them.

All three say in a header how large they are. The header is read first and held against the file and a bound, so
neither a file cut short nor one that would unpack to a terabyte gets as far as memory. NumPy's files may also hold
pickled objects, which can run code when loaded: those are refused.

IDX (LeCun's format, as MNIST's): two zero bytes, a type (0x08: unsigned byte), the number of dimensions, each
dimension as a big-endian 32-bit number, then the values, last dimension fastest.

Pixels are uint8, 0 to 255. Floats are taken as [0, 1], or as [-1, 1] if some are negative:
u = round(255 x), u = round(255 (x + 1) / 2). Anything else has no certain meaning, and is refused by name.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sfumato.domains.cache import open_content
from sfumato.errors import DataError

MAX_BYTES = 16 << 30
"""The largest array read into memory, in bytes; a file that declares more is refused before it is read."""

IMAGE_KEYS = ("images", "x")
LABEL_KEYS = ("labels", "y")
_IDX_UBYTE = 0x08


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of an IDX file, gzipped or not. Raises DataError for a foreign, damaged or over-large file."""
    with open_content(path) as file:
        head = file.read(4)
        if len(head) < 4 or head[:2] != b"\0\0":
            raise DataError(f"{path} is not an IDX file: it should start with two zero bytes")
        kind, rank = head[2], head[3]
        if kind != _IDX_UBYTE:
            raise DataError(f"{path} holds values of type 0x{kind:02x}; only unsigned bytes (0x08) are read")
        if not 1 <= rank <= 4:
            raise DataError(f"{path} declares {rank} dimensions; labels have 1, pictures 3 or 4")
        sizes = file.read(4 * rank)
        if len(sizes) < 4 * rank:
            raise DataError(f"{path} is cut short inside its header: get it again")
        shape = tuple(int(n) for n in np.frombuffer(sizes, dtype=">u4"))
        size = math.prod(shape)
        _bound(size, path)
        values = bytearray(size)
        got = file.readinto(values) if size else 0  # type: ignore[attr-defined]
        if got < size or file.read(1):
            extra = "more" if got == size else f"only {got}"
            raise DataError(f"{path} declares {size} values {shape} and holds {extra}: get it again")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def write_idx(array: np.ndarray) -> bytes:
    """The IDX file of a uint8 array, uncompressed. Inverse of `read_idx`."""
    if array.dtype != np.uint8 or not 1 <= array.ndim <= 4:
        raise DataError(
            f"IDX files here hold uint8 arrays of 1 to 4 dimensions, not {array.dtype} {array.shape}"
        )
    return bytes([0, 0, _IDX_UBYTE, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def read_npy(path: Path) -> np.ndarray:
    """The array of an NPY file, memory-mapped. Raises DataError for pickled objects and damaged files."""
    try:
        with path.open("rb") as file:
            shape, dtype = _npy_header(file, str(path))
            want = file.tell() + math.prod(shape) * dtype.itemsize
        if (have := path.stat().st_size) != want:
            raise DataError(
                f"{path} should be {want} bytes by its header and is {have}: it is damaged, get it again"
            )
        return np.load(path, mmap_mode="r" if math.prod(shape) else None, allow_pickle=False)
    except (OSError, ValueError) as problem:
        if isinstance(problem, DataError):
            raise
        raise DataError(f"{path} cannot be read as a NumPy array ({_line(problem)})") from problem


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """(images, labels or None, class names or ()) of an NPZ: keys images or x; labels or y; optionally classes."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {Path(info.filename).stem: info for info in archive.infolist()}
            images = _member(archive, names, IMAGE_KEYS, path)
            if images is None:
                held = ", ".join(names) or "nothing"
                raise DataError(f"{path} holds {held}: name the pictures 'images' or 'x'")
            labels = _member(archive, names, LABEL_KEYS, path)
            classes = _member(archive, names, ("classes",), path)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as problem:
        raise DataError(f"{path} is not a sound NPZ file ({_line(problem)}): get it again") from problem
    if classes is not None and (classes.ndim != 1 or classes.dtype.kind != "U"):
        raise DataError(f"{path}: classes must be a list of names, not {classes.dtype} {classes.shape}")
    return images, labels, () if classes is None else tuple(str(name) for name in classes)


def _member(
    archive: zipfile.ZipFile, names: dict[str, zipfile.ZipInfo], keys: tuple[str, ...], path: Path
) -> np.ndarray | None:
    found = [key for key in keys if key in names]
    if len(found) > 1:
        raise DataError(f"{path} holds both {found[0]!r} and {found[1]!r}: keep one")
    if not found:
        return None
    info, where = names[found[0]], f"{path}[{found[0]!r}]"
    with archive.open(info) as file:
        shape, dtype = _npy_header(file, where)  # type: ignore[arg-type]
        size = math.prod(shape) * dtype.itemsize
        _bound(size, where)
        if (want := file.tell() + size) != info.file_size:
            raise DataError(
                f"{where} should be {want} bytes by its header and is {info.file_size}: get it again"
            )
    with archive.open(info) as file:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as problem:
            raise DataError(f"{where} cannot be read ({_line(problem)})") from problem


def _npy_header(file: BinaryIO, where: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type that an NPY declares, read without its values."""
    try:
        version = np.lib.format.read_magic(file)
        readers: dict[tuple[int, int], Any] = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in readers:
            raise DataError(f"{where} is NPY version {version}, which no plain array needs: save it again")
        shape, _, dtype = readers[version](file)
    except ValueError as problem:
        if isinstance(problem, DataError):
            raise
        raise DataError(f"{where} cannot be read as a NumPy array ({_line(problem)})") from problem
    if dtype.hasobject:
        raise DataError(
            f"{where} holds pickled Python objects, which could run code: save it as a plain uint8 array"
        )
    if any(n < 0 for n in shape):
        raise DataError(f"{where} declares the impossible shape {shape}")
    return shape, dtype


def _bound(size: int, where: object) -> None:
    if size > MAX_BYTES:
        raise DataError(
            f"{where} declares {size / 2**30:.1f} GiB, over the limit of {MAX_BYTES / 2**30:g} GiB: split it, "
            "or save it as a plain uint8 .npy, which is not read into memory"
        )


def _line(problem: BaseException) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0].rstrip(".")


def as_pixels(array: np.ndarray, where: object) -> np.ndarray:
    """uint8 pictures (n, h, w, c) from an array of pictures.

    array: (n, h, w), (n, h, w, c) or (n, c, h, w) with c in 1, 3, 4 (the last axis is taken if both could be);
    uint8, or floats in [0, 1] or [-1, 1].
    Raises DataError for other shapes and types, for values out of range, and for NaN, naming the picture.
    """
    if array.ndim == 3:
        array = array[..., None]
    elif array.ndim == 4 and array.shape[3] not in (1, 3, 4) and array.shape[1] in (1, 3, 4):
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[3] not in (1, 3, 4):
        raise DataError(
            f"{where} has shape {array.shape}: pictures are (n, h, w), (n, h, w, c) or (n, c, h, w), "
            "with 1, 3 or 4 channels"
        )
    if 0 in array.shape:
        raise DataError(f"{where} holds no pictures: its shape is {array.shape}")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise DataError(
            f"{where} is {array.dtype}: give uint8 in 0..255 (array.astype('uint8')), or floats in [0, 1]"
        )
    return _quantised(array, where)


def _quantised(array: np.ndarray, where: object) -> np.ndarray:
    step = max(1, (16 << 20) // max(1, array[0].size))  # some 16 M values at a time bound the copies in float
    parts = [array[i : i + step] for i in range(0, len(array), step)]
    low, high = math.inf, -math.inf
    for number, part in enumerate(parts):
        finite = np.isfinite(part).all(axis=(1, 2, 3))
        if not finite.all():
            bad = number * step + int(np.argmin(finite))
            raise DataError(f"{where}: picture {bad} holds NaN or infinity: repair or remove it")
        low, high = min(low, float(part.min())), max(high, float(part.max()))
    slack = 1e-3  # half precision and resampling overshoot; under half a step of 1/255
    if low < -1 - slack or high > 1 + slack:
        hint = "; values in 0..255 belong in uint8" if low >= 0 and high <= 255 else ""
        raise DataError(
            f"{where} has values from {low:.4g} to {high:.4g}: floats must be in [0, 1] or [-1, 1]{hint}"
        )
    scale, shift = (255.0, 0.0) if low >= -slack else (127.5, 127.5)
    pixels = np.empty(array.shape, dtype=np.uint8)
    for number, part in enumerate(parts):
        values = np.rint(part.astype(np.float64) * scale + shift)
        pixels[number * step : number * step + len(part)] = values.clip(0, 255)
    return pixels


def as_labels(labels: np.ndarray, count: int, where: object) -> np.ndarray:
    """int64 labels (n,), checked to be whole numbers from 0 up, one a picture. Raises DataError otherwise."""
    if labels.shape == (count, 1):
        labels = labels[:, 0]
    if labels.shape != (count,):
        raise DataError(f"{where}: {count} pictures need labels of shape ({count},), not {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise DataError(f"{where}: labels must be whole numbers, not {labels.dtype}")
    labels = labels.astype(np.int64)
    if count and labels.min() < 0:
        bad = int(np.argmax(labels < 0))
        raise DataError(f"{where}: label {bad} is {labels[bad]}: labels run from 0")
    return labels
