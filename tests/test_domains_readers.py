"""Reading pictures: every way in gives the same bytes, and every bad input one clear line."""

import gzip
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as np_arrays
from PIL import Image

from picture_cases import pixels, refuses, save
from sfumato.domains import Images, Source, check, decode
from sfumato.domains.arrays import write_idx
from sfumato.domains.pictures import Fit, as_picture
from sfumato.errors import DataError

# The same bytes by every way


@st.composite
def picture_sets(draw: st.DrawFn) -> np.ndarray:
    shape = (
        draw(st.integers(1, 5)),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 9)),
        draw(st.sampled_from([1, 3, 4])),
    )
    return draw(np_arrays(np.uint8, shape))


@given(u=picture_sets(), labelled=st.booleans())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pictures_survive_every_format(tmp_path_factory, u: np.ndarray, labelled: bool) -> None:
    folder = tmp_path_factory.mktemp("formats")
    labels = np.arange(len(u)) % 2 if labelled else None
    domain = Images()
    with_labels = {"labels": labels} if labelled else {}
    np.savez(folder / "a.npz", images=u, **with_labels)
    np.savez_compressed(folder / "b.npz", x=u.transpose(0, 3, 1, 2) if u.shape[2] not in (1, 3, 4) else u)
    np.savez(folder / "c.npz", images=(u / 255).astype(np.float32))
    np.savez(folder / "d.npz", images=np.concatenate([u / 127.5 - 1, np.full_like(u[:1], 0) - 1.0]))
    np.save(folder / "e.npy", np.asfortranarray(u))
    (folder / "f-images-idx4-ubyte.gz").write_bytes(gzip.compress(write_idx(u)))
    domain_of = Images(u.shape[1:3], u.shape[3], classes=("0", "1") if labelled else ())
    domain_of.write(u, folder / "pngs", labels)
    for name in ("a.npz", "b.npz", "c.npz", "e.npy", "f-images-idx4-ubyte.gz", "pngs"):
        read = domain.read(folder / name)
        assert np.array_equal(read.images, u), name
        if name in ("a.npz", "pngs"):
            assert (read.targets is None) == (not labelled)
            assert labels is None or np.array_equal(read.targets, labels)
    assert np.array_equal(domain.read(folder / "d.npz").images[:-1], u)
    assert domain.read(folder / "a.npz").sha256() == domain.read(folder / "a.npz").sha256()


def test_class_folders_nested_and_their_order(tmp_path) -> None:
    u = pixels(4)
    for picture, place in zip(u, ("dog/a.png", "cat/x/y/b.png", "cat/c.PNG", "cat/d.png"), strict=True):
        save(tmp_path / place, picture)
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "cat" / "loop").symlink_to(tmp_path)
    read = Images().read(tmp_path)
    assert read.classes == ("cat", "dog")
    assert read.counts() == {"cat": 3, "dog": 1}
    assert read.card()["ignored"] == 1
    assert np.array_equal(read.images[read.targets == 1], u[:1])
    # A model's own order of classes, and one that these data lack.
    ordered = Images(classes=("dog", "eel", "cat")).read(tmp_path)
    assert ordered.counts() == {"dog": 1, "eel": 0, "cat": 3}
    assert np.array_equal(ordered.images[ordered.targets == 0], u[:1])
    refuses(
        tmp_path,
        "holds class 'dog', which the model does not have.*did you mean 'dogs'",
        Images(classes=("cat", "dogs")),
    )
    free = Images().read(Source(path=tmp_path, labels="none"))
    assert free.targets is None
    assert free.classes == ()


