"""Short clips: animated WebP or GIF files, each as a few frames of one size, with captions or classes as pictures have.

A clip runs for T milliseconds, frame i of its file for d_i of them. What is kept are `frames` moments spread over it,

    t_k = k T / frames,      k = 0 .. frames - 1,

and at each the frame that is then shown: files may hold any number of frames, of any durations, and store a frame that
stays for long only once. A clip that has no `frames` frames to show (T over the shortest of its frames is less) is left
out and counted; stills are the shortest clips there are. So is a damaged file, which the data card names. How fast
clips run is taken from the data, as the median of frames a second, and what is made is written to run as fast.

A model sees x = u / 127.5 - 1, float32 (channels, frames, height, width). Frames are made to fit as pictures are, once,
and kept in the cache. A sample is an animated WebP without loss, which repeats for ever.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sfumato.domains import grids
from sfumato.domains.cache import install
from sfumato.domains.examples import Domain, Examples
from sfumato.domains.images import Images, as_source, file_names
from sfumato.domains.pictures import MAX_PIXELS, Fit, bombs_are_ours
from sfumato.domains.readers import open_source
from sfumato.domains.source import Found, Source
from sfumato.errors import DataError
from sfumato.files import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MOST_FRAMES, MOST_BYTES = 2_000, 1 << 31
"""Frames that a file may hold, and bytes that its frames may unpack to; what declares more is refused undecoded."""
_VERSION = 1  # raise when decoding changes, so that older caches are not taken for new ones
_STILL = 100  # milliseconds of a frame whose file does not say


@dataclass(frozen=True)
class Video(Domain):
    """Clips of `frames` frames, states float32 (3, frames, height, width) in [-1, 1].

    size: (height, width) of a frame, or one number for both. frames: at least 2. rate: frames a second that samples are
    written to run at; 0 takes that of the data. background: what shows through transparency, 0..255 each.
    Raises DataError for values that are none of these.
    """

    name: ClassVar[str] = "video"
    spreads: ClassVar[bool] = True
    suffix: ClassVar[str] = "webp"
    sources: ClassVar[bool] = True
    size: tuple[int, int] = (32, 32)
    frames: int = 16
    rate: float = 0.0
    background: tuple[int, int, int] = (255, 255, 255)

    def __post_init__(self) -> None:
        pictures = Images(self.size, 3, tuple(self.classes), background=tuple(self.background))  # type: ignore[arg-type]
        for key in ("size", "classes", "background"):
            object.__setattr__(self, key, getattr(pictures, key))
        if not isinstance(self.frames, int) or not 2 <= self.frames <= MOST_FRAMES:
            raise DataError(f"frames must be a whole number from 2 to {MOST_FRAMES}, not {self.frames!r}")
        if not 0 <= self.rate <= 1000:
            raise DataError(f"rate must be frames a second, from 0 to 1000, not {self.rate!r}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, frames, height, width)."""
        return (3, self.frames, *self.size)

    # -- reading -----------------------------------------------------------------------------------------------------
    def read(self, source: Source | str | Path) -> Examples:
        """The clips of a named source or a folder. Raises DataError where no clip is left."""
        place = as_source(source)
        found = open_source(place, self.classes)
        clips, rows, kept = self._decoded(found)
        damaged = [f"{title}: {reason}" for title, reason in kept["corrupt"]]
        if not len(rows):
            raise DataError(
                f"{found.where} holds no clip of {self.frames} frames: its {found.count} files are stills or shorter"
                + (f", or damaged ({len(damaged)}), as {damaged[0]}" if damaged else "")
            )
        about: dict[str, Any] = {**found.about, "left_out": found.count - len(rows)}
        if damaged:
            about["skipped_corrupt"] = damaged
        domain = replace(self, classes=found.classes or self.classes, rate=self.rate or kept["rate"])
        captions, groups = (
            tuple(texts[i] for i in rows) if texts else () for texts in (found.captions, found.groups)
        )
        labels = None if found.labels is None else found.labels[rows]
        return Examples(
            domain, clips, labels, groups, name=about["sources"][0], about=about, captions=captions
        )

    def _decoded(self, found: Found) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """(clips uint8 (n, frames, height, width, 3), which of the files they are, more about them), from the cache."""
        how = json.dumps([_VERSION, self.frames, asdict(self._fit)])
        key = hashlib.sha256(f"{found.key}\n{how}".encode()).hexdigest()[:32]
        folder = install(f"clips-{key}", lambda empty: self._build(found, empty))
        try:
            clips = np.load(folder / "clips.npy", mmap_mode="r", allow_pickle=False)
            rows = np.load(folder / "rows.npy", allow_pickle=False)
            kept = json.loads((folder / "about.json").read_text())
        except (OSError, ValueError, EOFError) as problem:
            raise DataError(
                f"{folder} is damaged ({problem}): delete it, and it will be made anew"
            ) from problem
        shape = (len(rows), self.frames, *self.size, 3)
        if clips.shape != shape or clips.dtype != np.uint8 or rows.max(initial=-1) >= found.count:
            raise DataError(f"{folder} holds {clips.dtype} {clips.shape}, not uint8 {shape}: delete it")
        return np.asarray(clips), rows, kept

    @property
    def _fit(self) -> Fit:
        return Fit(self.size, 3, "center", background=self.background)

    def _build(self, found: Found, folder: Path) -> None:
        clips, rows, rates, corrupt = [], [], [], []
        with bombs_are_ours():
            for i in range(found.count):
                try:
                    clip = read_clip(found.item(i), self.frames, self._fit)
                except DataError as problem:
                    corrupt.append((found.title(i), str(problem)))
                    continue
                if clip is not None:
                    clips.append(clip[0])
                    rates.append(clip[1])
                    rows.append(i)
        np.save(folder / "clips.npy", np.array(clips, np.uint8).reshape(-1, self.frames, *self.size, 3))
        np.save(folder / "rows.npy", np.array(rows, np.int64))
        rate = round(float(np.median(rates)), 3) if rates else 0.0
        (folder / "about.json").write_text(json.dumps({"rate": rate, "corrupt": corrupt}))

    # -- states and frames -------------------------------------------------------------------------------------------
    def encode(self, stored: Any) -> Tensor:
        """u / 127.5 - 1: uint8 (n, frames, height, width, 3) to float32 (n, 3, frames, height, width)."""
        u = np.asarray(stored)
        frames = Images(self.size, 3).encode(u.reshape(-1, *u.shape[2:]))
        return frames.unflatten(0, u.shape[:2]).transpose(1, 2).contiguous()

    def clips(self, samples: Any) -> np.ndarray:
        """uint8 (n, frames, height, width, 3) of states, of any number of frames. Raises DataError for NaN."""
        x = torch.as_tensor(samples)
        if x.ndim != 5 or x.shape[1] != 3:
            raise DataError(f"samples are (n, 3, frames, height, width), not {tuple(x.shape)}")
        if (bad := torch.isnan(x).flatten(1).any(1)).any():
            raise DataError(f"sample {int(bad.int().argmax())} of {len(x)} holds NaN: it cannot be a clip")
        u = Images(channels=3).to_uint8(x.transpose(1, 2).flatten(0, 1))
        return u.reshape(len(x), x.shape[2], *u.shape[1:])

    # -- what samples become -----------------------------------------------------------------------------------------
    def text(self, samples: Any) -> list[str]:
        """How long each sample is and how much changes from frame to frame, in words."""
        return [
            f"{len(clip)} frames of {clip.shape[2]}×{clip.shape[1]}, from one to the next "
            f"{np.abs(np.diff(clip.astype(int), axis=0)).mean():.1f} of 255"
            for clip in self.clips(samples)
        ]

    def write(
        self,
        samples: Any,
        folder: str | Path,
        labels: Any = None,
        start: int = 0,
        prompts: Sequence[str] | None = None,
    ) -> list[Path]:
        """Write each sample as an animated WebP without loss, whole or not at all; named as those of `Images.write`."""
        clips = self.clips(samples)
        folder = Path(folder)
        names = file_names(len(clips), labels, len(self.classes), start, prompts, self.suffix)
        folder.mkdir(parents=True, exist_ok=True)
        for name, clip in zip(names, clips, strict=True):
            memory, (first, *others) = io.BytesIO(), [Image.fromarray(frame) for frame in clip]
            shown = max(round(1000 / self.rate), 1) if self.rate else _STILL
            first.save(
                memory, "WEBP", save_all=True, append_images=others, duration=shown, loop=0, lossless=True
            )
            write_atomically(folder / name, memory.getvalue())
        return [folder / name for name in names]

    def picture(
        self, samples: Any, columns: int | None = None, rows: Sequence[str] | None = None, tile: int = 32
    ) -> Picture:
        """A row of frames for each sample, those of a caption one below the other. columns is passed over."""
        clips = self.clips(samples)
        each = max(len(clips) // len(rows), 1) if rows else 1
        texts = (
            [rows[k // each] if k % each == 0 and k // each < len(rows) else "" for k in range(len(clips))]
            if rows
            else None
        )
        return grids.grid(clips.reshape(-1, *clips.shape[2:]), columns=clips.shape[1], rows=texts, tile=tile)

    def strip(self, batches: Sequence[Any], captions: Sequence[str] | None = None, tile: int = 32) -> Picture:
        """How the first sample changes from batch to batch: a row of its frames for each."""
        first = np.concatenate([self.clips(batch[:1]) for batch in batches])
        return grids.grid(
            first.reshape(-1, *first.shape[2:]), columns=first.shape[1], rows=captions, tile=tile
        )


def read_clip(source: Any, count: int, fit: Fit) -> tuple[np.ndarray, float] | None:
    """(`count` frames spread over an animation, uint8 (count, h, w, 3), how many a second that is); None if too short.

    source: a file's path or its bytes. Raises DataError with a short reason, without its name: the caller knows it.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            found, (width, height) = getattr(file, "n_frames", 1), file.size
            if found > MOST_FRAMES or width * height > MAX_PIXELS or found * width * height * 4 > MOST_BYTES:
                raise DataError(f"declares {found} frames of {width}×{height} pixels, over the limits")
            if found < 2:
                return None
            frames, lengths = [], []
            for k in range(found):
                file.seek(k)
                file.load()
                frames.append(fit.pixels(file.copy()))
                lengths.append(int(file.info.get("duration", 0)) or _STILL)
    except (DataError, MemoryError):
        raise
    except Exception as problem:  # Pillow's parsers raise whatever a damaged file leads them into
        nothing = isinstance(problem, UnidentifiedImageError)
        reason = "not a picture" if nothing else (str(problem).splitlines() or [""])[0]
        raise DataError(reason or type(problem).__name__) from problem
    ends = np.cumsum(lengths)
    if round(ends[-1] / min(lengths)) < count:
        return None
    shown = np.searchsorted(ends * count, np.arange(count) * ends[-1], side="right")
    return np.stack([frames[k] for k in shown]), 1000 * count / float(ends[-1])
