"""Series: one or several numbers at times one after another, of one length or of different ones.

A model sees x = (value - mean) / std, with one mean and deviation a channel over all values of the data. Where series
differ in length, the state has one channel more, 1 while a series lasts and -1 behind its end, where its values are 0:
a sample ends before the first time at which that channel is below 0, so how long series are is learned and not set.

A series ends with the last time at which any channel has a value. One that is missing before is put on the straight
line between its neighbours in time, or is the nearest where it has one, and the data card counts them as `filled`.
A series with a channel of which more than half is missing, or with fewer than two times, is left out and counted, as
are one longer than a `length` that was asked for, and one that cannot be read (`series_files`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sfumato.domains.drawn import Drawn, lines
from sfumato.domains.examples import Examples
from sfumato.domains.records import numbered
from sfumato.domains.series_files import open_series
from sfumato.domains.source import Source
from sfumato.errors import DataError

_LEAST = 1e-12
_LONGEST = 65_536


@dataclass(frozen=True)
class Series(Drawn):
    """Series of at most `length` times, states float32 (n, length, channels), or one channel more if `ragged`.

    channels: their names; () takes those of the data. length: None takes that of the longest. ragged: whether series
    may end before; None: as the data do. mean, std: of each channel; () takes those of the data.
    Raises DataError for values that are none of these.
    """

    name: ClassVar[str] = "series"
    suffix: ClassVar[str] = "csv"
    sources: ClassVar[bool] = True
    channels: tuple[str, ...] = ()
    length: int | None = None
    ragged: bool | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for key in ("channels", "mean", "std", "classes"):
            object.__setattr__(self, key, tuple(getattr(self, key)))
        if self.length is not None and (isinstance(self.length, bool) or not 2 <= self.length <= _LONGEST):
            raise DataError(f"length must be a whole number from 2 to {_LONGEST}, not {self.length!r}")
        if any(not s > 0 for s in self.std) or len(self.mean) != len(self.std):
            raise DataError(f"mean and std are one a channel, std above 0, not {self.mean}, {self.std}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(length, channels). Raises DataError while they are left to data not yet read."""
        if self.length is None or self.ragged is None or not self.std:
            raise DataError("length and channels are taken from the data: read them first")
        return (self.length, len(self.std) + self.ragged)

    def read(self, source: Source | str | Path) -> Examples:
        """The series of a named source, a CSV or a .ts file; see `series_files`."""
        from sfumato.domains.images import as_source

        place = as_source(source)
        found = open_series(place)
        if self.channels and len(self.channels) != len(found.channels):
            raise DataError(
                f"{place.name or place.path} has {len(found.channels)} channels, not {len(self.channels)}"
            )
        whole = [(k, *_filled(one)) for k, one in enumerate(found.series)]
        kept = [
            (k, one, gaps)
            for k, one, gaps in whole
            if one is not None and (self.length is None or len(one) <= self.length)
        ]
        if not kept:
            raise DataError(
                f"every series of {place.name or place.path} is too long, too short or mostly missing"
            )
        lengths = [len(one) for _, one, _ in kept]
        length = self.length or max(lengths)
        ragged = self.ragged if self.ragged is not None else min(lengths) < length
        if not ragged and min(lengths) < length:
            raise DataError(f"series of {min(lengths)} to {max(lengths)} times need ragged = true")
        stored = np.full((len(kept), length, len(found.channels)), np.nan, np.float32)
        for row, (_, one, _) in zip(stored, kept, strict=True):
            row[: len(one)] = one
        every = [stored[..., c][np.isfinite(stored[..., c])] for c in range(len(found.channels))]
        classes, labels = (), None
        if found.labels is not None:
            classes, labels = numbered([found.labels[k] for k, _, _ in kept], self.classes)
        about = found.about | {"filled": sum(gaps for _, _, gaps in kept)}
        about["left_out"] = found.left_out + len(whole) - len(kept)
        domain = replace(
            self,
            channels=self.channels or found.channels,
            length=length,
            ragged=ragged,
            mean=self.mean or tuple(float(x.mean(dtype=np.float64)) for x in every),
            std=self.std or tuple(max(float(x.std(dtype=np.float64)), _LEAST) for x in every),
            classes=classes,
        )
        return Examples(domain, stored, labels, name=found.about["sources"][0], about=about)

    def encode(self, stored: Any) -> Tensor:
        """States float32 (n, length, channels), of values with NaN behind the end of a series."""
        values = torch.from_numpy(np.asarray(stored, np.float32).copy())
        x = (values - torch.tensor(self.mean)) / torch.tensor(self.std)
        lasts = x.isfinite()
        x = x.where(lasts, 0.0)
        return torch.cat([x, 2.0 * lasts[..., :1] - 1], 2) if self.ragged else x

    def decode(self, samples: Any) -> Tensor:
        """Values in the units of the data (n, length, channels), NaN behind the end of a sample."""
        x = samples.float().cpu()
        count = len(self.std)
        values = x[..., :count] * torch.tensor(self.std) + torch.tensor(self.mean)
        if self.ragged:
            lasts = (x[..., count] >= 0).long().cumprod(1).bool()
            lasts[:, 0] = True  # a series has at least one time
            values = values.where(lasts[..., None], float("nan"))
        return values

    def _each(self, samples: Any) -> list[np.ndarray]:
        """Each sample up to its end, (times, channels)."""
        return [row[np.isfinite(row[:, 0])] for row in self.decode(samples).numpy()]

    def text(self, samples: Any) -> list[str]:
        """The first numbers of each sample, in words."""
        return [
            f"{len(one)} times: " + ", ".join("/".join(f"{v:.3g}" for v in row) for row in one[:12])
            for one in self._each(samples)
        ]

    def write(
        self,
        samples: Any,
        folder: str | Path,
        labels: Any = None,
        start: int = 0,
        prompts: Sequence[str] | None = None,
    ) -> list[Path]:
        """Write a CSV a sample, a row a time: its number, the time, its channels, and its label if it has one."""
        texts = []
        for k, one in enumerate(self._each(samples)):
            number = len(self.classes) if labels is None else int(labels[k])
            label = list(self.classes[number : number + 1])
            memory = io.StringIO()
            rows = csv.writer(memory, lineterminator="\n")
            rows.writerow(["series", "time", *self.channels, *(["label"] if label else [])])
            rows.writerows([start + k, t, *(f"{v:.6g}" for v in row), *label] for t, row in enumerate(one))
            texts.append(memory.getvalue().rstrip("\n"))
        return self._files(texts, folder, labels, start)

    def pixels(self, samples: Any) -> np.ndarray:
        """Line plots, each channel about its mean and within 3.2 of its deviations."""
        values = self.decode(samples).numpy()
        return lines((values - np.array(self.mean)) / np.array(self.std), -3.2, 3.2)


def _filled(one: np.ndarray) -> tuple[np.ndarray | None, int]:
    """A series without its gaps and how many values they were; None for one that cannot be used."""
    lasting = np.flatnonzero(np.isfinite(one).any(1))
    if not len(lasting):
        return None, 0
    one = one[: lasting[-1] + 1]  # what no channel says any more is the end, and not a gap
    known = np.isfinite(one)
    if len(one) < 2 or known.mean(0).min() < 0.5:
        return None, 0
    times = np.arange(len(one))
    filled = [np.interp(times, times[k], column[k]) for k, column in zip(known.T, one.T, strict=True)]
    return np.stack(filled, 1).astype(np.float32), int((~known).sum())
