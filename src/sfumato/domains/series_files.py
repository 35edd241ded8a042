"""Where series come from: tables of numbers in CSV, and the .ts files of the time series archives.

    series,time,x,y,label     long: a row a time, rows of one `series` in their order; `time` is not read
    0,0,1.5,-0.2,walk

    t0,t1,t2,label            wide, without a column `series`: a row a series of one channel, a column a time
    1.5,1.7,2.0,walk

    @data                     .ts: a line a series, channels apart by ":", the label last
    1.5,1.7,2.0:-0.2,?,0.1:walk

A `label` is left out where there are none. A missing value is an empty cell, "?" or "nan". What a series must be is
judged by the domain that reads it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.domains.records import LARGEST, member
from sfumato.domains.source import Source
from sfumato.errors import DataError

AEON = "aeon-1.6.0-py3-none-any.whl"
SUFFIXES = (".csv", ".ts")
_MISSING = ("", "?", "nan")


@dataclass(frozen=True)
class SeriesTable:
    """Series float32 (steps, channels) with NaN where a value is missing, their labels or None, and the channels."""

    series: tuple[np.ndarray, ...]
    labels: tuple[str, ...] | None
    channels: tuple[str, ...]
    about: dict[str, Any] = field(default_factory=dict)


def open_series(place: Source) -> SeriesTable:
    """The series at a source, a named one or a file. Raises DataError naming the place and what is wrong."""
    if place.hub is not None:
        raise DataError("series are read from a named source or a file, not from the Hub")
    about: dict[str, Any]
    if place.name is not None:
        from sfumato.domains.sources import named_data

        found, about = named_data(place, "series")
    else:
        path = Path(str(place.path)).expanduser()
        if not path.is_file() or path.suffix not in SUFFIXES:
            raise DataError(
                f"{path} does not exist, or is no file of series: one ends in {' or '.join(SUFFIXES)}"
            )
        if path.stat().st_size > LARGEST:
            raise DataError(f"{path} is larger than {LARGEST} bytes")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise DataError(f"{path} is no text in UTF-8") from None
        found = (_ts if path.suffix == ".ts" else _csv)(text, str(path))
        about = {"sources": [path.name]}
    if place.licence:
        about["licence"] = place.licence
    if place.limit is not None and place.limit < len(found.series):
        rows = np.arange(place.limit) * len(found.series) // place.limit
        kept = None if found.labels is None else tuple(found.labels[k] for k in rows)
        found = replace(found, series=tuple(found.series[k] for k in rows), labels=kept)
    if not found.series:
        raise DataError(f"{place.name or place.path} holds no series")
    return replace(found, labels=None if place.labels == "none" else found.labels, about=about)


def archive(name: str, folder: Path, split: str) -> SeriesTable:
    """A set of aeon's wheel: its split "train" or "test", or "all" of both."""
    parts = [
        _ts(member(folder, AEON, f"aeon/datasets/data/{name}/{name}_{part.upper()}.ts"), f"{name}, {part}")
        for part in (("train", "test") if split == "all" else (split,))
    ]
    labels = None if any(part.labels is None for part in parts) else sum((p.labels for p in parts), ())  # type: ignore[misc]
    return SeriesTable(sum((part.series for part in parts), ()), labels, parts[0].channels)


def _numbers(cells: Sequence[str], where: str) -> np.ndarray:
    try:
        return np.array(
            [np.nan if cell.strip().lower() in _MISSING else float(cell) for cell in cells], np.float32
        )
    except ValueError as problem:
        raise DataError(f"{where}: {problem}") from None


def _ts(text: str, where: str) -> SeriesTable:
    lines = [line for line in text.splitlines() if line.strip() and line[0] not in "#%"]
    tags = {words[0].lower(): words[1:] for line in lines if line[0] == "@" for words in [line.split()]}
    if "@data" not in tags or tags.get("@timestamps", ["false"])[0].lower() == "true":
        raise DataError(f"{where} is no .ts file without time stamps: it needs a line @data")
    labelled = tags.get("@classlabel", ["false"])[0].lower() == "true"
    series, labels = [], []
    for number, line in enumerate(line for line in lines if line[0] != "@"):
        parts = line.split(":")
        if labelled:
            labels.append(parts.pop().strip())
        columns = [_numbers(part.split(","), f"{where}, series {number}") for part in parts]
        longest = max((len(column) for column in columns), default=0)
        found = np.full((longest, len(columns)), np.nan, np.float32)
        for k, column in enumerate(columns):
            found[: len(column), k] = column
        series.append(found)
    if len({one.shape[1] for one in series}) > 1:
        raise DataError(f"{where}: all series need the same number of channels")
    count = series[0].shape[1] if series else 1
    channels = tuple(f"x{k}" for k in range(count)) if count > 1 else ("x",)
    return SeriesTable(tuple(series), tuple(labels) if labelled else None, channels)


def _csv(text: str, where: str) -> SeriesTable:
    rows = csv.reader(io.StringIO(text))
    names = [name.strip() for name in next(rows, [])]
    table = [row for row in rows if row]
    if wrong := next((k for k, row in enumerate(table, 2) if len(row) != len(names)), None):
        raise DataError(f"{where}, line {wrong}: {len(table[wrong - 2])} cells under {len(names)} names")
    values = [k for k, name in enumerate(names) if name not in ("series", "time", "label")]
    if not values:
        raise DataError(f"{where} has no column of numbers: it has {', '.join(names) or 'none'}")
    at = names.index("label") if "label" in names else None
    if "series" not in names:
        series = tuple(
            _numbers([row[k] for k in values], f"{where}, line {n}")[:, None]
            for n, row in enumerate(table, 2)
        )
        labels = None if at is None else tuple(row[at].strip() for row in table)
        return SeriesTable(series, labels, ("x",))
    key = names.index("series")
    of: dict[str, list[int]] = {}
    for k, row in enumerate(table):
        of.setdefault(row[key].strip(), []).append(k)
    long = np.stack(
        [_numbers([row[k] for k in values], f"{where}, line {n}") for n, row in enumerate(table, 2)]
    )
    if at is not None and any(len({table[k][at].strip() for k in part}) > 1 for part in of.values()):
        raise DataError(f"{where}: a series has one label in all its rows")
    labels = None if at is None else tuple(table[part[0]][at].strip() for part in of.values())
    return SeriesTable(tuple(long[part] for part in of.values()), labels, tuple(names[k] for k in values))
