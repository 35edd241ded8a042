"""Tables: rows of numbers and categories, some of them missing, with any columns given.

Every column is a leaf of a joint state (`processes.joint`) with a time of its own, so that one model draws whole rows,
rows with any columns given, and fills in what is missing. A cell that was not recorded is left at t = 1 in training:
nothing is made up, and no row is lost.

    category   one of its values         a symbol, (n, 1)
    number     z = Phi^-1(F(x))          a number,  (n, 1, 1), F the column's own distribution

F is kept as quantiles, and F(x) of a value that comes often is the middle of its step. Back again F^-1 is read off the
same quantiles, so a value of great mass (a nought, a round price) is met exactly, and nothing outside the range of the
data is ever drawn. Numbers that are whole, or have so many decimals, are written as such.

What is a number is decided by the data: a column all of whose cells are numbers, and more than `few` different ones.
Infinite ones are missing, and so are cells of other texts where they are few: at most `ODD_SHARE` of the cells and
`ODD_TEXTS` different texts, beside at least `LEAST_NUMBERS` numbers. The data card counts both as `unknown_values`.
A column of one value is no leaf: it is written as it is. One that is missing throughout is left out and named. A row
that cannot be read is left out and counted (`records`).
"""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sfumato.domains.examples import Domain, Examples
from sfumato.domains.records import LARGEST, Sheet, once, read_csv, read_text
from sfumato.domains.source import Source
from sfumato.errors import DataError, MissingExtra, choose
from sfumato.files import write_atomically

MISSING = ("", "na", "nan", "null", "none", "?")
QUANTILES, MOST_COLUMNS, MOST_VALUES = 513, 256, 1000
ODD_SHARE, ODD_TEXTS, LEAST_NUMBERS = 1 / 50, 5, 20
MOST_DIGITS, MOST_DECIMALS = 12, 40  # behind the point of a number as it was given, and as it is written out
_INFINITE = ("inf", "infinity")
_EDGE = 1.35e-3  # F runs from here to 1 less it, so that the ends of the data are at z = -3 and 3


