"""Molecules in space: bonds are chemistry's, a turned molecule is the same one, and files are read as written."""

from __future__ import annotations

import csv
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfumato import bundle
from sfumato.denoisers import Denoiser, check_denoiser
from sfumato.domains import build_domain
from sfumato.domains.bonds import bond_orders, built, formula, smiles, stable_atoms
from sfumato.domains.examples import Examples
from sfumato.domains.molecule_files import open_qm9, to_sdf
from sfumato.domains.molecules import Molecules
from sfumato.editing.operator import MatrixFree, check_operator, measure
from sfumato.editing.restore import restore
from sfumato.errors import BundleError, DataError, MissingExtra, SolverError
from sfumato.evaluation.molecules import PropertyJudge, descriptors, molecule_measures, property_error
from sfumato.model import Model
from sfumato.networks import build
from sfumato.noise import Noise
from sfumato.objectives import build_objective
from sfumato.processes import build_process
from sfumato.recipes import recipe_from
from sfumato.recipes.run import train
from sfumato.solvers import build_grid, build_solver, sample

CH = 1.09 / np.sqrt(3)
KNOWN = {
    "water": ("OHH", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]),
    "methane": ("CHHHH", [[0, 0, 0], [CH, CH, CH], [CH, -CH, -CH], [-CH, CH, -CH], [-CH, -CH, CH]]),
    "ethene": (
        "CCHHHH",
        [[0.67, 0, 0], [-0.67, 0, 0], [1.23, 0.93, 0], [1.23, -0.93, 0], [-1.23, 0.93, 0], [-1.23, -0.93, 0]],
    ),
    "acid": ("HCN", [[1.07, 0, 0], [0, 0, 0], [-1.16, 0, 0]]),
    "fluorine": ("FF", [[0, 0, 0], [1.42, 0, 0]]),
}


def known(name: str) -> tuple[tuple[str, ...], np.ndarray]:
    elements, positions = KNOWN[name]
    return tuple(elements), np.array(positions, float)


def turn(seed: int = 0, mirrored: bool = True) -> np.ndarray:
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return q if (np.linalg.det(q) < 0) == mirrored else -q


def file_of(folder: Path, count: int = 60, seed: int = 0) -> Path:
    """An SDF file of the known molecules, each turned and a little shaken, "mass" being its number of atoms."""
    draw, names = np.random.default_rng(seed), list(KNOWN)
    path, records = folder / "some.sdf", []
    for k in range(count):
        elements, positions = known(names[k % len(names)])
        shaken = positions @ turn(k) + draw.normal(size=3) + 0.01 * draw.normal(size=positions.shape)
        block = to_sdf((elements, shaken), f"m{k}").removesuffix("$$$$\n")
        records.append(f"{block}> <mass>\n{len(elements)}\n\n$$$$\n")
    path.write_text("".join(records))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Examples:
    domain = Molecules(elements=("H", "C", "N", "O", "F"), properties=("mass",))
    return domain.read(file_of(tmp_path_factory.mktemp("sdf")))


# --- bonds ---


def test_bonds_are_those_of_known_molecules_however_they_are_turned():
    for name, text in (
        ("water", "O"),
        ("methane", "C"),
        ("ethene", "C=C"),
        ("acid", "C#N"),
        ("fluorine", "FF"),
    ):
        elements, positions = known(name)
        order = np.random.default_rng(1).permutation(len(elements))
        turned = (tuple(elements[k] for k in order), (positions @ turn() + 7.0)[order])
        assert np.array_equal(bond_orders(turned), bond_orders((elements, positions))[order][:, order])
        assert stable_atoms(turned).all()
        assert smiles(turned) == (text, 1)
        far = (elements, positions * 1.3)
        assert not stable_atoms(far).any()
    assert formula("HHOCFC") == "C2H2FO"
    assert (
        built((("H", "H", "H"), np.array([[0, 0, 0], [0.7, 0, 0], [-0.7, 0, 0]]))) is None
    )  # two bonds to one H
    two = (known("water")[0] * 2, np.concatenate([known("water")[1], known("water")[1] + 9.0]))
    assert smiles(two) == ("O", 2)
    assert bond_orders((("C", "Xx"), np.array([[0, 0, 0], [1.0, 0, 0]]))).sum() == 0


# --- files ---


