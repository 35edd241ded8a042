"""Molecules as two leaves: what a network says turns and permutes with them, and a given leaf stands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato import bundle
from sfumato.denoisers import JointDenoiser
from sfumato.domains import MoleculeLeaves, build_domain
from sfumato.domains.bonds import smiles
from sfumato.domains.examples import Examples
from sfumato.domains.molecule_files import to_sdf
from sfumato.errors import DataError
from sfumato.networks import build
from sfumato.noise import Noise
from sfumato.processes import build_process
from sfumato.recipes import recipe_from
from sfumato.recipes.run import train

CH = 1.09 / np.sqrt(3)
KNOWN = {
    "O": ("OHH", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]),
    "C": ("CHHHH", [[0, 0, 0], [CH, CH, CH], [CH, -CH, -CH], [-CH, CH, -CH], [-CH, -CH, CH]]),
    "C#N": ("HCN", [[1.07, 0, 0], [0, 0, 0], [-1.16, 0, 0]]),
}


def turn(seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """Water, methane and hydrogen cyanide, each atom in a place of its own, turned and a little shaken."""
    draw, found = np.random.default_rng(0), tmp_path_factory.mktemp("sdf") / "some.sdf"
    records = []
    for k in range(90):
        elements, positions = list(KNOWN.values())[k % 3]
        order = draw.permutation(len(elements))
        shaken = np.array(positions) @ turn(k) + 0.01 * draw.normal(size=(len(elements), 3))
        records.append(to_sdf((tuple(elements[j] for j in order), shaken[order]), f"m{k}"))
    found.write_text("".join(records))
    return found


@pytest.fixture(scope="module")
def data(path: Path) -> Examples:
    return MoleculeLeaves(elements=("H", "C", "N", "O")).read(path)


def test_states_are_two_leaves_and_hold_the_molecules(data: Examples, tmp_path: Path):
    state = data.tensor()
    assert state["positions"].shape == (90, 5, 3)
    assert state["elements"].shape == (90, 5)
    assert state["positions"].sum(1).abs().max() < 1e-5
    found = data.domain.molecules(state)
    assert [smiles(one)[0] for one in found[:3]] == list(KNOWN)  # type: ignore[index]
    (place, *_) = data.domain.write({name: leaf[:1] for name, leaf in state.items()}, tmp_path)
    assert smiles(data.domain.molecules(data.domain.read(place).tensor())[0]) == ("O", 1)
    again = build_domain(**{"kind": "molecule-leaves", **json.loads(json.dumps(data.domain.to_json()))})
    assert again == data.domain


def denoiser(seed: int = 0) -> JointDenoiser:
    torch.manual_seed(seed)
    leaves = {
        "positions": {"shape": (5, 3)},
        "elements": {"shape": (5,), "symbols": 6, "outputs": 5},
    }
    network = build(
        "joint-egnn", leaves=leaves, features=8, width=32, depth=2, head=16, pair=8, vectors=4, bumps=8
    )
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    schedule = {"kind": "flow"}
    process = build_process(
        "joint",
        processes={
            "positions": {"kind": "gaussian", "sigma_data": 1.0, "schedule": schedule},
            "elements": {"kind": "categorical", "law": "masked", "symbols": 5, "schedule": schedule},
        },
    )
    return JointDenoiser(network.double(), process)


def test_what_is_said_turns_and_permutes_with_the_molecule():
    model, noise = denoiser(), Noise(0, 3)
    x = {
        "positions": noise.normal(torch.empty(3, 5, 3).double()),
        "elements": torch.tensor([[1, 5, 3, 0, 0], [5, 5, 5, 5, 5], [4, 1, 1, 5, 0]]),
    }
    told, t = {"count": torch.tensor([3, 5, 4])}, {"positions": 0.4, "elements": 0.7}
    said = model(x, t, told)
    spin = torch.from_numpy(turn(3))
    turned = model({**x, "positions": x["positions"] @ spin}, t, told)
    torch.testing.assert_close(turned["positions"].x0, said["positions"].x0 @ spin)
    torch.testing.assert_close(turned["elements"].value, said["elements"].value)
    order = torch.tensor([2, 0, 1, 3, 4])
    mixed = model({name: leaf[:, order] for name, leaf in x.items()}, t, told)
    torch.testing.assert_close(mixed["positions"].x0[:1], said["positions"].x0[:1, order])
    torch.testing.assert_close(mixed["elements"].value[:1], said["elements"].value[:1, order])
    # a place without an atom is told nothing and says that it is none
    other = {name: leaf.clone() for name, leaf in x.items()}
    other["positions"][0, 3:] += 9.0
    again = model(other, t, told)
    torch.testing.assert_close(again["elements"].value[:, :3], said["elements"].value[:, :3])
    assert bool((said["elements"].value[0, 3:].argmax(-1) == 0).all())


def test_what_is_given_is_read_and_what_cannot_be_is_refused(data: Examples, path: Path, tmp_path: Path):
    domain, noise = data.domain, Noise(0, 2)
    found = domain.asked({"elements": "CH4"}, noise)
    assert found["elements"].tolist() == [[2, 1, 1, 1, 1]] * 2
    assert found["count"].tolist() == [5, 5]
    places = domain.asked({"positions": np.array(KNOWN["O"][1]) + 7.0}, noise)
    assert places["count"].tolist() == [3, 3]
    assert places["positions"].sum(1).abs().max() < 1e-5
    from_file = domain.asked({"positions": str(path)}, noise)
    torch.testing.assert_close(from_file["positions"][0], data.tensor([0])["positions"][0], atol=1e-3, rtol=0)
    assert set(domain.asked({}, noise)) == {"count"}
    for given, message in (
        ({"elements": "C9H20"}, "29 atoms.*1 to 5"),
        ({"elements": "CX4"}, "element in 'CX4'"),
        ({"elements": "C-H"}, "like C2H6O"),
        ({"elements": ["CH4"] * 3}, "3 sum formulas"),
        ({"positions": [[0.0, 0.0]]}, "positions are"),
        ({"positions": "x.sdf"}, "x.sdf"),
        ({"positions": np.full((2, 3), np.nan)}, "finite"),
        ({"positions": np.zeros((4, 3)), "elements": "CH4"}, "of another number"),
        ({"elements": "CH4", "atoms": 5}, "leave atoms out"),
    ):
        with pytest.raises(DataError, match=message):
            domain.asked(given, noise)
    with pytest.raises(DataError, match="leave properties out"):
        MoleculeLeaves(properties=("mass",))


def test_a_model_draws_either_leaf_of_the_other(path: Path, data: Examples, tmp_path: Path):
    values = {
        "name": "leaves",
        "data": {
            "source": str(path),
            "domain": "molecule-leaves",
            "settings": {"elements": ["H", "C", "N", "O"]},
        },
        "process": {"kind": "joint", "law": "masked", "sigma_data": 1.0},
        "network": {
            "kind": "joint-egnn",
            "width": 32,
            "depth": 2,
            "features": 8,
            "pair": 8,
            "vectors": 4,
            "bumps": 16,
        },
        "denoiser": {"parameterisation": "velocity"},
        "objective": {"kind": "joint"},
        "training": {"images": 16000, "batch": 32, "warmup": 320, "optimizer": "muon", "learning_rate": 4e-3},
        "sampling": {"solver": {"kind": "ancestral"}, "steps": 20, "guidance": 1.0},
        "evaluation": {"bound_images": 0},
    }
    train(recipe_from(values), tmp_path / "run")
    model = bundle.load(tmp_path / "run" / "model")
    right = []
    for elements, positions in KNOWN.values():
        spun = np.array(positions) @ turn(77)
        drawn = model.sample(4, condition={"positions": spun}, seed=1)
        torch.testing.assert_close(
            drawn["positions"], model.domain.asked({"positions": spun}, Noise(0, 4))["positions"]
        )
        right += ["".join(one[0]) == elements for one in model.domain.molecules(drawn)]
    # of twelve; who knows the number of atoms alone guesses one in five or in nine, two of twelve
    assert sum(right) >= 6, "elements follow from where atoms are"
    drawn = model.sample(4, condition={"elements": "CH4"}, seed=2)
    assert drawn["elements"].tolist() == [[2, 1, 1, 1, 1]] * 4
    assert model.sample(3, seed=3)["positions"].shape == (3, 5, 3)
