"""Reading pictures: every way in gives the same bytes, and every bad input one clear line."""

import gzip
import io
import struct
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as np_arrays
from PIL import Image

from sfumato.domains import Images, Source, arrays, check, decode
from sfumato.domains.arrays import read_idx, write_idx
from sfumato.domains.pictures import Fit, as_picture
from sfumato.errors import DataError


def pixels(count: int = 6, height: int = 5, width: int = 4, channels: int = 1) -> np.ndarray:
    shape = (count, height, width, channels)
    return np.random.default_rng(shape).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, u: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    as_picture(u).save(path, **options)
    return path


def refuses(place: object, message: str, domain: Images | None = None) -> None:
    with pytest.raises(DataError, match=message) as caught:
        (domain or Images()).read(place)
    assert "\n" not in str(caught.value)


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


# Bad input: one clear line


def test_folders_that_hold_nothing_of_use(tmp_path) -> None:
    (tmp_path / "pictures").mkdir()
    refuses(tmp_path / "picture", "does not exist; did you mean .*pictures")
    refuses(tmp_path / "pictures", "holds no pictures")
    refuses("digit", "did you mean 'digits'")
    save(tmp_path / "pictures" / "cat" / "a.png", pixels()[0])
    (tmp_path / "pictures" / "dog").mkdir()
    refuses(tmp_path / "pictures", "dog is a class without pictures")
    save(tmp_path / "pictures" / "dog" / "a.png", pixels()[0])
    save(tmp_path / "pictures" / "stray.png", pixels()[0])
    refuses(tmp_path / "pictures", "1 pictures beside its class folders, such as stray.png")
    (tmp_path / "a.xyz").touch()
    refuses(tmp_path / "a.xyz", "of no kind that is read")


def test_damaged_pictures_are_all_named_or_left_out(tmp_path) -> None:
    u = pixels(12, 16, 16)
    for i, picture in enumerate(u):
        save(tmp_path / f"{i:02}.png", picture)
    good = (tmp_path / "03.png").read_bytes()
    (tmp_path / "03.png").write_bytes(good[: len(good) // 2])
    refuses(tmp_path, r"1 of 12 pictures in .* cannot be read: 03.png \(.*set skip_corrupt")
    read = Images().read(Source(path=tmp_path, skip_corrupt=True))
    assert np.array_equal(read.images, np.delete(u, 3, axis=0))
    assert [line.split(":")[0] for line in read.card()["skipped_corrupt"]] == ["03.png"]
    for i in (0, 4, 5, 6, 7):
        (tmp_path / f"{i:02}.png").write_bytes(
            [b"", b"text", good[:-100], good[:40], good[:60] + b"!" * 99][i % 5]
        )
    refuses(tmp_path, r"6 of 12 .*00.png \(.*06.png \(.*and 1 more")
    report = check(tmp_path)
    assert [title for title, _ in report.corrupt] == [f"{i:02}.png" for i in (0, 3, 4, 5, 6, 7)]
    assert not report.ok
    assert report.count == 6
    assert all(any(f"{i:02}.png" in p for p in report.problems) for i in (0, 3, 4, 5, 6, 7))
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"junk")
    refuses(Source(path=tmp_path, skip_corrupt=True), "none of the 12")
    refuses(Source(path=tmp_path, skip_corrupt=True), "12 of 12", Images(4, 1))


def test_labels_stay_with_their_pictures_when_some_are_left_out(tmp_path) -> None:
    u = pixels(6)
    for i, picture in enumerate(u):
        save(tmp_path / "ab"[i % 2] / f"{i}.png", picture)
    (tmp_path / "a" / "2.png").write_bytes(b"junk")
    read = Images().read(Source(path=tmp_path, skip_corrupt=True))
    assert read.targets.tolist() == [0, 0, 1, 1, 1]
    assert np.array_equal(read.images, u[[0, 4, 1, 3, 5]])
    assert read.card()["skipped_corrupt"][0].startswith("a/2.png: not a picture")


def bomb_png(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that declares any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_000, 60_000])
@pytest.mark.filterwarnings("error")
def test_a_picture_that_would_unpack_to_gigabytes(tmp_path, side: int) -> None:
    save(tmp_path / "a.png", pixels()[0])
    (tmp_path / "b.png").write_bytes(bomb_png(side, side))
    refuses(tmp_path, r"b.png \(declares .*pixels")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_nan_is_named(tmp_path, bad: float, kind: type) -> None:
    x = np.random.default_rng(11).random((50, 4, 4, 1)).astype(kind)
    x[37, 1, 1] = bad
    np.save(tmp_path / "a.npy", x)
    refuses(tmp_path / "a.npy", "a.npy: picture 37 holds NaN or infinity")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((2, 4, 4)) * 3, "values from 3 to 3: floats must be in .*uint8"),
        (np.full((2, 4, 4), -2.0), r"must be in \[0, 1\] or \[-1, 1\]"),
        (np.ones((2, 4, 4), np.int64), "int64: give uint8"),
        (np.ones((2, 4, 4), bool), "bool: give uint8"),
        (np.ones((4, 4), np.uint8), r"shape \(4, 4\)"),
        (np.ones((2, 5, 5, 2), np.uint8), "1, 3 or 4 channels"),
        (np.ones((0, 5, 5), np.uint8), "no pictures"),
        (np.array([{}, None]), "pickled Python objects"),
    ],
)
def test_arrays_that_are_no_pictures(tmp_path, x: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", x, allow_pickle=True)
    np.savez(tmp_path / "a.npz", images=x, allow_pickle=True)
    refuses(tmp_path / "a.npy", message)
    refuses(tmp_path / "a.npz", message)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2], r"need labels of shape \(2,\)"),
        ([0, -1], "label 1 is -1"),
        ([0.0, 1.0], "whole numbers, not float64"),
        ([0, 10**9], "count classes from 0"),
        (np.array([0, None]), "pickled"),
    ],
)
def test_labels_that_are_none(tmp_path, labels: list, message: str) -> None:
    np.savez(tmp_path / "a.npz", images=pixels(2), labels=np.array(labels))
    refuses(tmp_path / "a.npz", message)