def test_what_is_written_is_read_again_also_by_rdkit(data: Examples, tmp_path: Path):
    from rdkit import Chem

    x = data.tensor()
    paths = data.domain.write(x[:10], tmp_path / "out", start=3)
    assert paths[0].name == "sample-00003.sdf"
    for k, path in enumerate(paths):
        again = data.domain.read(path)
        assert torch.allclose(again.tensor()[0], x[k], atol=1e-4)
        (theirs,) = Chem.SDMolSupplier(str(path), removeHs=False)
        elements, _ = data.domain.molecules(x[k : k + 1])[0]
        assert [atom.GetSymbol() for atom in theirs.GetAtoms()] == list(elements)
        assert Chem.MolToSmiles(Chem.RemoveHs(theirs)) == data.domain.text(x[k : k + 1])[0]
    assert Molecules.from_json(json.loads(json.dumps(data.domain.to_json()))) == data.domain
    with pytest.raises(DataError, match="not finite"):
        data.domain.write(x[:1] * float("nan"), tmp_path)


def test_bad_records_are_left_out_and_counted(tmp_path: Path):
    water = "3\nwater\nO 0 0 0\nH .96 0 0\nH -.24 .93 0\n"
    path = tmp_path / "a.xyz"
    path.write_text(water + "2\ncut\nO 0 0\n" + water + "1\n\nXe 0 0 0\n" + "1\n\nO nan 0 0\n" + water)
    found = Molecules(elements=("H", "O")).read(path)
    assert (len(found), found.card()["left_out"]) == (3, 3)
    assert found.domain.shape == (3, 5)
    strange = tmp_path / "strange.xyz"
    strange.write_text(water + "1\nno element\nXx 0 0 0\n" + "2\ncapitals\nO 0 0 0\nCL 2 0 0\n")
    assert Molecules().read(strange).domain.elements == ("Cl", "H", "O")
    assert Molecules().read(strange).card()["left_out"] == 1
    sdf = file_of(tmp_path, 5)
    dummy = sdf.read_text().partition("$$$$")[0].replace(" O ", " * ") + "$$$$\n"  # the first is water
    assert " * " in dummy
    sdf.write_text(sdf.read_text() + "one\n\n\n 99 0  V2000\n$$$$\n" + "two\n$$$$\n" + dummy)
    few = Molecules(atoms=4).read(sdf)
    assert (len(few), few.card()["left_out"]) == (3, 5)  # methane and ethene are too large
    assert few.domain.elements == ("C", "F", "H", "N", "O")
    (tmp_path / "empty.sdf").write_text("\n")
    (tmp_path / "latin.xyz").write_bytes(b"1\n\xff\nO 0 0 0\n")
    (tmp_path / "a.pdb").write_text("ATOM")
    for name, settings, message in (
        ("empty.sdf", {}, "holds no molecules"),
        ("latin.xyz", {}, "no text in UTF-8"),
        ("a.pdb", {}, r"ends in \.sdf or \.xyz"),
        ("none.sdf", {}, "does not exist"),
        ("a.xyz", {"elements": ("C",)}, "'O' is not known"),
        ("a.xyz", {"atoms": 0}, "whole number from 1"),
        ("a.xyz", {"scale": 0.0}, "above 0"),
        ("a.xyz", {"properties": ("atoms",)}, "no property is called"),
    ):
        with pytest.raises(DataError, match=message):
            build_domain("molecules", **settings).read(tmp_path / name)


def test_the_table_of_qm9_is_read_by_its_columns_and_a_bad_row_is_counted(tmp_path: Path):
    path = tmp_path / "some.whl"
    columns = ("Elements", "XYZ_Ang", "Polarizability_bohr3", "HOMO_LUMO_gap_au")
    elements, positions = known("water")
    with zipfile.ZipFile(path, "w") as archive:
        for part in (1, 2, 3):
            lines = [(str(list(elements)), str(positions.tolist()), "6.31", "0.3615")] * 2
            lines.append(("['O', 'H']", str(positions.tolist()), "6.31", "0.3615"))
            with (tmp_path / "part.csv").open("w") as file:
                csv.writer(file).writerows([columns, *lines])
            archive.write(tmp_path / "part.csv", f"qm9pack/data/qm9_part{part}.csv")
    found = open_qm9(path, ("gap", "polarizability"))
    assert (len(found.molecules), found.bad) == (6, 3)
    assert found.molecules[5][0] == elements
    assert np.array_equal(found.molecules[5][1], positions)
    assert found.properties[0] == pytest.approx([0.3615 * 27.2114, 6.31])
    with pytest.raises(DataError, match="did you mean 'gap'"):
        open_qm9(path, ("gab",))
    with pytest.raises(DataError, match="no wheel of qm9pack"):
        open_qm9(tmp_path / "part.csv", ())


