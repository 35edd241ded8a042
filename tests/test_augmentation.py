"""Changed pictures: what is told is what was done, keyed and not consumed, and a model of them makes none of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.denoisers import Denoiser
from sfumato.denoisers.guidance import nothing
from sfumato.domains.augmentation import PARAMETERS, Augmented, Change
from sfumato.domains.images import Images
from sfumato.errors import DataError
from sfumato.networks import build
from sfumato.noise import BatchNoise, Noise
from sfumato.objectives import Denoising
from sfumato.processes import build_process
from sfumato.solvers import build_grid, build_solver, integrate


def pictures(count: int = 6, side: int = 16, channels: int = 3) -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (count, side, side, channels), dtype=np.uint8)
    )


def data(count: int = 6, side: int = 16, channels: int = 3):
    return Images().of(pictures(count, side, channels).numpy())


@given(
    mirror=st.booleans(), quarters=st.integers(0, 3), swap=st.booleans(), steps=st.integers(0, 2),
    other=st.tuples(st.booleans(), st.integers(0, 3), st.booleans(), st.integers(0, 2)),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_changes_are_told_apart_and_parameters_say_which(mirror, quarters, swap, steps, other):
    x = data(1).tensor()[0]
    one = Change(mirror, quarters, (0, 0), swap, steps)
    two = Change(other[0], other[1], (0, 0), other[2], other[3])
    same = torch.equal(one(x), two(x))
    # the square and the triangle have as many symmetries as there are ways of saying them
    assert same == (one == two) == np.allclose(one.parameters(x.shape), two.parameters(x.shape))


@given(down=st.integers(-2, 2), right=st.integers(-2, 2))
@settings(max_examples=25, deadline=None)
def test_moving_back_and_forth_loses_the_border_alone(down, right):
    x = data(1).tensor()[0]
    moved = Change(shift=(down, right))(x)
    assert moved.shape == x.shape
    back = Change(shift=(-down, -right))(moved)
    assert torch.equal(back[:, 2:-2, 2:-2], x[:, 2:-2, 2:-2])
    assert (down, right) == (0, 0) or not torch.equal(moved, x)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colours_keep_their_sum_and_alpha_its_place(channels):
    x = data(4, channels=channels).tensor()
    batch = Augmented(data(4, channels=channels), 0.9).batch(np.arange(4))
    colours = min(channels, 3)
    gaps = batch["x"][:, :colours].sum(1).flatten(1).sort().values
    plain = Augmented(data(4, channels=channels), 0.0).batch(np.arange(4))
    assert torch.equal(plain["x"], x)
    assert not plain["condition"]["augmentation"].any()
    # a move repeats the border, so values are compared as a set of what there was
    known = x[:, :colours].sum(1).flatten(1)
    for i in range(4):
        assert all(bool((known[i] - value).abs().min() < 1e-5) for value in gaps[i, ::16])
    if channels == 1:
        assert not batch["condition"]["augmentation"][:, 5:].any()


def test_a_batch_cut_in_two_is_the_same_and_changes_come_as_often_as_asked():
    augmented = Augmented(data(), 0.3)
    rows = np.array([0, 1, 2, 3, 4, 5])
    whole = augmented.batch(rows, 3, 8)
    first, second = augmented.batch(rows[:2], 3, 8), augmented.batch(rows[2:], 3, 10)
    assert torch.equal(whole["x"], torch.cat([first["x"], second["x"]]))
    told = augmented.batch(np.zeros(4000, dtype=int), 1)["condition"]["augmentation"]
    assert told.shape == (4000, PARAMETERS)
    untouched = float((told == 0).all(1).double().mean())
    assert (
        abs(untouched - 0.7**5) < 4 * (0.168 * 0.832 / 4000) ** 0.5 + 0.7**4 * 0.3 / 25
    )  # a move may be by 0, 0


def test_dropping_what_is_asked_for_keeps_how_pictures_were_changed():
    told = torch.ones(2, PARAMETERS)
    kept = nothing({"label": torch.tensor([0, 1]), "augmentation": told}, 2)
    assert torch.equal(kept["augmentation"], told)
    assert kept["label"].tolist() == [2, 2]


def test_bad_data_are_named():
    with pytest.raises(DataError, match=r"in \[0, 1\), not 1"):
        Augmented(data(), 1)
    with pytest.raises(DataError, match="8 pixels"):
        Augmented(data(side=7), 0.5)


def test_a_model_of_changed_pictures_makes_pictures_that_are_not_changed():
    """One picture, changed three times out of four: told of it, a model makes the picture; untold, its changes too."""
    torch.manual_seed(0)
    ramp = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    ramp[0, :, 4:, 0] = 255  # red, to the right
    ramp[0, :4, :4, 1] = 255  # green, above
    one = Augmented(Images().of(ramp), 0.25)
    truth = one.tensor()[0]
    ways = [
        Change(mirror, quarters, (0, 0), swap, steps)(truth)
        for mirror in (False, True) for quarters in range(4) for swap in (False, True) for steps in range(3)
    ]  # fmt: skip
    every = torch.stack(ways)  # the first is the picture as it is
    process = build_process("gaussian", schedule={"kind": "flow"}, sigma_data=1.0)
    shares = {}
    for told in (True, False):
        network = build(
            "unet", in_channels=3, size=[8, 8], width=32, multipliers=[1], blocks=2, augmented=PARAMETERS
        )
        denoiser = Denoiser(network, process, "velocity")
        objective = Denoising(drop=0.1)
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
        for step in range(250):
            batch = one.batch(np.zeros(32, dtype=int), 0, step * 32)
            if not told:
                batch = {"x": batch["x"]}
            loss = objective(denoiser, batch, BatchNoise(0, step * 32))[0].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            levels = build_grid("angle").levels(process, 16)
            noise = Noise(1, 60)
            start = process.prior(torch.empty(60, 3, 8, 8), noise.at(0))
            drawn = integrate(denoiser, build_solver("adams-moulton"), levels, start, noise)
        nearest = (drawn[:, None] - every).square().flatten(2).sum(2).argmin(1)
        shares[told] = float((nearest == 0).double().mean())
    assert shares[True] >= 0.95, shares
    assert shares[False] <= 0.6, shares
