"""Where pictures come from (`Source`), and what is found there before anything is decoded (`Found`).

What fits pictures to one size (`decode.py`) and what reports on them (`checks.py`) both work on a `Found`, so that a
folder, an array and a table of the Hub are one thing to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.errors import DataError, choose


@dataclass(frozen=True)
class Source:
    """Where to read pictures from: exactly one of a named source, a path, and a Hub data set.

    name: a named source, see `list_sources` ("digits", "fashion-mnist"); with `path`, a local folder of its files.
    path: a folder of pictures, a folder of IDX files, or one .npz, .npy, .parquet or IDX file.
    hub: a data set of the Hugging Face Hub, "owner/name" (extra `hub`).
    split: which part, where a source has parts. ways: which ways of getting a named source to try, in order.
    labels, captions: "auto", or "none" to leave them unread. limit: only so many pictures, evenly spread over them.
    skip_corrupt: leave damaged pictures out, and count them in the data card, instead of refusing them all.
    licence: under what terms the data are yours to use; goes into the data card.
    """

    name: str | None = None
    path: str | Path | None = None
    hub: str | None = None
    split: str = "train"
    ways: tuple[str, ...] | None = None
    labels: str = "auto"
    captions: str = "auto"
    limit: int | None = None
    skip_corrupt: bool = False
    licence: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.path, Path):
            object.__setattr__(self, "path", str(self.path))
        if self.ways is not None:
            object.__setattr__(self, "ways", tuple(self.ways))
        if (self.hub is not None) + (self.name is not None or self.path is not None) != 1:
            raise DataError(
                "a source needs a name, a path or a hub data set, and only one place to read from"
            )
        choose(self.labels, ("auto", "none"), "labels", DataError)
        choose(self.captions, ("auto", "none"), "captions", DataError)
        if self.limit is not None and self.limit < 1:
            raise DataError(f"limit must be at least 1, not {self.limit}")


@dataclass(frozen=True)
class Found:
    """What is at a source: `count` pictures, not yet decoded.

    item(i): a picture's file, its bytes, or its uint8 pixels (h, w, c). title(i): what to call it in a message.
    array: all pixels (n, h, w, c), if the source is an array. labels: int64 (n,) or None. captions: one or several
    texts a picture, or (). groups: for each picture the name of what it is a variant of, or (): a group is never split.
    key: what names this very content in the cache. about: what the data card is to say; "sources"
    names the place without its whole path, which is nobody else's business once a card is published.
    """

    count: int
    item: Callable[[int], Path | bytes | np.ndarray]
    title: Callable[[int], str]
    where: str
    kind: str
    key: str
    array: np.ndarray | None = None
    labels: np.ndarray | None = None
    captions: tuple[tuple[str, ...], ...] = ()
    groups: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