# --- the domain ---


def test_states_are_centred_and_hold_the_molecule(data: Examples):
    x = data.tensor()
    assert x.shape == (60, 6, 8)
    assert float(x[..., :3].sum(1).abs().max()) < 1e-5
    found = data.domain.molecules(x + 0.003 * torch.randn(x.shape, generator=torch.manual_seed(0)))
    for k, name in enumerate(list(KNOWN) * 12):
        assert found[k][0] == known(name)[0]
    told = data.domain.told(data.raw)
    assert told["count"].tolist() == [len(one) for one, _ in found]
    assert abs(float(told["numbers"].mean())) < 1e-5


def test_the_number_of_atoms_is_drawn_as_in_the_data_unless_it_is_said(data: Examples):
    noise = Noise(5, 4000)
    drawn = data.domain.asked({}, noise)["count"]
    assert torch.bincount(drawn, minlength=7)[[2, 3, 5, 6]].div(4000).tolist() == pytest.approx(
        [0.2, 0.4, 0.2, 0.2], abs=0.03
    )  # four deviations of a share of .4 are .031
    assert int(data.domain.asked({}, Noise(5, [17]))["count"]) == int(drawn[17])
    told = data.domain.asked({"mass": 5.0}, noise)
    assert set(told["count"].tolist()) == {5}  # of these data the property says it all
    assert torch.equal(data.domain.asked({"atoms": 3}, noise)["count"], torch.full((4000,), 3))
    assert "numbers" not in data.domain.asked({"atoms": 3}, noise)
    for given, message in (
        ({"atoms": 7}, "from 1 to 6"),
        ({"atoms": 2.5}, "whole numbers"),
        ({"mass": [1.0, 2.0]}, "one for each of 4000"),
        ({"mass": "many"}, "is a number"),
        ({"mass": float("inf")}, "finite"),
    ):
        with pytest.raises(DataError, match=message):
            data.domain.asked(given, noise)


def test_without_rdkit_a_molecule_is_its_formula(data: Examples, monkeypatch: pytest.MonkeyPatch):
    for name in ("rdkit", "rdkit.Chem"):
        monkeypatch.setitem(sys.modules, name, None)
    x = data.tensor()[:3]
    assert data.domain.text(x) == ["H2O", "CH4", "C2H4"]
    assert data.domain.picture(x).size[1] < 160  # lines of text
    with pytest.raises(MissingExtra, match="molecules"):
        molecule_measures(data.domain, data.domain.molecules(x), data, data)


# --- the network, and a denoiser that knows where its data live ---


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    network = build(
        "egnn", length=6, in_channels=8, width=32, head=8, depth=2, pair=8, vectors=4, embedding=32, numbers=1
    )
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return Denoiser(network, build_process("gaussian", schedule={"kind": "flow"}), "velocity").eval()


COUNT = torch.tensor([6, 4, 1, 5])


def noisy(seed: int = 0) -> Tensor:
    return torch.randn(4, 6, 8, generator=torch.manual_seed(seed))


def test_what_is_said_turns_with_the_molecule_and_goes_with_its_atoms(denoiser: Denoiser):
    x, told = noisy(), {"count": COUNT, "numbers": torch.randn(4, 1)}
    with torch.no_grad():
        x0 = denoiser(x, 0.4, told).x0
        size = float(x0[..., :3].abs().max())
        assert size > 0.1
        for mirrored in (False, True):
            q = torch.from_numpy(turn(3, mirrored)).float()
            turned = denoiser(torch.cat([x[..., :3] @ q, x[..., 3:]], 2), 0.4, told).x0
            assert torch.allclose(turned[..., :3], x0[..., :3] @ q, atol=1e-4 * size)
            assert torch.allclose(turned[..., 3:], x0[..., 3:], atol=1e-4)
        shifted = x.clone()
        shifted[..., :3] += torch.tensor([3.0, -1.0, 2.0])
        assert torch.allclose(denoiser(shifted, 0.4, told).x0, x0, atol=1e-3)
        order = torch.tensor([2, 0, 3, 1, 4, 5])  # within the first four, which samples 0, 1 and 3 have
        kept = torch.tensor([0, 1, 3])
        assert torch.allclose(denoiser(x[:, order], 0.4, told).x0[kept], x0[:, order][kept], atol=1e-4)
        assert float((denoiser(x, 0.4, {**told, "numbers": told["numbers"] + 1}).x0 - x0).abs().max()) > 1e-3
    check_denoiser(denoiser, x, told)
    for told, message in (({}, "how many points"), ({"count": COUNT[:2]}, "how many points")):
        with pytest.raises(ValueError, match=message):
            denoiser.network(x, torch.zeros(4), told)
    with pytest.raises(ValueError, match=r"built for x of \(batch, 6, 8\)"):
        denoiser.network(x[:, :5], torch.zeros(4), {"count": COUNT})
    with pytest.raises(ValueError, match="head must divide width"):
        build("egnn", length=6, in_channels=8, width=30, head=16)


