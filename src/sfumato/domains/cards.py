"""What is written of a named source: its card, the content of its files, the ways to them and who reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sfumato.domains import ways as w
from sfumato.domains.records import Records
from sfumato.domains.source import Found


@dataclass(frozen=True)
class DataCard:
    """What there is to know about data before using them: what they are, whose, and on what terms."""

    name: str
    description: str
    licence: str
    origin: str
    citation: str
    count: int
    size: tuple[int, ...] = ()
    channels: int = 0
    classes: tuple[str, ...] = ()
    kind: str = "pictures"

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class NamedSource:
    """Files with known content, and the ways of getting them.

    files: name -> (SHA-256 of the content after gzip, its length in bytes); a file may be there as name or name.gz.
    splits: name -> (file of pictures, file of labels), both IDX; or, if `opens` reads the files, anything.
    opens(folder, split): looks into files of another kind. records(folder, split): into those that hold text.
    reads(folder, split): into those of any other kind of data. shelf: the folder of the cache, where several sources
    are of the same files; the name otherwise.
    """

    card: DataCard
    files: dict[str, tuple[str, int]]
    splits: dict[str, tuple[str, ...]]
    ways: tuple[w.Way, ...]
    opens: Callable[[Path, str], Found] | None = None
    records: Callable[[Path, str], Records] | None = None
    reads: Callable[[Path, str], Any] | None = None
    shelf: str | None = None

    @property
    def name(self) -> str:
        """The name it goes by in a recipe."""
        return self.card.name
