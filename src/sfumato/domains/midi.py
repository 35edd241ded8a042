"""Standard MIDI files, the part of them that says which notes sound when.

    MThd  length 6, format, tracks, ticks a quarter note
    MTrk  length, then events: a delay in ticks, as a number of seven bits a byte, and a message

A message is a status byte and its data; the status may be left out where it is the one before (a running status). Of
messages only these matter: 9c note velocity starts a note, 8c or a velocity of 0 ends it, and of the meta events, ff
kind length, the name of a track (03). All others are passed over by their lengths.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sfumato.errors import DataError

TICKS = 480
LARGEST = 1 << 22  # bytes of a file
_DATA = {0x8: 2, 0x9: 2, 0xA: 2, 0xB: 2, 0xC: 1, 0xD: 1, 0xE: 2}


class Note(NamedTuple):
    """A note: when it starts and how long it is, in quarter notes, and its pitch, 60 being middle C."""

    start: float
    length: float
    pitch: int


def midi_bytes(tracks: Mapping[str, Sequence[Note]], tempo: float = 84.0, program: int = 19) -> bytes:
    """A file of format 1 with a track for each name, on its own channel. tempo: quarter notes a minute."""
    beat = round(60_000_000 / tempo)
    chunks = [_track([(0, b"\xff\x51\x03" + beat.to_bytes(3, "big"))])]
    for channel, (name, notes) in enumerate(tracks.items()):
        text = name.encode()
        events = [
            (0, b"\xff\x03" + _seven_bits(len(text)) + text),
            (0, bytes([0xC0 | channel, program])),
        ]
        for start, length, pitch in notes:
            events.append((round(start * TICKS), bytes([0x90 | channel, pitch, 80])))
            events.append((round((start + length) * TICKS), bytes([0x80 | channel, pitch, 0])))
        # what ends at a time comes before what starts there, so that a repeated note is struck again
        chunks.append(_track(sorted(events, key=lambda event: (event[0], event[1][0] & 0xF0 == 0x90))))
    return struct.pack(">4sIHHH", b"MThd", 6, 1, len(chunks), TICKS) + b"".join(chunks)


def _track(events: Sequence[tuple[int, bytes]]) -> bytes:
    body, now = b"", 0
    for when, message in events:
        body += _seven_bits(when - now) + message
        now = when
    body += b"\x00\xff\x2f\x00"
    return struct.pack(">4sI", b"MTrk", len(body)) + body


def _seven_bits(value: int) -> bytes:
    found = [value & 0x7F]
    while value := value >> 7:
        found.append(0x80 | (value & 0x7F))
    return bytes(reversed(found))


def read_midi(path: Path) -> dict[str, list[Note]]:
    """The notes of each track that has any, by its name, or "track 2" and so on. Raises DataError naming the file."""
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(f"{path} is larger than {LARGEST} bytes")
        data = path.read_bytes()
        kind, size, _, _, ticks = struct.unpack_from(">4sIHHH", data)
        if kind != b"MThd" or ticks & 0x8000 or not ticks:
            raise DataError(f"{path} is no MIDI file with ticks a quarter note")
        found: dict[str, list[Note]] = {}
        place = 8 + size
        while place + 8 <= len(data):
            kind, size = struct.unpack_from(">4sI", data, place)
            if kind == b"MTrk":
                name, notes = _notes(data[place + 8 : place + 8 + size], ticks)
                if notes:
                    name = name or f"track {len(found) + 1}"
                    found[name if name not in found else f"{name} {len(found) + 1}"] = notes
            place += 8 + size
    except (struct.error, IndexError) as error:
        raise DataError(f"{path} is no MIDI file, or ends too soon: {error}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    return found


def _notes(body: bytes, ticks: int) -> tuple[str, list[Note]]:
    """The name of a track and its notes, in order."""
    name, notes = "", []
    open_at: dict[tuple[int, int], int] = {}
    for when, status, data in _events(body):
        if status == 0x03FF:
            name = data.decode(errors="replace")
            continue
        key = (status & 0xF, data[0])
        if status >> 4 in (0x8, 0x9) and key in open_at:
            start = open_at.pop(key)
            notes.append(Note(start / ticks, (when - start) / ticks, key[1]))
        if status >> 4 == 0x9 and data[1]:
            open_at[key] = when
    return name, sorted(notes)


def _events(body: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(time in ticks, status, data) of the messages of channels, and of the name of the track as the status 03ff."""
    place = now = status = 0

    def number() -> int:
        nonlocal place
        value = 0
        while True:
            byte = body[place]
            place += 1
            value = value << 7 | byte & 0x7F
            if not byte & 0x80:
                return value

    while place < len(body):
        now += number()
        if body[place] & 0x80:
            status = body[place]
            place += 1
        if status in (0xF0, 0xF7, 0xFF):
            kind = 0
            if status == 0xFF:
                kind = body[place]
                place += 1
            length = number()
            if status == 0xFF and kind == 0x03:
                yield now, 0x03FF, body[place : place + length]
            place += length
            continue
        count = _DATA.get(status >> 4)
        if count is None:
            raise IndexError(f"a message {status:#x} at byte {place}")
        data = body[place : place + count]
        if len(data) < count:
            raise IndexError("a message without its data")
        place += count
        yield now, status, data
