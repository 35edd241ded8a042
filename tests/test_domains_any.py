"""Data that are no pictures: what is read is what is written, bad records are counted, and a recipe is a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import netcdf_file

from sfumato import bundle
from sfumato.cli import main
from sfumato.domains import build_domain
from sfumato.domains.examples import Examples
from sfumato.domains.fields import Fields
from sfumato.domains.sequences import Sequences
from sfumato.editing import fill
from sfumato.errors import BundleError, DataError, RecipeError
from sfumato.evaluation.fields import field_measures, spectra
from sfumato.evaluation.sequences import counts, sequence_measures
from sfumato.networks import build
from sfumato.recipes import recipe_from
from sfumato.recipes.bench import Bench, sampling_cost
from sfumato.recipes.run import read_data, set_up, train

ACIDS = "ACDEFGHIKLMNPQRSTVWY"


# --- sequences ---


@given(st.lists(st.text(ACIDS, min_size=1, max_size=12), min_size=1, max_size=20), st.integers(0, 3))
def test_what_is_written_is_read_again(tmp_path_factory, texts, extra):
    folder = tmp_path_factory.mktemp("fasta")
    path = folder / "all.fasta"
    path.write_text("".join(f">s{k} {'ab'[k % 2]}\n{text}\n" for k, text in enumerate(texts)))
    data = Sequences(dialect="peptide", length=12 + extra, alphabet=tuple(ACIDS)).read(path)
    assert data.domain.text(data.tensor()) == texts
    assert data.targets.tolist() == [k % 2 if len(texts) > 1 else 0 for k in range(len(texts))]
    written = data.domain.write(data.tensor(), folder / "again", data.targets)
    joined = folder / "joined.fasta"
    joined.write_text("".join(one.read_text() for one in written))
    again = data.domain.read(joined)
    assert np.array_equal(again.raw, data.raw)
    assert np.array_equal(again.targets, data.targets)


def test_smiles_are_cut_into_atoms_and_what_follows_the_end_is_no_part():
    domain = Sequences(dialect="smiles", alphabet=("Br", "C", "Cl", "[nH]", "c"), length=6)
    assert domain.cut("BrCl[nH]cC%12") == ["Br", "Cl", "[nH]", "c", "C", "%12"]
    assert domain.text(torch.tensor([[2, 3, 0, 5, 5, 5], [1, 4, 2, 2, 2, 2]])) == ["CCl", "Br[nH]CCCC"]


def test_bad_records_are_left_out_and_counted(tmp_path: Path):
    path = tmp_path / "all.csv"
    path.write_text("sequence,label\nACD,x\nAC*D,x\nACDEFG,y\nCA,y\n")
    data = Sequences(alphabet=tuple("ACD"), length=4).read(path)
    assert data.domain.text(data.tensor()) == ["ACD", "CA"]
    assert data.card()["left_out"] == 2
    assert data.counts() == {"x": 1, "y": 1}
    for content, message in (
        ("ACX\n", r"'X' is not in the alphabet"),
        ("\n", "holds no records"),
    ):
        (tmp_path / "bad.txt").write_text(content)
        with pytest.raises(DataError, match=message):
            Sequences(alphabet=tuple("ACD"), length=4).read(tmp_path / "bad.txt")
    for name, message in (("none.txt", "does not exist"), ("bad.xyz", "of no known kind")):
        (tmp_path / "bad.xyz").write_text("A")
        with pytest.raises(DataError, match=message):
            Sequences().read(tmp_path / name)
    with pytest.raises(DataError, match="did you mean 'dialect'"):
        build_domain("sequences", dialekt="dna")


def motifs(folder: Path, count: int = 400) -> Path:
    """Two classes that any judge can tell apart: runs of A and C, or of G and T."""
    draw = np.random.default_rng(0)
    path = folder / "motifs.csv"
    rows = [
        ("".join(draw.choice(list("AC" if k % 2 else "GT"), draw.integers(4, 9))), "even" if k % 2 else "odd")
        for k in range(count)
    ]
    path.write_text("sequence,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    return path


def test_measures_of_sequences_say_what_they_say(tmp_path: Path):
    data = Sequences(dialect="dna", length=10).read(motifs(tmp_path))
    train, held = data.split(0.25)
    texts = data.domain.text(held.tensor())
    found = {m.name: m for m in sequence_measures(data.domain, texts, held.targets, train, held)}
    assert found["validity"].value == 1
    assert found["agreement"].value == found["agreement"].floor == 1
    swapped = {m.name: m for m in sequence_measures(data.domain, texts, 1 - held.targets, train, held)}
    assert swapped["agreement"].value == 0
    same = {m.name: m for m in sequence_measures(data.domain, [texts[0]] * 9, None, train, held)}
    assert same["uniqueness"].value == 1 / 9
    copied = data.domain.text(train.tensor())
    assert {m.name: m.value for m in sequence_measures(data.domain, copied, None, train, held)}[
        "novelty"
    ] == 0
    assert {m.name: m.value for m in sequence_measures(data.domain, copied, None, train, held)}["length"] == 0
    table = counts(data.domain, ["AAC"])
    assert (table**2).sum() == pytest.approx(3 + 2 + 1)  # symbols, pairs side by side, pairs two apart


RECIPE = {
    "name": "motifs",
    "network": {"kind": "transformer", "width": 32, "depth": 2, "head": 16, "embedding": 32},
    "process": {"kind": "categorical", "law": "masked"},
    "objective": {"kind": "categorical", "drop": 0.1},
    "training": {
        "images": 12_000, "batch": 64, "learning_rate": 3e-3, "warmup": 500, "ema": [0.1], "validate_every": 0,
        "preview_every": 6_000, "log_every": 2_000,
    },
    "sampling": {"solver": {"kind": "ancestral"}, "grid": {"kind": "uniform"}, "steps": 10},
    "evaluation": {"samples": 200, "bound_images": 0},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run")
    data = {"domain": "sequences", "source": str(motifs(out)), "settings": {"dialect": "dna", "length": 10}}
    train(recipe_from(RECIPE | {"data": data}), out)
    return out


def test_a_model_of_sequences_is_trained_kept_and_asked_by_class(run: Path):
    model = bundle.load(run / "model")
    assert model.domain == bundle.load(run / "model").domain
    samples = model.sample(100, condition={"label": ["even"] * 50 + ["odd"] * 50})
    assert samples.dtype == torch.int64
    texts = model.domain.text(samples)
    right = [set(text) <= set("AC" if k < 50 else "GT") for k, text in enumerate(texts)]
    assert np.mean(right) > 0.9  # .5 by chance at most
    alone = model.sample(indices=[70], condition={"label": "odd"})
    assert torch.equal(alone[0], samples[70])
    assert (run / "model" / "figures" / "samples.png").is_file()
    assert list((run / "previews").glob("*.png"))


def test_gaps_in_sequences_are_filled_and_what_is_given_stays(run: Path, tmp_path: Path, capsys):
    model = bundle.load(run / "model")
    for solver in ("ancestral", "tau-leaping", "unmasking", "remasking"):
        texts = model.domain.text(fill(model, ["A?CN", "G..."], count=20, solver=solver))
        assert all(
            text[0] == "A" and ((len(text) == 4 and text[2] == "C") or len(text) == 1) for text in texts[:20]
        )
        assert np.mean([set(text) <= set("AC") for text in texts[:20]]) > 0.7
        assert all(text[0] == "G" for text in texts[20:])
        assert np.mean([set(text) <= set("GT") and len(text) > 3 for text in texts[20:]]) > 0.8
    (tmp_path / "gaps.txt").write_text("a?cn\nG...\n")
    assert torch.equal(model.domain.partial(str(tmp_path / "gaps.txt"))[:1], model.domain.partial("A?CN"))
    for text, error, words in (
        ("AU?", DataError, "symbol in 'AU\\?'"),
        ("A" * 11, DataError, "has 11 symbols"),
        ("ACA", BundleError, "no gap"),
    ):
        with pytest.raises(error, match=words):
            fill(model, text)
    with pytest.raises(SystemExit) as left:
        main(["edit", "fill", str(run / "model"), "A?C?", "--count", "2", "--out", str(tmp_path / "filled")])
    assert not left.value.code
    assert sorted(p.name for p in (tmp_path / "filled").iterdir()) == [
        "sample-00000.fasta",
        "sample-00001.fasta",
    ]
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("A")]) == 2


def test_a_model_of_sequences_is_judged_by_its_domain(run: Path):
    bench = Bench(run / "model")
    plan = bench.model.sampling
    settings = {"solver": plan.solver, "grid": plan.grid, "steps": 10, "guidance": 1.0, "seed": 0}
    settings |= {"batch": 100, "samples": 200, "measures": None}
    found = {m.name: m for m in bench.quality(settings)}
    assert found["agreement"].value > 0.9
    assert found["validity"].value > 0.9
    assert bench.features.card()["name"] == "sequences"
    assert sampling_cost(bench.model, 4, 1).nfe == 10


def test_symbols_and_numbers_are_not_mixed_up(run: Path):
    data = {"domain": "sequences", "source": str(run / "motifs.csv"), "settings": {"dialect": "dna"}}
    with pytest.raises(RecipeError, match="sequences are symbols"):
        set_up(recipe_from(RECIPE | {"data": data, "process": {}, "objective": {}}))
    with pytest.raises(RecipeError, match="images are numbers"):
        set_up(recipe_from(RECIPE | {"data": {"source": "digits"}}))


# --- the transformer ---


def test_a_set_is_answered_alike_in_any_order_and_a_sequence_is_not():
    torch.manual_seed(0)
    order = torch.tensor([3, 0, 4, 1, 2])
    for ordered in (False, True):
        network = build("transformer", length=5, in_channels=3, width=16, head=8, depth=2, ordered=ordered)
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(0.2 * torch.randn_like(weight))
        x, level = torch.randn(2, 5, 3), torch.zeros(2)
        gap = (network(x[:, order], level) - network(x, level)[:, order]).abs().max()
        assert (gap < 1e-5) != ordered
    with pytest.raises(ValueError, match="set one of symbols and in_channels"):
        build("transformer", length=5)


# --- fields ---


def netcdf(path: Path, values: np.ndarray, name: str = "height", missing: float | None = None) -> Path:
    with netcdf_file(str(path), "w") as file:
        for axis, length in zip("tyx"[3 - values.ndim :], values.shape, strict=True):
            file.createDimension(axis, length)
        made = file.createVariable(name, "f4", tuple("tyx"[3 - values.ndim :]))
        made[:] = values
        made.units = "m"
        if missing is not None:
            made.missing_value = np.float32(missing)
    return path


def test_tiles_come_back_in_their_units_and_whole_squares_are_held_out(tmp_path: Path):
    values = (np.random.default_rng(0).normal(size=(64, 96)) * 300 + 1000).astype(np.float32)
    data = Fields(size=8, block=2).read(netcdf(tmp_path / "a.nc", values))
    assert len(data) == 96
    assert np.array_equal(data.raw[13, 0], values[8:16, 8:16])
    x = data.tensor()
    assert abs(float(x.mean())) < 1e-3
    assert abs(float(x.std()) - 1) < 1e-3
    torch.testing.assert_close(data.domain.decode(x), torch.from_numpy(data.raw), rtol=0, atol=1e-3)
    paths = data.domain.write(x[:2], tmp_path / "out")
    again = Fields().read(paths[1])
    assert again.domain.units == ("m",)
    np.testing.assert_allclose(again.raw[0], data.raw[1], atol=1e-3)
    kept, held = data.split(0.25)
    squares = [{part.groups[row] for row in part.rows} for part in (kept, held)]
    assert not squares[0] & squares[1]
    assert len(held) == 24
    assert Fields.from_json(json.loads(json.dumps(data.domain.to_json()))) == data.domain


def test_gaps_are_counted_and_what_is_no_field_is_named(tmp_path: Path):
    values = np.ones((16, 16), np.float32)
    values[3, 3] = -99
    data = Fields(size=8).read(netcdf(tmp_path / "gap.nc", values, missing=-99))
    assert (len(data), data.card()["left_out"]) == (3, 1)
    (tmp_path / "no.nc").write_bytes(b"CDF?nonsense")
    for place, settings, message in (
        (netcdf(tmp_path / "all.nc", np.full((8, 8), -99, np.float32), missing=-99), {}, "every tile"),
        (tmp_path / "gap.nc", {"size": 32}, "hold no tile"),
        (tmp_path / "gap.nc", {"variables": ("hight",)}, "did you mean 'height'"),
        (tmp_path / "no.nc", {}, "no NetCDF-3 file"),
        (tmp_path / "missing.nc", {}, "does not exist"),
    ):
        with pytest.raises(DataError, match=message):
            Fields(**settings).read(place)


@pytest.mark.parametrize("slope", [2.0, 3.0])
def test_the_spectrum_of_noise_of_a_known_colour_falls_as_it_should(slope: float):
    draw = np.random.default_rng(0)
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(64) * 64, np.fft.fftfreq(64) * 64))
    filter_ = np.where(radius > 0, np.maximum(radius, 1) ** (-slope / 2), 0)
    x = np.fft.ifft2(np.fft.fft2(draw.normal(size=(200, 64, 64))) * filter_).real
    power = spectra(x[:, None]).mean(0)
    k = np.arange(1, 33)
    fitted = np.polyfit(np.log(k[3:24]), np.log(power[3:24]), 1)[0]
    assert abs(fitted + slope) < 0.15


def test_measures_of_fields_find_what_is_too_smooth():
    draw = np.random.default_rng(0)
    domain = Fields(variables=("h",), size=16, mean=(0.0,), std=(1.0,))
    data = Examples(domain, draw.normal(size=(300, 1, 16, 16)).astype(np.float32))
    train_, held = data.split(0.3)
    good = {m.name: m for m in field_measures(domain, held.tensor(), train_, held)}
    assert all(m.value == m.floor for m in good.values())
    smooth = torch.nn.functional.avg_pool2d(held.tensor(), 3, 1, 1)
    bad = {m.name: m for m in field_measures(domain, smooth, train_, held)}
    assert bad["spectrum"].value > 5 * good["spectrum"].value
    assert bad["slopes"].value > 5 * good["slopes"].value


def test_a_recipe_of_fields_trains(tmp_path: Path):
    values = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    data = {"domain": "fields", "source": str(netcdf(tmp_path / "a.nc", values)), "settings": {"size": 8}}
    values = {"name": "f", "data": data, "evaluation": {"bound_images": 0}}
    values |= {"network": {"width": 16, "blocks": 1}, "training": {"images": 640, "batch": 32, "warmup": 64}}
    recipe = recipe_from(values)
    assert len(read_data(recipe)[0]) > 100
    train(recipe, tmp_path / "run")
    model = bundle.load(tmp_path / "run" / "model")
    assert model.sample(2, steps=2).shape == (2, 1, 8, 8)


# --- molecules as text ---


def test_the_same_molecule_written_in_two_ways_is_one():
    domain = Sequences(dialect="smiles", alphabet=("(", ")", "1", "=", "C", "O", "c"), length=8)
    data = Examples(domain, np.zeros((2, 8), np.uint8) + np.array([[5], [6]], np.uint8))
    texts = ["CCO", "OCC", "C(C)O", "c1ccccc1", "C(", "C1CC"]
    found = {m.name: m.value for m in sequence_measures(domain, texts, None, data, data)}
    assert found["validity"] == pytest.approx(4 / 6)
    assert found["uniqueness"] == pytest.approx(2 / 4)


def test_the_command_line_serves_sequences(run: Path, tmp_path: Path, capsys):
    def sfumato(*words: object) -> int:
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        return int(left.value.code or 0)

    out = tmp_path / "drawn"
    assert (
        sfumato("sample", str(run / "model"), "--count", "4", "--label", "even", "--out", str(out), "--film")
        == 0
    )
    files = sorted(out.glob("*.fasta"))
    assert [file.name for file in files] == [f"sample-0000{k}-label-0.fasta" for k in range(4)]
    assert files[0].read_text().startswith(">sample-0 even\n")
    assert (tmp_path / "drawn-grid.png").is_file()
    assert (tmp_path / "drawn-film.png").is_file()
    assert sfumato("inspect", str(run / "model")) == 0
    assert "sequences" in capsys.readouterr().out
    assert sfumato("sample", str(run / "model"), "--inspect", "--out", str(out)) == 1
    assert "pictures" in capsys.readouterr().err
    assert sfumato("evaluate", str(run / "model"), "--samples", "50", "--out", str(tmp_path / "judged")) == 0
    said = capsys.readouterr().out
    assert "uniqueness" in said
    receipt = tmp_path / "judged" / "receipts" / "quality.json"
    assert sfumato("evaluate", str(run / "model"), "--receipt", str(receipt)) == 0
