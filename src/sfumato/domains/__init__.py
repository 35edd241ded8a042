"""What one kind of data is: how it is found, read, turned into tensors and back, written and shown.

`build_domain("images", size=28, channels=1)` makes a domain, `domain.read("fashion-mnist")` its data, and
`check_domain(domain)` runs the laws that it must obey. Names are loaded on first use: listing the data sources
needs neither PyTorch nor Pillow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sfumato.errors import DataError, choose

if TYPE_CHECKING:
    from sfumato.domains.cache import cache_folder
    from sfumato.domains.captioned import Captioned
    from sfumato.domains.checks import DataCheck, check
    from sfumato.domains.examples import Domain, Examples
    from sfumato.domains.fields import Fields
    from sfumato.domains.image_data import ImageData
    from sfumato.domains.images import Images
    from sfumato.domains.laws import LawBroken, check_domain
    from sfumato.domains.molecule_leaves import MoleculeLeaves
    from sfumato.domains.molecules import Molecules
    from sfumato.domains.motion import Motion
    from sfumato.domains.music import Music
    from sfumato.domains.sequences import Sequences
    from sfumato.domains.series import Series
    from sfumato.domains.shapes import Shapes
    from sfumato.domains.sounds import Sounds
    from sfumato.domains.source import Source
    from sfumato.domains.sources import DataCard, fetch, list_sources, way_names
    from sfumato.domains.table import Table
    from sfumato.domains.video import Video

_HOMES = {
    "Captioned": "captioned",
    "DataCard": "sources",
    "DataCheck": "checks",
    "Domain": "examples",
    "Examples": "examples",
    "Fields": "fields",
    "ImageData": "image_data",
    "Images": "images",
    "LawBroken": "laws",
    "Music": "music",
    "Motion": "motion",
    "MoleculeLeaves": "molecule_leaves",
    "Molecules": "molecules",
    "Sequences": "sequences",
    "Series": "series",
    "Shapes": "shapes",
    "Sounds": "sounds",
    "Source": "source",
    "Table": "table",
    "Video": "video",
    "cache_folder": "cache",
    "check": "checks",
    "check_domain": "laws",
    "fetch": "sources",
    "list_sources": "sources",
    "way_names": "sources",
}
_DOMAINS = {
    "captioned": ("captioned", "Captioned"),
    "fields": ("fields", "Fields"),
    "images": ("images", "Images"),
    "music": ("music", "Music"),
    "motion": ("motion", "Motion"),
    "molecule-leaves": ("molecule_leaves", "MoleculeLeaves"),
    "molecules": ("molecules", "Molecules"),
    "sequences": ("sequences", "Sequences"),
    "table": ("table", "Table"),
    "series": ("series", "Series"),
    "video": ("video", "Video"),
    "shapes": ("shapes", "Shapes"),
    "sounds": ("sounds", "Sounds"),
    "speech": ("speech", "Speech"),
}

_OWN: dict[str, Any] = {}

__all__ = [
    "Captioned",
    "DataCard",
    "DataCheck",
    "Domain",
    "Examples",
    "Fields",
    "ImageData",
    "Images",
    "LawBroken",
    "MoleculeLeaves",
    "Molecules",
    "Motion",
    "Music",
    "Sequences",
    "Series",
    "Shapes",
    "Sounds",
    "Source",
    "Table",
    "Video",
    "build_domain",
    "cache_folder",
    "check",
    "check_domain",
    "fetch",
    "list_sources",
    "register_domain",
    "way_names",
]


def build_domain(kind: str, **config: Any) -> Any:
    """A domain by its kind ("images") and settings. Raises DataError naming the nearest for one it does not know."""
    cls = _OWN.get(kind)
    if cls is None:
        module, name = _DOMAINS[choose(kind, [*_DOMAINS, *_OWN], "domain", DataError)]
        cls = getattr(importlib.import_module(f"sfumato.domains.{module}"), name)
    return cls.from_json({"kind": kind, **config})


def register_domain(cls: Any) -> Any:
    """Make a domain of one's own known by its `name`, to recipes and to bundles; a class decorator.

    Only for this process: a bundle says the name of its domain and brings no code, so whoever loads it registers it
    first. Raises DataError for a name that is taken by another, or a class without one.
    """
    name = getattr(cls, "name", "")
    if not name or name in _DOMAINS or _OWN.get(name, cls).__qualname__ != cls.__qualname__:
        raise DataError(f"a domain of one's own needs a name that is not taken, not {name!r}")
    _OWN[name] = cls
    return cls


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"sfumato.domains.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
