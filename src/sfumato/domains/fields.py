"""Physical fields on a regular grid: heights of terrain, winds, anything that NetCDF files hold.

A variable (y, x) or (time, y, x) is cut into tiles of `size`, side by side without overlap, and each is an example;
several variables of one grid are channels of one example. A model sees x = (value - mean) / std, with one mean and
deviation a variable over all the data, so what it makes is turned back into the units of the file without loss.

Neighbouring tiles know each other: what is held out is whole squares of `block` tiles, and what was measured at other
times is another example of the same square. Whole fields are held out by stretches of time: years, or tenths of the
time there is where that is less than ten; twelve of them where the file does not say when they were. Tiles with gaps
(NaN, the file's missing value or NetCDF's own) are left out and counted.

Files are NetCDF-3, which SciPy reads and writes; a sample is written as one, with the names and units of the data.
Packed ones hold whole numbers p with value = p scale_factor + add_offset, which are unpacked.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sfumato.domains.drawn import Drawn
from sfumato.domains.examples import Examples
from sfumato.domains.source import Source
from sfumato.errors import DataError, MissingExtra, choose
from sfumato.files import write_atomically

# low, middle and high of the two ways of colouring: heights about the sea, and anything that may point both ways
_SCALES = {
    "terrain": ((9, 30, 90), (70, 140, 200), (235, 240, 225), (120, 160, 70), (120, 85, 50), (250, 250, 250)),
    "diverging": ((20, 60, 140), (130, 170, 215), (245, 245, 245), (230, 150, 120), (150, 30, 40)),
}
_LEAST = 1e-12
_NEVER_WRITTEN = 9.969e36  # NetCDF's own value of a gap is 9.96921e36
_DAYS = {
    "second": 1 / 86400,
    "minute": 1 / 1440,
    "min": 1 / 1440,
    "hour": 1 / 24,
    "hr": 1 / 24,
    "h": 1 / 24,
    "day": 1,
}
_YEAR = 365.2425


@dataclass(frozen=True)
class Fields(Drawn):
    """Fields of (variables, height, width), states float32.

    variables: names in the file; () takes all on the grid of the first, but for coordinates and their bounds. size: of
    a tile, (height, width) or one number; None takes whole fields. block: tiles on a side of a square that is held out
    as one. mean, std: of each variable; () takes those of the data. units: of each variable. colours: "terrain" or
    "diverging", for pictures.
    Raises DataError for values that are none of these.
    """

    name: ClassVar[str] = "fields"
    spreads: ClassVar[bool] = True
    suffix: ClassVar[str] = "nc"
    sources: ClassVar[bool] = True
    variables: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    block: int = 4
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    units: tuple[str, ...] = ()
    colours: str = "diverging"

    def __post_init__(self) -> None:
        if isinstance(self.size, int):
            object.__setattr__(self, "size", (self.size, self.size))
        for key in ("variables", "mean", "std", "units", "classes"):
            object.__setattr__(self, key, tuple(getattr(self, key)))
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 2):
            raise DataError(f"size must be (height, width) of at least 2 each, not {self.size!r}")
        choose(self.colours, _SCALES, "colours of fields", DataError)
        if self.block < 1 or any(not s > 0 for s in self.std):
            raise DataError(f"block must be at least 1 and deviations above 0, not {self.block}, {self.std}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(variables, height, width). Raises DataError while they are left to data not yet read."""
        if self.size is None or not self.variables or not self.std:
            raise DataError("variables and size are taken from the data: read them first, or set all")
        return (len(self.variables), *self.size)

    def read(self, source: Source | str | Path) -> Examples:
        """The tiles of a named source or a NetCDF file. Raises DataError for what is missing or of another shape."""
        from sfumato.domains.images import as_source

        place = as_source(source)
        found, units, about, days = _open(place, self.variables)
        names, whole = tuple(found), np.stack(list(found.values()), 1)  # (time, variables, y, x)
        height, width = self.size or whole.shape[2:]
        down, across = whole.shape[2] // height, whole.shape[3] // width
        if not down or not across:
            raise DataError(f"fields of {whole.shape[2:]} hold no tile of {(height, width)}")
        times = len(whole)
        cut = whole[:, :, : down * height, : across * width]
        cut = cut.reshape(times, len(names), down, height, across, width).transpose(0, 2, 4, 1, 3, 5)
        tiles = np.ascontiguousarray(cut.reshape(-1, len(names), height, width))
        squares = [f"{i // self.block},{j // self.block}" for i in range(down) for j in range(across)] * times
        if down * across == 1:  # whole fields differ in time alone
            squares = _stretches(days, times)
        kept = np.flatnonzero(np.isfinite(tiles).all((1, 2, 3)))
        if not len(kept):
            raise DataError(f"every tile of {place.name or place.path} has a gap")
        (title,) = about["sources"]
        about = about | {"left_out": len(tiles) - len(kept)}
        tiles = tiles[kept]
        mean = self.mean or tuple(float(m) for m in tiles.mean((0, 2, 3), dtype=np.float64))
        std = self.std or tuple(max(float(s), _LEAST) for s in tiles.std((0, 2, 3), dtype=np.float64))
        domain = replace(self, variables=names, size=(height, width), mean=mean, std=std, units=units)
        data = Examples(domain, tiles, groups=tuple(squares[k] for k in kept), name=title, about=about)
        return data.spread(place.limit)

    def encode(self, stored: Any) -> Tensor:
        """States (value - mean) / std, float32 (n, variables, height, width)."""
        x = torch.from_numpy(np.asarray(stored, np.float32).copy())
        return (x - _column(self.mean)) / _column(self.std)

    def decode(self, samples: Any) -> Tensor:
        """Values in the units of the data."""
        return samples.float().cpu() * _column(self.std) + _column(self.mean)

    def text(self, samples: Any) -> list[str]:
        """The range of each sample, in words."""
        x = self.decode(samples).flatten(2)
        units = self.units or ("",) * len(self.variables)
        return [
            ", ".join(
                f"{name} {low:.4g} to {high:.4g} {unit}".strip()
                for name, unit, low, high in zip(
                    self.variables, units, row.min(1).values, row.max(1).values, strict=True
                )
            )
            for row in x
        ]

    def write(
        self,
        samples: Any,
        folder: str | Path,
        labels: Any = None,
        start: int = 0,
        prompts: Sequence[str] | None = None,
    ) -> list[Path]:
        """Write a NetCDF-3 file a sample, with its variables in their units. Raises DataError for NaN."""
        netcdf_file = _netcdf()
        values = self.decode(samples).numpy()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for number, sample in enumerate(values, start):
            if not np.isfinite(sample).all():
                raise DataError(f"sample {number} is not finite: it cannot be a field")
            memory = io.BytesIO()
            file = netcdf_file(memory, "w")
            for axis, length in zip(("y", "x"), sample.shape[1:], strict=True):
                file.createDimension(axis, length)
            for k, name in enumerate(self.variables):
                made = file.createVariable(name, "f4", ("y", "x"))
                made[:] = sample[k]
                made.units = self.units[k] if self.units else ""
            file.flush()
            paths.append(folder / f"sample-{number:05d}.nc")
            write_atomically(paths[-1], memory.getvalue())
        return paths

    def pixels(self, samples: Any) -> np.ndarray:
        """The first variable in colour, uint8 (n, height, width, 3): from -2.5 to 2.5 deviations."""
        x = (samples[:, 0].float().cpu().numpy() / 2.5).clip(-1, 1)
        points = np.array(_SCALES[self.colours], np.float32)
        places = np.linspace(-1, 1, len(points))
        if self.colours == "terrain" and self.mean:  # the third colour is the shore
            sea = float(np.clip(-self.mean[0] / self.std[0] / 2.5, -0.9, 0.9))
            places = np.concatenate([np.linspace(-1, sea, 3)[:2], np.linspace(sea, 1, len(points) - 2)])
        return np.stack([np.interp(x, places, points[:, c]) for c in range(3)], -1).round().astype(np.uint8)


