"""Shapes as point clouds: points drawn evenly from the surfaces of meshes.

A mesh is moved and scaled so that the middle of the box around it is at 0 and the box's longest side goes from -1 to 1.
The points of a cloud have no order. Each mesh is shown in several draws of its points (`draws`), and is held out with
all of them or not at all. The draws are those of its place among the meshes, the same every time.

A mesh without faces, or whose faces have no area, has no surface to draw from: it is left out and counted, as is a file
that cannot be read or has corners that are not finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from sfumato.domains.drawn import FAINT, FINE, Drawn, canvas, reduced
from sfumato.domains.examples import Examples
from sfumato.domains.meshes import Mesh, open_meshes, surface_points
from sfumato.domains.records import numbered
from sfumato.domains.source import Source
from sfumato.errors import DataError

_SIDE = 112  # of a picture
_LOOK = (0.6, 0.45)  # to the left, and down on it, in radians
_NEAR, _FAR = np.array([60.0, 38.0, 20.0]), np.array([226.0, 206.0, 180.0])


@dataclass(frozen=True)
class Shapes(Drawn):
    """Clouds of `points` points, states float32 (n, points, 3).

    draws: how many clouds are drawn of each mesh. Raises DataError for values that are none of these.
    """

    name: ClassVar[str] = "shapes"
    suffix: ClassVar[str] = "ply"
    sources: ClassVar[bool] = True
    points: int = 256
    draws: int = 8

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        for key, most in (("points", 1 << 16), ("draws", 1 << 10)):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise DataError(f"{key} must be a whole number from 1 to {most}, not {value!r}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(points, 3)."""
        return (self.points, 3)

    def read(self, source: Source | str | Path) -> Examples:
        """Clouds of the meshes of a named source, a folder or a file; see `meshes`."""
        from sfumato.domains.images import as_source

        place = as_source(source)
        meshes, left_out, about = open_meshes(place)
        stored = np.empty((len(meshes) * self.draws, self.points, 3), np.float32)
        for k, mesh in enumerate(meshes):
            points = surface_points(scaled(mesh), self.draws * self.points, np.random.default_rng([0, k]))
            stored[k * self.draws : (k + 1) * self.draws] = points.reshape(self.draws, self.points, 3)
        classes, labels = (), None
        if all(mesh.label is not None for mesh in meshes):
            classes, each = numbered([mesh.label for mesh in meshes], self.classes)
            labels = np.repeat(each, self.draws)
        groups = tuple(f"{k}" for k in range(len(meshes)) for _ in range(self.draws))
        return Examples(
            replace(self, classes=classes),
            stored,
            labels,
            groups,
            name=about["sources"][0],
            about=about | {"left_out": left_out, "meshes": len(meshes)},
        )

    def text(self, samples: Any) -> list[str]:
        """How many points each sample has, and the box around them."""
        return [
            f"{len(x)} points in "
            + " x ".join(f"{low:.2f}..{high:.2f}" for low, high in zip(x.amin(0), x.amax(0), strict=True))
            for x in samples
        ]

    def write(
        self,
        samples: Any,
        folder: str | Path,
        labels: Any = None,
        start: int = 0,
        prompts: Sequence[str] | None = None,
    ) -> list[Path]:
        """Write a PLY a sample, ASCII, its points alone."""
        names = "\n".join(f"property float {axis}" for axis in "xyz")
        texts = [
            f"ply\nformat ascii 1.0\nelement vertex {len(x)}\n{names}\nend_header\n"
            + "\n".join(" ".join(f"{v:.6g}" for v in point) for point in x.tolist())
            for x in samples
        ]
        return self._files(texts, folder, labels, start)

    def pixels(self, samples: Any) -> np.ndarray:
        """The clouds from a side and above, parallel rays; what is nearer is darker and drawn later."""
        turn, tilt = _LOOK
        x = np.asarray(torch.as_tensor(samples).float().cpu()).astype(np.float64)
        across = np.cos(turn) * x[..., 0] + np.sin(turn) * x[..., 2]
        away = -np.sin(turn) * x[..., 0] + np.cos(turn) * x[..., 2]
        up = np.cos(tilt) * x[..., 1] - np.sin(tilt) * away
        near = np.clip(np.sin(tilt) * x[..., 1] + np.cos(tilt) * away, -1.3, 1.3)
        scale, middle = FINE * _SIDE / 3.2, FINE * _SIDE / 2
        found = np.empty((len(x), _SIDE, _SIDE, 3), np.uint8)
        for k in range(len(x)):
            paper, pen = canvas(_SIDE, _SIDE)
            pen.rectangle((0, 0, FINE * _SIDE - 1, FINE * _SIDE - 1), outline=FAINT, width=FINE)
            for i in np.argsort(near[k]):
                part, r = (near[k, i] + 1.3) / 2.6, FINE * 1.6
                u, v = middle + scale * across[k, i], middle - scale * up[k, i]
                colour = tuple(int(c) for c in part * _NEAR + (1 - part) * _FAR)
                pen.ellipse((u - r, v - r, u + r, v + r), fill=colour)
            found[k] = reduced(paper)
        return found


def scaled(mesh: Mesh) -> Mesh:
    """The mesh in its place: the box around its faces in the middle, and its longest side from -1 to 1."""
    used = mesh.corners[np.unique(mesh.triangles)]
    low, high = used.min(0), used.max(0)
    return replace(mesh, corners=(mesh.corners - (low + high) / 2) / ((high - low).max() / 2))