def test_what_lies_outside_of_the_data_is_known_to_be_noise(denoiser: Denoiser):
    """x_0 = 0 there whatever the network says, and so the loss has no part of it."""
    network: Any = denoiser.network
    told = {"count": COUNT}
    process, eps = denoiser.process, noisy(1)
    x0 = network.project(noisy(2), told)
    assert torch.allclose(network.project(x0, told), x0, atol=1e-6)
    for t in (1e-3, 0.3, 1.0):
        x_t = process.corrupt(x0, t, eps)
        with torch.no_grad():
            said = denoiser(x_t, t, told)
        inside = network.project(said.x0, told)
        assert torch.allclose(said.x0, inside, atol=1e-5)
        outside = eps - network.project(eps, told)
        assert torch.allclose(
            said.eps - network.project(said.eps, told), outside, atol=1e-3
        )  # rounding over 1e-3
    objective: Any = build_objective("denoising")
    error = objective.error(said, x0, eps)
    target = eps - x0
    inside_only = network.project(said.value, told) - network.project(target, told)
    assert torch.allclose(error, inside_only.square().flatten(1).mean(1), rtol=1e-4)


def test_sampling_is_that_without_a_centre_of_mass(denoiser: Denoiser):
    """The same from all of the noise as from the part of it where data live, and it ends there."""
    network: Any = denoiser.network
    told, noise = {"count": COUNT}, Noise(3, 4)

    class Centred(nn.Module):  # the same network where it is never shown anything else
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, x: Tensor, level: Tensor, condition: Any = None) -> Tensor:
            return network.project(network(x, level, condition), condition)

    class Projected:  # noise that has no part outside
        def __getattr__(self, name: str) -> Any:
            found = getattr(noise, name)
            if name == "at":
                return lambda step: _Step(found(step))
            return found

    class _Step:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def normal(self, like: Tensor, stream: int = 0) -> Tensor:
            return network.project(self.inner.normal(like, stream), told)

    projected: Any = Projected()
    bare = Denoiser(Centred(), denoiser.process, "velocity")
    for kind in ("heun", "ancestral"):
        settings = {
            "solver": build_solver(kind),
            "levels": build_grid("uniform").levels(denoiser.process, 8),
            "condition": told,
        }
        with torch.no_grad():
            whole = sample(denoiser, noise, (6, 8), **settings)
            free = sample(bare, projected, (6, 8), **settings)
        assert float(whole.abs().max()) > 0.1
        assert torch.allclose(whole, free, atol=1e-4 * float(whole.abs().max()))
        assert torch.allclose(whole, network.project(whole, told), atol=1e-5)
        assert float(whole[1, 4:].abs().max()) < 1e-6


def test_only_a_gaussian_process_can_be_told_where_data_live(denoiser: Denoiser):
    with pytest.raises(SolverError, match="where its data live"):
        Denoiser(denoiser.network, build_process("cld", schedule={"kind": "cld"}), "mixed")


# --- judging ---


