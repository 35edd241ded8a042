"""Named data sources, and how to get them: several ways to the same bytes, each checked against one SHA-256.

A named source is a few files with known content. It may be in the cache, installed on the system, in a package or
on the Hub; `fetch` tries these ways in the order asked for and says why each did not lead there. Wherever a file
comes from, its content must have the SHA-256 written here, at fetching and at every reading: results can then be
compared across machines. A file that fails is an error and never a reason to try the next way quietly, since a
damaged or altered copy is something its owner needs to know.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.domains import ways as w
from sfumato.domains.cache import cache_folder, install, sha256_of
from sfumato.domains.catalogue import SOURCES, DataCard, NamedSource
from sfumato.domains.records import Records
from sfumato.domains.source import Found, Source
from sfumato.errors import DataError, choose

if TYPE_CHECKING:
    from sfumato.domains.checks import DataCheck

_log = logging.getLogger(__name__)


def list_sources() -> list[DataCard]:
    """The data cards of all named sources."""
    return [source.card for source in SOURCES.values()]


def named(name: str | NamedSource) -> NamedSource:
    """A named source by its name. Raises DataError naming the nearest."""
    return name if isinstance(name, NamedSource) else SOURCES[choose(name, SOURCES, "data source", DataError)]


def way_names(name: str | NamedSource) -> tuple[str, ...]:
    """The ways to a named source, in the order they are tried: "cache" first."""
    return ("cache", *w.names_of(named(name).ways))


def fetch(
    name: str | NamedSource,
    progress: w.Progress | None = None,
    *,
    ways: Sequence[str] | None = None,
    path: str | Path | None = None,
    refresh: bool = False,
) -> Path:
    """The folder that holds a named source's files, got by the first way that leads there, each file checked.

    progress: told what is done. ways: which ways to try, in order; default `way_names(name)`. path: take the files
    from this folder and nowhere else. refresh: pass over the cache and make it anew.
    Raises DataError if no way leads there (saying why for each), or a file is not what it should be.
    """
    source = named(name)
    say = progress or (lambda _: None)
    if path is not None:
        verify(source, Path(path).expanduser())
        return Path(path).expanduser()
    allowed = {way.name: way for way in source.ways}
    order = list(ways) if ways is not None else list(way_names(source))
    reasons = []
    for wanted in order:
        choose(wanted, ("cache", *allowed), f"way to get {source.name}", DataError)
    for wanted in order:
        try:
            return (
                _in_cache(source, refresh)
                if wanted == "cache"
                else _by(allowed[wanted], source, refresh, say)
            )
        except w.Unavailable as problem:
            reasons.append(f"{wanted}: {problem}")
            say(reasons[-1])
    raise DataError(f"{source.name} cannot be had here. {'; '.join(reasons)}")


def _in_cache(source: NamedSource, refresh: bool) -> Path:
    folder = cache_folder() / (source.shelf or source.name)
    if refresh or not folder.is_dir():
        raise w.Unavailable("passed over" if refresh else f"{folder} is not there")
    try:
        verify(source, folder)
    except DataError as problem:
        raise DataError(
            f"{problem} (or fetch it anew: sfumato data fetch {source.name} --refresh)"
        ) from problem
    return folder


def _by(way: w.Way, source: NamedSource, refresh: bool, say: w.Progress) -> Path:
    if not way.fetches:
        folder = way.get(Path(), say)
        verify(source, folder)
        return folder

    def build(empty: Path) -> None:
        way.get(empty, say)
        verify(source, empty)

    folder = install(source.shelf or source.name, build, replace=refresh)
    # Another process may have put it there while we waited for our turn.
    verify(source, folder)
    return folder


def file_in(folder: Path, name: str) -> Path:
    """A source's file in a folder, as `name` or `name.gz`. Raises DataError if neither is there."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{folder} holds no {name} (nor {name}.gz)")


def problems_in(source: NamedSource, folder: Path, files: Sequence[str] | None = None) -> list[str]:
    """What is wrong with a source's files in a folder: a line for each that is missing or altered."""
    if not folder.is_dir():
        return [f"{folder} does not exist"]
    problems = []
    for name in files or source.files:
        want, size = source.files[name]
        try:
            path = file_in(folder, name)
            got, length = sha256_of(path, limit=size)
            if got != want:
                problems.append(
                    f"{path} is not the {source.name} of record: its content has SHA-256 {got[:12]}… "
                    f"({length} bytes), not {want[:12]}… ({size} bytes): get it again"
                )
        except DataError as problem:
            problems.append(str(problem))
    return problems


def verify(source: NamedSource, folder: Path, files: Sequence[str] | None = None) -> None:
    """Raise DataError for the first of a source's files in a folder that is missing or not as it should be."""
    if problems := problems_in(source, folder, files):
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)


def _folder_of(place: Source, kind: str) -> tuple[NamedSource, Path, dict[str, Any]]:
    """A named source of a kind, the folder of its files, and what the data card is to say."""
    source = named(str(place.name))
    if source.card.kind != kind:
        raise DataError(
            f"{source.name} holds {source.card.kind}, not {kind}: give data.domain another kind, or other data"
        )
    if place.split not in source.splits:
        only = ", ".join(source.splits)
        raise DataError(
            f"{source.name} has no split {place.split!r}: it has {only}; hold some out with split()"
        )
    folder = fetch(source, _log.info, ways=place.ways, path=place.path)
    about = {
        "licence": source.card.licence,
        "origin": source.card.origin,
        "citation": source.card.citation,
        "sources": [f"{source.name}/{place.split}"],
    }
    return source, folder, about


def open_named_records(place: Source) -> Records:
    """The texts of a named source, fetching it if need be; its files are checked on every reading."""
    source, folder, about = _folder_of(place, "sequences")
    assert source.records is not None
    return replace(source.records(folder, place.split), about=about)


def named_data(place: Source, kind: str) -> tuple[Any, dict[str, Any]]:
    """What the reader of a named source of a kind finds in its files, and what the data card is to say."""
    source, folder, about = _folder_of(place, kind)
    assert source.reads is not None
    return source.reads(folder, place.split), about


def named_file(place: Source, kind: str) -> tuple[Path, tuple[str, ...], dict[str, Any]]:
    """The one file of a named source of a kind, what its split says of it, and what the data card is to say."""
    source, folder, about = _folder_of(place, kind)
    (name,) = source.files
    return file_in(folder, name), source.splits[place.split], about


def sound_files(place: Source) -> tuple[list[tuple[str, str, bytes]], dict[str, Any]]:
    """(name, class or "", content) of the files of a named source of sounds, and what the data card is to say."""
    from sfumato.domains.waves import in_debian_package

    path, (below, *mark), about = named_file(place, "sounds")
    # with a mark the first word of a file's name is its class
    files = in_debian_package(path, below)
    return [(name, name.partition(mark[0])[0] if mark else "", content) for name, content in files], about


def open_named(place: Source) -> Found:
    """Look into a named source, fetching it if need be; its files are checked on every reading."""
    from sfumato.domains.readers import open_idx

    source, folder, about = _folder_of(place, "pictures")
    if source.opens is not None:
        found = source.opens(folder, place.split)
    else:
        images, labels = (file_in(folder, name) for name in source.splits[place.split])
        found = open_idx(images, labels)
    return replace(found, where=f"{source.name}/{place.split}", classes=source.card.classes, about=about)


def check(path_or_name: str | Path) -> DataCheck:
    """Look through data without training on them: counts, sizes, classes, and every problem. See `checks.check`."""
    from sfumato.domains import checks

    return checks.check(path_or_name)
