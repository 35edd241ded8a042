"""Sounds in files: which there are at a source, and what is in each, as one channel at one rate.

WAV of whole numbers is read by the standard library; FLAC, OGG and WAV of other kinds by `soundfile` (extra "sounds").
A sound of several channels becomes their mean, one of another rate is resampled by a polyphase filter (SciPy), and its
class is the first folder that it is in below the one asked for, if all are in one. What cannot be decoded, holds
numbers that are not finite, or is silent throughout is left out and counted by its reason. Of a `limit` of files that
are evenly spread, those that are left out are replaced by others.
"""

from __future__ import annotations

import io
import lzma
import math
import tarfile
import wave
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sfumato.domains.source import Source
from sfumato.errors import DataError, MissingExtra

SUFFIXES = (".wav", ".flac", ".ogg")
LARGEST = 1 << 28  # bytes of a file, and of what it holds as numbers
MOST = 1 << 18  # files
RATES = (1_000, 192_000)
SILENCE = 1e-4
"""The largest absolute value of a sound that counts as silent: a third of a step of 12 bits."""


@dataclass(frozen=True)
class Clips:
    """Sounds float32 (samples,) with the names of their files and of their classes (all, or none: ())."""

    sounds: tuple[np.ndarray, ...]
    names: tuple[str, ...]
    classes: tuple[str, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


def open_clips(source: Source, rate: int) -> Clips:
    """All sounds at a source, at a rate in Hz. Raises DataError where none are left, MissingExtra without a library."""
    if source.hub is not None:
        raise DataError("sounds are read from a named source, a folder or a file, not from the Hub")
    if source.name is not None:
        from sfumato.domains.sources import sound_files

        files, about = sound_files(source)
    else:
        files, about = _local(Path(str(source.path)).expanduser())
    if source.licence:
        about["licence"] = source.licence
    count, problems = len(files), Counter()
    most = min(source.limit or count, count)
    sounds: dict[int, np.ndarray] = {}
    for k in dict.fromkeys([*(n * count // most for n in range(most)), *range(count)]):
        if len(sounds) == most:
            break
        try:
            sounds[k] = _usable(*decode(_content(files[k][2])), rate)
        except DataError as problem:
            problems[str(problem)] += 1
    kept = sorted(sounds)
    if not kept:
        said = "; ".join(f"{count} of them {why}" for why, count in problems.items()) or "there is none"
        raise DataError(f"{source.name or source.path} holds no sound that can be used: {said}")
    classes = tuple(files[k][1] for k in kept)
    whole = classes if all(classes) and source.labels != "none" else ()
    return Clips(
        tuple(sounds[k] for k in kept), tuple(files[k][0] for k in kept), whole, dict(problems), about
    )


def decode(content: bytes) -> tuple[np.ndarray, int]:
    """(float (samples, channels) in [-1, 1], rate) of a file's content. Raises DataError for what is no sound."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            wide, channels = file.getsampwidth(), file.getnchannels()
            raw = np.frombuffer(file.readframes(file.getnframes()), np.uint8)
            raw = raw[: len(raw) // (wide * channels) * wide * channels].reshape(-1, wide)
            if wide == 1:
                found = raw.astype(np.float32) / 128 - 1
            else:  # little-endian whole numbers of 2 to 4 bytes: fill up from below
                full = np.zeros((len(raw), 4), np.uint8)
                full[:, 4 - wide :] = raw
                found = full.view("<i4").astype(np.float32) / 2.0**31
            return found.reshape(-1, channels), file.getframerate()
    except (wave.Error, EOFError, ValueError, ZeroDivisionError):
        pass
    try:
        import soundfile
    except ImportError:
        if content[:4] in (b"fLaC", b"OggS"):
            raise MissingExtra("soundfile", "sounds") from None
        raise DataError("are no WAV of whole numbers") from None
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if file.frames * file.channels * 4 > LARGEST:
                raise DataError(f"are longer than {LARGEST} bytes")
            return file.read(dtype="float32", always_2d=True), file.samplerate
    except (soundfile.SoundFileError, RuntimeError, TypeError):
        raise DataError("cannot be decoded") from None


def _usable(sound: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """One channel at the rate wanted. Raises DataError for a sound that is of no use."""
    if not RATES[0] <= rate <= RATES[1]:
        raise DataError(f"have a rate out of {RATES[0]} to {RATES[1]} Hz")
    if not np.isfinite(sound).all():
        raise DataError("hold numbers that are not finite")
    one = sound.mean(1)
    if len(one) == 0 or np.abs(one).max() < SILENCE:
        raise DataError("are silent")
    if rate == wanted:
        return one
    try:
        from scipy.signal import resample_poly
    except ImportError:
        raise MissingExtra("scipy", "sounds") from None
    common = math.gcd(rate, wanted)
    return resample_poly(one, wanted // common, rate // common).astype(np.float32)


def _content(file: bytes | Path) -> bytes:
    """What is in a file, if it is not too large."""
    if isinstance(file, bytes):
        return file
    return file.read_bytes() if file.stat().st_size <= LARGEST else b""


def _local(place: Path) -> tuple[Sequence[tuple[str, str, bytes | Path]], dict[str, Any]]:
    """(name, class or "", path) of each file of sound at a place, in the order of their names."""
    if not place.exists():
        raise DataError(f"{place} does not exist: sounds are a folder of {', '.join(SUFFIXES)}, or one file")
    root = place if place.is_dir() else place.parent
    paths = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
    paths = [path for path in paths if path.suffix.lower() in SUFFIXES]
    if len(paths) > MOST:
        raise DataError(f"{place} holds more than {MOST} files of sound")
    parts = [path.relative_to(root).parts for path in paths]
    files = [("/".join(p), p[0] if len(p) > 1 else "", path) for p, path in zip(parts, paths, strict=True)]
    return files, {"sources": [place.name]}


def in_debian_package(package: Path, folder: str) -> list[tuple[str, bytes]]:
    """(name below `folder`, content) of the files of sound in a .deb, in the order of their names.

    A .deb is an `ar` archive of three members, of which `data.tar.*` holds the files. Raises DataError for another.
    """
    content, at, found = package.read_bytes(), 8, []
    while content[:8] == b"!<arch>\n" and at + 60 <= len(content):
        name, size = content[at : at + 16].decode().strip(), int(content[at + 48 : at + 58])
        if name.startswith("data.tar"):
            try:
                with tarfile.open(fileobj=io.BytesIO(content[at + 60 : at + 60 + size])) as archive:
                    for member in archive:
                        path = PurePosixPath(member.name)
                        inside = path.is_relative_to(folder) and path.suffix in SUFFIXES
                        file = (
                            archive.extractfile(member)
                            if inside and member.isfile() and member.size <= LARGEST
                            else None
                        )
                        if file is not None:
                            found.append((path.relative_to(folder).as_posix(), file.read()))
            except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
                raise DataError(f"{package.name} cannot be unpacked: {error}") from None
        at += 60 + size + size % 2
    if not found:
        raise DataError(f"{package.name} is no Debian package with sounds in {folder}")
    return sorted(found)


def to_wav(sound: np.ndarray, rate: int) -> bytes:
    """A WAV file of 16 bits of one channel (samples,), clipped to [-1, 1]. Raises DataError for NaN."""
    if not np.isfinite(sound).all():
        raise DataError("a sound that is not finite cannot be written")
    memory = io.BytesIO()
    with wave.open(memory, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.asarray(sound) * 32768).round().clip(-32768, 32767).astype("<i2").tobytes())
    return memory.getvalue()