def test_limit_is_spread_over_the_classes(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", x=pixels(100), y=np.repeat(np.arange(10), 10))
    read = Images().read(Source(path=tmp_path / "a.npz", limit=20))
    assert set(read.counts().values()) == {2}
    assert len(Images().read(Source(path=tmp_path / "a.npz", limit=200))) == 100


def test_npz_class_names(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", x=pixels(2), y=np.array([[1], [0]]), classes=np.array(["cat", "dog"]))
    read = Images().read(tmp_path / "a.npz")
    assert read.counts() == {"cat": 1, "dog": 1}
    assert read.targets.tolist() == [1, 0]
    np.savez(tmp_path / "b.npz", x=pixels(2), y=np.array([2, 0]), classes=np.array(["cat", "dog"]))
    refuses(tmp_path / "b.npz", "label 2 is out of range")


# Size, crop, channels


@given(st.integers(20, 90), st.integers(20, 90), st.integers(1, 19), st.sampled_from(["lanczos", "bicubic"]))
@settings(max_examples=40, deadline=None)
def test_a_smaller_picture_keeps_its_mean_and_does_not_alias(
    width: int, height: int, size: int, how: str
) -> None:
    fit = Fit((size, size), 1, crop="center", resample=how)
    # The finest chequerboard has nothing that a smaller picture could show: it must come out grey. One that is
    # subsampled without a filter comes out black, white or as a moiré.
    fine = (np.indices((height, width)).sum(0) % 2 * 255).astype(np.uint8)
    small = fit.pixels(Image.fromarray(fine)).astype(float)
    assert abs(small.mean() - 127.5) < 14
    if min(width, height) >= 4 * size:
        inner = small[1:-1, 1:-1]
        assert not inner.size or np.abs(inner - 127.5).max() < 8
    flat = fit.pixels(Image.new("L", (width, height), 93))
    assert np.all(flat == 93)
    ramp = np.broadcast_to(np.linspace(20, 230, width), (height, width)).round().astype(np.uint8)
    kept = min(width, height)
    slope = 210 / (width - 1)
    got = fit.pixels(Image.fromarray(ramp)).astype(float)
    assert abs(got.mean() - 125) < 1.5 + 0.1 * slope * kept / size


def test_crop_center_keeps_the_middle() -> None:
    wide = np.zeros((10, 30, 1), np.uint8)
    wide[:, 10:20] = 200
    assert np.all(Fit((10, 10), 1, crop="center").pixels(as_picture(wide)) == 200)
    tall = wide.transpose(1, 0, 2)
    assert np.all(Fit((10, 10), 1, crop="center").pixels(as_picture(tall)) == 200)


def test_sizes_that_differ(tmp_path) -> None:
    save(tmp_path / "a.png", pixels(1, 10, 12)[0])
    save(tmp_path / "b.png", pixels(1, 20, 24)[0])
    refuses(tmp_path, "b.png is 24×20 and the first picture 12×10: set size")
    assert Images((10, 12)).read(tmp_path).images.shape == (2, 10, 12, 1)
    refuses(tmp_path, "a.png is 12×10, another shape than 8×8: set crop", Images(8))
    assert Images(8, crop="center").read(tmp_path).images.shape == (2, 8, 8, 1)
    loose = Images(8, crop="random").read(tmp_path)
    assert loose.stored.shape == (2, 9, 9, 1)
    assert loose.images.shape == (2, 8, 8, 1)


def test_channels_that_differ(tmp_path) -> None:
    save(tmp_path / "a.png", np.full((4, 4, 3), (255, 0, 0), np.uint8))
    save(tmp_path / "b.png", np.full((4, 4, 1), 80, np.uint8))
    half = np.full((4, 4, 4), (0, 0, 255, 51), np.uint8)  # a fifth blue
    half[0, 0] = (9, 9, 9, 0)
    save(tmp_path / "c.png", half)
    refuses(tmp_path, "b.png has 1 channels and the first picture 3: set channels")
    colour = Images(channels=3, background=(0, 255, 0)).read(tmp_path).images
    assert colour[0, 0, 0].tolist() == [255, 0, 0]
    assert colour[1, 0, 0].tolist() == [80, 80, 80]
    assert colour[2, 0, 0].tolist() == [0, 255, 0]
    assert np.abs(colour[2, 1, 1].astype(int) - [0, 204, 51]).max() <= 1
    grey = Images(channels=1).read(tmp_path).images
    assert grey[:, 1, 1, 0].tolist() == [76, 80, pytest.approx(0.8 * 255 + 0.2 * 29, abs=2)]
    assert Images(channels=4).read(tmp_path).images[1, 0, 0].tolist() == [80, 80, 80, 255]


def test_invisible_pixels_bleed_no_colour() -> None:
    u = np.zeros((8, 8, 4), np.uint8)
    u[:, :4] = (255, 0, 0, 255)
    u[:, 4:] = (0, 255, 0, 0)
    small = Fit((3, 3), 4).pixels(as_picture(u))
    assert np.all(small[..., 1] == 0)


def test_sixteen_bits_orientation_and_palettes(tmp_path) -> None:
    deep = np.array([[0, 257, 65535], [200, 32896, 30000]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert Images().read(tmp_path).images[0, :, :, 0].tolist() == [[0, 1, 255], [1, 128, 117]]
    (tmp_path / "deep.png").unlink()
    u = pixels(1, 4, 6, 3)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270°
    save(tmp_path / "turned.png", u, exif=exif)
    assert np.array_equal(Images().read(tmp_path).images[0], np.rot90(u, 3))
    (tmp_path / "turned.png").unlink()
    Image.new("P", (2, 2), 0).save(tmp_path / "p.gif", transparency=0)
    assert Images(channels=3, background=(1, 2, 3)).read(tmp_path).images[0, 0, 0].tolist() == [1, 2, 3]


def test_arrays_are_made_to_fit_as_pictures_are(tmp_path) -> None:
    u = pixels(3, 12, 12, 3)
    np.save(tmp_path / "a.npy", u)
    domain = Images(6, 1)
    domain.write(u, tmp_path / "pngs")
    assert np.array_equal(domain.read(tmp_path / "a.npy").images, domain.read(tmp_path / "pngs").images)


# Large data go to the cache


def test_large_data_are_decoded_once(tmp_path, cache, monkeypatch) -> None:
    u = pixels(6)
    for i, picture in enumerate(u):
        save(tmp_path / "pngs" / f"{i}.png", picture)
    (tmp_path / "pngs" / "3.png").write_bytes(b"junk")
    source = Source(path=tmp_path / "pngs", skip_corrupt=True)
    plain = Images().read(source)
    monkeypatch.setattr(decode, "LARGE", 10)
    first = Images().read(source)
    assert first.sha256() == plain.sha256()
    assert first.card() == plain.card()
    assert not first.stored.flags.writeable
    calls = []
    monkeypatch.setattr(decode, "_fill", lambda *a: calls.append(a))
    assert np.array_equal(Images().read(source).images, plain.images)
    assert len(calls) == 0
    monkeypatch.undo()
    monkeypatch.setenv("SFUMATO_CACHE", str(cache))
    monkeypatch.setattr(decode, "LARGE", 10)
    save(tmp_path / "pngs" / "3.png", u[3])  # a changed file is another key
    assert np.array_equal(Images().read(source).images, u)
    assert not list(cache.glob(".new-*"))


def test_idx_folder_splits(tmp_path) -> None:
    for prefix, count in (("train", 4), ("t10k", 2)):
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(write_idx(pixels(count)[..., 0]))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(write_idx(np.arange(count, dtype="u1")))
        )
    assert len(Images().read(tmp_path)) == 4
    assert Images().read(Source(path=tmp_path, split="test")).targets.tolist() == [0, 1]
    refuses(Source(path=tmp_path, split="valid"), "no split 'valid': found test, train")


def test_what_has_no_parts_has_no_other_split(tmp_path) -> None:
    """Held-out pictures that are the training pictures would make every figure a lie."""
    Images().write(pixels(4), tmp_path / "pictures")
    np.save(tmp_path / "x.npy", pixels(4))
    np.savez(tmp_path / "x.npz", images=pixels(4))
    for place in ("pictures", "x.npy", "x.npz"):
        assert len(Images().read(tmp_path / place)) == 4
        refuses(Source(path=tmp_path / place, split="test"), "no split 'test'")


def test_source_says_one_place() -> None:
    for bad in ({}, {"name": "digits", "hub": "a/b"}, {"path": "x", "hub": "a/b"}):
        with pytest.raises(DataError, match="only one place"):
            Source(**bad)
    with pytest.raises(DataError, match="did you mean 'none'"):
        Source(path="x", labels="non")
    with pytest.raises(DataError, match="limit"):
        Source(path="x", limit=0)


def test_check_reports_everything(tmp_path) -> None:
    u = pixels(3)
    save(tmp_path / "a" / "1.png", u[0])
    save(tmp_path / "a" / "2.png", u[0])
    save(tmp_path / "b" / "1.png", pixels(1, 6, 6, 3)[0])
    report = check(tmp_path)
    assert report.ok
    assert report.sizes == {"5×4": 2, "6×6": 1}
    assert report.channels == {"1": 2, "3": 1}
    assert report.classes == {"a": 2, "b": 1}
    assert any("1 exact copies" in note for note in report.notes)
    assert any("2 sizes" in note for note in report.notes)
    (tmp_path / "c").mkdir()
    report = check(tmp_path)
    assert not report.ok
    assert report.count == 3
    assert "c is a class without pictures" in report.problems[0]
    np.save(tmp_path / "x.npy", np.full((2, 3, 3), 7.0))
    assert "values from 7 to 7" in check(tmp_path / "x.npy").problems[0]
    with pytest.raises(DataError, match="does not exist"):
        check(tmp_path / "nothing")
    with pytest.raises(DataError, match="did you mean 'digits'"):
        check("digit")


def test_threads_may_read_at_once(tmp_path) -> None:
    for i, picture in enumerate(pixels(20)):
        save(tmp_path / f"{i}.png", picture)
    sums: list[str] = []
    threads = [
        threading.Thread(target=lambda: sums.append(Images().read(tmp_path).sha256())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sums) == 4
    assert len(set(sums)) == 1


# Tables (extra "hub")


def test_parquet(tmp_path, cache) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra hub is not installed")
    u = pixels(5, 6, 6, 3)
    files = [save(tmp_path / f"{i}.png", picture) for i, picture in enumerate(u)]
    cells = [{"bytes": f.read_bytes(), "path": None} for f in files]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    typed = datasets.Dataset.from_dict({"image": cells, "label": [0, 1, 0, 1, 1]}, features=features)
    typed.to_parquet(tmp_path / "typed.parquet")
    read = Images().read(tmp_path / "typed.parquet")
    assert np.array_equal(read.images, u)
    assert read.counts() == {"cat": 2, "dog": 3}
    cells[2] = {"bytes": cells[2]["bytes"][:50], "path": None}
    datasets.Dataset.from_dict({"image": cells, "label": [0, 1, 0, 1, 1]}).to_parquet(
        tmp_path / "plain.parquet"
    )
    refuses(tmp_path / "plain.parquet", r"1 of 5 .*row 2 of plain.parquet \(")
    read = Images().read(Source(path=tmp_path / "plain.parquet", skip_corrupt=True))
    assert np.array_equal(read.images, np.delete(u, 2, axis=0))
    datasets.Dataset.from_dict({"a": [1]}).to_parquet(tmp_path / "none.parquet")
    refuses(tmp_path / "none.parquet", "has columns a: none of them holds pictures")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    refuses(tmp_path / "bad.parquet", "cannot be read as Parquet")
