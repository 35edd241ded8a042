"""Named sources: several ways to the same bytes, each checked, and a cache that holds whole things only."""

import dataclasses
import gzip
import hashlib
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sfumato.domains import Images, Source, cache_folder, check, fetch, list_sources, sources, way_names, ways
from sfumato.domains.arrays import write_idx
from sfumato.domains.cache import install, sha256_of
from sfumato.errors import DataError, MissingExtra

PICTURES = write_idx(np.arange(32, dtype=np.uint8).reshape(2, 4, 4))
LABELS = write_idx(np.array([1, 0], dtype=np.uint8))
FILES = {"toy-images": PICTURES, "toy-labels": LABELS}


@dataclasses.dataclass(frozen=True)
class Fake:
    """A way that brings what it is told to, and counts how often."""

    files: dict
    name: str = "fake"
    fetches: bool = True
    calls: list = dataclasses.field(default_factory=list)

    def get(self, into: Path, progress: ways.Progress) -> Path:
        self.calls.append(into)
        progress("bringing")
        for name, content in self.files.items():
            (into / name).write_bytes(content)
        return into


@dataclasses.dataclass(frozen=True)
class Closed:
    name: str = "closed"
    fetches: bool = True

    def get(self, into: Path, progress: ways.Progress) -> Path:
        raise ways.Unavailable("the road is closed")


def toy(*the_ways: ways.Way) -> sources.NamedSource:
    card = sources.DataCard("toy", "two pictures", "CC0", "here", "none", 2, (4, 4), 1, ("a", "b"))
    files = {name: (hashlib.sha256(c).hexdigest(), len(c)) for name, c in FILES.items()}
    return sources.NamedSource(card, files, {"train": ("toy-images", "toy-labels")}, the_ways)


def test_cards_are_complete() -> None:
    for card in list_sources():
        assert all((card.licence, card.origin, card.citation, card.description, card.count))
        source = sources.named(card.name)
        assert way_names(card.name)[0] == "cache"
        for digest, size in source.files.values():
            assert len(digest) == 64
            assert size > 0
        if source.opens is not None or card.kind != "pictures":  # packed in archives, or of another shape
            continue
        assert card.classes
        assert {f for split in source.splits.values() for f in split} == set(source.files)
        pictures = sum(source.files[images][1] - 16 for images, _ in source.splits.values())
        assert pictures == card.count * card.size[0] * card.size[1]
    with pytest.raises(DataError, match="did you mean 'fashion-mnist'"):
        fetch("fashion")


def test_fetch_goes_by_the_first_way_that_is_open(cache) -> None:
    said: list[str] = []
    fake = Fake(FILES)
    folder = fetch(toy(Closed(), fake), said.append)
    assert folder == cache / "toy"
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)
    assert said[1:] == ["closed: the road is closed", "bringing"]
    assert fetch(toy(Closed(), fake)) == folder
    assert len(fake.calls) == 1  # the second time it was there
    fetch(toy(fake), refresh=True)
    assert len(fake.calls) == 2
    assert not list(cache.glob(".new-*"))


def test_fetch_says_why_no_way_led_there(cache) -> None:
    with pytest.raises(
        DataError, match=r"toy cannot be had here. cache: .* is not there; closed: the road is closed"
    ):
        fetch(toy(Closed()))
    with pytest.raises(DataError, match="did you mean 'fake'"):
        fetch(toy(Fake(FILES)), ways=["fak"])
    assert not (cache / "toy").exists()


def test_ways_are_tried_in_the_order_asked_for(cache) -> None:
    first, second = Fake(FILES, "first"), Fake(FILES, "second")
    fetch(toy(first, second), ways=["second", "first"])
    assert (len(first.calls), len(second.calls)) == (0, 1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({**FILES, "toy-images": PICTURES[:-1] + b"!"}, "toy-images is not the toy of record"),
        ({**FILES, "toy-images": PICTURES[:-1]}, "toy-images is not the toy of record"),
        ({**FILES, "toy-images": PICTURES + b"more"}, "holds more than the 48 bytes"),
        ({"toy-images": PICTURES}, "holds no toy-labels"),
        ({"toy-labels": LABELS, "toy-images.gz": gzip.compress(PICTURES)[:-9]}, "damaged or cut short"),
    ],
)
def test_what_is_not_as_it_should_be_is_refused(cache, files: dict, message: str) -> None:
    spare = Fake(FILES, "spare")
    with pytest.raises(DataError, match=message):
        fetch(toy(Fake(files), spare))
    assert not spare.calls  # damage is an error, and not a reason to go on quietly
    assert [p.name for p in cache.iterdir() if p.is_dir()] == []


def test_a_cache_that_went_bad_is_refused_and_mended(cache) -> None:
    source = toy(Fake(FILES))
    folder = fetch(source)
    (folder / "toy-images").write_bytes(PICTURES[:-1] + b"!")
    with pytest.raises(DataError, match=r"not the toy of record.*--refresh"):
        fetch(source)
    fetch(source, refresh=True)
    assert (fetch(source) / "toy-images").read_bytes() == PICTURES


def test_compressing_again_changes_nothing(cache, tmp_path) -> None:
    for level in (1, 9):
        (tmp_path / "toy-images.gz").write_bytes(gzip.compress(PICTURES, level, mtime=level))
        (tmp_path / "toy-labels").write_bytes(LABELS)
        assert fetch(toy(), path=tmp_path) == tmp_path
    assert sha256_of(tmp_path / "toy-images.gz") == (hashlib.sha256(PICTURES).hexdigest(), len(PICTURES))
    (tmp_path / "toy-images.gz").write_bytes(gzip.compress(bytes(10**7)))
    with pytest.raises(DataError, match="holds more than the 48 bytes"):
        fetch(toy(), path=tmp_path)


