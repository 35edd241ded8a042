"""Pictures that are damaged, lie or do not belong: every bad input is one clear line, and what can be kept is."""

import gzip
import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as np_arrays

from picture_cases import pixels, refuses, save
from sfumato.domains import Images, Source, arrays, check
from sfumato.domains.arrays import read_idx, write_idx
from sfumato.errors import DataError

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
