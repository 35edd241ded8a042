"""Files as people of each field have them: from archives and other programs, and not as this one would write them."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.cli import main
from sfumato.domains.fields import Fields
from sfumato.domains.hearing import words
from sfumato.domains.meshes import read_mesh
from sfumato.domains.midi import DRUMS, Note, midi_bytes, read_midi
from sfumato.domains.molecules import Molecules
from sfumato.domains.motion import NUMBERS, QUATERNIONS, Motion
from sfumato.domains.music import Music
from sfumato.domains.sequences import Sequences
from sfumato.domains.series import Series
from sfumato.domains.shapes import Shapes
from sfumato.domains.sounds import Sounds
from sfumato.domains.table import Table
from sfumato.domains.waves import to_wav
from sfumato.errors import DataError
from sfumato.evaluation.motion import own_nearest
from sfumato.evaluation.sequences import sequence_measures

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


def test_windows_are_looked_for_among_many_without_all_pairs_of_them():
    y = torch.from_numpy(np.random.default_rng(0).normal(size=(100_000, 3)))  # all pairs are 80 GB
    rows = torch.tensor([5, 70_000, 5])
    want = [(y[k] - y).norm(dim=1).sort().values[1] for k in rows]
    assert own_nearest(y, rows).tolist() == pytest.approx([float(d) for d in want])


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


# --- music ---

CHORALE = {
    name: [Note(k, 1, pitch) for k in range(8)]
    for name, pitch in (("Soprano", 72), ("Alto", 67), ("Tenor", 60), ("Bass", 48))
}


def test_capital_suffixes_and_folders_below_are_read(tmp_path: Path):
    (tmp_path / "bwv").mkdir()
    for place in ("a.mid", "B.MID", "bwv/c.mid"):
        (tmp_path / place).write_bytes(midi_bytes(CHORALE))
    assert Music(steps=16).read(tmp_path).about["pieces"] == 3
    assert Music(steps=16).read(tmp_path / "B.MID").about["pieces"] == 1


def test_in_midi_of_format_0_each_channel_is_a_voice(tmp_path: Path):
    mido = pytest.importorskip("mido")
    many = mido.MidiFile(file=io.BytesIO(midi_bytes(CHORALE)))
    one = mido.MidiFile(type=0, ticks_per_beat=many.ticks_per_beat)
    one.tracks.append(mido.merge_tracks(many.tracks))
    one.tracks[0].insert(0, mido.Message("note_on", channel=DRUMS, note=40))  # no pitch
    one.save(tmp_path / "one.mid")
    assert list(read_midi(tmp_path / "one.mid").values()) == list(CHORALE.values())


def test_no_voice_is_written_as_drums(tmp_path: Path):
    voices = {f"voice {k}": [Note(0, 1, 60 + k)] for k in range(15)}
    (tmp_path / "many.mid").write_bytes(midi_bytes(voices))
    assert read_midi(tmp_path / "many.mid") == voices


def test_a_piece_without_a_voice_does_not_teach_that_it_is_silent(tmp_path: Path):
    (tmp_path / "whole.mid").write_bytes(midi_bytes(CHORALE))
    (tmp_path / "melody.mid").write_bytes(midi_bytes({"Soprano": CHORALE["Soprano"]}))
    data = Music(steps=16).read(tmp_path)
    assert (data.about["pieces"], data.about["left_out"]) == (1, 1)
    assert data.domain.sounding(data.raw).all()


def test_what_is_not_filled_of_a_long_piece_is_said(tmp_path: Path):
    (tmp_path / "melody.mid").write_bytes(midi_bytes({"Soprano": CHORALE["Soprano"]}))
    with pytest.warns(UserWarning, match="has 16 steps; 8 of them are filled"):
        Music(steps=8).partial(str(tmp_path / "melody.mid"))


# --- fields ---


def climate(path: Path, days: np.ndarray, values: np.ndarray, units: str = "days since 1990-01-01") -> Path:
    """A file as climate models write them: bounds of the coordinates stand before the variable."""
    scipy_io = pytest.importorskip("scipy.io")
    with scipy_io.netcdf_file(str(path), "w") as file:
        for name, length in (("time", len(days)), ("lat", 4), ("lon", 6), ("bnds", 2)):
            file.createDimension(name, length)
        for name, axes, at in (
            ("time_bnds", ("time", "bnds"), np.stack([days, days + 1], 1)),
            ("area", ("lat", "lon"), np.ones((4, 6))),
            ("time", ("time",), days),
            ("tas", ("time", "lat", "lon"), values),
        ):
            made = file.createVariable(name, "f4" if name == "tas" else "f8", axes)
            made[:] = at
            if name == "time":
                made.units, made.bounds = units, "time_bnds"
            if name == "tas":
                made.units, made.coordinates = "K", "area"
    return path


def test_bounds_of_coordinates_are_no_fields_and_what_was_never_written_is_a_gap(tmp_path: Path):
    values = np.random.default_rng(0).normal(280, 10, (30, 4, 6)).astype(np.float32)
    values[7, 2, 3] = 9.9692099683868690e36  # NetCDF's NC_FILL_FLOAT
    data = Fields().read(climate(tmp_path / "a.nc", np.arange(30.0), values))
    assert data.domain.variables == ("tas",)
    assert (len(data), data.about["left_out"]) == (29, 1)
    assert 250 < data.domain.mean[0] < 300


@pytest.mark.parametrize(
    ("days", "units", "stretches"),
    [
        (np.arange(12 * 365.25, step=365.25 / 12), "days since 1990-01-01", 12),  # months of twelve years
        (np.arange(0, 24 * 4000, 24), "hours since 1990-01-01", 11),  # days of eleven years
        (np.arange(0, 200, 0.25), "days since 1990-01-01", 10),  # four times a day
        (np.arange(48), "months", 4),
    ],
)
def test_neighbours_in_time_are_held_out_together(
    tmp_path: Path, days: np.ndarray, units: str, stretches: int
):
    values = np.random.default_rng(0).normal(size=(len(days), 4, 6)).astype(np.float32)
    groups = Fields().read(climate(tmp_path / "a.nc", days, values, units)).groups
    assert len(set(groups)) == stretches
    assert sum(a != b for a, b in pairwise(groups)) == stretches - 1


# --- sounds ---


def test_a_recording_that_begins_later_than_a_piece_is_long_is_counted(tmp_path: Path):
    late = np.concatenate([np.zeros(9000), np.sin(np.arange(4000) / 5)])
    (tmp_path / "late.wav").write_bytes(to_wav(late, 8000))
    with pytest.raises(DataError, match="silent in their first 8000 samples: give a stride"):
        Sounds().read(tmp_path)
    (tmp_path / "good.wav").write_bytes(to_wav(late[9000:], 8000))
    data = Sounds().read(tmp_path)
    assert (len(data), data.about["left_out"]) == (1, 1)
    assert data.about["left_out_because"] == {"are silent at first": 1}
    assert set(Sounds(stride=4000).read(tmp_path).groups) == {"good.wav", "late.wav"}


# --- molecules ---


def sdf(path: Path, molecules: list, ways: list[int] | None = None) -> Path:
    chem = pytest.importorskip("rdkit.Chem")
    with chem.SDWriter(str(path)) as file:
        for one, way in zip(molecules, ways or [-1] * len(molecules), strict=True):
            file.write(one, confId=way)
    return path


def test_drawings_are_no_molecules_in_space(tmp_path: Path):
    """As PubChem and ChEMBL give them unless asked; a flat molecule in space is one."""
    chem = pytest.importorskip("rdkit.Chem")
    from rdkit.Chem import AllChem

    drawn, real = (chem.AddHs(chem.MolFromSmiles("c1ccccc1")) for _ in range(2))
    AllChem.Compute2DCoords(drawn)
    AllChem.EmbedMolecule(real, randomSeed=1)
    flat = real.GetConformer()
    places = flat.GetPositions()
    places[:, 2] = 0.0
    flat.SetPositions(places)
    data = Molecules().read(sdf(tmp_path / "a.sdf", [drawn, real]))
    assert (len(data), data.about["left_out"]) == (1, 1)
    with pytest.raises(DataError, match="drawings in 2D"):
        Molecules().read(sdf(tmp_path / "b.sdf", [drawn]))


def test_conformations_of_a_molecule_are_held_out_together(tmp_path: Path):
    chem = pytest.importorskip("rdkit.Chem")
    from rdkit.Chem import AllChem

    molecules, ways = [], []
    for text in [a + b + c for a in ("C", "CC", "N") for b in ("C", "N", "O") for c in ("F", "O", "CC")]:
        one = chem.AddHs(chem.MolFromSmiles(text))
        ways += list(AllChem.EmbedMultipleConfs(one, 3, randomSeed=1))
        molecules += [one] * 3
    data = Molecules().read(sdf(tmp_path / "a.sdf", molecules, ways))
    kept, held = ({data.groups[row] for row in part.rows} for part in data.split(0.25))
    assert (len(kept | held), len(kept & held)) == (27, 0)
    assert Molecules().read(sdf(tmp_path / "b.sdf", molecules[::3])).groups == ()
    one = Molecules().read(sdf(tmp_path / "c.sdf", molecules[:3], ways[:3]))  # a trajectory
    assert len(one.split(0.34)[1]) == 1


# --- sequences ---


def test_what_a_file_holds_twice_is_held_out_both_times_or_not_at_all(tmp_path: Path):
    texts = ["ACDEFG"] * 10 + [f"KLM{a}" for a in "ACDEFGHIKLMNPQRSTVWY"]
    (tmp_path / "a.fasta").write_text("".join(f">{k}\n{text}\n" for k, text in enumerate(texts)))
    data = Sequences(dialect="peptide").read(tmp_path / "a.fasta")
    for seed in range(5):
        kept, held = (set(part.domain.text(part.raw)) for part in data.split(0.3, seed))
        assert not kept & held
    (tmp_path / "b.fasta").write_text("".join(f">{k}\n{text}\n" for k, text in enumerate(texts[9:])))
    assert Sequences(dialect="peptide").read(tmp_path / "b.fasta").groups == ()


def test_sequences_of_many_symbols_are_judged_without_agreement(tmp_path: Path):
    letters = [chr(0x4E00 + k) for k in range(100)]
    rows = [f"{letters[k]}{letters[-k]},{'ab'[k % 2]}" for k in range(100)]
    (tmp_path / "a.csv").write_text("\n".join(["sequence,label", *rows]), encoding="utf-8")
    train, held = Sequences().read(tmp_path / "a.csv").split(0.2)
    found = sequence_measures(train.domain, train.domain.text(train.raw), train.targets, train, held)
    assert {"validity", "novelty"} <= {one.name for one in found}
    assert "agreement" not in {one.name for one in found}


# --- series and tables ---


@pytest.mark.parametrize("gap", ["NA", "null", "NaN", ""])
def test_a_gap_of_a_series_is_written_as_in_tables(tmp_path: Path, gap: str):
    rows = [f"{s},{t},{gap if (s, t) == (1, 3) else s + t}" for s in range(3) for t in range(6)]
    (tmp_path / "a.csv").write_text("\n".join(["series,time,x", *rows]))
    data = Series().read(tmp_path / "a.csv")
    assert (len(data), data.about["left_out"], data.about["filled"]) == (3, 0, 1)
    assert data.raw[1, 3, 0] == 4


def test_columns_of_parquet_are_of_their_kind(tmp_path: Path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        "whole": list(range(100)), "real": [k / 8 for k in range(100)], "few": [0, 1] * 50, "so": [True, False] * 50,
        "text": ["a", "1"] * 50, "code": ["007", "010"] * 50, "one": [3] * 100, "half": [0.5, 1.5] * 50,
    }  # fmt: skip
    parquet.write_table(arrow.table(columns), tmp_path / "a.parquet")
    data = Table(format="parquet").read(tmp_path / "a.parquet")
    data.domain.write(data.tensor(), tmp_path / "out")
    assert parquet.read_table(tmp_path / "out" / "samples.parquet").to_pydict() == columns
    empty = {name: leaf[:0] for name, leaf in data.tensor().items()}
    data.domain.write(empty, tmp_path / "out")


def test_data_check_says_why_something_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "quiet.wav").write_bytes(to_wav(np.zeros(900), 8000))
    (tmp_path / "tone.wav").write_bytes(to_wav(np.sin(np.arange(900)), 8000))
    rows = [f"{k}.5,{'x' if k == 7 else k},{'ab'[k % 2]}," for k in range(60)]
    (tmp_path / "a.csv").write_text("\n".join(["p,q,r,s", *rows]))
    for place, kind, said in (
        (tmp_path, "sounds", ["1 left out: they are silent"]),
        (tmp_path / "a.csv", "table", ["column s left out", "1 cells of q not known"]),
    ):
        with pytest.raises(SystemExit) as left:
            main(["data", "check", str(place), "--domain", kind])
        out = capsys.readouterr().out
        assert not left.value.code
        assert all(part in out for part in said)


def test_letters_with_accents_are_letters() -> None:
    assert words("Café naïve, STRAẞE 21 – Ångström's") == [
        "cafe", "naive", "strasse", "twenty", "one", "angstroms",
    ]  # fmt: skip
