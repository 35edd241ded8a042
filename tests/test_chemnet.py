"""The Fréchet ChemNet distance: the network is the package's own, and the distance says what it should."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from sfumato.evaluation import chemnet
from sfumato.evaluation.chemnet import ChemNet, frechet_chemnet

SMILES = [
    "CCO", "c1ccccc1", "CC(=O)Oc1ccccc1C(=O)O", "C[C@@H](N)C(=O)O",
    "ClC(Br)=C(F)I", "O=[N+]([O-])c1ccc(Cl)cc1",
    "Cn1cnc2c1c(=O)n(C)c(=O)n2C", "CC[Si](C)(C)C", "N#CC1CC1", "CSCC", "OB(O)c1cccs1", "[nH]1cccc1%10CC%10",
]  # fmt: skip


@pytest.mark.slow
def test_features_are_those_of_the_package(monkeypatch):
    """On molecules with every kind of symbol, unknown ones too; its weights are read by the restricted reader."""
    fcd = pytest.importorskip("fcd")
    monkeypatch.setattr(torch, "load", partial(torch.load, weights_only=True))
    model = fcd.load_ref_model()
    theirs = torch.from_numpy(fcd.get_predictions(model, SMILES, device="cpu", n_jobs=0))
    ours = ChemNet().features(SMILES)
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-4, atol=1e-6)


def test_a_molecule_is_read_to_its_end_and_alone(monkeypatch):
    net = ChemNet()
    whole = net.features(SMILES)
    torch.testing.assert_close(net.features(SMILES, batch=5), whole, rtol=1e-5, atol=1e-7)
    assert (net.features(["CCO", "CCC", "OCC"])[0] - whole[0]).abs().max() < 1e-6
    assert (whole[0] - net.features(["OCC"])[0]).abs().max() > 1e-4
    assert torch.equal(net.features(["C%"]), net.features(["C9"]))  # both unknown to it


def test_the_distance_is_nothing_of_the_same_and_grows_with_what_is_other():
    real = [f"C{'C' * k}{end}" for k in range(12) for end in ("O", "N", "C(=O)O", "c1ccccc1")]
    other = [f"{text}Cl" for text in real]
    same = frechet_chemnet(real, real, real)
    assert same.value == pytest.approx(0, abs=1e-6)
    assert same.floor == pytest.approx(0, abs=1e-6)
    mixed, all_other = (frechet_chemnet(x, real, real) for x in (real[:24] + other[24:], other))
    assert same.value + 0.1 < mixed.value < all_other.value
    assert all_other.n == len(other)


def test_other_weights_and_none_are_refused(monkeypatch):
    monkeypatch.setattr(chemnet, "WEIGHTS", "0" * 64)
    with pytest.raises(Exception, match=r"install fcd 1\.2\.2"):
        ChemNet()
    monkeypatch.setattr(chemnet.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="molecules"):
        ChemNet()
