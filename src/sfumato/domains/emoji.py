"""Emoji as captioned pictures: drawings of one package, names and tags (Unicode's CLDR) of another.

A drawing's file is named by its code points, `1f44b-1f3fd.png`, and so are the captions. The variation selector fe0f,
which some names leave out, is dropped on both sides.

Many emoji are one drawing in several skin tones, genders or combinations. Held out at random, nearly every picture
would have its twin in the training set and held-out scores would mean nothing. So whole *bases* are held out: the base
is the first code point, with "man" and "woman" read as "person" (of which the professions, families and couples are
made), and for flags the pair of letters. A base is held out if SHA-256 of its name, as a number, divides by ten:
nothing is drawn, and the split stays the same whatever else is added.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from sfumato.domains.source import Found
from sfumato.domains.tarballs import read_members
from sfumato.errors import DataError

CAPTIONS = "emojibase-data-17.0.0.tgz"
_TABLE = "package/en/data.json"
_PERSON = 0x1F9D1
_PERSONS = (0x1F468, 0x1F469)


def code_points(name: str) -> tuple[int, ...]:
    """The code points that a name spells, "1F44B-FE0F" or "1f44b", without the variation selector fe0f."""
    points = tuple(int(part, 16) for part in name.replace("_", "-").split("-"))
    return tuple(point for point in points if point != 0xFE0F)


def base(points: tuple[int, ...]) -> str:
    """What an emoji is a variant of: see the file's head."""
    first, *rest = points
    if rest and all(0x1F1E6 <= point <= 0x1F1FF for point in (first, rest[0])):
        return f"{first:x}-{rest[0]:x}"
    return f"{_PERSON if first in _PERSONS else first:x}"


def held_out(name: str) -> bool:
    """Whether a base belongs to the split "test"; about one in ten does."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 10 == 0


def read_captions(path: Path) -> dict[tuple[int, ...], tuple[str, str]]:
    """Code points -> (label, label and tags) out of the package of captions. Raises DataError for another table."""
    try:
        table: list[dict[str, Any]] = json.loads(read_members(path, _TABLE.__eq__)[_TABLE])
        entries = [(entry, variant) for entry in table for variant in (entry, *entry.get("skins", ()))]
        return {
            code_points(variant["hexcode"]): (
                variant["label"],
                ", ".join([variant["label"], *variant.get("tags", entry.get("tags", ()))]),
            )
            for entry, variant in entries
        }
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise DataError(f"{path} holds no table of captions ({problem})") from problem


class Drawings(NamedTuple):
    """One set of drawings: its tarball, the folder in it, and the words that captions have of it, if any."""

    pictures: str
    inside: str
    told: str = ""

    def read(
        self, folder: Path, known: Collection[tuple[int, ...]], split: str
    ) -> dict[tuple[int, ...], bytes]:
        """Code points -> file, of the emoji that are `known` and of the split."""

        def wanted(name: str) -> bool:
            path = PurePosixPath(name)
            return str(path.parent) == self.inside and path.suffix in (".png", ".webp")

        chosen: dict[tuple[int, ...], bytes] = {}
        for name, content in read_members(folder / self.pictures, wanted).items():
            points = code_points(PurePosixPath(name).stem)
            if points in known and held_out(base(points)) == (split == "test"):
                chosen.setdefault(points, content)
        return chosen


def open_emoji(folder: Path, split: str, *, sets: Sequence[Drawings]) -> Found:
    """The emoji of a split in several sets of drawings. Of the split "test" in the first alone, which the others only
    help to learn; what is held out of it is held out of all."""
    captions = read_captions(folder / CAPTIONS)
    shown = sets[:1] if split == "test" else sets
    found = [(d, sorted(d.read(folder, captions, split).items())) for d in shown]
    pictures = [(points, content, d) for d, some in found for points, content in some]
    names = " ".join(d.pictures for d in sets)

    def told(points: tuple[int, ...], words: str) -> tuple[str, str]:
        label, tagged = captions[points]
        return (f"{label}, {words}", f"{tagged}, {words}") if words else (label, tagged)

    return Found(
        count=len(pictures),
        item=lambda i: pictures[i][1],
        title=lambda i: captions[pictures[i][0]][0],
        where=f"{names}, {split}",
        kind="emoji",
        key=f"{names} {CAPTIONS} {split}",
        captions=tuple(told(points, d.told) for points, _, d in pictures),
        groups=tuple(base(points) for points, *_ in pictures),
    )


GROUPS = (
    "smileys", "people", "components", "animals", "food", "travel", "activities", "objects", "symbols", "flags",
)  # fmt: skip


def with_groups(found: Callable[[Path, str], Found], folder: Path, split: str) -> Found:
    """The emoji that `found` opens, each labelled by the group of Unicode that it belongs to."""
    own = found(folder, split)
    table: list[dict[str, Any]] = json.loads(read_members(folder / CAPTIONS, _TABLE.__eq__)[_TABLE])
    groups = {
        variant["label"]: int(entry.get("group", 8))
        for entry in table
        for variant in (entry, *entry.get("skins", ()))
    }
    labels = np.array([groups[own.title(i)] for i in range(own.count)], dtype=np.int64)
    return replace(own, labels=labels, classes=GROUPS, key=f"{own.key} groups")


GOOGLE = Drawings("emoji-datasource-google-16.0.0.tgz", "package/img/google/64")
FLUENT = Drawings("lobehub-fluent-emoji-3d-1.1.0.tgz", "package/assets")
ANIMATED = Drawings("lobehub-fluent-emoji-anim-1-1.0.0.tgz", "package/assets")
OTHERS = (
    Drawings("emoji-datasource-google-3.0.0.tgz", "package/img/google/64", "blob"),
    Drawings("emoji-datasource-google-5.0.1.tgz", "package/img/google/64", "older"),
    Drawings("emoji-datasource-twitter-16.0.0.tgz", "package/img/twitter/64", "flat"),
    FLUENT._replace(told="in 3D"),
)

open_google = partial(open_emoji, sets=(GOOGLE,))
open_drawn = partial(open_emoji, sets=(GOOGLE, *OTHERS))
open_fluent = partial(open_emoji, sets=(FLUENT,))
open_animated = partial(open_emoji, sets=(ANIMATED,))
