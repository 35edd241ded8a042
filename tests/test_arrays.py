"""Series, shapes and motions: what is written is read, what is bad is counted, and measures find planted defects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato import bundle
from sfumato.cli import main
from sfumato.domains import Source, build_domain
from sfumato.domains.examples import Examples
from sfumato.domains.meshes import read_mesh, surface_points
from sfumato.domains.motion import NUMBERS, QUATERNIONS, Motion, positions
from sfumato.domains.series import Series
from sfumato.domains.shapes import Shapes
from sfumato.errors import DataError
from sfumato.evaluation.by_domain import MEASURES
from sfumato.evaluation.series import autocorrelations, spectra
from sfumato.evaluation.shapes import chamfer
from sfumato.networks import build
from sfumato.recipes import recipe_from
from sfumato.recipes.run import train


def judged(data: Examples, samples: object, asked: np.ndarray | None, kept: Examples, held: Examples) -> dict:
    return {m.name: m for m in MEASURES[data.domain.name](data.domain, samples, asked, kept, held)}


# --- series ---


def curves(count: int = 240, length: int = 24) -> np.ndarray:
    """Slow and fast waves by turns, with a little noise: (count, length)."""
    draw = np.random.default_rng(0)
    speed = np.where(np.arange(count) % 2, 2.0, 0.7)[:, None]
    phase = draw.uniform(0, 2 * np.pi, (count, 1))
    return np.sin(speed * np.arange(length) + phase) + 0.05 * draw.normal(size=(count, length))


def wide(path: Path, values: np.ndarray, labels: bool = True) -> Path:
    rows = [",".join([*(f"t{k}" for k in range(values.shape[1])), *(["label"] if labels else [])])]
    rows += [
        ",".join([*(f"{v:.6g}" for v in row), *(["fast" if k % 2 else "slow"] if labels else [])])
        for k, row in enumerate(values)
    ]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_series_that_are_written_are_read_again_with_their_ends_and_labels(tmp_path: Path):
    path = tmp_path / "all.csv"
    draw = np.random.default_rng(0)
    rows = [
        f"{k},{t},{draw.normal():.4f},{draw.normal():.4f},{'ab'[k % 2]}"
        for k in range(6)
        for t in range(4 + k)
    ]
    path.write_text("series,time,x,y,label\n" + "\n".join(rows) + "\n")
    data = Series().read(path)
    assert data.domain.shape == (9, 3)
    assert data.domain.channels == ("x", "y")
    written = data.domain.write(data.tensor(), tmp_path / "out", data.targets)
    head, *_ = written[0].read_text().splitlines()
    joined = "".join(one.read_text().removeprefix(head + "\n") for one in written)
    (tmp_path / "again.csv").write_text(f"{head}\n{joined}")
    again = data.domain.read(tmp_path / "again.csv")
    np.testing.assert_allclose(again.raw, data.raw, atol=1e-4)
    assert np.array_equal(again.targets, data.targets)
    assert np.isfinite(data.raw[..., 0]).sum(1).tolist() == [4, 5, 6, 7, 8, 9]
    assert Series.from_json(json.loads(json.dumps(data.domain.to_json()))) == data.domain


def test_what_comes_after_the_end_of_a_series_is_no_part_of_it():
    domain = Series(channels=("x",), length=4, ragged=True, mean=(1.0,), std=(2.0,))
    x = torch.tensor([[[0.0, 1.0], [1.0, 0.1], [5.0, -0.1], [5.0, 1.0]], [[3.0, -1.0]] * 4])
    values = domain.decode(x)[..., 0]
    assert values[0, :2].tolist() == [1, 3]
    assert values.isnan().tolist() == [[False, False, True, True], [False, True, True, True]]


def test_the_three_kinds_of_files_hold_the_same_series(tmp_path: Path):
    values = curves(6, 5)
    (tmp_path / "a.ts").write_text(
        "# of a test\n@problemName a\n@univariate true\n@classLabel true slow fast\n@data\n"
        + "".join(
            ",".join(f"{v:.6g}" for v in row) + f":{('slow', 'fast')[k % 2]}\n"
            for k, row in enumerate(values)
        )
    )
    (tmp_path / "long.csv").write_text(
        "label,series,x\n"
        + "".join(f"{('slow', 'fast')[k % 2]},{k},{values[k, t]:.6g}\n" for t in range(5) for k in range(6))
    )
    a, b, c = (
        Series().read(p) for p in (tmp_path / "a.ts", tmp_path / "long.csv", wide(tmp_path / "w.csv", values))
    )
    assert a.sha256() == b.sha256() == c.sha256()
    assert a.domain == b.domain == c.domain


def test_gaps_are_filled_and_counted_and_what_is_mostly_gaps_is_left_out(tmp_path: Path):
    path = tmp_path / "gaps.csv"
    path.write_text("t0,t1,t2,t3,t4\n0,1,,3,4\n?,2,NaN,2,1\n1,,,,2\n,,,,\n5,5,5,5,5\n")
    data = Series().read(path)
    assert data.raw[..., 0].tolist() == [[0, 1, 2, 3, 4], [2, 2, 2, 2, 1], [5] * 5]
    card = data.card()
    assert (card["left_out"], card["filled"]) == (2, 3)
    for text, message in (
        ("t0,t1\n1,x\n", r"line 2: could not convert .* 'x'"),
        ("t0,t1\n1\n", "line 2: 1 cells under 2 names"),
        ("label\na\n", "no column of numbers"),
        ("t0,t1\n", "holds no series"),
        ("t0,t1\n1,\n", "too long, too short or mostly missing"),
        ("series,x,label\n0,1,a\n0,2,b\n", "one label in all its rows"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            Series().read(path)
    path.write_text("t0,t1,t2\n1,2,\n1,2,3\n")
    with pytest.raises(DataError, match="need ragged = true"):
        Series(ragged=False).read(path)
    assert len(Series(length=2, ragged=False).read(path)) == 1
    with pytest.raises(DataError, match="did you mean 'length'"):
        build_domain("series", lenght=3)


def test_what_is_known_of_autocorrelations_and_spectra():
    draw, phi = np.random.default_rng(0), 0.8
    x = np.zeros((400, 256, 1))
    x[:, 0, 0] = draw.normal(size=400) / np.sqrt(1 - phi**2)
    for t in range(1, 256):
        x[:, t, 0] = phi * x[:, t - 1, 0] + draw.normal(size=400)
    r = autocorrelations(x).mean(0)[:, 0]
    # biased by about (1 + phi) / (1 - phi) / 256 = .035 since the mean is taken from the series itself
    assert np.abs(r[:6] - phi ** np.arange(1, 7)).max() < 0.06
    wave = np.sin(2 * np.pi * 5 * np.arange(64) / 64)[None, :, None]
    power = spectra(wave)[0, :, 0]
    assert power[4] == pytest.approx(64 / 4)
    assert np.delete(power, 4).max() < 1e-20


def test_measures_of_series_find_planted_defects(tmp_path: Path):
    data = Series().read(wide(tmp_path / "a.csv", curves()))
    kept, held = data.split(0.3)
    fine = judged(data, held.tensor(), held.targets, kept, held)
    assert fine["agreement"].value == fine["agreement"].floor == 1
    for name in ("values", "autocorrelation", "spectrum"):  # to the rounding of states
        assert fine[name].value == pytest.approx(fine[name].floor, rel=1e-3)
    assert judged(data, held.tensor(), 1 - held.targets, kept, held)["agreement"].value == 0
    slow = held.tensor()
    slow[:] = slow[held.targets == data.classes.index("slow")][:1]
    assert judged(data, slow, held.targets, kept, held)["train on samples"].value < 0.7
    noisy = held.tensor() + 0.5 * torch.randn(held.tensor().shape, generator=torch.Generator().manual_seed(0))
    bad = judged(data, noisy, held.targets, kept, held)
    for name in ("values", "autocorrelation", "spectrum"):
        assert bad[name].value > 2 * fine[name].value
    copied = judged(data, kept.tensor(), kept.targets, kept, held)["copying"]
    assert copied.value == 1
    assert copied.details["alarm"]


def test_a_network_of_patches_is_one_of_fewer_and_wider_positions():
    torch.manual_seed(0)
    folded = build("transformer", length=4, in_channels=6, width=16, head=8, depth=2)
    for weight in folded.parameters():
        weight.data.add_(0.1 * torch.randn_like(weight))
    patched = build("transformer", length=12, in_channels=2, patch=3, width=16, head=8, depth=2)
    patched.load_state_dict(folded.state_dict())
    x, level = torch.randn(2, 12, 2), torch.zeros(2)
    expected = folded(x.reshape(2, 4, 6), level).reshape(2, 12, 2)
    torch.testing.assert_close(patched(x, level), expected)
    with pytest.raises(ValueError, match="must divide 10"):
        build("transformer", length=10, in_channels=2, patch=3)


def test_a_recipe_of_series_trains_and_the_command_line_writes_csv(tmp_path: Path, capsys):
    values = {
        "name": "waves",
        "data": {"domain": "series", "source": str(wide(tmp_path / "a.csv", curves(120, 12)))},
        "network": {"kind": "transformer", "width": 32, "depth": 2, "head": 16, "embedding": 32},
        "objective": {"drop": 0.1},
        "training": {"images": 3_000, "batch": 32, "warmup": 200, "learning_rate": 3e-3, "ema": [0.1]},
        "sampling": {"steps": 8},
        "evaluation": {"samples": 60, "bound_images": 0},
    }
    train(recipe_from(values | {"data": values["data"] | {"held_out": 0.25}}), tmp_path / "run")
    folder = tmp_path / "run" / "model"
    assert bundle.load(folder).classes == ("fast", "slow")
    for words in (
        ["sample", folder, "--count", "3", "--label", "fast", "--out", tmp_path / "drawn"],
        ["evaluate", folder, "--samples", "60", "--out", tmp_path / "judged"],
    ):
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        assert not left.value.code
    assert "train on samples" in capsys.readouterr().out
    files = sorted((tmp_path / "drawn").glob("*.csv"))
    assert len(files) == 3
    assert len(Series().read(files[0]).raw[0]) == 12


# --- shapes ---

CORNERS = [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
SIDES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]


def obj(corners=CORNERS, sides=SIDES, shift: int = 1) -> str:
    return "".join(f"v {x} {y} {z}\n" for x, y, z in corners) + "".join(
        "f " + " ".join(f"{k + shift}//1" for k in side) + "\n" for side in sides
    )


def test_points_of_a_cube_are_spread_over_its_sides():
    cube = read_mesh("cube.obj", obj())
    x = surface_points(cube, 40_000, np.random.default_rng(0))
    np.testing.assert_allclose(np.abs(x).max(1), 1)
    # on a third of the surface x^2 is 1, on the rest 1/3 in the mean; its standard error is .002
    assert np.abs((x**2).mean(0) - 5 / 9).max() < 0.01
    assert np.abs(x.mean(0)).max() < 0.02


def test_all_kinds_of_files_hold_the_same_mesh():
    corners = "".join(f"{x} {y} {z}\n" for x, y, z in CORNERS)
    sides = "".join("4 " + " ".join(map(str, side)) + "\n" for side in SIDES)
    head = "element vertex 8\nproperty float x\nproperty float y\nproperty float z\nelement face 6\n"
    head += "property list uchar int vertex_indices\nend_header\n"
    texts = {
        "a.obj": obj(),
        "backwards.obj": obj(shift=-8),
        "a.off": f"OFF\n# of a test\n8 6 0\n{corners}{sides}",
        "a.ply": f"ply\nformat ascii 1.0\ncomment of a test\n{head}{corners}{sides}",
    }
    found = [read_mesh(name, text) for name, text in texts.items()]
    for mesh in found:
        assert mesh.triangles.tolist() == found[0].triangles.tolist()
        assert mesh.corners.tolist() == found[0].corners.tolist()
        assert mesh.areas.sum() == pytest.approx(24)


def test_where_and_how_large_a_mesh_is_does_not_matter_and_its_draws_stay_together(tmp_path: Path):
    for folder, corners in (("a", np.array(CORNERS)), ("b", 7.5 * np.array(CORNERS) + 3)):
        for name, stretch in (("x/one.obj", (1, 2, 3)), ("y/two.obj", (3, 1, 1))):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True)
            path.write_text(obj(corners * np.array(stretch)))
    a, b = (Shapes(points=16, draws=4).read(tmp_path / folder) for folder in "ab")
    np.testing.assert_allclose(a.raw, b.raw, atol=1e-5)
    assert a.raw.shape == (8, 16, 3)
    assert np.abs(a.raw).max() <= 1 + 1e-6
    assert a.counts() == {"x": 4, "y": 4}
    kept, held = a.split(0.5)
    assert sorted([kept.targets.tolist(), held.targets.tolist()]) == [[0] * 4, [1] * 4]
    assert not np.array_equal(a.raw[0], a.raw[1])
    assert Shapes.from_json(json.loads(json.dumps(a.domain.to_json()))) == a.domain


def test_meshes_without_a_surface_are_left_out_and_counted(tmp_path: Path):
    bad = {
        "points.obj": obj(sides=[]),
        "flat.obj": obj(sides=[(0, 0, 1)]),
        "nan.obj": obj(corners=[("nan", 0, 0), *CORNERS[1:]]),
        "corner.obj": obj(sides=[(0, 1, 99)]),
        "binary.ply": "ply\nformat binary_little_endian 1.0\n",
    }
    for name, text in bad.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="only ASCII is read"):
        Shapes().read(tmp_path)
    with pytest.raises(DataError, match="no mesh with a surface"):
        Shapes().read(tmp_path / "points.obj")
    (tmp_path / "cube.obj").write_text(obj())
    data = Shapes(points=8, draws=2).read(tmp_path)
    assert (len(data), data.card()["left_out"]) == (2, 5)
    with pytest.raises(DataError, match="holds 0 shapes"):
        Shapes().read(tmp_path / "nowhere")
    with pytest.raises(DataError, match="points must be a whole number"):
        Shapes(points=0)


def test_a_written_cloud_is_a_ply_with_its_points(tmp_path: Path):
    x = torch.rand(2, 5, 3)
    paths = Shapes(points=5).write(x, tmp_path)
    found = read_mesh(paths[1].name, paths[1].read_text())
    np.testing.assert_allclose(found.corners, x[1], atol=1e-6)
    assert len(found.triangles) == 0


def test_chamfers_distance_knows_no_order_and_is_what_it_is_of_two_points():
    draw = torch.Generator().manual_seed(0)
    a, b = torch.rand(3, 40, 3, generator=draw), torch.rand(2, 30, 3, generator=draw)
    torch.testing.assert_close(chamfer(a, b), chamfer(b, a).mT)
    torch.testing.assert_close(chamfer(a[:, torch.randperm(40, generator=draw)], b), chamfer(a, b))
    assert chamfer(a, a).diagonal().abs().max() < 1e-6
    assert float(chamfer(torch.zeros(1, 1, 3), torch.tensor([[[0.0, 3.0, 4.0]]]))) == pytest.approx(50)


def test_measures_of_shapes_find_planted_defects():
    draw = np.random.default_rng(0)
    sizes = draw.uniform(0.2, 1, (60, 1, 3))
    x = (sizes * draw.uniform(-1, 1, (60, 64, 3))).astype(np.float32)
    names = tuple(f"{k}" for k in range(60))
    data = Examples(Shapes(points=64), x, groups=names)
    kept, held = data.split(0.5)
    same = judged(data, held.tensor(), None, kept, held)
    assert same["coverage"].value == 1
    assert same["distance"].value == pytest.approx(0, abs=1e-6)
    one = judged(data, held.tensor()[:1].expand(30, -1, -1), None, kept, held)
    assert one["coverage"].value == pytest.approx(1 / 30)
    assert one["distance"].value > 1.5 * one["distance"].floor
    elsewhere = judged(data, held.tensor() + 2, None, kept, held)
    assert elsewhere["neighbour"].value == 1
    assert 0.3 < elsewhere["neighbour"].floor < 0.7


# --- motion ---


def clip(frames: int = 40, seconds: float = 1 / 30) -> np.ndarray:
    """Everything turns about z at a constant rate, and the hips go along x: (frames, 44)."""
    found = np.zeros((frames, NUMBERS + 1))
    found[:, 0] = seconds
    t = seconds * np.arange(frames)
    found[:, 1], found[:, 2] = t, 0.9
    for k in QUATERNIONS:
        found[:, 1 + k], found[:, 4 + k] = np.cos(t / 2), np.sin(t / 2)
    return found


def save(path: Path, frames: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"Loop": "wrap", "Frames": frames.tolist()}))
    return path


def test_a_clip_is_the_same_at_any_rate_place_and_sign(tmp_path: Path):
    data = Motion(frames=8).read(save(tmp_path / "a.txt", clip()))
    assert data.raw.shape == (33, 8, NUMBERS)
    fine = Motion(frames=8).read(save(tmp_path / "b.txt", clip(79, 1 / 60)))
    np.testing.assert_allclose(fine.raw, data.raw, atol=1e-5)
    moved = clip()
    moved[:, [1, 3]] += 5
    for k in QUATERNIONS:
        moved[::3, 1 + k : 5 + k] *= -1
    again = Motion(frames=8).read(save(tmp_path / "c.txt", moved))
    np.testing.assert_allclose(again.raw, data.raw, atol=1e-5)
    paths = data.domain.write(data.tensor()[:1], tmp_path / "out")
    np.testing.assert_allclose(data.domain.read(paths[0]).raw[0], data.raw[0], atol=1e-5)
    assert Motion.from_json(json.loads(json.dumps(data.domain.to_json()))) == data.domain


def test_quaternions_come_out_whole():
    domain = Motion(frames=4, mean=(0.3,) * NUMBERS, std=(0.5,) * NUMBERS)
    values = domain.decode(torch.randn(3, 4, NUMBERS))
    for k in QUATERNIONS:
        torch.testing.assert_close(values[..., k : k + 4].norm(dim=-1), torch.ones(3, 4))


def test_bones_keep_their_lengths_and_the_whole_body_turns_with_its_hips():
    domain = Motion(frames=4, mean=(0.0,) * NUMBERS, std=(1.0,) * NUMBERS)
    values = domain.decode(torch.randn(2, 4, NUMBERS)).double().numpy()
    values[..., :3] = 0
    where = positions(values)
    knee, ankle = where[..., 4, :], where[..., 5, :]
    np.testing.assert_allclose(np.linalg.norm(knee - ankle, axis=-1), 1.63948 / 4, atol=1e-6)
    straight = values.copy()
    straight[..., 3:7] = (1, 0, 0, 0)
    turned = straight.copy()
    turned[..., 3:7] = (np.sqrt(0.5), 0, np.sqrt(0.5), 0)  # a quarter about y: x goes to -z, z to x
    a, b = positions(straight), positions(turned)
    np.testing.assert_allclose(b, np.stack([a[..., 2], a[..., 1], -a[..., 0]], -1), atol=1e-6)


def test_clips_that_are_none_are_left_out_and_counted(tmp_path: Path):
    save(tmp_path / "walk" / "short.txt", clip(5))
    save(tmp_path / "walk" / "other.txt", clip()[:, :20])
    save(tmp_path / "walk" / "still.txt", clip() * 0)
    (tmp_path / "walk" / "text.txt").write_text("no clip")
    with pytest.raises(DataError, match="frame is 44 finite numbers"):
        Motion(frames=8).read(tmp_path)
    with pytest.raises(DataError, match="lasts 8 frames"):
        Motion(frames=8).read(tmp_path / "walk" / "short.txt")
    save(tmp_path / "walk" / "good.txt", clip())
    save(tmp_path / "run" / "good.txt", clip())
    data = Motion(frames=8).read(tmp_path)
    assert (data.card()["left_out"], data.counts()) == (4, {"run": 33, "walk": 33})


def test_measures_of_motions_find_jitter_and_copies(tmp_path: Path):
    draw = np.random.default_rng(0)
    for k in range(6):
        frames = clip()
        frames[:, 1:] += 0.2 * np.cumsum(draw.normal(size=(40, NUMBERS)), 0) / np.sqrt(40)
        save(tmp_path / f"{k}.txt", frames)
    data = Motion(frames=8).read(tmp_path)
    kept, held = data.split(0.34)
    copied = judged(data, kept.tensor(), None, kept, held)
    assert copied["copies"].value == 1
    assert copied["copies"].floor == 0
    assert copied["acceleration"].value < 0.05
    jitter = judged(data, kept.tensor() + 0.5 * torch.randn(kept.tensor().shape), None, kept, held)
    assert jitter["acceleration"].value > jitter["velocity"].value > 0.2
    assert jitter["unit"].value > copied["unit"].value
    assert jitter["copies"].value == 0


@pytest.mark.network
@pytest.mark.parametrize(
    ("kind", "name", "split", "count", "left_out"),
    [
        ("series", "italy-power", "all", 1096, 0),
        ("series", "japanese-vowels", "test", 370, 0),
        ("series", "osu-leaf", "train", 200, 0),
        ("shapes", "shapes", "train", 999 * 8, 1),
        ("motion", "motion", "train", 554, 1),
    ],
)
def test_named_sources_hold_what_their_cards_say(kind: str, name: str, split: str, count: int, left_out: int):
    data = build_domain(kind).read(Source(name=name, split=split))
    assert (len(data), data.card()["left_out"]) == (count, left_out)
