"""`sfumato data`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from ..errors import DataError

app = App(name="data", help="List, fetch and check data.")

_LOOKED_AT = 1000  # files of a folder


@app.command(name="list")
def list_() -> int:
    """List the data that sfumato knows by name."""
    from ..domains.sources import list_sources, way_names
    from .show import table

    rows = [
        [card.name, card.description, f"{card.count:,}", card.licence, ", ".join(way_names(card.name))]
        for card in list_sources()
    ]
    table("", ["name", "what", "pictures", "licence", "ways to get it"], rows)
    return 0


@app.command
def fetch(
    name: str,
    /,
    *,
    ways: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    path: Path | None = None,
    refresh: bool = False,
) -> int:
    """Get data by name into the cache, each file checked against its SHA-256.

    Parameters
    ----------
    name
        A name from: sfumato data list
    ways
        Which ways to try, in order; see: sfumato data list
    path
        Take the files from this folder and nowhere else.
    refresh
        Pass over the cache and make it anew.
    """
    from ..domains import sources
    from .show import console, say

    folder = sources.fetch(name, say, ways=ways, path=path, refresh=refresh)
    console.print(f"{name} is in {folder}", soft_wrap=True)
    return 0


@app.command
def check(source: str, /, *settings: str, domain: str | None = None) -> int:
    """Read data whole and report what is in them and what is wrong; code 1 if anything is.

    Parameters
    ----------
    source
        A folder, a file, or a name from: sfumato data list
    settings
        Of a domain, as in data.settings of a recipe: target=cut dialect=dna
    domain
        What the data are, as data.domain of a recipe. Left out, it is what the name of the data or of most files says:
        molecules for .sdf, music for .mid, a table for .csv, and so on; pictures for others.
    """
    kind = domain or _kind(source)
    if kind not in ("pictures", "images"):
        return _examples(source, kind, settings)
    if settings:
        raise DataError(
            f"pictures are checked as they are, without {settings[0]!r}: give --domain another kind"
        )
    return _pictures(source)


def _kind(source: str) -> str:
    """What the data are by name: of named data their own kind, of files that of most of them."""
    from ..domains import meshes, molecule_files, music, records, series_files, waves
    from ..domains.catalogue import SOURCES

    if source in SOURCES:
        return SOURCES[source].card.kind
    readers = {
        "molecules": tuple(molecule_files.READERS),
        "music": music.SUFFIXES,
        "sequences": records.SUFFIXES,
        "series": series_files.SUFFIXES,
        "shapes": meshes.SUFFIXES,
        "sounds": waves.SUFFIXES,
    }
    known = {end: kind for kind, ends in readers.items() for end in ends if end not in (".txt", ".xml")}
    known |= {".csv": "table", ".nc": "fields"}  # of what several read, the commonest
    path = Path(source).expanduser()
    files = islice((f for f in path.rglob("*") if f.is_file()), _LOOKED_AT) if path.is_dir() else (path,)
    found = Counter(known.get(Path(f.name.lower().removesuffix(".gz")).suffix, "pictures") for f in files)
    return max(found, key=found.__getitem__, default="pictures")


def _examples(source: str, kind: str, settings: tuple[str, ...]) -> int:
    """Data of any other kind, read as training would read them."""
    from rich.markup import escape

    from ..domains import build_domain
    from ..recipes.recipe import parse_overrides
    from .show import console, pairs

    data = build_domain(kind, **parse_overrides(settings)).read(source)
    card, symbols = data.card(), getattr(data.domain, "symbols", 0)
    classes = ", ".join(f"{name} ({count:,})" for name, count in card["classes"].items())
    pairs(
        {
            "source": f"{card['name']} ({kind})",
            "examples": f"{card['count']:,}",
            "left out": f"{card.get('left_out', 0):,}",
            "state": _state(data.domain.shape, symbols),
            "classes": classes or "none",
            "may be asked": ", ".join(getattr(data.domain, "asks", ())) or "nothing else",
            "licence": card["licence"],
        }
    )
    for note in _notes(card):
        console.print(f"note: {escape(note)}", soft_wrap=True)
    console.print("fit to train on")
    return 0


def _notes(card: Mapping[str, Any]) -> list[str]:
    """What a data card says of what was left out or changed in reading, a line each."""
    found = [
        f"{count} left out: they {why}" for why, count in card.get("left_out_because", {}).items() if count
    ]
    found += [f"left out: {one}" for one in card.get("skipped_corrupt", ())]
    found += [
        f"column {name} left out: it is missing throughout" for name in card.get("left_out_columns", ())
    ]
    found += [
        f"{n} cells of {name} not known, and missing" for name, n in card.get("unknown_values", {}).items()
    ]
    if card.get("filled"):
        found.append(f"{card['filled']} missing values put between their neighbours")
    if "labels_left_out" in card:
        found.append(f"labels are not read: {card['labels_left_out']}, so they are names")
    return found


def _state(shape: Any, symbols: Any) -> str:
    """The shape of a state and its symbols; of a joint one its parts, with their symbols."""
    if isinstance(shape, Mapping):
        return ", ".join(f"{name} ({symbols[name]})" if name in (symbols or {}) else name for name in shape)
    return " × ".join(map(str, shape)) + (f", of {symbols} symbols" if symbols else "")


def _pictures(source: str) -> int:
    from rich.markup import escape

    from ..domains.sources import check as look
    from .show import console, pairs

    found = look(source)

    def counts(values: dict[str, int]) -> str:
        return ", ".join(f"{name} ({count:,})" for name, count in values.items()) or "none"

    pairs(
        {
            "source": f"{found.name} ({found.kind})",
            "pictures": f"{found.count:,}",
            "sizes": counts(found.sizes),
            "channels": counts(found.channels),
            "classes": counts(found.classes),
        }
    )
    for title, reason in found.corrupt:
        console.print(f"damaged: {escape(f'{title}: {reason}')}", soft_wrap=True)
    for note in found.notes:
        console.print(f"note: {escape(note)}", soft_wrap=True)
    for problem in found.problems:
        console.print(f"[red]problem:[/red] {escape(problem)}", soft_wrap=True)
    asked = ["data.size"] * (len(found.sizes) > 1) + ["data.channels"] * (len(found.channels) > 1)
    given = f", once the recipe says {' and '.join(asked)}" if asked else ""
    console.print(f"fit to train on{given}" if found.ok else "not fit to train on as it is")
    return 0 if found.ok else 1
