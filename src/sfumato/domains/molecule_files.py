"""Files of molecules in space: SDF and XYZ, and the table of QM9. What is read are elements, positions and properties.

    SDF     molfiles and lines "> <name>", value: properties; read and written by RDKit
    XYZ     number of atoms, a line that is passed over, a line "element x y z" an atom; one after another
    QM9     csv inside a wheel, with columns of elements and positions as lists

A block that is none, or has an element whose bonds are not known (`bonds.VALENCES`), is left out and counted, and so is
one of an SDF that says "2D": a drawing, in which nothing is where it is in space.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.domains.bonds import VALENCES, Molecule, graph, rdkit
from sfumato.errors import DataError, choose

LARGEST = 1 << 30  # bytes of a file
QM9 = {
    "dipole": ("Dipole_debye", 1.0),
    "polarizability": ("Polarizability_bohr3", 1.0),
    "homo": ("HOMO_au", 27.211386),
    "lumo": ("LUMO_au", 27.211386),
    "gap": ("HOMO_LUMO_gap_au", 27.211386),
    "heat capacity": ("Heatcapacity_Cv_cal_mol_K", 1.0),
}
"""Properties of QM9 by name: their column, and what brings it to debye, bohr^3, eV or cal / (mol K)."""


@dataclass
class Found:
    """Molecules with their properties (one list of numbers each), how many records were none, and what is said."""

    molecules: list[Molecule] = field(default_factory=list)
    properties: list[list[float]] = field(default_factory=list)
    bad: int = 0
    names: set[str] = field(default_factory=set)


def open_molecules(path: Path, properties: Sequence[str]) -> Found:
    """The molecules of an .sdf or .xyz file. Raises DataError for another file, or one that holds none."""
    if not path.is_file():
        raise DataError(f"{path} does not exist, or is no file: molecules are one file (.sdf, .xyz)")
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path} is of no known kind: a file of molecules ends in .sdf or .xyz")
    if path.stat().st_size > LARGEST:
        raise DataError(f"{path} is larger than {LARGEST} bytes")
    found = Found()
    # a byte that is no UTF-8 becomes half a character, which spoils its record alone
    for one in READERS[path.suffix.lower()](path.read_text(encoding="utf-8", errors="surrogateescape")):
        if one is None:
            found.bad += 1
        else:
            found.molecules.append(one[0])
            found.properties.append([_number(one[1].get(name)) for name in properties])
            found.names |= one[1].keys()
    if not found.molecules:
        why = f"{found.bad} records are none, are drawings in 2D, or no text in UTF-8"
        raise DataError(f"{path} holds no molecules of {', '.join(VALENCES)}: {why}")
    return found


def _number(text: str | None) -> float:
    try:
        return float(text) if text is not None else float("nan")
    except ValueError:
        return float("nan")


def _atoms(rows: Sequence[Sequence[Any]]) -> Molecule:
    """A molecule of rows (element, x, y, z). Raises ValueError for what is none."""
    positions = np.array([[float(v) for v in row[1:4]] for row in rows], np.float64).reshape(-1, 3)
    if not len(rows) or not np.isfinite(positions).all() or np.abs(positions).max() > 1e6:
        raise ValueError("no atoms, or atoms nowhere")
    elements = tuple(row[0].capitalize() for row in rows)
    if not VALENCES.keys() >= set(elements):
        raise ValueError("an element whose bonds are not known")
    return elements, positions


def _sdf(text: str) -> Iterator[tuple[Molecule, dict[str, str]] | None]:
    read = rdkit().SDMolSupplier()
    for block in filter(str.strip, text.replace("\r\n", "\n").split("$$$$\n")):
        try:
            read.SetData(block, sanitize=False, removeHs=False)
            one = read[0]  # a block at a time: a supplier passes over a short one at a file's end
            if block.split("\n")[1][20:22] == "2D":
                raise ValueError("a drawing")
            where = one.GetConformer().GetPositions().tolist()
            rows = [(atom.GetSymbol(), *at) for atom, at in zip(one.GetAtoms(), where, strict=True)]
            yield _atoms(rows), {name: one.GetProp(name).strip() for name in one.GetPropNames()}
        except (AttributeError, LookupError, ValueError, RuntimeError):  # RDKit cannot read it
            yield None


def _xyz(text: str) -> Iterator[tuple[Molecule, dict[str, str]] | None]:
    lines, k = text.splitlines(), 0
    while k < len(lines):
        if not lines[k].strip():
            k += 1
            continue
        try:
            count = int(lines[k])
            "".join(lines[k : k + 2 + count]).encode()  # raises UnicodeEncodeError, which is a ValueError
            rows = [line.split() for line in lines[k + 2 : k + 2 + count]]
            if len(rows) < count or any(len(row) < 4 for row in rows):
                raise ValueError("a block that is cut off")
            yield _atoms(rows), {}
            k += count + 2
        except (ValueError, RuntimeError):
            yield None
            k += 1
            while k < len(lines) and not lines[k].strip().isdigit():  # on to what may be the next
                k += 1


READERS: dict[str, Callable[[str], Iterator[Any]]] = {".sdf": _sdf, ".xyz": _xyz}


def open_qm9(wheel: Path, properties: Sequence[str], limit: int | None = None) -> Found:
    """The molecules of QM9 in a wheel of qm9pack, at most `limit`, evenly spread. Raises DataError."""
    columns = [QM9[choose(name, QM9, "property of QM9", DataError)] for name in properties]
    found, step = Found(), 1 if limit is None else max(130_831 // limit, 1)
    number = 0
    try:
        with zipfile.ZipFile(wheel) as archive:
            for part in (1, 2, 3):
                with archive.open(f"qm9pack/data/qm9_part{part}.csv") as raw:
                    for row in csv.DictReader(io.TextIOWrapper(raw, "utf-8")):
                        number += 1
                        if number % step == 0 and (limit is None or len(found.molecules) < limit):
                            _qm9_row(row, columns, found)
    except (KeyError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise DataError(f"{wheel} is no wheel of qm9pack that can be read: {error}") from None
    return found


def _qm9_row(row: dict[str, str], columns: Sequence[tuple[str, float]], found: Found) -> None:
    try:
        elements = tuple(row["Elements"].translate(_DROP).split(","))
        positions = np.array(row["XYZ_Ang"].translate(_DROP).split(","), np.float64).reshape(-1, 3)
        said = [float(row[column]) * factor for column, factor in columns]
        if len(elements) != len(positions):
            raise ValueError("not one position an atom")
    except ValueError:
        found.bad += 1
        return
    found.molecules.append((elements, positions))
    found.properties.append(said)


_DROP = str.maketrans("", "", "[]' ")


def to_sdf(molecule: Molecule, title: str) -> str:
    """An SDF record with the bonds that distances tell of. Raises MissingExtra without RDKit."""
    made = graph(molecule)
    made.SetProp("_Name", title)
    return rdkit().MolToMolBlock(made, kekulize=False) + "$$$$\n"