def _netcdf() -> Any:
    """SciPy's class of NetCDF-3 files. Raises MissingExtra without the extra "fields"."""
    try:
        from scipy.io import netcdf_file
    except ImportError:
        raise MissingExtra("scipy", "fields") from None
    return netcdf_file


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


def _open(
    place: Source, wanted: Sequence[str]
) -> tuple[dict[str, np.ndarray], tuple[str, ...], dict[str, Any], np.ndarray | None]:
    """(variables (time, y, x) by name, their units, what the data card says, days of the times or None) of a source."""
    if place.name is not None:
        from sfumato.domains.sources import named_file

        path, own, about = named_file(place, "fields")
        wanted = wanted or own
    else:
        path = Path(str(place.path)).expanduser()
        about = {"sources": [path.name]}
    if not path.is_file():
        raise DataError(f"{path} does not exist, or is no file: fields are one NetCDF-3 file")
    netcdf_file = _netcdf()
    try:
        with netcdf_file(str(path), "r", mmap=False) as file:
            held = {
                name: v
                for name, v in file.variables.items()
                if v.data.ndim in (2, 3) and v.data.dtype.kind in "if"
            }
            # time_bnds, or the latitude of a grid that is curved
            beside = {
                name
                for v in file.variables.values()
                for key in ("bounds", "coordinates")
                for name in _text(getattr(v, key, b"")).split()
            }
            names = [choose(name, held, "variable of the file", DataError) for name in wanted]
            names = names or [name for name in held if name not in beside]
            if not names:
                raise DataError(f"{path} holds no variable of two or three dimensions")
            found = {name: _clean(held[name]) for name in names}
            units = {name: _text(getattr(held[name], "units", b"")) for name in names}
            days = _days(file.variables.get(held[names[0]].dimensions[0]))
    except DataError:
        raise
    except (ValueError, TypeError, OSError, LookupError, MemoryError) as error:
        raise DataError(f"{path} is no NetCDF-3 file that can be read: {error!r}") from None
    kept = {name: v for name, v in found.items() if v.shape == found[names[0]].shape}
    if wanted and len(kept) < len(found):
        raise DataError(f"the variables {', '.join(names)} are not of one grid")
    return kept, tuple(units[name] for name in kept), about, days


