"""Sounds: one-shots by class, and speech of which a model is told the spectrum (a vocoder).

A state is the short-time Fourier transform S of `length` samples, two channels (real, imaginary) of bins x frames,

    x = S |S|^(power - 1) / scale,        scale: one a bin, so that x has a mean square of 1,

which is undone exactly. Sound has a range of 60 dB, of which a squared error would see the loudest 10; with power = .5
there are 30 dB left, and what is quiet counts too (Richter et al. 2023, arXiv:2208.05830, equation 19, for speech
enhancement). A bin holds a few hundredths of a second, so a network needs to reach over fewer places than samples.

With `mels` > 0 a network is told the log mel bands of a sound in the slot "spectrum" (n, mels, frames), and makes the
sound that they are of. That slot is never dropped. It says much of the magnitudes: with `agreement` each estimate of S
goes towards the nearest that has these bands (`Domain.agree`): its magnitudes move as `spectra.magnitudes` says, its
phases stay, and from 2 on they then settle with the magnitudes, a round of Griffin-Lim for each. A network without a
fixed number of frames makes a sound of any length: `domain.of_length(samples)` is this domain with another one.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sfumato.domains.examples import Domain, Examples
from sfumato.domains.image_data import spread_rows
from sfumato.domains.source import Source
from sfumato.domains.spectra import frames, log_mels, magnitudes, settle, sound_of
from sfumato.domains.waves import RATES, Clips, open_clips, to_wav
from sfumato.errors import DataError, choose

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST = 1 << 24  # samples of an example
_SHOWN = 4  # spectra that a vocoder's bundle keeps to be shown by
_DARK = (
    (0, 0, 4),
    (80, 18, 123),
    (182, 54, 121),
    (251, 136, 97),
    (252, 253, 191),
)  # from -80 dB to the loudest
_STEPS = 20.0  # of a kept spectrum, to 1


@dataclass(frozen=True)
class Sounds(Domain):
    """Sounds of `length` samples, states float32 (2, window / 2, length / hop).

    rate: in Hz; files of another are resampled. stride: 0 takes the beginning of each file, else a piece every so many
    samples; what is shorter than `length` is filled up with silence, and a piece that is silent is none. peak: what the
    loudest sample of each file is brought to; 0 leaves files as loud as they are. mels: bands that a network is told, 0
    for none. agreement: how often a vocoder's estimates are given magnitudes that have its bands, each time but the
    first by way of a sound; 0 never.
    scale: of each bin; () takes those of the data. shown: spectra that a vocoder is shown by, of the data. Raises
    DataError for other values.
    """

    name: ClassVar[str] = "sounds"
    suffix: ClassVar[str] = "wav"
    sources: ClassVar[bool] = True
    rate: int = 8000
    length: int = 8000
    stride: int = 0
    peak: float = 0.0
    window: int = 256
    hop: int = 80
    power: float = 0.5
    mels: int = 0
    agreement: int = 0
    scale: tuple[float, ...] = ()
    shown: str = ""

    def __post_init__(self) -> None:
        for key in ("classes", "scale"):
            object.__setattr__(self, key, tuple(getattr(self, key)))
        for key, low, high in (
            ("rate", *RATES), ("length", 1, LONGEST), ("stride", 0, LONGEST), ("window", 16, 1 << 14),
            ("hop", 1, self.window // 2), ("mels", 0, self.window // 2), ("agreement", 0, 100 if self.mels else 0),
        ):  # fmt: skip
            if not isinstance(value := getattr(self, key), int) or not low <= value <= high:
                raise DataError(f"{key} of sounds must be a whole number from {low} to {high}, not {value!r}")
        if self.window % 2 or self.length % self.hop or self.length < self.window:
            raise DataError(
                f"length ({self.length}) must be a multiple of hop ({self.hop}) and no less than the window, "
                f"an even number ({self.window})"
            )
        if not 0 < self.power <= 1 or not 0 <= self.peak <= 1 or any(not s > 0 for s in self.scale):
            raise DataError(
                f"power must be in (0, 1], peak in [0, 1], scales above 0: {self.power}, {self.peak}"
            )
        if self.scale and len(self.scale) != self.window // 2:
            raise DataError(f"{self.window // 2} bins need as many scales, not {len(self.scale)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(2, bins, frames)."""
        return (2, self.window // 2, self.length // self.hop)

    @property
    def network(self) -> dict[str, Any]:
        """Of a vocoder the bands it is told."""
        return {"spectrum": self.mels} if self.mels else {}

    def of_length(self, samples: int) -> Sounds:
        """This domain with room for so many samples."""
        return replace(self, length=max(-(-samples // self.hop) * self.hop, self.window))

    # -- reading ---------------------------------------------------------------------------------------------------
    def clips(self, source: Source | str | Path) -> Clips:
        """The whole sounds at a source; see `waves.open_clips`."""
        from sfumato.domains.images import as_source

        found = open_clips(as_source(source), self.rate)
        if not self.peak:
            return found
        return replace(found, sounds=tuple(self.peak / np.abs(s).max() * s for s in found.sounds))

    def read(self, source: Source | str | Path) -> Examples:
        """The pieces of the sounds at a source, int16; pieces of one file are held out together."""
        found, pieces, files = self.clips(source), [], []
        for number, sound in enumerate(found.sounds):
            most = max(len(sound) - self.length, 0) if self.stride else 0
            for start in sorted({*range(0, most + 1, self.stride or 1), most}):
                piece = sound[start : start + self.length]
                if np.abs(piece).max() > 0:
                    pieces.append(np.pad(piece, (0, self.length - len(piece))))
                    files.append(number)
        silent = len(found.sounds) - len(set(files))
        left_out = found.left_out | ({"are silent at first": silent} if silent else {})
        if not pieces:
            raise DataError(f"all sounds are silent in their first {self.length} samples: give a stride")
        stored = (np.stack(pieces) * 32768).round().clip(-32768, 32767).astype(np.int16)
        labels, classes = None, self.classes
        if found.classes:
            classes = classes or tuple(sorted(set(found.classes)))
            names = [choose(found.classes[k], classes, "class of the model", DataError) for k in files]
            labels = np.array([classes.index(name) for name in names], dtype=np.int64)
        domain = replace(self, classes=classes if labels is not None else ())
        if not domain.scale:
            domain = replace(domain, scale=domain._scales(stored))
        if self.mels and not self.shown:
            some = stored[np.arange(_SHOWN) * len(stored) // _SHOWN]
            told = (domain.told(some)["spectrum"] * _STEPS).round().clamp(-127, 127).to(torch.int8)
            domain = replace(domain, shown=base64.b85encode(told.numpy().tobytes()).decode())
        about = {**found.about, "left_out": sum(left_out.values()), "left_out_because": left_out}
        groups = tuple(found.names[k] for k in files)
        return Examples(domain, stored, labels, groups=groups, name=about["sources"][0], about=about)

    def _scales(self, stored: np.ndarray) -> tuple[float, ...]:
        some = stored[spread_rows(stored, 2000)]
        x = replace(self, scale=(1.0,) * (self.window // 2)).encode(some)
        return tuple(max(float(s), 1e-6) for s in x.square().mean((0, 1, 3)).sqrt())

    # -- states ----------------------------------------------------------------------------------------------------
    def _heard(self, stored: Any) -> Tensor:
        x = torch.from_numpy(np.asarray(stored))
        return x.float() / 32768 if x.dtype == torch.int16 else x.float()

    def encode(self, stored: Any) -> Tensor:
        """States (n, 2, bins, frames) of sounds int16 or float (n, length)."""
        return self._state(frames(self._heard(stored), self.window, self.hop))

    def decode(self, samples: Any) -> Tensor:
        """Sounds float32 (n, length) of states."""
        return sound_of(self._spectrum(samples.cpu()), self.window, self.hop)

    def _state(self, s: Tensor) -> Tensor:
        x = torch.view_as_real(s * s.abs().clamp_min(1e-12) ** (self.power - 1)).permute(0, 3, 1, 2)
        return (x / torch.tensor(self.scale, device=x.device)[:, None]).contiguous()

    def _spectrum(self, x: Tensor) -> Tensor:
        x = x.float() * torch.tensor(self.scale, device=x.device)[:, None]
        s = torch.complex(x[:, 0], x[:, 1])
        return s * s.abs().clamp_min(1e-12) ** (1 / self.power - 1)

    def mel(self, sounds: Any) -> Tensor:
        """Log mel bands (n, mels, frames) of sounds (n, length)."""
        return log_mels(frames(self._heard(sounds), self.window, self.hop), self.mels, self.rate)

    # -- what a vocoder is told ------------------------------------------------------------------------------------
    @property
    def agree(self) -> Callable[[Tensor, Mapping[str, Tensor]], Tensor] | None:
        """Gives estimates the magnitudes that a vocoder is told, and phases that fit them, as `agreement` says."""
        return self._agree if self.agreement else None

    def _agree(self, x0: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        s = self._spectrum(x0)
        size = magnitudes(condition["spectrum"].float(), self.window, self.rate, s.abs())
        return self._state(size * settle(s, size, self.window, self.hop, self.agreement - 1)).to(x0.dtype)

    @property
    def asks(self) -> tuple[str, ...]:
        """A vocoder is asked for a "spectrum"."""
        return ("spectrum",) if self.mels else ()

    def told(self, stored: Any) -> dict[str, Tensor]:
        """{"spectrum": (n, mels, frames)} of a vocoder's sounds."""
        return {"spectrum": self.mel(stored)} if self.mels else {}

    def asked(self, given: Mapping[str, Any], noise: Any) -> dict[str, Tensor]:
        """The spectrum asked for, (n, mels, frames) or one for all; left open, those kept of the data in turn."""
        if not self.mels:
            return {}
        count, shape = len(noise.indices), (self.mels, self.length // self.hop)
        if "spectrum" in given:
            try:
                told = torch.as_tensor(given["spectrum"]).float()
            except (TypeError, ValueError, RuntimeError):
                raise DataError(f"a spectrum is numbers {shape}, not {given['spectrum']!r:.60}") from None
            told = told.expand(count, *shape) if told.shape == shape else told
            if told.shape != (count, *shape) or not told.isfinite().all():
                raise DataError(f"a spectrum must be {shape} or {(count, *shape)}, not {tuple(told.shape)}")
            return {"spectrum": told}
        try:
            # of a domain that was given another length they do not fit
            kept = np.frombuffer(base64.b85decode(self.shown), np.int8).reshape(_SHOWN, *shape)
        except ValueError:
            raise DataError(f"a vocoder of {self.length} samples is asked for a 'spectrum'") from None
        rows = torch.tensor(noise.indices) % len(kept)
        return {"spectrum": torch.from_numpy(kept.astype(np.float32))[rows] / _STEPS}

    def questions(self, data: Examples, count: int) -> dict[str, Any]:
        """What a model is asked for when it is judged beside data: of a vocoder, their spectra in turn."""
        return self.told(data.at(np.arange(count) % len(data)))

    # -- what samples become ---------------------------------------------------------------------------------------
    def text(self, samples: Any) -> list[str]:
        """How long and how loud each sample is."""
        found = self.decode(samples)
        peaks, means = found.abs().amax(1), found.square().mean(1).sqrt()
        loud = lambda x: f"{20 * float(x.clamp_min(1e-5).log10()):.1f} dB"  # noqa: E731
        return [
            f"{self.length / self.rate:.2f} s, peak {loud(peak)}, mean {loud(mean)}"
            for peak, mean in zip(peaks, means, strict=True)
        ]

    def write(
        self,
        samples: Any,
        folder: str | Path,
        labels: Any = None,
        start: int = 0,
        prompts: Sequence[str] | None = None,
    ) -> list[Path]:
        """Write a WAV file of 16 bits a sample. Raises DataError for one that is not finite."""
        sounds = self.decode(samples).numpy()
        return self._files((to_wav(sound, self.rate) for sound in sounds), folder, labels, start)

    def pixels(self, samples: Any) -> np.ndarray:
        """Spectrograms uint8 (n, bins, frames, 3), low at the bottom: 80 dB below the loudest bin of each sample up."""
        size = frames(self.decode(samples), self.window, self.hop).abs()
        db = 20 * (size / size.amax((1, 2), keepdim=True).clamp_min(1e-9)).clamp_min(1e-4).log10()
        x, points = (1 + db.flip(1).numpy() / 80), np.array(_DARK, np.float32)
        places = np.linspace(0, 1, len(points))
        return np.stack([np.interp(x, places, points[:, c]) for c in range(3)], -1).round().astype(np.uint8)

    def picture(
        self, samples: Any, columns: int | None = None, rows: Sequence[str] | None = None, tile: int = 48
    ) -> Image:
        """A sheet of spectrograms."""
        from sfumato.domains import grids

        return grids.grid(self.pixels(samples), columns=columns, rows=rows, tile=tile)

    def strip(self, batches: Sequence[Any], captions: Sequence[str] | None = None, tile: int = 48) -> Image:
        """A column of spectrograms for each batch of the same samples."""
        from sfumato.domains import grids

        return grids.strip([self.pixels(batch) for batch in batches], captions=captions, tile=tile)
