"""Speech from text: what is said becomes mel bands; a vocoder, or Griffin-Lim without one, makes a sound of them.

A state is the log mel bands of `length` samples, (1, mels, frames). The network is told at each frame which letters are
about it, in the slot "spectrum" (n, numbers, frames): the letter that is spoken and `reach` to either side, one of the
alphabet each, and how much of the letter is over. In training that is found by `alignment`; in sampling each letter
is given its mean time of the data, which makes an even rhythm. The texts of a folder are in its `metadata.csv`, a
line "name|text" a file; where there is none, Whisper hears them (`hearing`), so that a model may learn to say what it
misheard.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.domains.alignment import align
from sfumato.domains.examples import Examples
from sfumato.domains.hearing import all_heard, words
from sfumato.domains.sounds import Sounds
from sfumato.domains.source import Source
from sfumato.domains.spectra import griffin_lim
from sfumato.errors import DataError

ALPHABET = " abcdefghijklmnopqrstuvwxyz"
_SHOWN = 4


@dataclass(frozen=True)
class Speech(Sounds):
    """Speech of `length` samples, states float32 (1, mels, length / hop).

    reach: letters told to either side of the one that is spoken. times: frames that each letter of the alphabet
    takes; () takes those of the data. shown: texts that a model is shown by, one a line. For the rest see `Sounds`;
    power and scale are not used. Raises DataError for values that are none of these.
    """

    name: ClassVar[str] = "speech"
    length: int = 24_000
    stride: int = 8_000
    mels: int = 64
    reach: int = 3
    times: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "times", tuple(self.times))
        if self.mels < 1 or not 0 <= self.reach <= 16 or not all(0 < t < 1000 for t in self.times):
            raise DataError(f"speech needs mels, reach from 0 to 16 and times above 0, not {self.reach}")
        if self.agreement:
            raise DataError(
                "letters say no magnitudes: the agreement of speech is 0, that of its vocoder may be more"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """(1, mels, frames)."""
        return (1, self.mels, self.length // self.hop)

    @property
    def network(self) -> dict[str, Any]:
        """How many numbers are told of each frame."""
        return {"spectrum": (2 * self.reach + 1) * len(ALPHABET) + 1}

    # -- reading ---------------------------------------------------------------------------------------------------
    def read(self, source: Source | str | Path) -> Examples:
        """Pieces of the sounds at a source with the letters about each frame; what has no words is left out."""
        from sfumato.domains.images import as_source

        place = as_source(source)
        found = self.clips(place)
        texts = _texts(place, found.names, found.sounds, self.rate)
        said = [letters(text or "") for text in texts]
        whole = [np.pad(s, (0, -len(s) % self.hop + self.window)) for s in found.sounds]
        mels = [self.mel(s[None, : len(s) // self.hop * self.hop])[0].T.numpy() for s in whole]
        kept = [k for k, text in enumerate(said) if 2 < len(text) <= len(mels[k])]
        unsaid = [name for name, text in zip(found.names, texts, strict=True) if text is None]
        if not kept:
            why = f": metadata.csv says nothing of {', '.join(unsaid[:5])}" if unsaid else ""
            raise DataError(f"no sound of {place.name or place.path} has words that fit it{why}")
        paths = align([mels[k] for k in kept], [said[k] for k in kept], len(ALPHABET))
        spoken = np.concatenate([said[k][path] for k, path in zip(kept, paths, strict=True)])
        number = np.bincount(np.concatenate([said[k] for k in kept]), minlength=len(ALPHABET))
        mean = float(len(spoken) / number.sum())
        times = (np.bincount(spoken, minlength=len(ALPHABET)) + mean) / (number + 1)
        domain = replace(self, times=self.times or tuple(round(float(t), 3) for t in times))
        pieces: dict[str, list[np.ndarray]] = {"sound": [], "near": [], "over": []}
        files, frames = [], self.length // self.hop
        for k, path in zip(kept, paths, strict=True):
            near, over = domain._about(said[k], path)
            most = max(len(path) - frames, 0)
            for start in sorted({*range(0, most + 1, max(self.stride // self.hop, 1)), most}):
                sound = whole[k][start * self.hop : start * self.hop + self.length]
                pieces["sound"].append(np.pad(sound, (0, self.length - len(sound))))
                short = frames - len(near[start : start + frames])
                pieces["near"].append(np.pad(near[start : start + frames], ((0, short), (0, 0))))
                pieces["over"].append(np.pad(over[start : start + frames], (0, short)))
                files.append(found.names[k])
        stored = {name: np.stack(parts) for name, parts in pieces.items()}
        stored["sound"] = (stored["sound"] * 32768).round().clip(-32768, 32767).astype(np.int16)
        if not domain.shown:
            some = [said[k] for k in kept if sum(times[said[k]]) < frames] or [said[kept[0]]]
            shown = ["".join(ALPHABET[n] for n in text).strip() for text in some]
            domain = replace(domain, shown="\n".join(shown[k * len(shown) // _SHOWN] for k in range(_SHOWN)))
        without = len(said) - len(kept)
        about = {**found.about, "left_out": sum(found.left_out.values()) + without}
        why = {"hold no words": without - len(unsaid), "are not in metadata.csv": len(unsaid)}
        about["left_out_because"] = {**found.left_out, **why}
        domain = replace(domain, classes=(), scale=())
        return Examples(domain, stored, groups=tuple(files), name=about["sources"][0], about=about)

    def _about(self, text: np.ndarray, path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8: letters about each frame (frames, 2 reach + 1); 255ths of its letter that are over, (frames,)."""
        padded = np.pad(text, self.reach)
        near = np.stack([padded[path + k] for k in range(2 * self.reach + 1)], 1).astype(np.uint8)
        starts = np.searchsorted(path, path)
        lengths = np.bincount(path, minlength=len(text))[path]
        return near, (255 * (np.arange(len(path)) - starts) / lengths).astype(np.uint8)

    # -- states ----------------------------------------------------------------------------------------------------
    def encode(self, stored: Any) -> Tensor:
        """States (n, 1, mels, frames) of stored examples, or of sounds (n, length)."""
        return self.mel(stored["sound"] if isinstance(stored, Mapping) else stored)[:, None]

    def decode(self, samples: Any) -> Tensor:
        """Sounds float32 (n, length) of states, by Griffin-Lim; a vocoder makes better ones of `samples[:, 0]`."""
        return griffin_lim(samples[:, 0].float().cpu(), self.window, self.hop, self.rate)

    def told(self, stored: Any) -> dict[str, Tensor]:
        """{"spectrum": (n, numbers, frames)} of stored examples."""
        near, over = (torch.from_numpy(np.asarray(stored[key])) for key in ("near", "over"))
        letters_ = F.one_hot(near.long(), len(ALPHABET)).flatten(2).float()
        return {"spectrum": torch.cat([letters_, over[..., None].float() / 255], 2).mT}

    @property
    def asks(self) -> tuple[str, ...]:
        """A model is asked for a "text"."""
        return ("text",)

    def asked(self, given: Mapping[str, Any], noise: Any) -> dict[str, Tensor]:
        """What is told of the texts asked for, one for all or one each; left open, those kept of the data in turn."""
        count, kept = len(noise.indices), self.shown.split("\n")
        texts = given.get("text", [kept[k % len(kept)] for k in noise.indices])
        texts = list(texts) if np.iterable(texts) and not isinstance(texts, str) else [texts] * count
        if len(texts) != count or not all(isinstance(text, str) for text in texts):
            raise DataError(f"{count} samples need one text, or one each, not {texts!r:.60}")
        frames, parts = self.length // self.hop, []
        for text in texts:
            path, said = self._path(text)
            if len(path) > frames:
                raise DataError(
                    f"{text[:40]!r} takes {len(path) * self.hop / self.rate:.1f} s, and a sample has "
                    f"{self.length / self.rate:.1f} s: ask for less, or give the model domain.of_length(...)"
                )
            near, over = self._about(said, path)
            short = frames - len(path)
            parts.append((np.pad(near, ((0, short), (0, 0))), np.pad(over, (0, short))))
        near, over = (np.stack(part) for part in zip(*parts, strict=True))
        return self.told({"near": near, "over": over})

    def _path(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """(the letter's place at each frame, letters) of a text, each letter at its mean time. Raises DataError."""
        said = letters(text)
        if len(said) < 3 or not self.times:
            raise DataError(f"{text[:40]!r} holds no word that can be said")
        ends = np.maximum(
            np.cumsum(np.array(self.times)[said]).round().astype(int), np.arange(1, len(said) + 1)
        )
        return np.repeat(np.arange(len(said)), np.diff(ends, prepend=0)), said

    def samples_of(self, text: str) -> int:
        """How many samples a text takes."""
        return len(self._path(text)[0]) * self.hop

    def questions(self, data: Examples, count: int) -> dict[str, Any]:
        """Nothing: models are shown by the texts they keep."""
        return {}


def letters(text: str) -> np.ndarray:
    """A text as places in the alphabet, with a pause before and after it and one between words."""
    return np.array([ALPHABET.index(letter) for letter in f" {' '.join(words(text))} "], dtype=np.int64)


def _texts(
    place: Source, names: Sequence[str], sounds: Sequence[np.ndarray], rate: int
) -> Sequence[str | None]:
    """What is said in each sound: by `metadata.csv`, None if that leaves it out; else as it is heard."""
    table = None if place.path is None else Path(str(place.path)).expanduser() / "metadata.csv"
    if table is None or not table.is_file():
        return all_heard(sounds, rate)
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file, delimiter="|", quoting=csv.QUOTE_NONE) if len(row) > 1]
    except (UnicodeDecodeError, csv.Error):
        raise DataError(f"{table} is no text in UTF-8 with a line 'name|text' a file") from None
    found = {row[0]: row[-1] for row in rows}
    return [found.get(name, found.get(Path(name).stem)) for name in names]
