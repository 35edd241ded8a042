"""Standard MIDI files, the part of them that says which notes sound when; package `mido` reads and writes the bytes.

A file holds tracks, a track messages with delays in ticks, so many a quarter note. Of messages only these matter: one
starts a note, one of the same channel and pitch ends it (or starts it again at a velocity of 0, which ends it too),
one names the track, and one says the metre, which is 4/4 where none does. A file of format 0 has one track for all:
there each channel counts as one. What is played on the channel of drums has no pitch, and is passed over.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sfumato.errors import DataError, MissingExtra

TICKS = 480
LARGEST = 1 << 22  # bytes of a file
LONGEST = 100_000  # quarter notes of a piece
DRUMS = 9  # the channel on which keys are drums


class Note(NamedTuple):
    """A note: when it starts and how long it is, in quarter notes, and its pitch, 60 being middle C."""

    start: float
    length: float
    pitch: int


def _mido() -> Any:
    try:
        import mido  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra("mido", "music") from None
    return mido


def midi_bytes(tracks: Mapping[str, Sequence[Note]], tempo: float = 84.0, program: int = 19) -> bytes:
    """A file of format 1 with a track for each name, on its own channel. tempo: quarter notes a minute."""
    mido = _mido()
    file = mido.MidiFile(ticks_per_beat=TICKS, charset="utf-8")
    file.add_track().append(mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(tempo)))
    for number, (name, notes) in enumerate(tracks.items()):
        channel = number + (number >= DRUMS)
        events = [
            (round(when * TICKS), on, pitch)
            for start, length, pitch in notes
            for when, on in ((start, True), (start + length, False))
        ]
        track = file.add_track(name)
        track.append(mido.Message("program_change", channel=channel, program=program))
        now = 0
        for when, on, pitch in sorted(
            events
        ):  # an end before a start, so that a repeated note is struck again
            kind = "note_on" if on else "note_off"
            track.append(mido.Message(kind, channel=channel, note=pitch, velocity=80, time=when - now))
            now = when
    written = io.BytesIO()
    file.save(file=written)
    return written.getvalue()


def content_of(path: Path, largest: int) -> bytes:
    """What a file holds. Raises DataError naming it if it cannot be read, or is larger."""
    try:
        if path.stat().st_size > largest:
            raise DataError(f"{path} is larger than {largest} bytes")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def read_midi(path: Path) -> dict[str, list[Note]]:
    """The notes of each track that has any, by its name, or "track 2" and so on. Raises DataError naming the file."""
    return open_midi(path)[0]


def open_midi(path: Path) -> tuple[dict[str, list[Note]], set[tuple[int, int]]]:
    """The same notes, and the metres that the file says, as (beats, kind of beat)."""
    mido, found = _mido(), {}
    content = content_of(path, LARGEST)
    try:
        file = mido.MidiFile(file=io.BytesIO(content), clip=True, charset="utf-8")
    except Exception as error:  # of many classes, one of them for a key that there is not
        raise DataError(f"{path} is no MIDI file, or ends too soon: {error}") from None
    if file.ticks_per_beat <= 0:
        raise DataError(f"{path} is no MIDI file with ticks a quarter note")
    for track in file.tracks:
        for notes in _notes(track, file.ticks_per_beat, apart=file.type == 0):
            name = track.name or f"track {len(found) + 1}"
            found[name if name not in found else f"{name} {len(found) + 1}"] = notes
    said = [one for track in file.tracks for one in track if one.type == "time_signature"]
    return found, {(one.numerator, one.denominator) for one in said}


def _notes(track: Any, ticks: int, apart: bool) -> list[list[Note]]:
    """The notes of a track, in order; of each of its channels if they are to be apart."""
    found: dict[int, list[Note]] = {}
    now = 0
    open_at: dict[tuple[int, int], int] = {}
    for message in track:
        now += message.time
        if message.type not in ("note_on", "note_off") or message.channel == DRUMS:
            continue
        notes = found.setdefault(message.channel if apart else 0, [])
        key = (message.channel, message.note)
        if key in open_at:
            start = open_at.pop(key)
            notes.append(Note(start / ticks, (now - start) / ticks, message.note))
        if message.type == "note_on" and message.velocity:
            open_at[key] = now
    return [sorted(found[channel]) for channel in sorted(found) if found[channel]]
