"""Files as people of each field have them: from archives and other programs, and not as this one would write them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sfumato.domains.meshes import read_mesh
from sfumato.domains.motion import NUMBERS, QUATERNIONS, Motion
from sfumato.domains.shapes import Shapes

CORNERS = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
FACES = [(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)]


def lines(rows: list[tuple]) -> str:
    return "".join(" ".join(map(str, row)) + "\n" for row in rows)


def off(head: str = "OFF\n") -> str:
    return f"{head}4 4 0\n" + lines(CORNERS) + lines([(3, *face) for face in FACES])


# --- shapes and motion ---


def test_the_first_folder_is_the_class_whatever_is_below_it(tmp_path: Path):
    """As in ModelNet: chair/train/chair_0001.off."""
    for kind in ("chair", "table"):
        for part in ("train", "test"):
            (tmp_path / kind / part).mkdir(parents=True)
            (tmp_path / kind / part / "0001.off").write_text(off())
    data = Shapes(points=4, draws=1).read(tmp_path)
    assert data.counts() == {"chair": 2, "table": 2}


def test_clips_of_one_name_in_two_folders_are_two(tmp_path: Path):
    frame = np.zeros(NUMBERS + 1)
    frame[[0, *(k + 1 for k in QUATERNIONS)]] = 1 / 30, *[1.0] * len(QUATERNIONS)
    for kind in ("run", "walk"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "01.txt").write_text(json.dumps({"Frames": [frame.tolist()] * 10}))
    assert set(Motion(frames=8).read(tmp_path).groups) == {"run/01.txt", "walk/01.txt"}


@pytest.mark.parametrize("head", ["OFF\n", "OFF ", "OFF"])
def test_counts_may_stand_right_behind_off(head: str):
    assert read_mesh("a.off", off(head)).areas == pytest.approx([0.5, 0.5, 0.5, 0.75**0.5])


def test_the_places_of_a_ply_are_told_by_their_names():
    names = ["nx", "ny", "nz", "x", "y", "z", "red"]
    head = "ply\nformat ascii 1.0\nelement vertex 4\n" + "".join(f"property float {n}\n" for n in names)
    head += "element face 4\nproperty list uchar int vertex_indices\nend_header\n"
    text = head + lines([(9, 9, 9, *corner, 255) for corner in CORNERS]) + lines([(3, *f) for f in FACES])
    assert read_mesh("a.ply", text).corners.tolist() == [list(map(float, corner)) for corner in CORNERS]
    with pytest.raises(ValueError, match=r"a\.ply is no PLY"):
        read_mesh("a.ply", text.replace("float y", "float why"))
