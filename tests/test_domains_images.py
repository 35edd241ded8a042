"""Images as a domain: the laws, batches as functions of where training is, pictures written and shown."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from sfumato.domains import ImageData, Images, LawBroken, build_domain, check_domain
from sfumato.domains.image_data import keyed_words
from sfumato.domains.sheets import drawable
from sfumato.errors import DataError, RunError


def pixels(count: int = 6, height: int = 5, width: int = 4, channels: int = 1) -> np.ndarray:
    shape = (count, height, width, channels)
    return np.random.default_rng(shape).integers(0, 256, shape, dtype=np.uint8)


def data(count: int = 40, labelled: bool = True, **config: object) -> ImageData:
    domain = Images(**{"size": (5, 4), "channels": 1, **config})
    return domain.of(pixels(count), np.arange(count) % 3 if labelled else None)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (7, 3), (8, 8)])
def test_laws(channels: int, size: tuple[int, int]) -> None:
    check_domain(Images(size, channels, classes=("a", "b"), flip=True))
    check_domain(Images(size, channels, crop="random"))


def test_laws_catch_a_broken_domain() -> None:
    class Dim(Images):
        def encode(self, pixels: np.ndarray) -> torch.Tensor:
            return super().encode(pixels) * 0.9

    class Bright(Images):
        def decode(self, x: torch.Tensor) -> torch.Tensor:
            return x.add(1).div(2)

    class Forgetful(Images):
        def to_json(self) -> dict:
            return {**super().to_json(), "flip": False}

    class Shy(Images):
        def write(self, samples, folder, labels=None, start=0):
            return super().write(samples, folder, None, start)

    with pytest.raises(LawBroken, match="within 1/255: off by"):
        check_domain(Dim(4, 1))
    with pytest.raises(LawBroken, match="clips"):
        check_domain(Bright(4, 1))
    with pytest.raises(LawBroken, match="same domain"):
        check_domain(Forgetful(4, 1, flip=True))
    with pytest.raises(LawBroken, match="labels"):
        check_domain(Shy(4, 1, classes=("a", "b")))


def test_every_pixel_value_survives_exactly() -> None:
    domain = Images((16, 16), 1)
    u = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert np.array_equal(domain.to_uint8(domain.encode(u)), u)
    assert torch.equal(domain.encode(torch.from_numpy(u)), domain.encode(u))


def test_nan_is_not_a_picture(tmp_path) -> None:
    x = torch.zeros(3, 1, 4, 4)
    x[1, 0, 2, 2] = torch.nan
    for use in (lambda d: d.to_uint8(x), lambda d: d.write(x, tmp_path), lambda d: d.picture(x)):
        with pytest.raises(DataError, match="sample 1 of 3 holds NaN"):
            use(Images(4, 1))


# Batches


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 2**40), st.integers(0, 2**64 - 1))
@settings(max_examples=50, deadline=None)
def test_batch_does_not_depend_on_how_it_is_cut(cut: int, extra: int, seen: int, seed: int) -> None:
    for crop in ("none", "random"):
        domain = Images((5, 4), 1, flip=True, crop=crop)
        stored = domain.stored_shape
        whole_data = ImageData(domain, np.resize(pixels(40, 6, 5), (40, *stored)))
        indices = (np.arange(40 + extra) * 7) % 40
        cut = min(cut, len(indices))
        whole = whole_data.batch(indices, seed, seen)["x"]
        parts = [
            whole_data.batch(part, seed, at)["x"]
            for part, at in ((indices[:cut], seen), (indices[cut:], seen + cut))
        ]
        assert torch.equal(whole, torch.cat(parts))


def test_flips_are_mirrors_of_half_the_pictures_and_follow_the_key() -> None:
    plain, flipped = data(), data(flip=True)
    flipped = dataclasses.replace(flipped, stored=plain.stored)
    indices = np.arange(4000) % 40
    x0, x = plain.batch(indices)["x"], flipped.batch(indices, seed=5, images_seen=100)["x"]
    mirrored = (x == x0.flip(3)).flatten(1).all(1)
    assert bool((mirrored | (x == x0).flatten(1).all(1)).all())
    assert abs(int(mirrored.sum()) - 2000) < 5 * np.sqrt(1000)  # five standard deviations
    assert not torch.equal(x, flipped.batch(indices, seed=6, images_seen=100)["x"])
    assert not torch.equal(x, flipped.batch(indices, seed=5, images_seen=101)["x"])


def test_keyed_words_are_one_sequence() -> None:
    whole = keyed_words(3, 1, 0, 50)
    for start in range(20):
        assert np.array_equal(keyed_words(3, 1, start, 30), whole[start : start + 30])
    assert len(np.unique(whole)) == 50


def test_keyed_words_are_those_of_every_version() -> None:
    # Training is resumed with other versions of NumPy: the sequence is part of what a run means.
    digest = hashlib.sha256(keyed_words(1, 2, 3, 100).astype("<u8").tobytes()).hexdigest()
    assert digest[:16] == "6cb33138936dddb7"


def test_random_crops_reach_every_offset_evenly() -> None:
    domain = Images((8, 16), 1, crop="random")
    height, width, _ = domain.stored_shape
    assert (height, width) == (9, 18)
    ramp = (np.arange(height)[:, None] * width + np.arange(width)).astype(np.uint8)
    many = ImageData(domain, ramp[None, :, :, None])
    x = domain.to_uint8(many.batch(np.zeros(6000, dtype=int), seed=1)["x"])
    corners, counts = np.unique(x[:, 0, 0, 0], return_counts=True)
    assert sorted(corners) == [0, 1, 2, 18, 19, 20]
    assert np.all(np.abs(counts - 1000) < 5 * np.sqrt(1000))
    assert np.array_equal(many.images[0, :, :, 0], ramp[:8, 1:17])  # the middle, for judging


def test_batch_holds_labels_only_if_there_are_any() -> None:
    batch = data().batch([4, 0])
    assert batch["x"].shape == (2, 1, 5, 4)
    assert batch["x"].dtype == torch.float32
    assert batch["condition"]["label"].tolist() == [1, 0]
    assert batch["condition"]["label"].dtype == torch.long
    assert "condition" not in data(labelled=False).batch([4])
    with pytest.raises(DataError, match="40 pictures"):
        data().batch([40])
    with pytest.raises(DataError, match="40 pictures"):
        data().batch([-1])


@pytest.mark.filterwarnings("error")
def test_batch_of_a_memory_map_leaves_it_alone(tmp_path) -> None:
    np.save(tmp_path / "x.npy", pixels(10))
    read = Images(flip=True).read(tmp_path / "x.npy")
    before = read.images.copy()
    assert torch.equal(read.domain.encode(read.images), read.tensor())
    read.batch(np.arange(10))["x"].zero_()
    assert np.array_equal(read.images, before)


def test_split_parts_everything_once() -> None:
    whole = data(count=50)
    train, held = whole.split(0.2, seed=3)
    assert (len(train), len(held)) == (40, 10)
    both = np.concatenate([train.images, held.images])
    assert {p.tobytes() for p in both} == {p.tobytes() for p in whole.images}
    assert np.array_equal(whole.split(0.2, seed=3)[1].images, held.images)
    assert not np.array_equal(whole.split(0.2, seed=4)[1].images, held.images)
    assert held.counts() == dict(zip("012", np.bincount(held.targets, minlength=3).tolist(), strict=True))
    label = train.batch([5])["condition"]["label"].item()
    assert label == train.targets[5]
    inner = train.split(0.5)[1]  # parts of parts
    assert all(p.tobytes() in {q.tobytes() for q in train.images} for p in inner.images)
    assert len(whole.split(0.0)[1]) == 0
    with pytest.raises(DataError, match="none to train on"):
        data(count=1).split(0.9)


def test_card_tells_the_same_data_from_other_data() -> None:
    whole = data(count=30)
    card = whole.card()
    assert json.loads(json.dumps(card)) == card
    assert card["count"] == 30
    assert card["classes"] == {"0": 10, "1": 10, "2": 10}
    assert card["sha256"] == whole.take(np.arange(30)).card()["sha256"]
    assert card["sha256"] != whole.take(np.arange(29)).card()["sha256"]
    other = dataclasses.replace(whole, labels=(whole.labels + 1) % 3)
    assert card["sha256"] != other.card()["sha256"]


def test_image_data_refuses_what_does_not_fit() -> None:
    domain = Images((5, 4), 1, classes=("a", "b"))
    with pytest.raises(DataError, match=r"labels must be in 0\.\.1: found 0 to 2"):
        ImageData(domain, pixels(3), np.arange(3))
    with pytest.raises(DataError, match="3 pictures cannot have labels"):
        ImageData(domain, pixels(3), np.arange(2))
    with pytest.raises(DataError, match="the domain's are"):
        ImageData(domain, pixels(3, 6))


# Settings


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"size": 0}, "size must be"),
        ({"size": (1, 2, 3)}, "size must be"),
        ({"size": 2.5}, "size must be"),
        ({"classes": "abc"}, "classes must be a list"),
        ({"channels": 2}, "channels must be 1"),
        ({"crop": "centre"}, "did you mean 'center'"),
        ({"resample": "lancsoz"}, "did you mean 'lanczos'"),
        ({"classes": ("a", "a")}, "different names"),
        ({"background": (0, 0, 256)}, "background"),
        ({"flips": True}, "did you mean 'flip'"),
    ],
)
def test_a_bad_setting_fails_when_written(config: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_domain("images", **config)


def test_build_domain_names_the_nearest() -> None:
    assert build_domain("images", size=[4, 5], channels=3).shape == (3, 4, 5)
    with pytest.raises(DataError, match="did you mean 'images'"):
        build_domain("image")
    with pytest.raises(DataError, match="read them first"):
        _ = Images().shape


# Writing and showing


def test_write_names_and_no_leftovers(tmp_path) -> None:
    domain = Images((5, 4), 3, classes=("a", "b"))
    paths = domain.write(torch.zeros(3, 3, 5, 4), tmp_path / "out", labels=torch.tensor([1, 0, 2]), start=7)
    assert [p.name for p in paths] == [
        "sample-00007-label-1.png",
        "sample-00008-label-0.png",
        "sample-00009.png",
    ]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in paths)
    with Image.open(paths[0]) as picture:
        assert (picture.size, picture.mode) == ((4, 5), "RGB")
    with pytest.raises(DataError, match="label 3 is out of range"):
        domain.write(torch.zeros(1, 3, 5, 4), tmp_path, labels=[3])
    with pytest.raises(DataError, match="labels of shape"):
        domain.write(torch.zeros(2, 3, 5, 4), tmp_path, labels=[0])


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch) -> None:
    domain = Images(4, 1)
    (path,) = domain.write(torch.zeros(1, 1, 4, 4), tmp_path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(RunError, match="disk full"):
        domain.write(torch.ones(1, 1, 4, 4), tmp_path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_grid_shows_every_pixel_as_a_square(channels: int) -> None:
    u = pixels(6, 8, 8, channels)
    if channels == 4:
        u[..., 3] = 255
    sheet = np.asarray(Images(8, channels).picture(u, columns=3))
    assert sheet.shape == (2 * 4 + 2 * 48 + 2, 2 * 4 + 3 * 48 + 4, 3)
    second_row_third = sheet[4 + 50 : 4 + 98, 4 + 100 : 4 + 148]
    assert np.array_equal(second_row_third[3::6, 3::6], np.broadcast_to(u[5, ..., :3], (8, 8, 3)))
    assert np.array_equal(second_row_third[0, :6], np.broadcast_to(second_row_third[0, 0], (6, 3)))


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=12))
def test_captions_are_drawn_in_letters_that_the_font_has(text: str) -> None:
    font, shown = ImageFont.load_default(size=13), drawable(text)
    box = font.getmask("\U0010ffff")
    assert not any(list(font.getmask(c)) == list(box) for c in shown if not c.isspace())  # pyright: ignore
    assert drawable(shown) == shown
    assert shown == text or not (text.isascii() and text.isprintable())
    assert drawable("flag: Åland, \u212bland, A\u030aland → … “x”") == "flag: Aland, Aland, Aland ? … “x”"


def test_grid_captions_and_bad_grids() -> None:
    domain, u = Images(8, 1), pixels(7, 8, 8)
    plain, named = domain.picture(u, columns=4), domain.picture(u, rows=["shirt", "ankle boot"])
    assert named.height == plain.height
    assert named.width > plain.width
    assert domain.picture(u, columns=100).width == domain.picture(u, columns=7).width
    for bad, message in (({"columns": 0}, "one column"), ({"columns": 2, "rows": ["a"]}, "make 4 rows")):
        with pytest.raises(DataError, match=message):
            domain.picture(u, **bad)
    with pytest.raises(DataError, match="no samples"):
        domain.picture(u[:0])
    with pytest.raises(DataError, match="show fewer"):
        domain.picture(np.zeros((2000, 8, 8, 1), np.uint8), columns=1)


def test_strip_puts_batches_side_by_side() -> None:
    domain, u = Images(8, 1), pixels(6, 8, 8)
    sheet = domain.strip([u[:2], u[2:4], u[4:]])
    assert np.array_equal(np.asarray(sheet), np.asarray(domain.picture(u[[0, 2, 4, 1, 3, 5]], columns=3)))
    assert (
        domain.strip([u, u], captions=["t = 1", "a caption much too long"]).height
        > domain.strip([u, u]).height
    )
    with pytest.raises(DataError, match="one shape"):
        domain.strip([u, u[:2]])
    with pytest.raises(DataError, match="as many captions"):
        domain.strip([u], captions=[])
