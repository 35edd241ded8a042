"""All pictures of a source, decoded once and made to fit, as one uint8 array (n, h, w, c).

What fits in memory stays there. A larger array is written to the cache as a memory-mapped file, under a name made
from where the files are, their sizes and times, and how they were made to fit: the next run maps it at once, and a
changed file makes another name. Arrays that fit as they are (a memory-mapped .npy, say) are passed on untouched.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sfumato.domains.cache import install
from sfumato.domains.pictures import Fit, as_picture, bombs_are_ours, channels_of, open_picture
from sfumato.domains.source import Found
from sfumato.errors import DataError

LARGE = 256 << 20
"""Decoded arrays above this many bytes go to the cache instead of memory."""
_VERSION = 1  # raise when decoding changes, so that older caches are not taken for new ones


@dataclass(frozen=True)
class Decoded:
    """pixels: uint8 (n, h, w, c). rows: which of the source's pictures. corrupt: (title, reason) of the rest."""

    pixels: np.ndarray
    rows: np.ndarray
    corrupt: tuple[tuple[str, str], ...] = ()


def picture_of(found: Found, i: int) -> Image.Image:
    """Picture i of a source, decoded. Raises DataError with a short reason if it is damaged."""
    item = found.item(i)
    return as_picture(item) if isinstance(item, np.ndarray) else open_picture(item)


def settle(found: Found, size: tuple[int, int] | None, channels: int | None) -> tuple[tuple[int, int], int]:
    """Take size (h, w) and channels from the first readable picture where they are not given."""
    if size is not None and channels is not None:
        return size, channels
    if found.array is not None:
        own_size, own_channels = tuple(found.array.shape[1:3]), found.array.shape[3]
        return size or own_size, channels or own_channels  # type: ignore[return-value]
    with bombs_are_ours():
        for i in range(found.count):
            try:
                first = picture_of(found, i)
            except DataError:
                continue  # reported with the others when all are read
            return size or (first.height, first.width), channels or channels_of(first)
    raise DataError(f"none of the {found.count} pictures in {found.where} can be read: {_reason(found, 0)}")


def _reason(found: Found, i: int) -> str:
    try:
        picture_of(found, i)
    except DataError as problem:
        return f"{found.title(i)}: {problem}"
    return found.title(i)


def decode(
    found: Found, fit: Fit, *, exact: tuple[bool, bool] = (False, False), skip_corrupt: bool = False
) -> Decoded:
    """Every picture of a source, made to fit.

    exact: whether (size, channels) were taken from the first picture, so that all others must have the same.
    skip_corrupt: leave damaged pictures out. Raises DataError for damaged pictures otherwise (the first five are
    named, and how many there are), and for pictures that cannot be made to fit.
    """
    shape = (*fit.stored, fit.channels)
    if found.array is not None and found.array.shape[1:] == shape:
        return Decoded(found.array, np.arange(found.count))
    size = found.count * int(np.prod(shape))
    if size <= LARGE:
        pixels = np.empty((found.count, *shape), dtype=np.uint8)
        rows, corrupt = _fill(pixels, found, fit, exact, skip_corrupt)
        return Decoded(pixels[: len(rows)], rows, corrupt)

    def build(empty: Path) -> None:
        pixels = np.lib.format.open_memmap(empty / "pixels.npy", "w+", np.uint8, (found.count, *shape))
        rows, corrupt = _fill(pixels, found, fit, exact, skip_corrupt)
        pixels.flush()
        np.save(empty / "rows.npy", rows)
        (empty / "corrupt.json").write_text(json.dumps(corrupt))

    how = json.dumps([_VERSION, asdict(fit), exact, skip_corrupt])
    key = hashlib.sha256(f"{found.key}\n{how}".encode()).hexdigest()[:32]
    folder = install(f"decoded-{key}", build)
    rows = np.load(folder / "rows.npy", allow_pickle=False)
    corrupt = tuple((title, reason) for title, reason in json.loads((folder / "corrupt.json").read_text()))
    pixels = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
    return Decoded(pixels[: len(rows)], rows, corrupt)


def _fill(
    pixels: np.ndarray, found: Found, fit: Fit, exact: tuple[bool, bool], skip_corrupt: bool
) -> tuple[np.ndarray, tuple[tuple[str, str], ...]]:
    """Decode into the first rows of `pixels`; which pictures are there, and which are damaged."""
    rows, corrupt = [], []
    for i, result in enumerate(_results(found, fit, exact)):
        if isinstance(result, np.ndarray):
            pixels[len(rows)] = result
            rows.append(i)
        elif isinstance(result, _Damaged):
            corrupt.append((found.title(i), str(result)))
        else:
            raise DataError(f"{found.where}: {found.title(i)} {result}") from result
    if corrupt and not (skip_corrupt and rows):
        raise DataError(corrupt_message(found.where, corrupt, found.count))
    return np.array(rows, dtype=np.int64), tuple(corrupt)


def corrupt_message(where: str, corrupt: list[tuple[str, str]], count: int) -> str:
    """One line that names the first five damaged pictures and how many there are."""
    named = ", ".join(f"{title} ({reason})" for title, reason in corrupt[:5])
    more = f" and {len(corrupt) - 5} more" if len(corrupt) > 5 else ""
    return (
        f"{len(corrupt)} of {count} pictures in {where} cannot be read: {named}{more}; "
        "repair or remove them, or set skip_corrupt"
    )


class _Damaged(DataError):
    """A picture that cannot be decoded, as opposed to one that does not fit."""


def _results(found: Found, fit: Fit, exact: tuple[bool, bool]) -> Iterator[np.ndarray | DataError]:
    """For each picture in turn its pixels, or what is wrong with it; decoded by threads (Pillow lets go of the GIL)."""

    def one(i: int) -> np.ndarray | DataError:
        try:
            picture = picture_of(found, i)
        except DataError as problem:
            return _Damaged(str(problem))
        if exact[0] and (picture.height, picture.width) != fit.size:
            tall, wide = fit.size
            return DataError(
                f"is {picture.width}×{picture.height} and the first picture {wide}×{tall}: set size (and crop)"
            )
        if exact[1] and (have := channels_of(picture)) != fit.channels:
            return DataError(
                f"has {have} channels and the first picture {fit.channels}: set channels to 1, 3 or 4"
            )
        try:
            return fit.pixels(picture)
        except DataError as problem:
            return problem

    step = 256  # at a time, so that results waiting to be stored stay few
    with bombs_are_ours(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, found.count, step):
            yield from pool.map(one, range(start, min(start + step, found.count)))