def _days(axis: Any) -> np.ndarray | None:
    """The times of an axis in days, None for one that says none."""
    unit, since, _ = _text(getattr(axis, "units", b"")).lower().partition(" since ")
    per = _DAYS.get(unit.strip().removesuffix("s"))
    return np.ravel(axis.data).astype(np.float64) * per if since and per else None


def _stretches(days: np.ndarray | None, times: int) -> list[str]:
    """The stretch of time that each of so many fields is of; see the file's head."""
    if days is None or len(days) != times or not np.isfinite(days).all() or np.ptp(days) <= 0:
        return [f"{t // 12}" for t in range(times)]
    length = min(_YEAR, np.ptp(days) / 10 * (1 + 1e-9))  # a little more, so that the last is in the tenth
    return [f"{int(k)}" for k in (days - days.min()) // length]


def _clean(variable: Any) -> np.ndarray:
    """Values float32 (time, y, x) in the variable's units, gaps as NaN."""
    stored = variable.data
    scale, offset = (
        float(np.ravel(getattr(variable, name, default))[0])
        for name, default in (("scale_factor", 1), ("add_offset", 0))
    )
    with np.errstate(over="ignore", invalid="ignore"):  # what is beyond float32 becomes a gap
        x = (stored * scale + offset).astype(np.float32)
    # a gap is marked by what is stored, before it is unpacked
    for name in ("missing_value", "_FillValue"):
        if (gap := getattr(variable, name, None)) is not None:
            x[stored.astype(np.float32) == np.float32(np.ravel(gap)[0])] = np.nan
    x[np.abs(x) >= _NEVER_WRITTEN] = np.nan
    return x if x.ndim == 3 else x[None]


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
