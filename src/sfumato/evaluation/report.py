"""One HTML file that can be mailed: pictures, curves, measures with intervals and floors, and the receipt.

Nothing in it points outside: pictures are PNG in the text, curves are SVG in the text (see `figures`), fonts are
the reader's own, and there is no script. It follows the reader's light or dark setting and prints well.

    Report("Digits", "A 2 M model.", [Measures(measures), Receipts([("quality", receipt)])]).write("report.html")

Needs the extra "report" (jinja2; matplotlib for the curves).
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sfumato.errors import DataError, MissingExtra
from sfumato.evaluation.figures import figure_loss_by_noise, figure_quality_vs_steps, figure_training
from sfumato.evaluation.measure import Measure
from sfumato.evaluation.receipts import Receipt
from sfumato.files import write_atomically

__all__ = [
    "Commands", "Curve", "Facts", "Measures", "Pictures", "Receipts", "Report", "Table",
    "figure_loss_by_noise", "figure_quality_vs_steps", "figure_training",
]  # fmt: skip

TITLES = {
    "frechet": "Fréchet distance",
    "kernel": "Kernel distance",
    "inception": "Inception-style score",
    "precision": "Precision",
    "recall": "Recall",
    "density": "Density",
    "coverage": "Coverage",
    "agreement": "Class agreement",
    "copying": "Closer than held-out",
}
SMALL = 420  # pictures narrower than this are enlarged with hard pixel edges instead of a blur


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side: (PIL image or path of a PNG, caption) each."""

    pictures: Sequence[tuple[Image.Image | Path | str, str]]
    title: str = ""
    text: str = ""


@dataclass(frozen=True)
class Curve:
    """A curve: an SVG element from one of the `figure_...` functions, and its caption."""

    svg: str
    caption: str
    title: str = ""
    text: str = ""


@dataclass(frozen=True)
class Measures:
    """Measures with intervals and floors; `features` (a features card) says over what they were taken."""

    measures: Sequence[Measure]
    title: str = ""
    text: str = ""
    features: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Facts:
    """Key facts, a few words each: (name, value)."""

    facts: Sequence[tuple[str, object]]
    title: str = ""
    text: str = ""


@dataclass(frozen=True)
class Table:
    """Any table: names of the columns, rows of as many cells. Columns of numbers are set to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    title: str = ""
    text: str = ""


@dataclass(frozen=True)
class Receipts:
    """Receipts, each folded in: (name, receipt)."""

    receipts: Sequence[tuple[str, Receipt]]
    title: str = ""
    text: str = ""


@dataclass(frozen=True)
class Commands:
    """What to type next: (why, command) each."""

    commands: Sequence[tuple[str, str]]
    title: str = ""
    text: str = ""


Section = Pictures | Curve | Measures | Facts | Table | Receipts | Commands


def _number(value: float | None, digits: int = 4) -> str:
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e5:
        return f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")
    return f"{value:.{digits}g}".replace("-", "−")


def _picture(picture: Image.Image | Path | str) -> tuple[str, bool]:
    """A PNG as a data address, and whether it is small enough to be enlarged."""
    if not isinstance(picture, Image.Image):
        try:
            with Image.open(picture) as opened:
                opened.load()
                picture = opened.copy()
        except OSError as error:
            raise DataError(f"{picture} cannot be read as a picture: {error}") from error
    buffer = io.BytesIO()
    # Without the ancillary chunks a file may carry, which could hold text and addresses.
    picture.convert("RGBA" if "A" in picture.getbands() else "RGB").save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/png;base64,{data}", picture.width < SMALL


def _features_line(card: Mapping[str, Any] | None) -> str:
    if not card:
        return ""
    name, dim, code = card.get("name"), card.get("dim"), str(card.get("hash"))[:12]
    line = f"Taken over features “{name}” ({dim} numbers an image, hash {code})"
    if card.get("accuracy") is not None:
        line += f", a classifier trained on {card.get('trained_on', '?')} images of the training set"
        line += f", {card['accuracy']:.2%} right on {card.get('held_out', '?')} held-out ones"
    return line + ": comparable only with scores over the same features."


@dataclass(frozen=True)
class Report:
    """A title, a lead of a sentence or two, and sections in the order in which they are read."""

    title: str
    lead: str
    sections: Sequence[Section]
    footer: str = "Made by sfumato. This file is whole: it loads nothing from anywhere."

    def html(self) -> str:
        """The page. Raises `MissingExtra` without jinja2, `DataError` for an unreadable picture or unfit table."""
        try:
            import jinja2
        except ImportError as error:
            raise MissingExtra("jinja2", extra="report") from error
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
        template = environment.from_string(
            Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
        )
        number, sections = 0, []
        for section in self.sections:
            found = _context(section, number)
            number = found.pop("last", number)
            sections.append({"title": section.title, "text": section.text} | found)
        return template.render(title=self.title, lead=self.lead, sections=sections, footer=self.footer)

    def write(self, path: Path | str) -> Path:
        """Write the page whole or not at all; returns its path."""
        path = Path(path)
        write_atomically(path, self.html().encode())
        return path


def _context(section: Section, number: int) -> dict[str, Any]:
    """What the template needs of a section; `last` is the number of its last figure."""
    if isinstance(section, Pictures):
        pictures = []
        for picture, caption in section.pictures:
            src, small = _picture(picture)
            number += bool(caption)
            pictures.append({"src": src, "small": small, "caption": caption, "number": number})
        return {"kind": "pictures", "pictures": pictures, "last": number}
    if isinstance(section, Curve):
        if not section.svg.lstrip().startswith("<svg"):
            raise DataError("a curve is an SVG element, as the figure_... functions give it")
        return {
            "kind": "curve",
            "svg": section.svg,
            "caption": section.caption,
            "number": number + 1,
            "last": number + 1,
        }
    if isinstance(section, Measures):
        rows = [
            {
                "name": TITLES.get(m.name, m.name),
                "value": _number(m.value),
                "interval": "–" if m.low is None else f"{_number(m.low, 3)} to {_number(m.high, 3)}",
                "floor": _number(m.floor),
                "n": f"{m.n:,}",
                "better": m.better,
                "note": m.note,
            }
            for m in section.measures
        ]
        return {"kind": "measures", "rows": rows, "features": _features_line(section.features)}
    if isinstance(section, Facts):
        return {"kind": "facts", "facts": [(name, str(value)) for name, value in section.facts]}
    if isinstance(section, Table):
        if any(len(row) != len(section.columns) for row in section.rows):
            raise DataError(f"each row of the table needs {len(section.columns)} cells")
        numeric = [
            bool(section.rows) and all(isinstance(row[i], int | float | None) for row in section.rows)
            for i in range(len(section.columns))
        ]
        rows = [[_number(c) if isinstance(c, float | None) else str(c) for c in row] for row in section.rows]
        return {"kind": "table", "columns": list(section.columns), "rows": rows, "numeric": numeric}
    if isinstance(section, Receipts):
        texts = [(n, json.dumps(r.to_json(), indent=2, ensure_ascii=False)) for n, r in section.receipts]
        return {"kind": "receipt", "receipts": texts}
    return {"kind": "commands", "commands": list(section.commands)}