def test_measures_of_molecules_catch_what_is_wrong_with_them(data: Examples):
    train_, held = data.split(0.3)

    def judged(molecules: list) -> dict[str, float]:
        return {m.name: m.value for m in molecule_measures(data.domain, molecules, train_, held)}

    real = data.domain.molecules(held.tensor())
    found = judged(real)
    assert (
        found["atom stability"] == found["molecule stability"] == found["validity"] == found["connected"] == 1
    )
    assert found["novelty"] == 0  # these are all of the same five
    assert found["uniqueness"] == len({smiles(one) for one in real}) / len(real)
    methane = ("C", *"HHHH")
    wrong = [(("N", *"HHHH"), one[1] * 0.95) if one[0] == methane else one for one in real]
    share = np.mean([one[0] == methane for one in real])
    assert share > 0.05
    assert judged(wrong)["validity"] == pytest.approx(1 - share)  # N with four bonds
    torn = [(one[0], np.where(np.arange(len(one[0]))[:, None] == 0, one[1] + 9, one[1])) for one in real]
    assert judged(torn)["atom stability"] < 0.8
    assert judged(torn)["connected"] == 0
    assert judged([real[0]] * 8)["uniqueness"] == 1 / 8
    other = (("N", "H", "H", "H"), np.array([[0, 0, 0.3], [0.94, 0, 0], [-0.47, 0.81, 0], [-0.47, -0.81, 0]]))
    assert judged([other])["novelty"] == 1


def test_a_judge_of_a_property_knows_right_from_wrong(data: Examples):
    train_, held = data.split(0.3)
    judge = PropertyJudge(data.domain, train_, held, "mass")
    real = data.domain.molecules(held.tensor())
    asked = np.array([len(one) for one, _ in real], float)
    right = property_error(judge, real, asked)
    assert right.value < 0.3  # atoms
    assert right.value < right.details["random"] / 3
    assert property_error(judge, real, asked[::-1].copy() + 3).value > 1.5
    one, turned = real[0], (real[0][0][::-1], real[0][1][::-1] @ turn(5))
    np.testing.assert_allclose(*descriptors([one, turned]), atol=1e-8)
    with pytest.raises(DataError, match="did you mean 'mass'"):
        PropertyJudge(data.domain, train_, held, "mas")


# --- whole ---


RECIPE = {
    "name": "some",
    "process": {"sigma_data": 1.0},
    "network": {"kind": "egnn", "width": 32, "head": 8, "depth": 2, "pair": 8, "vectors": 4, "embedding": 32},
    "objective": {"drop": 0.2},
    "training": {"images": 640, "batch": 32, "learning_rate": 3e-3, "warmup": 100, "ema": [0.1], "log_every": 320},
    "sampling": {"steps": 8},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    out = tmp_path_factory.mktemp("run")
    given = {"domain": "molecules", "source": str(file_of(out)), "settings": {"properties": ["mass"]}}
    train(recipe_from(RECIPE | {"data": given}), out)
    return bundle.load(out / "model")


def test_a_model_of_molecules_is_trained_kept_and_asked(model: Model):
    domain: Any = model.domain
    samples = model.sample(12, condition={"mass": 5.0}, guidance=1.5)
    assert {len(one) for one, _ in domain.molecules(samples)} == {5}
    free = model.sample(12)
    assert torch.allclose(model.sample(indices=[7])[0], free[7], atol=1e-5)
    assert float(free[..., :3].sum(1).abs().max()) < 1e-4
    picture = domain.picture(free, 4)
    assert picture.size == (640, 480)
    with pytest.raises(BundleError, match="did you mean 'mass'"):
        model.sample(2, condition={"masss": 3})


def test_a_scaffold_is_held_by_the_editing_that_there_is(model: Model):
    """The first k atoms, up to where they stand: their elements, and positions about their own mean."""
    domain: Any = model.domain
    k, shape = 3, domain.shape

    def forward(x: Tensor) -> Tensor:
        held = x[:, :k]
        return torch.cat([held[..., :3] - held[..., :3].mean(1, keepdim=True), held[..., 3:]], 2)

    def backward(y: Tensor) -> Tensor:
        return nn.functional.pad(forward(y), (0, 0, 0, shape[0] - k))

    operator = MatrixFree(forward, backward, shape)
    check_operator(operator)
    real = domain.read(Path(str(model.info["recipe"]["data"]["source"])))
    y = measure(operator, real.tensor()[2:3].repeat(4, 1, 1)).y  # of ethene the carbons and a hydrogen
    for method in ("ddnm", "replacement"):
        made = restore(model, operator, y, method=method, condition={"atoms": 6}, steps=8)
        assert torch.allclose(operator(made), y, atol=1e-5)
        assert float(made[:, k:].std(0).max()) > 1e-2  # the rest is drawn
        assert all(one[0][:k] == ("C", "C", "H") for one in domain.molecules(made))
