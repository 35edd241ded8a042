"""Scores in MusicXML, plain or zipped (.mxl): the notes of each part, in quarter notes from the beginning.

A part is measures of notes that follow one another; `backup` and `forward` move the place, `divisions` says how many
units a quarter note has, a tie joins a note to the one before. Where a part has several voices, or a chord, the first
is taken: parts are sung by one. Grace notes take no time and are left out.
"""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from sfumato.domains.midi import LONGEST, Note
from sfumato.errors import DataError

LARGEST = 1 << 24  # bytes of a score
# what the standard library's readers raise; RuntimeError: a zip that is encrypted, or packed in no way that is known
_BROKEN = (
    ElementTree.ParseError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError,
    LookupError, ValueError, ArithmeticError,
)  # fmt: skip
_STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


@dataclass(frozen=True)
class Score:
    """The notes of some parts by name; metres as (beats, kind of beat); pickup: quarter notes before the first bar."""

    parts: dict[str, list[Note]]
    metres: tuple[tuple[str, str], ...]
    pickup: float


def read_score(content: bytes, names: Sequence[str], where: str) -> Score:
    """The parts of these names in a score. Raises DataError for what is no score, or has no such part."""
    try:
        root = ElementTree.fromstring(_unzipped(content))
        listed = {part.get("id"): part.findtext("part-name", "") for part in root.iter("score-part")}
        held = {listed.get(part.get("id"), ""): part for part in root.iter("part")}
        if missing := [name for name in names if name not in held]:
            raise DataError(f"{where} has no part {missing[0]!r}: it has {', '.join(held) or 'none'}")
        metres = {(t.findtext("beats", ""), t.findtext("beat-type", "")) for t in root.iter("time")}
        read = {name: _part(held[name]) for name in names}
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(f"{where} is no MusicXML that can be read: {error}") from None
    pickup = read[names[0]][1]
    return Score({name: notes for name, (notes, _) in read.items()}, tuple(sorted(metres)), pickup)


def _unzipped(content: bytes) -> bytes:
    if content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            inside = [
                one
                for one in archive.infolist()
                if one.filename.endswith((".xml", ".musicxml")) and not one.filename.startswith("META-INF")
            ]
            if not inside or inside[0].file_size > LARGEST:
                raise ValueError("it holds no score of a size that is read")
            content = archive.read(inside[0])
    if len(content) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST} bytes")
    return content


def _part(part: Element) -> tuple[list[Note], float]:
    """The notes of a part, and the length of a first measure that is no whole one (0 if it is)."""
    notes: list[Note] = []
    unit, begin, pickup = 1.0, 0.0, 0.0
    for number, measure in enumerate(part.iter("measure")):
        now = end = begin
        voice = None
        for item in measure:
            if item.tag == "attributes":
                unit = float(item.findtext("divisions", str(unit)))
            length = float(item.findtext("duration", "0")) / unit
            if not 0 <= length <= LONGEST:
                raise ValueError(f"a duration is {length} quarter notes")
            if item.tag == "backup":
                now -= length
            elif item.tag == "forward":
                now += length
            elif item.tag == "note" and item.find("grace") is None and item.find("chord") is None:
                voice = voice or item.findtext("voice", "1")
                if item.findtext("voice", "1") == voice and (pitch := item.find("pitch")) is not None:
                    _sing(notes, now, length, pitch, any(t.get("type") == "stop" for t in item.iter("tie")))
                now += length
            end = max(end, now)
        if number == 0 and (measure.get("implicit") == "yes" or measure.get("number") == "0"):
            pickup = end - begin
        begin = end
    return notes, pickup


def _sing(notes: list[Note], now: float, length: float, pitch: Element, tied: bool) -> None:
    height = 12 * (int(pitch.findtext("octave", "")) + 1) + _STEPS[pitch.findtext("step", "")]
    height += round(float(pitch.findtext("alter", "0")))
    last = notes[-1] if notes else None
    if tied and last is not None and last.pitch == height and abs(last.start + last.length - now) < 1e-6:
        notes[-1] = last._replace(length=last.length + length)
    else:
        notes.append(Note(now, length, height))
