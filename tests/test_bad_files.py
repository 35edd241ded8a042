"""What ordinary files hold that nobody planned for: it is read as it is meant, counted, or refused in one line."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.domains.bonds import VALENCES, bond_orders, built, smiles, stable_atoms
from sfumato.domains.captioned import Captioned
from sfumato.domains.examples import Examples
from sfumato.domains.fields import Fields
from sfumato.domains.midi import Note, midi_bytes, read_midi
from sfumato.domains.molecules import Molecules
from sfumato.domains.motion import NUMBERS, Motion
from sfumato.domains.music import Music
from sfumato.domains.musicxml import read_score
from sfumato.domains.sequences import Sequences
from sfumato.domains.shapes import Shapes
from sfumato.domains.sounds import Sounds
from sfumato.domains.speech import ALPHABET, Speech
from sfumato.domains.table import Table
from sfumato.domains.video import Video
from sfumato.domains.waves import to_wav
from sfumato.errors import DataError
from sfumato.evaluation.fields import field_measures
from sfumato.evaluation.molecules import PropertyJudge
from sfumato.evaluation.sounds import sound_measures
from sfumato.noise import Noise

VOICES = ("Soprano", "Alto", "Tenor", "Bass")


def refused(use: Any, words: str) -> None:
    """The use raises DataError of one line with these words."""
    with pytest.raises(DataError, match=words) as said:
        use()
    assert "\n" not in str(said.value)


# --- fields ---


def netcdf(path: Path, variables: dict[str, tuple[np.ndarray, dict[str, Any]]]) -> Path:
    scipy_io = pytest.importorskip("scipy.io")
    with scipy_io.netcdf_file(str(path), "w") as file:
        for name, (values, about) in variables.items():
            axes = tuple(f"{name}_{k}" for k in range(values.ndim))
            for axis, length in zip(axes, values.shape, strict=True):
                file.createDimension(axis, length)
            made = file.createVariable(name, values.dtype, axes)
            made[:] = values
            for key, value in about.items():
                setattr(made, key, value)
    return path


def test_a_packed_file_is_read_as_the_same_values_unpacked(tmp_path: Path):
    stored = np.random.default_rng(0).integers(-30_000, 30_000, (8, 24)).astype(np.int16)
    stored[1, 1] = -32768
    packing = {"scale_factor": 2.0**-7, "add_offset": 273.25, "_FillValue": np.int16(-32768), "units": "K"}
    data = Fields(size=8).read(netcdf(tmp_path / "packed.nc", {"t": (stored, packing)}))
    plain = (stored / 128 + 273.25).astype(np.float32)  # exact in float32
    plain[1, 1] = np.nan
    same = Fields(size=8).read(netcdf(tmp_path / "plain.nc", {"t": (plain, {"units": "K"})}))
    np.testing.assert_array_equal(data.raw, same.raw)
    assert (len(data), data.card()["left_out"]) == (2, 1)
    assert data.domain == same.domain


def test_units_stay_with_their_variable(tmp_path: Path):
    grid = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    units = {"u": "m/s", "p": "hPa", "mask": "1"}
    for odd in units:  # of another grid, wherever it stands in the file
        held = {name: (grid[:, :4] if name == odd else grid, {"units": unit}) for name, unit in units.items()}
        path = netcdf(tmp_path / f"{odd}.nc", held | {"names": (np.full((3, 4), b"x", "S1"), {})})
        domain = (data := Fields().read(path)).domain
        assert set(domain.variables) in ({odd}, units.keys() - {odd})
        assert domain.units == tuple(units[name] for name in domain.variables)
        parts = domain.text(data.tensor())[0].split(", ")
        assert [(part.split()[0], part.split()[-1]) for part in parts] == [
            (v, units[v]) for v in domain.variables
        ]
        refused(lambda path=path: Fields(variables=tuple(units)).read(path), "not of one grid")


def test_a_field_with_any_wrong_byte_in_its_head_is_read_or_refused(tmp_path: Path):
    values = np.arange(64, dtype=np.int16).reshape(8, 8)
    path = netcdf(tmp_path / "a.nc", {"t": (values, {"scale_factor": 0.5, "units": "K"})})
    content, wrong = path.read_bytes(), 0
    for place in range(len(content) - values.nbytes):
        path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
        try:
            Fields().read(path)
        except DataError:
            wrong += 1
    assert wrong > 20


def test_fields_are_judged_at_every_place_and_in_every_variable():
    domain = Fields(variables=("u", "v"), size=(6, 144), mean=(0.0, 0.0), std=(1.0, 1.0))
    values = np.random.default_rng(0).normal(size=(600, 2, 6, 144)).astype(np.float32)
    train, held = Examples(domain, values[:400]), Examples(domain, values[400:])
    good = {m.name: m for m in field_measures(domain, held.tensor(), train, held)}
    assert set(good) == {"spectrum", "spectrum, mean", "values", "slopes"}
    assert all(m.value == m.floor for m in good.values())
    columns = held.tensor()
    columns[:, 0, :, 1::2] += 3.0  # half of the columns, and none that a stride of 12 sees
    second = held.tensor()
    second[:, 1] = 3.0 * second[:, 1]
    for wrong, names in ((columns, ("values", "slopes")), (second, tuple(good))):
        found = {m.name: m for m in field_measures(domain, wrong, train, held)}
        assert all(found[name].value > 5 * good[name].value for name in names)


# --- music ---


def hymn(names: tuple[str, ...] = VOICES, quarters: int = 8) -> dict[str, list[Note]]:
    draw = np.random.default_rng(len(names))
    return {
        name: [Note(k, 1, 70 - 8 * VOICES.index(name) + int(draw.integers(-3, 4))) for k in range(quarters)]
        for name in names
    }


def with_metre(midi: bytes, beats: int) -> bytes:
    """The file with a message of its metre in the first track."""
    at = midi.index(b"MTrk")
    size = int.from_bytes(midi[at + 4 : at + 8], "big")
    said = bytes([0, 0xFF, 0x58, 4, beats, 2, 24, 8])
    return midi[: at + 4] + (size + len(said)).to_bytes(4, "big") + said + midi[at + 8 :]


def score(divisions: str = "1", duration: str = "16", alter: str = "0", first: str = "") -> bytes:
    listed = "".join(f'<score-part id="{v}"><part-name>{v}</part-name></score-part>' for v in VOICES)
    note = f"<note><pitch><step>C</step><alter>{alter}</alter><octave>4</octave></pitch><duration>{duration}</duration>"
    measure = f"<attributes><divisions>{divisions}</divisions></attributes>{first}{note}</note>"
    parts = "".join(f'<part id="{v}"><measure number="1">{measure}</measure></part>' for v in VOICES)
    return f"<score-partwise><part-list>{listed}</part-list>{parts}</score-partwise>".encode()


def test_pieces_of_no_use_are_counted_one_by_one(tmp_path: Path):
    pytest.importorskip("mido")
    good = midi_bytes(hymn())
    files = {
        "good.mid": good,
        "marked.mid": with_metre(good, 4),
        "waltz.mid": with_metre(good, 3),
        "short.mid": midi_bytes(hymn(quarters=3)),
        "lower.mid": midi_bytes(hymn(VOICES[1:])),
        "good.xml": score(),
        "none.xml": score(divisions="0"),
        "high.xml": score(alter="inf"),
        "never.xml": score(duration="nan"),
        "coded.xml": b'<?xml version="1.0" encoding="none"?><a/>',
        "before.xml": score(first="<backup><duration>99</duration></backup>"),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    card = Music(steps=16, transpose=False).read(tmp_path).card()
    assert (card["pieces"], card["left_out"]) == (3, len(files) - 3)
    for name, words in (("waltz.mid", "not in 4/4"), ("short.mid", "shorter"), ("lower.mid", "no Soprano")):
        refused(lambda name=name: Music(steps=16).read(tmp_path / name), words)
    lower = Music(steps=16).partial(str(tmp_path / "lower.mid"))  # to be completed
    assert bool((lower.reshape(16, 4)[:, 0] == -1).all())
    refused(lambda: Music().partial(str(tmp_path / "piece.mxl")), r"piece\.mxl cannot be read")


def test_a_zipped_score_with_any_wrong_byte_is_read_or_refused():
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("score.xml", score())
    content, wrong = memory.getvalue(), 0
    for place in range(len(content)):
        for value in (0, 1, 0xFF):
            try:
                read_score(content[:place] + bytes([value]) + content[place + 1 :], VOICES, "a score")
            except DataError:
                wrong += 1
    assert wrong > len(content)


# --- meshes and motion ---

TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"


@pytest.mark.parametrize(
    "text",
    [
        TRIANGLE + f"f 1 2 {10**30}\n",
        TRIANGLE.replace("v 1 0 0", "v 1e300 0 0").replace("v 0 1", "v 0 -1e300"),
    ],
)
def test_a_mesh_with_a_number_too_large_is_counted(tmp_path: Path, text: str):
    (tmp_path / "good.obj").write_text(TRIANGLE)
    (tmp_path / "wrong.obj").write_text(text)
    data = Shapes(points=8, draws=1).read(tmp_path)
    assert (len(data), data.card()["left_out"]) == (1, 1)
    assert np.isfinite(data.raw).all()
    refused(lambda: Shapes().read(tmp_path / "wrong.obj"), r"wrong\.obj")


@pytest.mark.parametrize(("place", "value"), [(0, 1e12), (0, 5e5), (0, 0), (3, 10**400), (3, 1e300)])
def test_a_clip_with_a_number_too_large_is_counted(tmp_path: Path, place: int, value: float):
    frames = [[1 / 30, *[0.0] * 3, *[1.0] * (NUMBERS - 3)] for _ in range(40)]
    (tmp_path / "good.json").write_text(json.dumps({"Frames": frames}))
    frames[5][place] = value
    (tmp_path / "wrong.json").write_text(json.dumps({"Frames": frames}))
    card = Motion(frames=32).read(tmp_path).card()
    assert (card["clips"], card["left_out"]) == (1, 1)
    refused(lambda: Motion(frames=32).read(tmp_path / "wrong.json"), r"wrong\.json")


# --- molecules ---


def embedded(text: str) -> tuple[tuple[str, ...], np.ndarray, Any]:
    """Elements, positions and the molecule of a SMILES, as RDKit embeds and relaxes it."""
    chem = pytest.importorskip("rdkit.Chem")
    from rdkit.Chem import AllChem

    made = chem.AddHs(chem.MolFromSmiles(text))
    assert AllChem.EmbedMolecule(made, randomSeed=1) == 0
    if AllChem.MMFFHasAllMoleculeParams(made):
        AllChem.MMFFOptimizeMolecule(made)
    elements = tuple(atom.GetSymbol() for atom in made.GetAtoms())
    return elements, made.GetConformer().GetPositions(), made


MOLECULES = (
    "CCS", "CCCl", "CP", "CCBr", "C[SiH3]", "CI", "CSSC", "CS(C)=O", "CS(C)(=O)=O", "COP(=O)(OC)OC", "CO[Si](C)(C)C",
    "FC(F)(Cl)Br", "c1ccsc1", "NS(C)(=O)=O", "O=P(Cl)(Cl)Cl", "S", "P", "[SiH4]", "C[SiH2]Br", "CSCl", "CPC", "N#CCI",
)  # fmt: skip


@pytest.mark.parametrize("text", MOLECULES)
def test_bonds_told_by_distances_are_those_of_chemistry(text: str):
    chem = pytest.importorskip("rdkit.Chem")
    elements, positions, made = embedded(text)
    chem.Kekulize(made, clearAromaticFlags=True)
    assert np.array_equal(bond_orders((elements, positions)), chem.GetAdjacencyMatrix(made, useBO=True))
    assert stable_atoms((elements, positions)).all()
    assert smiles((elements, positions)) == (chem.CanonSmiles(text), 1)


def sdf(folder: Path, records: list[tuple[str, dict[str, Any]]], name: str = "some.sdf") -> Path:
    chem = pytest.importorskip("rdkit.Chem")
    parts = []
    for text, said in records:
        block = chem.MolToMolBlock(embedded(text)[2])
        items = "".join(f"> <{key}>\n{value}\n\n" for key, value in said.items())
        parts.append(f"{block}{items}$$$$\n")
    (folder / name).write_text("".join(parts))
    return folder / name


def test_elements_without_bonds_are_left_out_and_counted(tmp_path: Path):
    path = sdf(tmp_path, [("CCS", {}), ("CB(C)C", {}), ("C[Se]C", {}), ("CI", {})])
    data = Molecules().read(path)
    assert (len(data), data.card()["left_out"]) == (2, 2)
    assert set(data.domain.elements) == {"C", "H", "I", "S"}
    alone = sdf(tmp_path, [("CB(C)C", {})], "alone.sdf")
    refused(lambda: Molecules().read(alone), "no molecules of H, C, N.*1 records are none")


def test_no_atoms_are_no_molecule():
    nothing = ((), np.zeros((0, 3)))
    assert bond_orders(nothing).shape == (0, 0)
    assert built(nothing) is None
    assert smiles(nothing) is None


def test_a_property_may_be_missing_from_some_records_and_not_from_all(tmp_path: Path):
    some = [
        ("CC", {"gap": 1.0}),
        ("CC", {"gap": 3.0}),
        ("CCO", {}),
        ("CCC", {"gap": "inf"}),
        ("C", {"gap": 2.0}),
    ]
    domain = (data := Molecules(properties=("gap",)).read(sdf(tmp_path, some))).domain
    assert (domain.mean, len(data)) == ((2.0,), 5)
    assert domain.std[0] == pytest.approx(np.std([1, 2, 3]))
    sizes = [8, 8, 9, 11, 5]
    for size in set(sizes) - {8, 5}:  # of a size without a value, those of all
        assert (domain.means[size - 1], domain.stds[size - 1]) == (domain.mean[0], domain.std[0])
    told = domain.told(data.raw)["numbers"][:, 0]
    assert told.isfinite().tolist() == [True, True, False, False, True]
    assert set(domain.asked({"gap": 2.0}, Noise(0, 50))["count"].tolist()) <= set(sizes)
    refused(
        lambda: Molecules(properties=("gab",)).read(tmp_path / "some.sdf"),
        "no record has the property 'gab'; it has: gap",
    )
    (tmp_path / "water.xyz").write_text("3\nwater\nO 0 0 0\nH .96 0 0\nH -.24 .93 0\n")
    refused(lambda: Molecules(properties=("gap",)).read(tmp_path / "water.xyz"), "'gap'; it has: none")


def test_a_judge_of_properties_knows_all_elements_that_are_read(tmp_path: Path):
    pytest.importorskip("sklearn")
    texts = ["CCS", "CCCl", "CP", "CCBr", "C[SiH3]", "CI"] * 10
    data = Molecules(properties=("atoms in all",)).read(
        sdf(tmp_path, [(text, {"atoms in all": len(embedded(text)[0])}) for text in texts])
    )
    assert set(data.domain.elements) <= VALENCES.keys()
    assert PropertyJudge(data.domain, data, data, "atoms in all").error < 0.5


def test_a_byte_that_is_no_text_spoils_its_record_alone(tmp_path: Path):
    path = sdf(tmp_path, [("CC", {}), ("CCO", {"by": "Andr"}), ("C", {})])
    path.write_bytes(path.read_bytes().replace(b"Andr", b"Andr\xe9"))
    data = Molecules().read(path)
    assert (len(data), data.card()["left_out"]) == (2, 1)
    water = b"3\nwater\nO 0 0 0\nH .96 0 0\nH -.24 .93 0\n"
    (tmp_path / "some.xyz").write_bytes(water + water.replace(b"water", b"\xff") + water)
    data = Molecules().read(tmp_path / "some.xyz")
    assert (len(data), data.card()["left_out"]) == (2, 1)


# --- sounds, speech, clips ---

SMALL = {"rate": 2000, "length": 512, "window": 64, "hop": 16}


def noises(count: int, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, 512)) * 3000).astype(np.int16)


def test_kept_spectra_are_of_one_length(tmp_path: Path):
    for k, sound in enumerate(noises(8, 0)):
        (tmp_path / f"{k}.wav").write_bytes(to_wav(sound / 32768, 2000))
    domain = Sounds(**SMALL, mels=8).read(tmp_path).domain
    assert domain.asked({}, Noise(0, 6))["spectrum"].shape == (6, 8, 32)
    for samples in (256, 1024, 2048):  # the kept bytes could be put in rows of all of these
        refused(
            lambda n=samples: domain.of_length(n).asked({}, Noise(0, 1)),
            f"a vocoder of {samples} samples is asked",
        )
    for given in ("loud", None, [[1.0], [2.0, 3.0]]):
        refused(lambda given=given: domain.asked({"spectrum": given}, Noise(0, 1)), "a spectrum is numbers")


def test_the_floor_of_a_distance_is_of_as_many_sounds_or_says_of_how_many():
    domain = Sounds(**SMALL, scale=(1.0,) * 32)
    train, held = (Examples(domain, noises(count, seed)) for count, seed in ((300, 1), (100, 2)))

    def distance(count: int) -> Any:
        return sound_measures(domain, noises(count, 3) / 32768, None, train, held)[0]

    # both are of real noise, so at one number they are alike, and larger at a smaller one
    few, many = distance(25), distance(200)
    assert 0.5 < few.value / few.floor < 2
    assert few.floor > 2 * many.floor
    assert "n=25 only" in few.note
    assert "floor is of n=25" in few.note
    assert "n=200 only" in many.note
    assert "floor is of n=100, all that are held out" in many.note


def test_a_recording_that_the_table_leaves_out_is_counted(tmp_path: Path):
    for k, sound in enumerate(noises(4, 0)):
        (tmp_path / f"{k}.wav").write_bytes(to_wav(np.tile(sound / 32768, 4), 2000))
    (tmp_path / "metadata.csv").write_text("0|ab\n1|ba\n2|...\n")
    data = Speech(**SMALL | {"stride": 512}, mels=8).read(tmp_path)
    assert set(data.groups) == {"0.wav", "1.wav"}
    assert data.card()["left_out"] == 2
    assert data.card()["left_out_because"] == {"hold no words": 1, "are not in metadata.csv": 1}


def test_what_is_asked_for_in_no_words_is_refused():
    speech = Speech(**SMALL, mels=8, times=(5.0,) * len(ALPHABET), shown="ab")
    for given in (5, None, float("nan"), ["ab", 5]):
        refused(lambda given=given: speech.asked({"text": given}, Noise(0, 2)), "2 samples need one text")
    captioned = Captioned(classes=("cat", "dog"))
    for given in (None, float("nan"), [0, None], 1.5, ["cat", float("nan")]):
        refused(
            lambda given=given: captioned.asked({"label": given}, Noise(0, 2)),
            "a label is one of cat, dog, not",
        )
    for given in ("dog", 1, [1, 1], torch.tensor([1, 1]), np.array([1, 1])):
        assert captioned.asked({"label": given}, Noise(0, 2))["label"].tolist() == [[1], [1]]
    refused(
        lambda: captioned.asked({"picture": None}, Noise(0, 2)), "a picture is a path or a tensor, not None"
    )
    refused(lambda: captioned.asked({"caption": None}, Noise(0, 2)), "given in words")


def test_a_damaged_clip_ends_no_run_and_is_named(tmp_path: Path):
    draw = np.random.default_rng(0)
    for k in range(3):
        first, *others = [Image.fromarray(frame) for frame in draw.integers(0, 256, (8, 8, 8, 3), np.uint8)]
        first.save(tmp_path / f"{k}.gif", save_all=True, append_images=others, duration=50)
    (tmp_path / "bad.gif").write_bytes((tmp_path / "0.gif").read_bytes()[:60])
    card = (data := Video(size=8, frames=8).read(tmp_path)).card()
    assert (len(data), card["left_out"]) == (3, 1)
    (said,) = card["skipped_corrupt"]
    assert said.startswith("bad.gif: ")
    for k in range(3):
        (tmp_path / f"{k}.gif").unlink()
    refused(
        lambda: Video(size=8, frames=8).read(tmp_path), r"no clip of 8 frames.*damaged \(1\), as bad\.gif"
    )


def test_a_variable_that_never_varies_is_not_judged(tmp_path: Path):
    from scipy.io import netcdf_file

    draw = np.random.default_rng(0)
    with netcdf_file(tmp_path / "two.nc", "w") as file:
        file.createDimension("y", 64)
        file.createDimension("x", 64)
        for name, values in (("u", draw.normal(size=(64, 64))), ("mask", np.zeros((64, 64)))):
            file.createVariable(name, "f4", ("y", "x"))[:] = values
    data = Fields(size=8).read(tmp_path / "two.nc")
    train, held = data.split(0.3)
    found = field_measures(data.domain, held.tensor(), train, held)
    assert all(np.isfinite(one.value) for one in found)


def test_a_midi_file_of_a_key_that_there_is_not_is_a_bad_record(tmp_path: Path):
    track = b"\x00\xff\x59\x02\x09\x00\x00\xff\x2f\x00"
    head = b"MThd" + (6).to_bytes(4, "big") + b"\x00\x00\x00\x01\x00\x60"
    (tmp_path / "bad.mid").write_bytes(head + b"MTrk" + len(track).to_bytes(4, "big") + track)
    with pytest.raises(DataError, match="no MIDI file"):
        read_midi(tmp_path / "bad.mid")


def test_names_in_capitals_are_read_as_those_in_small_letters(tmp_path: Path) -> None:
    xyz = "3\nwater\nO 0 0 0.117\nH 0 0.757 -0.469\nH 0 -0.757 -0.469\n"
    csv = "a,b\n" + "".join(f"{k},{k % 2}\n" for k in range(40))
    fasta = ">one\nACGT\nACGT\n>two\nGGGG\n"
    found = []
    for xyz_name, fasta_name, csv_name in (("m.xyz", "s.fasta", "t.csv"), ("M.XYZ", "S.FASTA", "T.CSV")):
        for name, text in ((xyz_name, xyz), (fasta_name, fasta), (csv_name, csv)):
            (tmp_path / name).write_text(text)
        molecules = Molecules(elements=("H", "O"), atoms=4).read(tmp_path / xyz_name)
        bases = Sequences(dialect="dna", length=8).read(tmp_path / fasta_name)
        table = Table().read(tmp_path / csv_name)
        found.append(
            (len(molecules), bases.domain.text(bases.tensor()), len(table), list(table.domain.leaves))
        )
    assert found[0] == found[1]
    assert found[0][:2] == (1, ["ACGTACGT", "GGGG"])
