"""Music in four voices: files that say the same as they were written from, pieces held out whole, and its judge."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato import bundle
from sfumato.cli import main
from sfumato.domains.examples import Examples
from sfumato.domains.midi import Note, midi_bytes, read_midi
from sfumato.domains.music import FIRST, HOLD, REST, Music
from sfumato.domains.musicxml import read_score
from sfumato.editing import fill
from sfumato.errors import DataError, MissingExtra
from sfumato.evaluation.music import bars, music_measures
from sfumato.recipes import recipe_from
from sfumato.recipes.run import train

VOICES = ("Soprano", "Alto", "Tenor", "Bass")
SMALL = Music(steps=8, beat=2)


def chorale(key: int = 0, bars_: int = 4, seed: int = 0) -> dict[str, list[Note]]:
    """Chords of four voices in quarter and half notes, each voice a walk about its own pitch."""
    draw, found = np.random.default_rng(seed), {}
    for name, middle in zip(VOICES, (72, 65, 57, 48), strict=True):
        now, notes = 0.0, []
        while now < 4 * bars_:
            length = float(draw.choice([0.5, 1.0, 2.0]))
            notes.append(Note(now, min(length, 4 * bars_ - now), middle + key + int(draw.integers(-3, 4))))
            now += length
        found[name] = notes
    return found


# --- files ---


def test_midi_is_read_as_it_was_written(tmp_path: Path):
    voices = chorale()
    voices["Alto"] = [Note(0, 1, 60), Note(1, 1, 60), Note(3.5, 0.25, 127)]  # struck again, and after a gap
    path = tmp_path / "a.mid"
    path.write_bytes(midi_bytes(voices))
    assert read_midi(path) == voices
    assert path.read_bytes()[:14] == b"MThd\0\0\0\6\0\1\0\5\1\xe0"


def test_midi_of_others_is_read_too(tmp_path: Path):
    """A running status, a note ended by a velocity of 0, and events that say nothing here."""
    body = b"\0\xff\x58\4\4\2\x18\x08\0\xf0\2\x01\xf7\0\x90\x3c\x40\x81\x70\x3c\0"
    body += b"\0\xb0\x07\x64\0\x90\x3e\x40\x83\x60\x3e\0\0\xff\x2f\0"
    path = tmp_path / "b.mid"
    path.write_bytes(b"MThd\0\0\0\6\0\0\0\1\0\xf0MTrk" + len(body).to_bytes(4, "big") + body)
    assert read_midi(path) == {"track 1": [Note(0, 1, 60), Note(1, 2, 62)]}
    for content, words in (
        (b"RIFF", "no MIDI file"),
        (b"MThd\0\0\0\6\0\0\0\1\xe7\x28MTrk\0\0\0\0", "ticks a quarter"),
        (b"MThd\0\0\0\6\0\0\0\1\0\xf0MTrk\0\0\0\4\0\x90\x3c", "ends too soon"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=words):
            read_midi(path)


def test_without_mido_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mido", None)
    for use in (lambda: midi_bytes(chorale()), lambda: read_midi(tmp_path)):
        with pytest.raises(MissingExtra, match=r"^this needs mido.*'sfumato\[music\]'$"):
            use()


SCORE = """<score-partwise><part-list>{listed}</part-list>{parts}</score-partwise>"""
PART = """<part id="P{k}"><measure number="0" implicit="yes"><attributes><divisions>2</divisions><time><beats>4</beats>
<beat-type>4</beat-type></time></attributes><note><pitch><step>B</step><alter>-1</alter><octave>4</octave></pitch>
<duration>2</duration></note></measure><measure number="1"><note><grace/><pitch><step>C</step><octave>5</octave></pitch>
</note><note><pitch><step>C</step><octave>5</octave></pitch><duration>8</duration><tie type="start"/></note></measure>
<measure number="2"><note><pitch><step>C</step><octave>5</octave></pitch><duration>4</duration><tie type="stop"/></note>
<note><chord/><pitch><step>E</step><octave>5</octave></pitch><duration>4</duration></note><note><rest/><duration>2
</duration></note><note><pitch><step>F</step><alter>1</alter><octave>4</octave></pitch><duration>2</duration></note>
<backup><duration>8</duration></backup><note><pitch><step>A</step><octave>3</octave></pitch><duration>8</duration>
<voice>2</voice></note></measure></part>"""


def score(names=VOICES) -> bytes:
    listed = "".join(
        f'<score-part id="P{k}"><part-name>{name}</part-name></score-part>' for k, name in enumerate(names)
    )
    return SCORE.format(listed=listed, parts="".join(PART.format(k=k) for k in range(len(names)))).encode()


def test_a_score_is_what_is_sung():
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("META-INF/container.xml", "<container/>")
        archive.writestr("score.xml", score())
    for content in (score(), memory.getvalue()):
        found = read_score(content, VOICES, "a score")
        # a pickup, a tie over the bar line without its grace note and chord, and a note after a rest
        assert found.parts["Tenor"] == [Note(0, 1, 70), Note(1, 6, 72), Note(8, 1, 66)]
        assert (found.pickup, found.metres) == (1, (("4", "4"),))
    with pytest.raises(DataError, match="no part 'Bass': it has Soprano"):
        read_score(score(VOICES[:3]), VOICES, "a score")
    with pytest.raises(DataError, match="no MusicXML"):
        read_score(b"<score", VOICES, "a score")


# --- rolls ---


def test_a_roll_is_written_and_read_again(tmp_path: Path):
    for k in range(3):
        (tmp_path / f"{k}.mid").write_bytes(midi_bytes(chorale(seed=k)))
    data = Music(steps=16, transpose=False).read(tmp_path)
    assert len(data) == 3 * 3  # 32 steps hold three windows of 16 that begin at a bar
    assert data.tensor().dtype == torch.int64
    assert not (data.raw.reshape(9, 16, 4)[:, 0] == HOLD).any()  # what is held into a window begins there
    again = Music(steps=16, transpose=False).read(_written(data, tmp_path / "out"))
    np.testing.assert_array_equal(again.raw, data.raw)
    assert Music.from_json(json.loads(json.dumps(data.domain.to_json()))) == data.domain


def _written(data: Examples, folder: Path) -> Path:
    paths = data.domain.write(data.tensor(), folder)
    assert [path.name for path in paths] == [f"sample-{k:05d}.mid" for k in range(len(data))]
    return folder


def test_what_sounds_is_on_the_grid_or_lost():
    roll = SMALL.roll(
        {"Soprano": [Note(0, 0.75, 60), Note(0.75, 0.25, 62), Note(1, 1, 64)], "Bass": [Note(2, 1, 48)]}
    )
    begun = FIRST + 60 - SMALL.lowest
    assert roll[:, 0].tolist() == [begun, HOLD, begun + 4, HOLD, REST, REST]
    assert roll[:, 3].tolist() == [REST] * 4 + [begun - 12, HOLD]


def test_melodies_are_held_out_in_all_keys(tmp_path: Path):
    for k in range(12):  # six melodies, each in two keys
        (tmp_path / f"{k:02d}.mid").write_bytes(midi_bytes(chorale(2 * (k % 2), seed=k // 2)))
    data = Music(steps=16).read(tmp_path)
    first = data.raw[0].astype(int)
    moved = [row.astype(int) for row in data.raw if (row >= FIRST).tolist() == (first >= FIRST).tolist()]
    steps = {tuple(set((row - first)[first >= FIRST])) for row in moved}
    assert {(0,), (2,)} <= steps  # other keys, by one interval each
    assert all(len(step) == 1 for step in steps)
    sounding = data.domain.sounding(data.raw)
    plain = Music(steps=16, transpose=False).read(tmp_path)
    real = data.domain.sounding(plain.raw)
    for k in range(4):
        assert sounding[..., k].min() >= real[..., k].min()
        assert sounding[..., k].max() == real[..., k].max()
    train_, held = data.split(0.34)
    kept, out = ({part.groups[row] for row in part.rows} for part in (train_, held))
    assert (len(kept), len(out), kept & out) == (4, 2, set())
    assert not set(bars(data.domain, held.raw)) & set(bars(data.domain, train_.raw))


def test_bad_pieces_are_counted_and_what_is_no_music_is_named(tmp_path: Path):
    (tmp_path / "good.mid").write_bytes(midi_bytes(chorale()))
    (tmp_path / "high.mid").write_bytes(midi_bytes({"Soprano": [Note(0, 16, 120)]}))
    (tmp_path / "waltz.xml").write_bytes(score().replace(b"<beats>4", b"<beats>3"))
    (tmp_path / "broken.mid").write_bytes(b"MThd")
    data = Music().read(tmp_path)
    assert (data.card()["pieces"], data.card()["left_out"]) == (1, 3)
    (tmp_path / "empty").mkdir()
    for place, settings, words in (
        (tmp_path / "empty", {}, "holds no music"),
        (tmp_path / "waltz.xml", {}, "not in 4/4"),
        (tmp_path / "good.mid", {"steps": 64}, "shorter than 64 steps"),
        (tmp_path / "none.mid", {}, "holds no music"),
    ):
        with pytest.raises(DataError, match=words):
            Music(**settings).read(place)
    for settings, words in (
        ({"voices": ("A", "A")}, "different names"),
        ({"lowest": 90}, "lowest below highest"),
    ):
        with pytest.raises(DataError, match=words):
            Music(**settings)


# --- the judge ---


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Examples:
    folder = tmp_path_factory.mktemp("music")
    for k in range(20):
        (folder / f"{k:02d}.mid").write_bytes(midi_bytes(chorale(seed=k)))
    return SMALL.read(folder)


def test_measures_of_music_find_planted_defects(data: Examples):
    train_, held = data.split(0.3)
    x = held.tensor()

    def judged(samples: torch.Tensor) -> dict:
        return {m.name: m for m in music_measures(data.domain, samples, train_, held)}

    good = judged(x)
    assert all(m.value == pytest.approx(m.floor) for m in good.values())
    voices = x.reshape(len(x), -1, 4)
    crossed = judged(voices[..., [1, 0, 2, 3]].reshape(len(x), -1))  # alto above soprano
    assert crossed["crossings"].value > good["crossings"].value + 0.2
    assert crossed["harmonies"].value == pytest.approx(good["harmonies"].value)  # the same notes
    moved = judged(torch.where(x >= FIRST, x + 1, x))
    assert moved["pitch classes"].value > good["pitch classes"].value + 0.05
    assert moved["dissonances"].value == pytest.approx(good["dissonances"].value)
    long = judged(torch.where((x >= FIRST) & (torch.arange(x.shape[1]) >= 4), HOLD, x))  # never moves
    assert long["onsets"].value > 0.2
    assert judged(train_.tensor()[:50])["copied bars"].value == 1
    assert good["copied bars"].better == "lower"


# --- a model ---


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run")
    folder = out / "pieces"
    folder.mkdir()
    for k in range(5):
        (folder / f"{k:02d}.mid").write_bytes(midi_bytes(chorale(seed=k)))
    values = {
        "name": "small", "data": {"domain": "music", "source": str(folder), "settings": {"steps": 8}},
        "process": {"kind": "categorical"}, "network": {"kind": "transformer", "width": 16, "depth": 1, "head": 8},
        "objective": {"kind": "categorical"},
        "training": {"images": 320, "batch": 32, "warmup": 64, "preview_every": 0, "validate_every": 0},
        "sampling": {"solver": {"kind": "ancestral"}, "grid": {"kind": "uniform"}, "steps": 8},
    }  # fmt: skip
    train(recipe_from(values), out)
    return out


def test_voices_are_filled_around_those_that_are_given(run: Path, tmp_path: Path):
    model = bundle.load(run / "model")
    assert model.sample(2).shape == (2, 32)
    voices = chorale(seed=3)
    (tmp_path / "whole.mid").write_bytes(midi_bytes(voices))
    (tmp_path / "melody.mid").write_bytes(midi_bytes({"Soprano": voices["Soprano"]}))
    want = model.domain.roll(voices)[:8, 0]
    for given in ("melody.mid", "whole.mid:Alto,Tenor,Bass"):
        state = model.domain.partial(str(tmp_path / given)).reshape(8, 4)
        assert state[:, 0].tolist() == want.tolist()
        assert bool((state[:, 1:] == -1).all())
    filled = fill(model, str(tmp_path / "melody.mid"), count=3).reshape(3, 8, 4)
    assert all(row[:, 0].tolist() == want.tolist() for row in filled)
    assert bool(((filled >= 0) & (filled < model.domain.symbols)).all())
    with pytest.raises(DataError, match="did you mean 'Alto'"):
        fill(model, str(tmp_path / "whole.mid") + ":alto")
    with pytest.raises(SystemExit) as left:
        main(
            ["edit", "fill", str(run / "model"), str(tmp_path / "melody.mid"), "--out", str(tmp_path / "out")]
        )
    assert not left.value.code
    assert read_midi(tmp_path / "out" / "sample-00000.mid")["Soprano"]
    assert (tmp_path / "out-sheet.png").is_file()
