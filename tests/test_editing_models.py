"""Edits by a trained model, from Python and the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from editing_cases import FLOW, normal, one_gaussian
from sfumato import load
from sfumato.cli import app
from sfumato.editing import (
    Clip,
    Identity,
    Mask,
    Measurement,
    Posterior,
    Windows,
    build_method,
    change,
    downsample,
    interpolate,
    restore,
)
from sfumato.errors import BundleError, DataError, SfumatoError, SolverError

# --- models, and the command line ---


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name, size in (("a", 8), ("b", 8), ("small", 2)):
        Image.fromarray(random.integers(0, 255, (size, size), dtype=np.uint8)).save(folder / f"{name}.png")
    mask = np.zeros((8, 8), np.uint8)
    Image.fromarray(mask).save(folder / "empty.png")
    mask[:, 4:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(mask[:4]).save(folder / "wrong.png")
    (folder / "bad.png").write_text("not a picture")
    return folder


def edit(demo: Path, *words: object) -> int:
    return app(["edit", str(words[0]), str(demo / "runs" / "demo" / "model"), *map(str, words[1:])])


def grey_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_inpainting_keeps_what_the_mask_does_not_cover(demo_folder: Path, pictures: Path, tmp_path: Path):
    out = tmp_path / "out"
    words = (
        pictures / "a.png",
        pictures / "b.png",
        "--mask",
        pictures / "mask.png",
        "--out",
        out,
        "--count",
        2,
    )
    assert edit(demo_folder, "inpaint", *words, "--steps", 3) == 0
    assert sorted(path.name for path in out.iterdir()) == ["a-0.png", "a-1.png", "b-0.png", "b-1.png"]
    assert (tmp_path / "out-sheet.png").is_file()
    kept, found = grey_of(pictures / "a.png")[:, :4], grey_of(out / "a-0.png")
    assert (found[:, :4] == kept).all()
    assert (found != grey_of(out / "a-1.png"))[:, 4:].any()


def test_outpainting_goes_on_beyond_the_borders(demo_folder: Path, pictures: Path, tmp_path: Path):
    words = (pictures / "a.png", "--left", 3, "--bottom", 2, "--steps", 3, "--out", tmp_path / "out")
    assert edit(demo_folder, "outpaint", *words) == 0
    found = grey_of(tmp_path / "out" / "a.png")
    assert found.shape == (10, 11)
    assert (found[:8, 3:] == grey_of(pictures / "a.png")).all()


@pytest.mark.parametrize(
    "words",
    [
        ("super-resolve", "small.png", "--factor", 4),
        ("deblur", "a.png", "--method", "pigdm"),
        ("denoise", "a.png", "--label", 3),
        ("restyle", "a.png", "--style", "b.png"),
        ("variations", "a.png", "--count", 2),
        ("interpolate", "a.png", "b.png", "--frames", 3),
        ("change", "a.png", "--old", 3, "--new", 5),
    ],
    ids=lambda words: words[0],
)
def test_every_edit_writes_pictures_and_a_sheet(
    words: tuple, demo_folder: Path, pictures: Path, tmp_path: Path
):
    places = [pictures / word if str(word).endswith(".png") else word for word in words]
    assert edit(demo_folder, *places, "--steps", 3, "--out", tmp_path / "out") == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == {"variations": 2, "interpolate": 3}.get(words[0], 1)
    assert (tmp_path / "out-sheet.png").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("inpaint", "a.png", "--mask", "wrong.png"), "8x4.*8x8"),
        (("inpaint", "a.png", "--mask", "empty.png"), "mask is empty"),
        (("inpaint", "a.png", "--mask", "nowhere.png"), "no such picture"),
        (("inpaint", "bad.png", "--mask", "mask.png"), "bad.png.*not a picture"),
        (("inpaint", "a.png", "--mask", "mask.png", "--method", "pigdn"), "did you mean 'pigdm'"),
        (("inpaint", "a.png", "--mask", "mask.png", "--label", "eleven"), "unknown class"),
        (("outpaint", "a.png"), "--left"),
        (("super-resolve", "a.png", "--factor", 3), "whole factor"),
        (("colourise", "a.png"), "cannot be colourised"),
        (("change", "a.png", "--old", 3, "--new", 12), "out of range"),
        (("variations", "a.png", "--strength", 2), r"\(0, 1\]"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    words: tuple, said: str, demo_folder: Path, pictures: Path, tmp_path: Path
):
    places = [pictures / word if str(word).endswith(".png") else word for word in words]
    with pytest.raises(SfumatoError, match=said) as error:
        edit(demo_folder, *places, "--steps", 2, "--out", tmp_path / "out")
    assert "\n" not in str(error.value)


def test_an_unreadable_picture_leaves_the_others_finished(demo_folder: Path, pictures: Path, tmp_path: Path):
    words = (pictures / "bad.png", pictures / "a.png", "--steps", 2, "--out", tmp_path / "out")
    with pytest.raises(DataError, match=r"bad\.png.*the 1 others are finished"):
        edit(demo_folder, "denoise", *words)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_pictures_of_one_name_are_all_written(demo_folder: Path, pictures: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    for place, source in (("a.png", "b.png"), ("a-2.png", "a.png")):
        (other / place).write_bytes((pictures / source).read_bytes())
    words = (pictures / "a.png", other / "a.png", other / "a-2.png", "--steps", 2, "--out", tmp_path / "out")
    assert edit(demo_folder, "denoise", *words) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a-2.png", "a-3.png", "a.png"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("change", "a.png", "--old", 3, "--new", 5, "--seed", 4), "no use for --seed"),
        (("interpolate", "a.png", "b.png", "--guidance", 2), "no use for --guidance"),
        (("denoise", "a.png", "--prompt", "a heart"), "unknown condition 'text'"),
        (("denoise", "a.png", "--method", "dps:scale=x"), "scale must be a finite number"),
        (("denoise", "a.png", "--method", "moments:damping=-5"), "damping must be"),
        (("denoise", "a.png", "--guidance", "2:interval=3..1"), "interval"),
        (("interpolate", "a.png", "b.png", "--steps", 0), "steps must be"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    words: tuple, said: str, demo_folder: Path, pictures: Path, tmp_path: Path
):
    places = [pictures / word if str(word).endswith(".png") else word for word in words]
    steps = () if "--steps" in words else ("--steps", 2)
    with pytest.raises(SfumatoError, match=said):
        edit(demo_folder, *places, *steps, "--out", tmp_path / "out")


def test_edits_pass_a_filter_on_their_way_out(demo_folder: Path, pictures: Path, tmp_path: Path, monkeypatch):
    from sfumato import safeguards

    monkeypatch.setattr(
        safeguards, "build_filter", lambda text, action: safeguards.Filter(lambda picture: 1.0, 0.5, action)
    )
    words = (
        pictures / "a.png",
        pictures / "b.png",
        "--steps",
        2,
        "--out",
        tmp_path / "out",
        "--filter",
        "own",
    )
    assert edit(demo_folder, "denoise", *words) == 0
    record = json.loads((tmp_path / "out-filter.json").read_text())
    assert record["rejected"] == 2
    first, second = (grey_of(tmp_path / "out" / name) for name in ("a.png", "b.png"))
    assert (first == second).all(), "what is rejected is crossed out"


def test_restoring_does_not_depend_on_the_batch(demo_folder: Path):
    model = load(demo_folder / "runs" / "demo" / "model")
    operator = downsample(model.domain.shape, 4)
    y = normal(5, *operator.measured).float()
    for method in ("pigdm", "particles:particles=2"):
        whole = restore(model, operator, y, sigma=0.1, steps=3, method=method)
        parts = restore(model, operator, y, sigma=0.1, steps=3, method=method, batch=2)
        assert torch.allclose(whole, parts, atol=1e-5), method


def test_interpolation_and_change_of_a_model(demo_folder: Path):
    model = load(demo_folder / "runs" / "demo" / "model")
    x = 0.5 * normal(2, *model.domain.shape).float()
    way = interpolate(model, x[0], x[1], frames=3, steps=40)
    assert (way[0] - x[0]).square().mean().sqrt() < 0.05
    assert (way[2] - x[1]).square().mean().sqrt() < 0.05
    same = change(model, x, {"label": 3}, {"label": 3}, steps=40)
    other = change(model, x, {"label": 3}, {"label": 7}, steps=40)
    assert (same - x).square().mean().sqrt() < 0.05
    assert (other - x).square().mean() > 2 * (same - x).square().mean()
    parts = change(model, x, {"label": 3}, {"label": 7}, steps=40, batch=1)
    assert torch.allclose(parts, other, atol=1e-4)
    with pytest.raises(BundleError, match="2 frames"):
        interpolate(model, x[0], x[1], frames=1)
    with pytest.raises(BundleError, match="this model's pictures are"):
        interpolate(model, x[0], x[1, :, :4], frames=2)


def test_what_does_not_fit_is_refused():
    with pytest.raises(SolverError, match="does not fit"):
        Mask(torch.ones(1, 3, 3), (1, 4, 4))
    for mask in (torch.zeros(1, 4, 4), torch.ones(1, 4, 4)):
        with pytest.raises(SolverError, match="empty"):
            Mask(mask, (1, 4, 4))
    with pytest.raises(SolverError, match="measures"):
        Measurement(Identity((4,)), torch.zeros(2, 3))
    with pytest.raises(SolverError, match="finite"):
        Measurement(Identity((2,)), torch.tensor([[0.0, math.nan]]))
    prior = one_gaussian(FLOW)
    with pytest.raises(SolverError, match="linear operator"):
        Posterior(prior, Measurement(Clip((4,)), torch.zeros(1, 4)), "pigdm")
    with pytest.raises(SolverError, match="repeats"):
        build_method("repaint:repeats=0")
    with pytest.raises(SolverError, match="unknown value"):
        build_method("dps:scala=2")
    with pytest.raises(SolverError, match="at least as large"):
        Windows(prior, (1, 4, 4), (1, 3, 8))


# --- what users did that ended badly ---


def test_pictures_that_were_given_are_not_overwritten(demo_folder: Path, pictures: Path, tmp_path: Path):
    own = tmp_path / "own"
    own.mkdir()
    before = (pictures / "a.png").read_bytes()
    (own / "a.png").write_bytes(before)
    with pytest.raises(BundleError, match="would be overwritten"):
        edit(demo_folder, "denoise", own, "--out", own, "--steps", 2)
    assert (own / "a.png").read_bytes() == before


def test_a_mask_is_not_white_where_it_is_transparent(demo_folder: Path, pictures: Path, tmp_path: Path):
    painted = np.full((8, 8, 4), 255, np.uint8)
    painted[:, :4, 3] = 0
    Image.fromarray(painted).save(tmp_path / "mask.png")
    words = (pictures / "a.png", "--mask", tmp_path / "mask.png", "--out", tmp_path / "out", "--steps", 2)
    assert edit(demo_folder, "inpaint", *words) == 0
    kept, given = grey_of(tmp_path / "out" / "a.png"), grey_of(pictures / "a.png")
    assert (kept[:, :4] == given[:, :4]).all()
