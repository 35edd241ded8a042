"""Pictures in tables: Parquet files, and data sets of the Hugging Face Hub, through `datasets` (extra `hub`).

A table keeps a picture as the bytes of its file. `datasets` is used to find and page through them; the bytes are
decoded by `pictures.py`, so that a table's pictures obey the same rules and bounds as a folder's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sfumato.domains.arrays import as_labels
from sfumato.domains.cache import cache_folder
from sfumato.domains.source import Found
from sfumato.errors import DataError, MissingExtra

IMAGE_COLUMNS = ("image", "images", "img", "picture")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class")


def _datasets() -> Any:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as problem:
        raise MissingExtra("datasets", extra="hub") from problem
    return datasets


def open_parquet(path: Path, files: list[Path], key: str) -> Found:
    """Pictures of local Parquet files; reaches no network. Raises DataError for files that are no such table."""
    datasets = _datasets()
    try:
        table = datasets.Dataset.from_parquet(
            [str(f) for f in files], cache_dir=str(cache_folder() / "tables")
        )
    except Exception as problem:  # pyarrow's and datasets' own errors, of many classes
        raise DataError(f"{path} cannot be read as Parquet ({_line(problem)}): get it again") from problem
    return _found(datasets, table, str(path), "parquet", key)


def open_hub(name: str, split: str) -> Found:
    """Pictures of a Hub data set, downloaded into `datasets`' own cache. Raises DataError if it cannot be had."""
    datasets = _datasets()
    try:
        table = datasets.load_dataset(name, split=split)
    except Exception as problem:  # the network's, the Hub's and the builder's errors
        raise DataError(f"the Hub's {name!r}, split {split!r}, cannot be had ({_line(problem)})") from problem
    return _found(datasets, table, f"hub:{name}", "hub", f"hub:{name}:{split}:{table._fingerprint}")


def _found(datasets: Any, table: Any, where: str, kind: str, key: str) -> Found:
    column = _column(table, where, IMAGE_COLUMNS, lambda f: isinstance(f, datasets.Image))
    if column is None:
        raise DataError(f"{where} has columns {', '.join(table.column_names)}: none of them holds pictures")
    try:
        table = table.cast_column(column, datasets.Image(decode=False))
    except Exception as problem:  # pyarrow's
        raise DataError(f"{where}: column {column!r} does not hold pictures ({_line(problem)})") from problem
    mark = _column(table, where, LABEL_COLUMNS, lambda f: isinstance(f, datasets.ClassLabel))
    labels, classes = None, ()
    if mark is not None:
        feature = table.features[mark]
        labels = as_labels(np.asarray(table[mark][:]), len(table), f"{where}, column {mark!r}")
        classes = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()
    if len(table) == 0:
        raise DataError(f"{where} holds no pictures: the table is empty")

    def item(i: int) -> Path | bytes:
        cell = table[i][column] or {}
        if cell.get("bytes") is not None:
            return cell["bytes"]
        return Path(cell["path"]) if cell.get("path") else b""

    return Found(
        count=len(table),
        item=item,
        title=lambda i: f"row {i} of {Path(where).name}",
        where=where,
        kind=kind,
        key=key,
        labels=labels,
        classes=classes,
        about={"sources": [where if kind == "hub" else Path(where).name]},
    )


def _column(table: Any, where: str, names: tuple[str, ...], fits: Any) -> str | None:
    """The column of the right feature type; without one, the column of a customary name."""
    typed = [name for name, feature in table.features.items() if fits(feature)]
    if len(typed) > 1:
        typed = [name for name in typed if name in names] or typed
        if len(typed) > 1:
            raise DataError(f"{where} has several columns that would do: {', '.join(typed)}: keep one")
    named = [name for name in names if name in table.column_names]
    return next(iter(typed or named), None)


def _line(problem: BaseException) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0].rstrip(".")
