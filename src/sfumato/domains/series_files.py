"""Where series come from: tables of numbers in CSV, and the .ts files of the time series archives.

    series,time,x,y,label     long: a row a time, rows of one `series` in their order; `time` is not read
    0,0,1.5,-0.2,walk

    t0,t1,t2,label            wide, without a column `series`: a row a series of one channel, a column a time
    1.5,1.7,2.0,walk

    @data                     .ts: a line a series, channels apart by ":", the label last
    1.5,1.7,2.0:-0.2,?,0.1:walk

A `label` is left out where there are none. A missing value is an empty cell, "?", "nan", "NA", "null" or "none". What a
series must be is judged by the domain that reads it. A series that cannot be read is left out and counted: one with a
cell that is no number, a row of another length, two labels, or another number of channels than most have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.domains.records import member, once, read_csv, read_text, spoiled
from sfumato.domains.source import Source
from sfumato.errors import DataError

AEON = "aeon-1.6.0-py3-none-any.whl"
SUFFIXES = (".csv", ".ts")
_MISSING = ("", "?", "nan", "na", "null", "none")


@dataclass(frozen=True)
class SeriesTable:
    """Series float32 (steps, channels) with NaN where a value is missing, their labels or None, and the channels.

    left_out: how many series could not be read.
    """

    series: tuple[np.ndarray, ...]
    labels: tuple[str, ...] | None
    channels: tuple[str, ...]
    about: dict[str, Any] = field(default_factory=dict)
    left_out: int = 0


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
        if not path.is_file() or path.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{path} does not exist, or is no file of series: one ends in {' or '.join(SUFFIXES)}"
            )
        found = (_ts if path.suffix.lower() == ".ts" else _csv)(read_text(path), str(path))
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
    left_out = sum(part.left_out for part in parts)
    return SeriesTable(sum((part.series for part in parts), ()), labels, parts[0].channels, left_out=left_out)


def _numbers(cells: Sequence[str]) -> np.ndarray:
    """Numbers, NaN where they are missing. Raises ValueError for a cell that is none."""
    return np.array(
        [np.nan if cell.strip().lower() in _MISSING else float(cell) for cell in cells], np.float32
    )


def _ts(text: str, where: str) -> SeriesTable:
    lines = [line for line in text.splitlines() if line.strip() and line[0] not in "#%"]
    tags = {words[0].lower(): words[1:] for line in lines if line[0] == "@" for words in [line.split()]}
    if "@data" not in tags or tags.get("@timestamps", ["false"])[0].lower() == "true":
        raise DataError(f"{where} is no .ts file without time stamps: it needs a line @data")
    labelled = tags.get("@classlabel", ["false"])[0].lower() == "true"
    found, problems = [], []
    for number, line in enumerate(line for line in lines if line[0] != "@"):
        parts = line.split(":")
        label = parts.pop().strip() if labelled else ""
        try:
            if spoiled(line) or not parts:
                raise ValueError("no text in UTF-8" if parts else "no label behind its values")
            columns = [_numbers(part.split(",")) for part in parts]
        except ValueError as problem:
            problems.append(f"series {number}: {problem}")
            continue
        one = np.full((max(map(len, columns)), len(columns)), np.nan, np.float32)
        for k, column in enumerate(columns):
            one[: len(column), k] = column
        found.append((one, label))
    if problems and not found:
        raise DataError(f"{where}, {problems[0]}")
    widths = Counter(one.shape[1] for one, _ in found)
    count = widths.most_common(1)[0][0] if found else 1
    kept = [(one, label) for one, label in found if one.shape[1] == count]
    channels = tuple(f"x{k}" for k in range(count)) if count > 1 else ("x",)
    labels = tuple(label for _, label in kept) if labelled else None
    left_out = len(problems) + len(found) - len(kept)
    return SeriesTable(tuple(one for one, _ in kept), labels, channels, left_out=left_out)


def _csv(text: str, where: str) -> SeriesTable:
    sheet = read_csv(text, where, ragged="{} cells under {} names")
    names = sheet.names
    once(names)
    values = [k for k, name in enumerate(names) if name not in ("series", "time", "label")]
    if not values:
        raise DataError(f"{where} has no column of numbers: it has {', '.join(names)}")
    at = names.index("label") if "label" in names else None
    key = names.index("series") if "series" in names else None
    parts: dict[Any, list[np.ndarray]] = {}  # by the name of a series, or the line that it is
    labels: dict[Any, str] = {}
    problems: dict[Any, str] = {}
    for line, lasts, cells, problem in sheet.bad:
        problem = f"{where}, line {line}: {problem}"
        if key is not None and (lasts > 1 or len(cells) <= key):
            raise DataError(f"{problem}, and the series that it belongs to is not known")
        for k in range(lasts):
            problems.setdefault(line + k if key is None else cells[key], problem)
    for line, row in sheet.rows:
        name = line if key is None else row[key]
        label = "" if at is None else row[at]
        try:
            if labels.setdefault(name, label) != label:
                raise ValueError("a series has one label in all its rows")
            parts.setdefault(name, []).append(_numbers([row[k] for k in values]))
        except ValueError as problem:
            problems.setdefault(name, f"{where}, line {line}: {problem}")
    kept = [name for name in parts if name not in problems]
    if problems and not kept:
        raise DataError(next(iter(problems.values())))
    # in a long table a part is a time of all channels, in a wide one all times of one channel
    series = tuple(parts[name][0][:, None] if key is None else np.stack(parts[name]) for name in kept)
    channels = ("x",) if key is None else tuple(names[k] for k in values)
    said = None if at is None else tuple(labels[name] for name in kept)
    return SeriesTable(series, said, channels, left_out=len(problems))
