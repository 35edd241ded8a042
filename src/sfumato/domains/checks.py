"""Looking through data before training on them: everything that is wrong, not only the first thing.

Reading stops at the first problem, since training cannot go on. Here every picture is decoded and every problem
kept, so that they can be mended at one go. Nothing is written, and nothing is fetched.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.domains import sources
from sfumato.domains.cache import cache_folder
from sfumato.domains.decode import picture_of
from sfumato.domains.pictures import bombs_are_ours, channels_of
from sfumato.domains.readers import open_source
from sfumato.domains.source import Found, Source
from sfumato.domains.ways import Installed
from sfumato.errors import DataError


@dataclass(frozen=True)
class DataCheck:
    """What was found in data.

    count: pictures that can be read. sizes: "height×width" -> how many. channels: "1", "3", "4" -> how many.
    classes: name -> how many. corrupt: (picture, reason) for every one that cannot be read.
    problems: all that would stop a reading, a sentence each. notes: what is worth knowing and stops nothing.
    """

    name: str
    kind: str
    count: int
    sizes: dict[str, int]
    channels: dict[str, int]
    classes: dict[str, int]
    corrupt: tuple[tuple[str, str], ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing would stop a reading."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def check(place: str | Path) -> DataCheck:
    """Look through a named source, or whatever is at a path.

    Problems of the data are returned, not raised; DataError is raised if there is nothing to look at.
    """
    if isinstance(place, str) and place in sources.SOURCES:
        return _check_named(sources.SOURCES[place])
    if isinstance(place, str) and "/" not in place and not Path(place).exists():
        sources.named(place)  # raises, naming the nearest
    path = Path(place).expanduser()
    if not path.exists():
        open_source(Source(path=str(path)))  # raises, naming the nearest
    try:
        found = open_source(Source(path=str(path)))
    except DataError as problem:
        if not path.is_dir():
            return _nothing(str(path), "unreadable", [str(problem)])
        try:  # labels may be all that is wrong with a folder: count its pictures none the less
            return _look(open_source(Source(path=str(path), labels="none", captions="none")), [str(problem)])
        except DataError:
            return _nothing(str(path), "folder", [str(problem)])
    return _look(found, [])


def _nothing(name: str, kind: str, problems: list[str]) -> DataCheck:
    return DataCheck(name, kind, 0, {}, {}, {}, problems=tuple(problems))


def _check_named(source: sources.NamedSource) -> DataCheck:
    folders = [
        cache_folder() / (source.shelf or source.name),
        *(Path(w.folder) for w in source.ways if isinstance(w, Installed)),
    ]
    folder = next((f for f in folders if f.is_dir()), None)
    if folder is None:
        return _nothing(source.name, "named", [f"not on this machine yet: sfumato data fetch {source.name}"])
    if problems := sources.problems_in(source, folder):
        return _nothing(source.name, "named", problems)
    parts = [
        _look(open_source(Source(name=source.name, path=str(folder), split=s)), []) for s in source.splits
    ]

    def total(name: str) -> dict[str, int]:
        return dict(sum((Counter(getattr(part, name)) for part in parts), Counter()))

    return DataCheck(
        name=source.name,
        kind="named",
        count=sum(part.count for part in parts),
        sizes=total("sizes"),
        channels=total("channels"),
        classes=total("classes"),
        problems=tuple(problem for part in parts for problem in part.problems),
        notes=(
            f"in {folder}, each file as it should be by its SHA-256",
            *(
                f"{split}: {note}"
                for split, part in zip(source.splits, parts, strict=True)
                for note in part.notes
            ),
        ),
    )


def _look(found: Found, problems: list[str]) -> DataCheck:
    sizes: Counter[str] = Counter()
    channels: Counter[str] = Counter()
    prints: Counter[bytes] = Counter()
    corrupt: list[tuple[str, str]] = []
    good: list[int] = []
    for i, result in enumerate(_pixels(found)):
        if isinstance(result, DataError):
            corrupt.append((found.title(i), str(result)))
            continue
        pixels, depth = result
        good.append(i)
        sizes[f"{pixels.shape[0]}×{pixels.shape[1]}"] += 1
        channels[str(depth)] += 1
        prints[hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).digest()] += 1
    if corrupt:
        problems = [*problems, *(f"{title} cannot be read: {reason}" for title, reason in corrupt)]
    notes = []
    if len(sizes) > 1:
        notes.append(f"{len(sizes)} sizes: reading needs a size, and a crop if their shapes differ")
    if len(channels) > 1:
        notes.append(f"{' and '.join(sorted(channels))} channels mixed: reading needs channels")
    if copies := sum(n - 1 for n in prints.values()):
        notes.append(f"{copies} exact copies of other pictures")
    if ignored := found.about.get("ignored"):
        notes.append(f"{ignored} files that are no pictures by their name")
    if found.captions:
        notes.append(
            f"{sum(len(texts) for texts in found.captions)} captions, such as {found.captions[0][0]!r}"
        )
    classes: dict[str, int] = {}
    if found.labels is not None:
        kept = np.bincount(found.labels[good], minlength=len(found.classes))
        classes = {name: int(n) for name, n in zip(found.classes, kept, strict=True)}
        if empty := [name for name, n in classes.items() if n == 0]:
            notes.append(f"classes without pictures: {', '.join(empty[:8])}")
    return DataCheck(
        name=found.where,
        kind=found.kind,
        count=len(good),
        sizes=dict(sizes.most_common()),
        channels=dict(channels.most_common()),
        classes=classes,
        corrupt=tuple(corrupt),
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _pixels(found: Found) -> Iterator[tuple[np.ndarray, int] | DataError]:
    """For each picture its values and channels, or what is wrong with it."""
    if found.array is not None:
        yield from ((pixels, pixels.shape[2]) for pixels in found.array)
        return
    with bombs_are_ours():
        for i in range(found.count):
            try:
                picture = picture_of(found, i)
                yield np.asarray(picture), channels_of(picture)
            except DataError as problem:
                yield problem