def test_an_installed_folder_is_used_where_it_is(cache, tmp_path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    source = toy(ways.Installed(str(tmp_path)))
    assert fetch(source) == tmp_path
    assert not (cache / "toy").exists()


def _build_slowly(folder: str, log: str) -> None:
    os.environ["SFUMATO_CACHE"] = folder

    def build(empty: Path) -> None:
        with Path(log).open("a") as file:
            file.write("built\n")
        (empty / "one").write_bytes(b"1")
        time.sleep(0.3)
        (empty / "two").write_bytes(b"2")

    made = install("thing", build)
    assert sorted(p.name for p in made.iterdir()) == ["one", "two"]


def test_two_processes_build_once_and_see_it_whole(cache, tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    both = [context.Process(target=_build_slowly, args=(str(cache), str(log))) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(30)
    assert [process.exitcode for process in both] == [0, 0]
    assert log.read_text() == "built\n"


def test_a_killed_build_leaves_nothing_that_is_taken_for_whole(cache) -> None:
    script = (
        "import os, sys; from sfumato.domains.cache import install\n"
        "def build(empty):\n    (empty / 'half').write_bytes(b'1'); os._exit(9)\n"
        "install('thing', build)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert not (cache / "thing").exists()
    assert list(cache.glob(".new-thing-*"))
    made = install("thing", lambda empty: (empty / "whole").touch())
    assert [p.name for p in made.iterdir()] == ["whole"]
    assert not list(cache.glob(".new-thing-*"))


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("SFUMATO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert cache_folder() == tmp_path / "xdg" / "sfumato"
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("SFUMATO_CACHE", str(blocked))
    with pytest.raises(DataError, match=r"cannot be written to .*set SFUMATO_CACHE"):
        install("thing", lambda empty: None)


def test_digits(cache) -> None:
    sklearn = pytest.importorskip("sklearn.datasets")
    data = Images().read("digits")
    truth = sklearn.load_digits()
    assert data.images.shape == (1797, 8, 8, 1)
    assert np.array_equal(data.images[..., 0], np.round(truth.images * 255 / 16))
    assert np.array_equal(data.targets, truth.target)
    assert data.card()["licence"]
    assert check("digits").ok
    assert check("digits").count == 1797
    with pytest.raises(DataError, match=r"no split 'test'.*split\(\)"):
        Images().read(Source(name="digits", split="test"))


def test_what_is_not_here_yet_is_a_problem_of_check_not_a_download(cache) -> None:
    report = check("fashion-mnist")
    assert report.ok or "sfumato data fetch fashion-mnist" in report.problems[0]


def test_a_missing_extra_names_it(cache, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'sfumato\[digits\]'"):
        fetch("digits")
    with pytest.raises(MissingExtra, match=r"pip install 'sfumato\[hub\]'"):
        Images().read(Source(hub="someone/something"))


def fake_tool(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.skipif(sys.platform == "win32", reason="apt is of Debian")
@pytest.mark.parametrize("listed", [True, False])
def test_debian_package_with_and_without_lists(cache, tmp_path, monkeypatch, listed: bool) -> None:
    # Stand-ins for apt-get and dpkg-deb: without lists, only a call with lists of its own finds the package.
    tools = tmp_path / "tools"
    found = "*) touch toy_1_all.deb;;" if listed else "*lists=*download*) touch toy_1_all.deb;;"
    fake_tool(
        tools,
        "apt-get",
        'case "$*" in *update) test -d lists/partial;; '
        f'{found} *) echo "E: Unable to locate package toy" >&2; exit 100;; esac',
    )
    fake_tool(tools, "dpkg-deb", f'mkdir -p "$3/usr/toy" && cp {tmp_path}/held/* "$3/usr/toy"')
    (tmp_path / "held").mkdir()
    for name, content in FILES.items():
        (tmp_path / "held" / name).write_bytes(content)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    said: list[str] = []
    before = set(Path.cwd().iterdir())
    folder = fetch(toy(ways.DebianPackage("toy", "usr/toy")), said.append)
    assert folder == cache / "toy"
    assert any("package lists of our own" in line for line in said) == (not listed)
    assert set(Path.cwd().iterdir()) == before
    with pytest.raises(DataError, match="holds no usr/other"):
        fetch(toy(ways.DebianPackage("toy", "usr/other")), ways=["debian"], refresh=True)


@pytest.mark.skipif(sys.platform == "win32", reason="apt is of Debian")
def test_debian_package_that_cannot_be_had(cache, tmp_path, monkeypatch) -> None:
    fake_tool(tmp_path / "tools", "apt-get", 'echo "E: Unable to locate package toy" >&2; exit 100')
    fake_tool(tmp_path / "tools", "dpkg-deb", "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}:{os.environ['PATH']}")
    with pytest.raises(
        DataError, match=r"debian: apt-get download toy: Unable to locate.*sudo apt-get update"
    ):
        fetch(toy(ways.DebianPackage("toy", "x")))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="debian: no apt-get on this machine"):
        fetch(toy(ways.DebianPackage("toy", "x")))


@pytest.mark.slow
@pytest.mark.network
def test_fashion_mnist_from_debian(cache) -> None:
    fetch("fashion-mnist", ways=["debian"])
    data = Images().read(Source(name="fashion-mnist", split="test", ways=("cache",)))
    assert data.images.shape == (10_000, 28, 28, 1)
    assert set(data.counts().values()) == {1000}
    assert check("fashion-mnist").ok
