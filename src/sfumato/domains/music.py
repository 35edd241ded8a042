"""Music in four voices as a roll of symbols: chorales, and whatever else is sung or played by one note a voice.

Time is cut into steps, `beat` of them a quarter note. A position of the roll is one voice at one step, and holds what
sounds there: 0 a rest, 1 the note before held on, or a pitch that begins (2 and up, `lowest` first). A state is the
steps one after another, in each the voices from high to low, int64 (steps x voices,). Notes that begin and end between
two steps are lost; so the roll of eighths loses passing sixteenths, and says the rest exactly.

An example is a window of `steps` that begins at a bar; a note held into it begins there. Windows of one piece differ
less than pieces do, transposed ones hardly, and chorales set one melody again and again, so what is held out together
is all that begins with the same intervals of the soprano. Each window comes in every transposition that leaves each
voice within the range that it has in the data: the melody's key says nothing of what follows.

Pieces are MusicXML or MIDI, samples are MIDI; a MIDI file with fewer voices is a piece with gaps. Left out and counted
are pieces that cannot be read, of another metre, without one of the voices, out of range, or shorter than a window.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sfumato.domains.examples import Domain, Examples
from sfumato.domains.midi import LONGEST, Note, content_of, midi_bytes, open_midi
from sfumato.domains.musicxml import LARGEST, read_score
from sfumato.domains.source import Source
from sfumato.errors import DataError, choose

if TYPE_CHECKING:
    from PIL.Image import Image

REST, HOLD, FIRST = 0, 1, 2
BAR = 4  # quarter notes; other metres are left out
MELODY = 12  # intervals that say which melody it is
SUFFIXES = (".mid", ".midi", ".mxl", ".musicxml", ".xml")
_COLOURS = np.array([(200, 60, 60), (220, 150, 40), (60, 140, 80), (50, 90, 180)], np.float32)
_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "G#", "A", "Bb", "B")
Voices = Mapping[str, Sequence[Note]]


@dataclass(frozen=True)
class Music(Domain):
    """Rolls of `steps` steps of `voices` notes, states int64 (steps x voices,); see the file's head.

    voices: names of the parts, from high to low. beat: steps a quarter note. lowest, highest: pitches, 60 being middle
    C. transpose: whether each window comes in all keys. Raises DataError for values that are none of these.
    """

    name: ClassVar[str] = "music"
    suffix: ClassVar[str] = "mid"
    sources: ClassVar[bool] = True
    voices: tuple[str, ...] = ("Soprano", "Alto", "Tenor", "Bass")
    steps: int = 32
    beat: int = 2
    lowest: int = 36
    highest: int = 81
    transpose: bool = True

    def __post_init__(self) -> None:
        for key in ("voices", "classes"):
            object.__setattr__(self, key, tuple(getattr(self, key)))
        if not self.voices or len(set(self.voices)) < len(self.voices) or len(self.voices) > 15:
            raise DataError(f"voices are 1 to 15 different names, not {self.voices!r}")
        if not 0 <= self.lowest < self.highest <= 127:
            raise DataError(f"pitches lie in 0..127, lowest below highest: not {self.lowest}, {self.highest}")
        if self.beat < 1 or self.steps < 1:
            raise DataError(f"beat and steps are at least 1, not {self.beat}, {self.steps}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(steps x voices,)."""
        return (self.steps * len(self.voices),)

    @property
    def symbols(self) -> int:
        """How many states a position has: a rest, a hold and the pitches."""
        return self.highest - self.lowest + 1 + FIRST

    # -- pieces ----------------------------------------------------------------------------------------------------
    def read(self, source: Source | str | Path) -> Examples:
        """The windows of the pieces at a named source, a file or a folder. A piece that cannot be used is counted."""
        from sfumato.domains.images import as_source

        place = as_source(source)
        pieces, about = self._pieces(place)
        rolls, melodies, why = [], [], []
        for piece in pieces:
            try:
                voices, pickup = piece()
                roll = self.roll(voices)[round(pickup * self.beat) :]
                if missing := [name for name in self.voices if not voices.get(name)]:
                    raise DataError(f"a piece has no {missing[0]}: a model would learn that it is silent")
                if len(roll) < self.steps:
                    raise DataError(f"a piece is shorter than {self.steps} steps")
                rolls.append(roll)
                melodies.append(_melody(voices[self.voices[0]]))
            except DataError as error:
                why.append(str(error))
        if not rolls:
            raise DataError(
                f"{place.name or place.path} holds no piece that can be used" + f": {why[0]}" * bool(why)
            )
        low, top = _ranges(rolls)
        stored, groups = [], []
        for roll, melody in zip(rolls, melodies, strict=True):
            for start in range(0, len(roll) - self.steps + 1, BAR * self.beat):
                found = list(self._keys(_begun(roll, start, self.steps), low, top))
                stored += found
                groups += [melody] * len(found)
        about = {**about, "left_out": len(why), "pieces": len(rolls), "melodies": len(set(groups))}
        (title,) = about["sources"]
        data = Examples(
            self, np.stack(stored).reshape(len(stored), -1), groups=tuple(groups), name=title, about=about
        )
        return data.spread(place.limit)

    def _pieces(self, place: Source) -> tuple[list[Callable[[], tuple[Voices, float]]], dict[str, Any]]:
        """What reads each piece, voices and pickup, and what the data card says."""
        if place.name is not None:
            from sfumato.domains.sources import named_file

            path, (inside,), about = named_file(place, "music")
            with zipfile.ZipFile(path) as archive:
                held = [one for one in archive.infolist() if one.filename.startswith(inside)]
                scores = {
                    one.filename: archive.read(one)
                    for one in sorted(held, key=lambda one: one.filename)
                    if one.filename.lower().endswith(".mxl") and one.file_size <= LARGEST
                }
            return [lambda n=n, c=c: self._score(c, n) for n, c in scores.items()], about
        path = Path(str(place.path)).expanduser()
        files = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in SUFFIXES] or [path]
        if not files or not all(file.is_file() for file in files):
            raise DataError(f"{path} holds no music: files of it end in {', '.join(SUFFIXES)}")
        return [lambda file=file: self._file(file) for file in files], {"sources": [path.name]}

    def _score(self, content: bytes, where: str) -> tuple[Voices, float]:
        score = read_score(content, self.voices, where)
        if any(metre != ("4", "4") for metre in score.metres):
            raise DataError(f"{where} is not in 4/4 throughout")
        return score.parts, score.pickup

    def _file(self, path: Path) -> tuple[Voices, float]:
        if path.suffix.lower() not in (".mid", ".midi"):
            return self._score(content_of(path, LARGEST), str(path))
        tracks, metres = open_midi(path)
        if metres - {(4, 4)}:
            raise DataError(f"{path} is not in 4/4 throughout")
        voices = {name: tracks[name] for name in self.voices if name in tracks}
        if not voices:  # of other names: taken in their order, from high to low
            if len(tracks) > len(self.voices):
                raise DataError(f"{path} has {len(tracks)} tracks, and there are {len(self.voices)} voices")
            voices = dict(zip(self.voices, tracks.values(), strict=False))
        return voices, 0.0

    def roll(self, voices: Voices) -> np.ndarray:
        """What sounds at each step, uint8 (steps, voices). Raises DataError for a pitch out of range, or no note."""
        ends = [note.start + note.length for notes in voices.values() for note in notes]
        if not ends:
            raise DataError("there are no notes")
        if max(ends) > LONGEST or min(note.start for notes in voices.values() for note in notes) < -1e-6:
            raise DataError(f"a piece is from 0 to {LONGEST} quarter notes long, and this one goes beyond")
        found = np.zeros((round(np.ceil(max(ends) * self.beat - 1e-6)), len(self.voices)), np.uint8)
        for k, name in enumerate(self.voices):
            for start, length, pitch in voices.get(name, ()):
                if not self.lowest <= pitch <= self.highest:
                    raise DataError(f"{name} has the pitch {pitch}, out of {self.lowest} to {self.highest}")
                a, b = (int(np.ceil(x * self.beat - 1e-6)) for x in (start, start + length))
                if a < b:
                    found[a:b, k] = HOLD
                    found[a, k] = pitch - self.lowest + FIRST
        return found

    def _keys(self, window: np.ndarray, low: np.ndarray, top: np.ndarray) -> Iterator[np.ndarray]:
        """The window in all keys that leave the voices in their ranges, at most an octave's worth; itself first."""
        yield window
        notes = window >= FIRST
        for shift in [*range(-5, 0), *range(1, 7)] if self.transpose else ():
            moved = np.where(notes, window.astype(np.int64) + shift, window)
            if all(
                ((low[k] <= v[n]) & (v[n] <= top[k])).all()
                for k, (v, n) in enumerate(zip(moved.T, notes.T, strict=True))
            ):
                yield moved.astype(np.uint8)

    # -- states ----------------------------------------------------------------------------------------------------
    def encode(self, stored: Any) -> Tensor:
        """States, int64 (n, steps x voices)."""
        return torch.from_numpy(np.asarray(stored).astype(np.int64))

    def rolls(self, samples: Any) -> np.ndarray:
        """Samples or what is stored as (n, steps, voices)."""
        return np.asarray(samples.cpu() if isinstance(samples, Tensor) else samples).reshape(
            len(samples), -1, len(self.voices)
        )

    def sounding(self, samples: Any) -> np.ndarray:
        """The pitch that sounds, int64 (n, steps, voices), 0 for a rest; of a hold, what is held."""
        rolls = self.rolls(samples).astype(np.int64)
        found = np.where(rolls >= FIRST, rolls - FIRST + self.lowest, 0)
        for step in range(1, rolls.shape[1]):
            held = rolls[:, step] == HOLD
            found[:, step][held] = found[:, step - 1][held]
        return found

    def notes(self, sample: Any) -> dict[str, list[Note]]:
        """The notes of each voice of one sample (steps x voices,). A hold with nothing before it is a rest."""
        (roll,), (pitches,) = self.rolls(sample[None]), self.sounding(sample[None])
        found: dict[str, list[Note]] = {name: [] for name in self.voices}
        for k, notes in enumerate(found.values()):
            for step, symbol in enumerate(roll[:, k].tolist()):
                if symbol >= FIRST:
                    notes.append(Note(step / self.beat, 1 / self.beat, int(pitches[step, k])))
                elif symbol == HOLD and pitches[step, k]:
                    notes[-1] = notes[-1]._replace(length=notes[-1].length + 1 / self.beat)
        return found

    def partial(self, given: str) -> Tensor:
        """A state with -1 for the voices that a file leaves out, or that are named: "a.mid" or "a.mid:Alto,Bass"."""
        path, _, named = given.rpartition(":") if ":" in given else (given, "", "")
        voices, pickup = self._file(Path(path).expanduser())
        free = {choose(name, self.voices, "voice", DataError) for name in named.split(",") if name}
        free |= {name for name in self.voices if not voices.get(name)}
        roll = self.roll(voices)[round(pickup * self.beat) :].astype(np.int64)
        if len(roll) > self.steps:
            warnings.warn(f"{path} has {len(roll)} steps; {self.steps} of them are filled", stacklevel=4)
        window = np.full((self.steps, len(self.voices)), REST)
        window[: len(roll)] = _begun(roll, 0, self.steps)
        window[:, [name in free for name in self.voices]] = -1
        return torch.from_numpy(window.reshape(1, -1))

    # -- what people see -------------------------------------------------------------------------------------------
    def text(self, samples: Any) -> list[str]:
        """Each sample as a line: a voice after another, notes by name and octave, - held on, . a rest."""

        def word(symbol: int) -> str:
            pitch = symbol - FIRST + self.lowest
            return (".", "-")[symbol] if symbol < FIRST else f"{_NAMES[pitch % 12]}{pitch // 12 - 1}"

        return [
            " | ".join(" ".join(word(int(s)) for s in roll[:, k]) for k in range(len(self.voices)))
            for roll in self.rolls(samples)
        ]

    def write(
        self,
        samples: Any,
        folder: str | Path,
        labels: Any = None,
        start: int = 0,
        prompts: Sequence[str] | None = None,
    ) -> list[Path]:
        """Write a MIDI file a sample, a track for each voice."""
        return self._files((midi_bytes(self.notes(sample)) for sample in samples), folder, None, start)

    def drawn(self, samples: Any, tall: int = 2, wide: int = 5) -> np.ndarray:
        """Piano rolls, uint8 (n, height, width, 3): time to the right, pitch upwards, a colour a voice, bars marked."""
        rolls, pitches = self.rolls(samples), self.sounding(samples)
        n, steps = rolls.shape[:2]
        rows = self.highest - self.lowest + 1
        paper = np.full((n, rows * tall, steps * wide, 3), 250, np.uint8)
        for step in range(0, steps, BAR * self.beat):
            paper[:, :, step * wide] = 215
        for i, step, k in zip(*np.nonzero(pitches), strict=True):
            y, x = (self.highest - pitches[i, step, k]) * tall, step * wide
            begins = rolls[i, step, k] != HOLD
            paper[i, y : y + tall, x + begins : x + wide] = _COLOURS[k % len(_COLOURS)]
        return paper

    def picture(self, samples: Any, columns: int | None = None, rows: Sequence[str] | None = None) -> Image:
        """All samples as piano rolls; at most 6 in a row unless rows have captions."""
        from sfumato.domains import grids

        return grids.grid(self.drawn(samples), columns=columns if rows else min(columns or 4, 4), rows=rows)

    def strip(self, batches: Sequence[Any], captions: Sequence[str] | None = None) -> Image:
        """A column for each batch of the same samples; a mask, which is no symbol, is drawn as a rest."""
        from sfumato.domains import grids

        shown = [torch.where(batch >= self.symbols, REST, batch) for batch in batches]
        return grids.strip([self.drawn(batch) for batch in shown], captions=captions)


def _begun(roll: np.ndarray, start: int, steps: int) -> np.ndarray:
    """A window of a roll (steps, voices); what is held into it begins there."""
    window = roll[start : start + steps].copy()
    for k in range(roll.shape[1]):
        if len(window) and window[0, k] == HOLD:
            before = roll[:start, k]
            window[0, k] = before[before != HOLD][-1] if (before != HOLD).any() else REST
    return window


def _ranges(rolls: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest symbol of each voice that is a pitch."""
    whole = np.concatenate(rolls).astype(np.int64)
    low = np.where(whole >= FIRST, whole, 1 << 10).min(0)
    return low, np.where(whole >= FIRST, whole, 0).max(0)


def _melody(notes: Sequence[Note]) -> str:
    """The first intervals of a voice, by which chorales on one melody know each other."""
    pitches = [note.pitch for note in notes[: MELODY + 1]]
    return " ".join(str(b - a) for a, b in pairwise(pitches))