@dataclass(frozen=True)
class Table(Domain):
    """Rows of a table, states {column: int64 (n, 1) or float32 (n, 1, 1)}.

    columns: what each is, as `read` finds it: {"name", "kind": "number", "quantiles", "decimals"}, or {"name", "kind":
    "category", "values"}, or {"name", "kind": "constant", "value"}. categories: columns that are none of numbers. drop:
    columns to leave out. few: so many different numbers at most are a category. target: the column that judges
    predict. format: of what is written, "csv" or "parquet". Raises DataError for a column that is not there, or twice.
    """

    name: ClassVar[str] = "table"
    suffix: ClassVar[str] = "csv"
    sources: ClassVar[bool] = True
    together: ClassVar[bool] = True
    columns: tuple[Mapping[str, Any], ...] = ()
    categories: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    few: int = 12
    target: str | None = None
    format: str = "csv"

    def __post_init__(self) -> None:
        for key in ("columns", "categories", "drop", "classes"):
            object.__setattr__(self, key, tuple(getattr(self, key)))
        choose(self.format, ("csv", "parquet"), "format of a table", DataError)
        names = [column["name"] for column in self.columns]
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise DataError(f"the column {twice[0]!r} comes twice")
        if names and self.target is not None:
            choose(self.target, self.leaves, "target column", DataError)

    @property
    def leaves(self) -> dict[str, Mapping[str, Any]]:
        """The columns that are drawn, by name."""
        return {column["name"]: column for column in self.columns if column["kind"] != "constant"}

    @property
    def shape(self) -> Any:
        """{column: (1,) of a category, (1, 1) of a number}. Raises DataError while they are left to data."""
        if not self.columns:
            raise DataError("the columns are taken from the data: read them first")
        return {
            name: (1,) if column["kind"] == "category" else (1, 1) for name, column in self.leaves.items()
        }

    @property
    def symbols(self) -> dict[str, int]:
        """How many values each category has, two at least."""
        return {
            name: max(len(column["values"]), 2)
            for name, column in self.leaves.items()
            if column["kind"] == "category"
        }

    # -- reading ----------------------------------------------------------------------------------------------
    def read(self, source: Source | str | Path) -> Examples:
        """The rows of a named source, a CSV or a Parquet file. Raises DataError for none, or columns that lack."""
        from sfumato.domains.images import as_source

        place = as_source(source)
        names, rows, about = _open(place)
        for name in (*self.drop, *self.categories):
            choose(name, names, "column", DataError)
        once([name for name in names if name and name not in self.drop])
        if place.limit is not None and place.limit < len(rows):
            rows = [rows[i] for i in np.arange(place.limit) * len(rows) // place.limit]
        cells = {
            name: [row[k] for row in rows] for k, name in enumerate(names) if name and name not in self.drop
        }
        columns = self.columns or tuple(self._columns(cells))
        empty = [name for name in cells if name not in {column["name"] for column in columns}]
        stored, strange = {}, Counter()
        for column in columns:
            if column["kind"] == "constant":
                continue
            if column["name"] not in cells:
                raise DataError(f"the data lack the column {column['name']!r}")
            stored[column["name"]], new = _stored(column, cells[column["name"]])
            strange += Counter({column["name"]: new} if new else {})
        if not stored:
            raise DataError("no column has two different values, so there is nothing to learn")
        about |= {
            "missing": sum(
                int(np.isnan(v).sum() if v.dtype.kind == "f" else (v < 0).sum()) for v in stored.values()
            ),
            **({"left_out_columns": empty} if empty else {}),
            **({"unknown_values": dict(strange)} if strange else {}),
        }
        domain = replace(self, columns=columns)
        return Examples(domain, stored, name=about["sources"][0], about=about)

    def _columns(self, cells: Mapping[str, list[str]]) -> list[dict[str, Any]]:
        found = []
        for name, column in cells.items():
            there = [cell for cell in column if cell.lower() not in MISSING]
            if not there:
                continue  # missing throughout
            values = sorted(set(there))
            if len(values) == 1:
                found.append({"name": name, "kind": "constant", "value": values[0]})
                continue
            numbers = None if name in self.categories else _numbers(there)
            if numbers is not None and _of_numbers(there, numbers, self.few):
                marks = np.quantile(numbers[np.isfinite(numbers)], np.linspace(0, 1, QUANTILES))
                decimals = max(
                    _decimals(cell) for cell, x in zip(there, numbers, strict=True) if math.isfinite(x)
                )
                found.append(
                    {"name": name, "kind": "number", "quantiles": marks.tolist(), "decimals": decimals}
                )
                continue
            if len(values) > MOST_VALUES:
                raise DataError(
                    f"the column {name!r} has {len(values)} different texts, more than {MOST_VALUES}: leave it out, "
                    f"data.settings.drop=[{name!r}]"
                )
            if numbers is not None and np.isfinite(numbers).all():
                values = sorted(values, key=float)
            found.append({"name": name, "kind": "category", "values": values})
        return found

    # -- states -----------------------------------------------------------------------------------------------
    def encode(self, stored: Any) -> dict[str, Tensor]:
        """States of stored columns; what is missing is NaN or -1."""
        found = {}
        for name, column in self.leaves.items():
            x = np.asarray(stored[name])
            if column["kind"] == "category":
                found[name] = torch.from_numpy(x.astype(np.int64))[:, None]
            else:
                found[name] = torch.from_numpy(_normal(column, x).astype(np.float32))[:, None, None]
        return found

    def decode(self, samples: Any) -> dict[str, np.ndarray]:
        """The columns as they are stored, numbers float64 and codes of categories, (n,) each."""
        found = {}
        for name, column in self.leaves.items():
            x = samples[name].cpu().numpy().reshape(len(samples[name]))
            if column["kind"] == "category":
                found[name] = np.where(x < len(column["values"]), x, 0).astype(np.int32)
            else:
                found[name] = np.round(_value(column, x.astype(np.float64)), column["decimals"])
        return found

    def rows(self, samples: Any) -> list[list[str]]:
        """Rows of cells as they are written, of all columns in order."""
        columns, count = self.decode(samples), len(next(iter(samples.values())))
        cells = []
        for column in self.columns:
            if column["kind"] == "constant":
                cells.append([column["value"]] * count)
            elif column["kind"] == "category":
                cells.append([column["values"][k] for k in columns[column["name"]]])
            else:
                cells.append([f"{x:.{column['decimals']}f}" for x in columns[column["name"]]])
        return [list(row) for row in zip(*cells, strict=True)]

    # -- what may be asked for --------------------------------------------------------------------------------
    @property
    def asks(self) -> tuple[str, ...]:
        """The columns: a given one is held at its value while the others are drawn."""
        return tuple(self.leaves)

    def asked(self, given: Mapping[str, Any], noise: Any) -> dict[str, Tensor]:
        """The states of given columns, one value for all rows or one each. Raises DataError for values not known."""
        count, found = len(noise.indices), {}
        for name, values in given.items():
            column = self.leaves[name]
            one = isinstance(values, str) or not hasattr(values, "__len__")
            cells = [str(values)] * count if one else [str(value) for value in values]
            if len(cells) != count:
                raise DataError(f"{len(cells)} values of {name!r} were given for {count} rows")
            if column["kind"] == "category":
                for cell in cells:
                    choose(cell, column["values"], f"value of the column {name!r}", DataError)
            elif len(strange := np.flatnonzero(np.isnan(numbers := _numbers(cells)))):
                raise DataError(f"the column {name!r} takes numbers, not {cells[strange[0]]!r}")
            else:
                low, *_, high = column["quantiles"]
                if len(beyond := np.flatnonzero((numbers < low) | (numbers > high))):
                    said = f"{name} was {low:g} to {high:g} in the data: {cells[beyond[0]]} is put at the end of that"
                    warnings.warn(said, stacklevel=2)
            found[name] = self.encode_one(name, _stored(column, cells)[0])
        return found

    def encode_one(self, name: str, stored: np.ndarray) -> Tensor:
        """The states of one column."""
        return replace(self, columns=(self.leaves[name],), target=None).encode({name: stored})[name]

    # -- what samples become ----------------------------------------------------------------------------------
    def text(self, samples: Any) -> list[str]:
        """Each row as a line of CSV."""
        return [_line(row) for row in self.rows(samples)]

    def write(
        self,
        samples: Any,
        folder: str | Path,
        labels: Any = None,
        start: int = 0,
        prompts: Sequence[str] | None = None,
    ) -> list[Path]:
        """Write all rows as one file, `samples.csv` with a line of the columns' names, or `samples.parquet`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.format == "parquet":
            return [self._parquet(samples, folder / "samples.parquet")]
        lines = [_line([column["name"] for column in self.columns]), *self.text(samples)]
        write_atomically(folder / "samples.csv", ("\n".join(lines) + "\n").encode())
        return [folder / "samples.csv"]

    def _parquet(self, samples: Any, path: Path) -> Path:
        try:
            import pyarrow as arrow
            import pyarrow.parquet as parquet
        except ImportError:
            raise MissingExtra("pyarrow", "tables") from None
        cells = list(zip(*self.rows(samples), strict=True)) or [()] * len(self.columns)
        columns = {
            column["name"]: arrow.array([_typed(column)(cell) for cell in row])
            for column, row in zip(self.columns, cells, strict=True)
        }
        memory = io.BytesIO()
        parquet.write_table(arrow.table(columns), memory)
        write_atomically(path, memory.getvalue())
        return path


def _typed(column: Mapping[str, Any]) -> Callable[[str], Any]:
    """What a column's cells are where they need not be text: numbers, whole ones, or whether it is so."""
    if column["kind"] == "number":
        return float if column["decimals"] else lambda cell: int(float(cell))
    values = column["values"] if column["kind"] == "category" else (column["value"],)
    if set(values) <= {"True", "False"}:
        return lambda cell: cell == "True"
    for kind in (int, float):  # "007" and "1_000" are no numbers, since they are not written as such
        if all(_number(value) == _number(value) and str(kind(float(value))) == value for value in values):
            return kind
    return str


def _line(cells: Sequence[str]) -> str:
    memory = io.StringIO()
    csv.writer(memory, lineterminator="").writerow(cells)
    return memory.getvalue()


def _number(cell: str) -> float:
    try:
        found = float(cell)
    except ValueError:
        return math.nan
    return found if math.isfinite(found) else math.nan


def _numbers(cells: Sequence[str]) -> np.ndarray:
    """The finite numbers that cells are, NaN for one that is none."""
    return np.array([_number(cell) for cell in cells])


def _of_numbers(cells: Sequence[str], numbers: np.ndarray, few: int) -> bool:
    """Whether a column of such cells is of numbers, but for infinite ones and a few other texts."""
    known = numbers[np.isfinite(numbers)]
    strange = [cell for cell, x in zip(cells, numbers, strict=True) if math.isnan(x)]
    odd = [cell for cell in strange if cell.lower().lstrip("+-") not in _INFINITE]
    if odd and (len(known) < LEAST_NUMBERS or len(odd) > ODD_SHARE * len(cells) or len(set(odd)) > ODD_TEXTS):
        return False
    return len(np.unique(known)) > few


def _decimals(cell: str) -> int:
    """How many decimals a number is written with: 1.25 has two, 1.5e-3 four."""
    digits, _, power = cell.lower().partition("e")
    exponent = float(power or 0)  # of any number of digits, which int refuses
    return int(min(max(min(len(digits.partition(".")[2]), MOST_DIGITS) - exponent, 0), MOST_DECIMALS))


def _stored(column: Mapping[str, Any], cells: Sequence[str]) -> tuple[np.ndarray, int]:
    """A column's cells as numbers, NaN where missing, or codes, -1 where missing; and how many were not known."""
    if column["kind"] == "category":
        codes = {value: k for k, value in enumerate(column["values"])}
        found = np.array([codes.get(cell, -1) for cell in cells], dtype=np.int32)
        return found, sum(cell not in codes and cell.lower() not in MISSING for cell in cells)
    values = _numbers(cells)
    return values, sum(
        math.isnan(x) and cell.lower() not in MISSING for cell, x in zip(cells, values, strict=True)
    )


def _normal(column: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    """Phi^-1(F(x)), of a value with mass at the middle of its step."""
    marks = np.asarray(column["quantiles"])
    places = np.linspace(0, 1, len(marks))
    # np.interp takes one end of a flat piece; the mean of both ways is its middle
    up = np.interp(x, marks, places)
    down = 1 - np.interp(-x, -marks[::-1], places)
    z = torch.special.ndtri(torch.from_numpy(_EDGE + (1 - 2 * _EDGE) * (up + down) / 2)).numpy()
    return np.where(np.isnan(x), np.nan, z)


def _value(column: Mapping[str, Any], z: np.ndarray) -> np.ndarray:
    """F^-1(Phi(z))."""
    marks = np.asarray(column["quantiles"])
    u = (torch.special.ndtr(torch.from_numpy(z)).numpy() - _EDGE) / (1 - 2 * _EDGE)
    return np.interp(u, np.linspace(0, 1, len(marks)), marks)


def _open(place: Source) -> tuple[list[str], list[list[str]], dict[str, Any]]:
    """(names of the columns, rows of cells, what the data card says) of a source."""
    if place.hub is not None:
        raise DataError("tables are read from a named source or a file, not from the Hub")
    if place.name is not None:
        from sfumato.domains.sources import named_data

        text, about = named_data(place, "table")
        sheet = read_csv(text, place.name)
    else:
        path = Path(str(place.path)).expanduser()
        if not path.is_file():
            raise DataError(f"{path} does not exist, or is no file: a table is one .csv or .parquet file")
        about = {"sources": [path.name]}
        sheet = _parquet(path) if path.suffix.lower() == ".parquet" else read_csv(read_text(path), str(path))
    rows = [row for _, row in sheet.rows if any(row)]
    if not rows and sheet.bad:
        raise DataError(f"{place.name or place.path}, line {sheet.bad[0].line}: {sheet.bad[0].problem}")
    if not rows:
        raise DataError(f"{place.name or place.path} is an empty table: it has no rows")
    if (count := len(sheet.names)) > MOST_COLUMNS:
        raise DataError(f"a table has at most {MOST_COLUMNS} columns, and this one {count}: drop some")
    return sheet.names, rows, about | {"left_out": sum(bad.lines for bad in sheet.bad)}


def _parquet(path: Path) -> Sheet:
    try:
        from pyarrow import parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra("pyarrow", "tables") from None
    if path.stat().st_size > LARGEST:
        raise DataError(f"{path} is larger than {LARGEST} bytes")
    try:
        table = parquet.ParquetFile(path).read()
    except Exception as problem:  # pyarrow's, of many classes
        raise DataError(f"{path} cannot be read as Parquet: {' '.join(str(problem).split())}") from None
    columns = [["" if cell is None else str(cell) for cell in column.to_pylist()] for column in table.columns]
    rows = enumerate((list(row) for row in zip(*columns, strict=True)), 1)
    return Sheet(list(table.column_names), list(rows), [])