def test_more_classes_than_the_model_has(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", images=pixels(3), labels=np.arange(3))
    refuses(tmp_path / "a.npz", "at least 3 classes; the model has 2", Images(classes=("cat", "dog")))


def npz(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy_header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": "|u1"})
    return file.getvalue()


def test_npz_files_that_lie(tmp_path, monkeypatch) -> None:
    refuses(npz(tmp_path / "a.npz", {"pictures.npy": b""}), "holds pictures: name the pictures 'images'")
    refuses(npz(tmp_path / "b.npz", {"x.npy": b"", "images.npy": b""}), "both 'images' and 'x'")
    refuses(npz(tmp_path / "c.npz", {"images.npy": b"not numpy"}), "cannot be read as a NumPy array")
    refuses(npz(tmp_path / "d.npz", {"images.npy": npy_header((2**40, 28, 28))}), "over the limit of 16 GiB")
    short = npy_header((10, 4, 4)) + bytes(100)
    refuses(npz(tmp_path / "e.npz", {"images.npy": short}), "by its header and is")
    refuses(
        npz(tmp_path / "f.npz", {"images.npy": npy_header((1, 4, 4)) + bytes(10**6)}), "by its header and is"
    )
    (tmp_path / "g.npz").write_bytes(b"PK\x03\x04 and then nothing")
    refuses(tmp_path / "g.npz", "not a sound NPZ")
    # A real bomb: 4 MiB of zeros in 4 kB, over a limit of 1 MiB. It must be refused before it is unpacked.
    packed = npz(tmp_path / "h.npz", {"images.npy": npy_header((4096, 32, 32)) + bytes(4096 * 1024)})
    monkeypatch.setattr(arrays, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *a, **k: pytest.fail("was unpacked"))
    refuses(packed, "over the limit")


def test_npy_cut_short(tmp_path) -> None:
    np.save(tmp_path / "a.npy", pixels(10))
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "b.npy").write_bytes(whole[:-7])
    refuses(tmp_path / "b.npy", "is damaged")
    (tmp_path / "c.npy").write_bytes(whole[:50])
    refuses(tmp_path / "c.npy", "cannot be read as a NumPy array")


@given(np_arrays(np.uint8, st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple)))
def test_idx_round_trip(tmp_path_factory, array: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("idx") / "a"
    for content in (write_idx(array), gzip.compress(write_idx(array))):
        path.write_bytes(content)
        got = read_idx(path)
        assert got.shape == array.shape
        assert np.array_equal(got, array)


@given(st.data())
def test_no_damage_to_an_idx_passes_unseen(tmp_path_factory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("idx") / "a"
    whole = write_idx(pixels(3)[..., 0])
    packed = data.draw(st.booleans())
    content = gzip.compress(whole) if packed else whole
    keep = data.draw(st.integers(0, len(content) - 1))
    path.write_bytes(content[:keep])
    with pytest.raises(DataError):
        read_idx(path)
    path.write_bytes(whole + b"!")
    with pytest.raises(DataError, match="more"):
        read_idx(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG", "two zero bytes"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "type 0x0d"),
        (b"\0\0\x08\x09", "9 dimensions"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "over the limit"),
    ],
)
def test_files_that_are_no_idx(tmp_path, content: bytes, message: str) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    refuses(tmp_path, message)


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
