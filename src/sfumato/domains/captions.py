"""Captions that lie beside pictures in a folder, in any of the ways that people keep them.

    captions.jsonl, metadata.jsonl   a line for each picture: {"file_name": "a/1.png", "text": "a red heart"}
    metadata.csv                     a table with the columns file_name and text
    1.txt beside 1.png               its caption, or several, one a line

"caption" may stand for "text", "file" for "file_name". In JSON the text may be a list, the plainest first: training
shows one of them at a time. A further "group" says what a picture is a variant of; a group is never split between
training and held-out data. Every picture must have a caption; pictures that are named and not there are an error too,
for a table that does not fit its folder is seldom meant.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sfumato.errors import DataError

TABLES = ("captions.jsonl", "metadata.jsonl", "metadata.csv")
MOST_BYTES = 1 << 28
"""A table of captions larger than this is refused unread."""

Captions = tuple[tuple[tuple[str, ...], ...], tuple[str, ...], int]


def folder_captions(root: Path, files: Sequence[Path]) -> Captions:
    """(captions, groups, how many files they were in) of pictures in a folder; ((), (), 0) without captions.

    Raises DataError for a table that cannot be read, a picture without a caption, and a caption without a picture.
    """
    tables = [root / name for name in TABLES if (root / name).is_file()]
    if len(tables) > 1:
        raise DataError(f"{root} holds {tables[0].name} and {tables[1].name}: keep one")
    if not tables:
        return _beside(root, files)
    found: dict[str, tuple[tuple[str, ...], str]] = {}
    for number, row in _rows(tables[0]):
        where = f"{tables[0]}, line {number}"
        name = row.get("file_name", row.get("file"))
        texts = row.get("text", row.get("caption"))
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(name, str) or not isinstance(texts, list) or not texts:
            raise DataError(f'{where} should have a "file_name" and a "text"')
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataError(f"{where}: the caption of {name} is empty or no text")
        if name in found:
            raise DataError(f"{where}: {name} has a caption already")
        found[name] = tuple(text.strip() for text in texts), str(row.get("group", ""))
    names = [file.relative_to(root).as_posix() for file in files]
    _complete(str(tables[0]), names, found)
    if foreign := sorted(set(found) - set(names)):
        raise DataError(f"{tables[0]} names {len(foreign)} pictures that are not there, such as {foreign[0]}")
    groups = tuple(found[name][1] for name in names)
    return tuple(found[name][0] for name in names), groups if all(groups) else (), 1


def _beside(root: Path, files: Sequence[Path]) -> Captions:
    own = {file.relative_to(root).as_posix(): file.with_suffix(".txt") for file in files}
    there = {name: path for name, path in own.items() if path.is_file()}
    if not there:
        return (), (), 0
    _complete(f"{root}: a .txt file beside each picture", list(own), there)
    captions = tuple(
        tuple(line.strip() for line in _text(path).splitlines() if line.strip()) for path in own.values()
    )
    if not all(captions):
        raise DataError(f"{list(own.values())[captions.index(())]} is empty: write a caption into it")
    return captions, (), len(there)


def _complete(where: str, names: Sequence[str], found: Any) -> None:
    if missing := [name for name in names if name not in found]:
        raise DataError(
            f"{where}: {len(missing)} of {len(names)} pictures have no caption, such as {missing[0]}: write one, "
            "or set captions to 'none'"
        )


def _text(path: Path) -> str:
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"{path} is {path.stat().st_size} bytes long; captions never are")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise DataError(f"{path} is not UTF-8 text: save it as that") from problem


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    text = _text(path)
    if path.suffix.lower() == ".csv":
        table = csv.DictReader(io.StringIO(text, newline=""))
        try:
            yield from ((table.line_num, row) for row in table)
        except csv.Error as problem:
            raise DataError(f"{path}, line {table.line_num} is no CSV ({problem})") from problem
        return
    for number, line in enumerate(text.split("\n"), 1):  # U+2028 and its like may stand in JSON
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as problem:
                raise DataError(f"{path}, line {number} is not JSON ({problem})") from problem
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number} is no JSON object")
            yield number, row
