"""Meshes: the files that hold them, and points drawn evenly from their surfaces.

    .obj    lines "v x y z" and "f 1 2/2/2 3//3 -1": corners count from 1, or backwards from the last
    .off    "OFF", then the numbers of corners, faces and edges, the corners, and faces "3 0 1 2"; the first number may
            stand right behind "OFF", as in many files of ModelNet
    .ply    ASCII, elements vertex (x, y, z wherever its properties are) and face, as point clouds are written too

A face of more than three corners is cut into triangles around its first. A point on a surface: a triangle with
probability in proportion to its area, then in it  (1 - √u) a + √u (1 - v) b + √u v c  with u, v uniform, which is
uniform on the triangle (Osada et al. 2002, Shape distributions, section 3.1).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.domains.records import Texts, labelled_files
from sfumato.domains.source import Source
from sfumato.errors import DataError

PYBULLET = "pybullet-3.2.7-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
SUFFIXES = (".obj", ".off", ".ply")
LARGEST = 1e100  # of a coordinate, so that areas are finite


@dataclass(frozen=True)
class Mesh:
    """Corners float64 (n, 3) and triangles int64 (m, 3); label: the folder it lay in, or None."""

    name: str
    corners: np.ndarray
    triangles: np.ndarray
    label: str | None = None

    @property
    def areas(self) -> np.ndarray:
        """Of each triangle, (m,)."""
        a, b, c = (self.corners[self.triangles[:, k]] for k in range(3))
        return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2


def surface_points(mesh: Mesh, count: int, draw: np.random.Generator) -> np.ndarray:
    """Points drawn evenly from a mesh's surface, float64 (count, 3). It must have one."""
    areas = mesh.areas
    chosen = mesh.triangles[draw.choice(len(areas), count, p=areas / areas.sum())]
    root, v = np.sqrt(draw.random((count, 1))), draw.random((count, 1))
    a, b, c = (mesh.corners[chosen[:, k]] for k in range(3))
    return (1 - root) * a + root * (1 - v) * b + root * v * c


def open_meshes(place: Source) -> tuple[list[Mesh], int, dict[str, Any]]:
    """(meshes with a surface, how many files hold none, what the data card says) of a named source, a folder or a file.

    Files in subfolders have the name of the first folder as label. Raises DataError naming what is wrong, if none can
    be used.
    """
    texts, about = labelled_files(place, "shapes", SUFFIXES)
    kept, problem = [], None
    for name, text, label in texts:
        try:
            mesh = read_mesh(name, text, label)
        except DataError as error:
            problem = problem or error
            continue
        if len(mesh.triangles) and mesh.areas.sum() > 0:
            kept.append(mesh)
    if not kept:
        raise problem or DataError(f"{place.name or place.path} holds no mesh with a surface")
    return kept, len(texts) - len(kept), about


def wheel_meshes(folder: Path, split: str) -> Texts:
    """(name, text, None) of the meshes in pybullet's wheel."""
    with zipfile.ZipFile(folder / PYBULLET) as archive:
        names = sorted(
            n
            for n in archive.namelist()
            if n.startswith("pybullet_data/random_urdfs/") and n.endswith(".obj")
        )
        return [(name.rpartition("/")[2], archive.read(name).decode(), None) for name in names]


def read_mesh(name: str, text: str, label: str | None = None) -> Mesh:
    """The mesh in a file's text, of the kind that its name ends in. Raises DataError for what cannot be read."""
    reader = {".obj": _obj, ".off": _off, ".ply": _ply}[Path(name).suffix.lower()]
    try:
        corners, faces = reader(text)
        table = np.array(corners, dtype=np.float64).reshape(-1, 3)
        triangles = [(f[0], f[k], f[k + 1]) for f in faces for k in range(1, len(f) - 1)]
        where = np.array(triangles, dtype=np.int64).reshape(-1, 3)
    except (ValueError, IndexError, StopIteration, OverflowError) as problem:
        raise DataError(
            f"{name} is no {Path(name).suffix[1:].upper()} file that can be read: {problem}"
        ) from None
    if len(where) and (where.min() < 0 or where.max() >= len(table)):
        raise DataError(f"{name}: a face has corner {where.max()}, and there are {len(table)}")
    if not (np.abs(table) < LARGEST).all():
        raise DataError(f"{name}: a corner is not finite, or {LARGEST:.0e} or more from 0")
    return Mesh(name, table, where, label)


def _obj(text: str) -> tuple[list[list[float]], list[list[int]]]:
    corners: list[list[float]] = []
    faces = []
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["v"]:
            corners.append([float(word) for word in words[1:4]])
        elif words[:1] == ["f"]:
            numbers = [int(word.partition("/")[0]) for word in words[1:]]
            faces.append([k - 1 if k > 0 else len(corners) + k for k in numbers])
    return corners, faces


def _rows(lines: Iterable[list[str]], count: int) -> list[list[str]]:
    lines = iter(lines)
    return [next(lines) for _ in range(count)]


def _off(text: str) -> tuple[list[list[float]], list[list[int]]]:
    lines = (line.split() for line in text.splitlines() if line.strip() and line[0] != "#")
    first = next(lines)
    if not first[0].startswith("OFF"):
        raise ValueError("it does not begin with OFF")
    counts = [word for word in (first[0].removeprefix("OFF"), *first[1:]) if word] or next(lines)
    corners = [[float(word) for word in row[:3]] for row in _rows(lines, int(counts[0]))]
    return corners, [[int(word) for word in row[1 : 1 + int(row[0])]] for row in _rows(lines, int(counts[1]))]


def _ply(text: str) -> tuple[list[list[float]], list[list[int]]]:
    lines = (line.split() for line in text.splitlines() if line.strip())
    if next(lines) != ["ply"] or next(lines)[:2] != ["format", "ascii"]:
        raise ValueError("only ASCII is read: save it so")
    counts: dict[str, int] = {}
    columns: list[str] = []  # of a vertex
    for words in lines:
        if words[0] == "end_header":
            break
        if words[0] == "element":
            counts[words[1]] = int(words[2])
        elif words[0] == "property" and list(counts) == ["vertex"]:
            columns.append(words[-1])
    if list(counts)[:1] != ["vertex"] or list(counts)[1:2] not in ([], ["face"]):
        raise ValueError("its elements are not vertex and then face")
    at = [columns.index(axis) for axis in "xyz"]
    corners = [[float(row[k]) for k in at] for row in _rows(lines, counts["vertex"])]
    faces = _rows(lines, counts.get("face", 0))
    return corners, [[int(word) for word in row[1 : 1 + int(row[0])]] for row in faces]
