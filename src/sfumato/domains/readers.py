"""Where pictures come from, and how each kind of place is opened: what is found, before it is made to fit.

A `Source` says where; `open_source` looks and answers with a `Found`: how many pictures, their labels and class
names, and how to get at each. Nothing is decoded yet, save what is an array already.

A folder: each subfolder is a class and holds its pictures at any depth; a folder of pictures alone has no classes,
unless every name ends in `-label-<number>`, as the samples that sfumato writes do. Hidden files are passed over,
and so are files that are no pictures by their name, but those are counted. Captions may lie beside the pictures, see
`captions.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sfumato.domains import arrays
from sfumato.domains.captions import folder_captions
from sfumato.domains.source import Found, Source
from sfumato.errors import DataError, nearest

_LABELLED = re.compile(r"-label-(\d+)$")
PICTURE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
)
MAX_CLASSES = 100_000
"""Labels above this are taken for a mistake (a row number, say), not for classes."""


def open_source(source: Source, classes: Sequence[str] = ()) -> Found:
    """Look into a source of any kind. classes: the names a model has, in its order; () takes the source's own.

    Raises DataError naming the place and what to do: it is missing, empty, of no known kind, or damaged; a class is
    not the model's.
    """
    if source.name is not None:
        from sfumato.domains import sources  # named sources are made of what is here

        found = sources.open_named(source)
    elif source.hub is not None:
        from sfumato.domains import picture_tables

        found = picture_tables.open_hub(source.hub, source.split)
    else:
        found = open_path(
            Path(str(source.path)).expanduser(),
            source.split,
            labelled=source.labels != "none",
            captioned=source.captions != "none",
        )
    if source.labels == "none":
        found = replace(found, labels=None, classes=())
    if source.captions == "none":
        found = replace(found, captions=())
    if source.limit is not None and source.limit < found.count:
        found = _spread(found, source.limit)
    if source.licence:
        found.about["licence"] = source.licence
    return _with_classes(found, tuple(classes))


def _spread(found: Found, limit: int) -> Found:
    """`limit` pictures evenly spread over the source: the first ones of a sorted folder would be of one class."""
    rows = np.arange(limit) * found.count // limit
    return replace(
        found,
        count=limit,
        item=lambda i: found.item(int(rows[i])),
        title=lambda i: found.title(int(rows[i])),
        array=None if found.array is None else found.array[rows],
        labels=None if found.labels is None else found.labels[rows],
        captions=tuple(found.captions[i] for i in rows) if found.captions else (),
        groups=tuple(found.groups[i] for i in rows) if found.groups else (),
        key=f"{found.key}\n{limit} of {found.count}",
    )


def _with_classes(found: Found, classes: tuple[str, ...]) -> Found:
    """Settle class names: those asked for, the source's own, or the labels' numbers."""
    if found.labels is None:
        return found
    top = int(found.labels.max(initial=-1)) + 1
    own = found.classes
    if not own:
        if top > MAX_CLASSES:
            raise DataError(f"{found.where}: labels run to {top - 1}; they should count classes from 0")
        own = tuple(str(k) for k in range(top))
    if top > len(own):
        raise DataError(f"{found.where}: label {top - 1} is out of range: it names {len(own)} classes")
    if not classes or classes == own:
        return replace(found, classes=classes or own)
    if found.classes:  # names on both sides: match them by name
        used = {own[k] for k in np.unique(found.labels)}
        if foreign := sorted(used - set(classes)):
            near = nearest(foreign[0], classes)
            hint = f"; did you mean {near!r}?" if near else ""
            raise DataError(
                f"{found.where} holds class {foreign[0]!r}, which the model does not have: "
                f"its {len(classes)} classes are {_few(classes)}{hint}"
            )
        order = np.array([classes.index(name) if name in used else -1 for name in own], dtype=np.int64)
        return replace(found, labels=order[found.labels], classes=classes)
    if top > len(classes):
        raise DataError(
            f"{found.where} holds labels up to {top - 1}, so at least {top} classes; the model has {len(classes)}"
        )
    return replace(found, classes=classes)


def _few(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def open_path(path: Path, split: str = "train", *, labelled: bool = True, captioned: bool = True) -> Found:
    """Look into a folder or file by what it is.

    labelled: whether a folder's subfolders are classes. captioned: whether captions in it are read.
    """
    if not path.exists():
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else None
        raise DataError(
            f"{path} does not exist" + (f"; did you mean {path.with_name(near)}?" if near else "")
        )
    if path.is_dir():
        if any("idx" in p.name and "ubyte" in p.name for p in path.iterdir()):
            return _idx_folder(path, split)
        if any(path.glob("*.parquet")):
            _whole(path, split)
            return _parquet(path, sorted(path.glob("*.parquet")))
        _whole(path, split)
        return _folder(path, labelled, captioned)
    _whole(path, split)
    name = path.name.lower()
    if name.endswith(".npz"):
        images, labels, classes = arrays.read_npz(path)
        return _of_array(path, "npz", images, labels, classes)
    if name.endswith(".npy"):
        return _of_array(path, "npy", arrays.read_npy(path), None, ())
    if name.endswith(".parquet"):
        return _parquet(path, [path])
    if "idx" in name:
        return open_idx(path, path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1")))
    raise DataError(
        f"{path} is of no kind that is read: give a folder of pictures, .npz, .npy, .parquet or IDX"
    )


def _whole(path: Path, split: str) -> None:
    """Refuse another split of a place that has none: it would quietly be the same pictures again."""
    if split != "train":
        raise DataError(
            f"{path} has no split {split!r}: only IDX folders, named sources and the Hub have; "
            "hold a fraction of the pictures out"
        )


def _of_array(
    path: Path, kind: str, images: np.ndarray, labels: np.ndarray | None, classes: tuple[str, ...]
) -> Found:
    pixels = arrays.as_pixels(images, path)
    if labels is not None:
        labels = arrays.as_labels(labels, len(pixels), path)
    return Found(
        count=len(pixels),
        item=lambda i: pixels[i],
        title=lambda i: f"picture {i} of {path.name}",
        where=str(path),
        kind=kind,
        key=file_key([path], path.parent),
        array=pixels,
        labels=labels,
        classes=classes,
        about={"sources": [path.name]},
    )


def file_key(files: Sequence[Path], root: Path) -> str:
    """What names the content of files without reading them: where they are, their sizes, when they were changed."""
    lines = [str(root.resolve())]
    for file in files:
        stat = file.stat()
        lines.append(f"{file.relative_to(root)}|{stat.st_size}|{stat.st_mtime_ns}")
    return "\n".join(lines)


def _parquet(path: Path, files: list[Path]) -> Found:
    from sfumato.domains import picture_tables  # what it needs is an extra

    return picture_tables.open_parquet(path, files, file_key(files, path if path.is_dir() else path.parent))


def _idx_folder(path: Path, split: str) -> Found:
    names = {p.name.removesuffix(".gz"): p for p in sorted(path.iterdir(), reverse=True) if "idx" in p.name}
    splits = sorted({name.split("-images-")[0] for name in names if "-images-" in name})
    prefix = "t10k" if split == "test" and "t10k" in splits else split
    if prefix not in splits:
        known = ", ".join("test" if s == "t10k" else s for s in splits) or "none"
        raise DataError(f"{path} has no split {split!r}: found {known} (files <split>-images-idx3-ubyte)")
    images = next(p for name, p in names.items() if name.startswith(f"{prefix}-images-"))
    labels = next((p for name, p in names.items() if name.startswith(f"{prefix}-labels-")), None)
    return open_idx(images, labels)


def open_idx(images: Path, labels: Path | None) -> Found:
    """Look into an IDX file of pictures, and one of labels if there is one."""
    values = None if labels is None or labels == images or not labels.exists() else arrays.read_idx(labels)
    return _of_array(images, "idx", arrays.read_idx(images), values, ())


def _folder(root: Path, labelled: bool, captioned: bool) -> Found:
    files: list[Path] = []
    ignored, seen = 0, set()
    for folder, below, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link back up would walk for ever
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            if Path(name).suffix.lower() in PICTURE_SUFFIXES:
                files.append(Path(folder, name))
            else:
                ignored += 1
    if not files:
        kinds = ", ".join(sorted(PICTURE_SUFFIXES))
        raise DataError(f"{root} holds no pictures ({ignored} other files): put some there ({kinds})")
    labels, classes = _folder_labels(root, files) if labelled else (None, ())
    captions, groups, used = folder_captions(root, files) if captioned else ((), (), 0)
    return Found(
        count=len(files),
        item=lambda i: files[i],
        title=lambda i: str(files[i].relative_to(root)),
        where=str(root),
        kind="folder",
        key=file_key(files, root),
        labels=labels,
        classes=classes,
        captions=captions,
        groups=groups,
        about={"sources": [root.resolve().name], "ignored": ignored - used},
    )


def _folder_labels(root: Path, files: list[Path]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    parts = [file.relative_to(root).parts for file in files]
    loose = [p[0] for p in parts if len(p) == 1]
    if len(loose) == len(files):
        marks = [_LABELLED.search(file.stem) for file in files]
        if all(marks):
            return np.array([int(m.group(1)) for m in marks if m], dtype=np.int64), ()
        return None, ()
    if loose:
        raise DataError(
            f"{root} holds {len(loose)} pictures beside its class folders, such as {loose[0]}: "
            "move them into one, or set labels to 'none'"
        )
    classes = tuple(sorted({p[0] for p in parts}))
    folders = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if empty := [name for name in folders if name not in classes]:
        raise DataError(f"{root / empty[0]} is a class without pictures: fill it or remove it")
    index = {name: k for k, name in enumerate(classes)}
    return np.array([index[p[0]] for p in parts], dtype=np.int64), classes
