"""Captions as people keep them: emoji by their base, tarballs, folders, tables, and what is refused."""

import http.server
import io
import json
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from captioned_folders import coloured
from sfumato.domains import Images, Source, check, fetch
from sfumato.domains import ways as w
from sfumato.domains.cache import sha256_of
from sfumato.domains.emoji import CAPTIONS, Drawings, base, code_points, held_out, open_emoji
from sfumato.domains.sources import SOURCES
from sfumato.domains.tarballs import read_members
from sfumato.errors import DataError

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return coloured(tmp_path_factory.mktemp("coloured") / "pictures")


def tarball(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return path


def png(colour: tuple[int, ...], size: int = 8) -> bytes:
    memory = io.BytesIO()
    Image.new("RGBA" if len(colour) == 4 else "RGB", (size, size), colour).save(memory, format="PNG")
    return memory.getvalue()


@pytest.mark.parametrize(
    "name", ["../evil.png", "/etc/evil.png", "package/../../evil.png", "a\\..\\evil.png"]
)
def test_a_name_that_leads_out_of_a_tarball_is_refused(tmp_path, name) -> None:
    path = tarball(tmp_path / "a.tgz", {"package/good.png": b"x", name: b"y"})
    with pytest.raises(DataError, match="unsafe name"):
        read_members(path, lambda found: found.startswith("package/"))  # unwanted or not


def test_links_repeats_and_more_bytes_than_allowed_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="no plain file"):
        read_members(tarball(tmp_path / "l.tgz", {}, {"package/a": "/etc/passwd"}), lambda name: True)
    with tarfile.open(tmp_path / "twice.tgz", "w:gz") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("a"), io.BytesIO())
    with pytest.raises(DataError, match="twice"):
        read_members(tmp_path / "twice.tgz", lambda name: True)
    zeros = tarball(tmp_path / "zeros.tgz", {"a": bytes(5000), "b": bytes(5000)})
    assert set(read_members(zeros, "a".__eq__, 5000)) == {"a"}
    with pytest.raises(DataError, match="more than 9999 bytes"):
        read_members(zeros, lambda name: True, 9999)
    zeros.write_bytes(zeros.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"cut short|no sound tarball"):
        read_members(zeros, lambda name: True)


HANDS = {"1f44b": "waving hand", "1f44b-1f3fb": "waving hand: light", "1f44b-1f3ff": "waving hand: dark"}

DRAWN = Drawings("drawings.tgz", "package/img")

OTHERS = {f"1f4{k:02x}": f"thing {k}" for k in range(40)}

LABELS = {**HANDS, **OTHERS, "1f1e9-1f1ea": "flag: Germany", "2764-fe0f": "red heart"}


def emoji_folder(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    table = [{"label": text, "hexcode": name.upper(), "tags": ["tag", text]} for name, text in LABELS.items()]
    tarball(folder / CAPTIONS, {"package/en/data.json": json.dumps(table).encode()})
    drawings = {f"package/img/{name}.png": png((255, 0, 0, 0)) for name in LABELS}
    tarball(
        folder / "drawings.tgz",
        drawings
        | {"package/img/feed.png": png((0, 0, 0)), "package/x.png": b"", "package/img/.gitkeep": b""},
    )
    return folder


def test_no_base_is_in_both_splits_and_none_is_lost(tmp_path) -> None:
    folder = emoji_folder(tmp_path)
    parts = [open_emoji(folder, s, sets=(DRAWN,)) for s in ("train", "test")]
    assert not set(parts[0].groups) & set(parts[1].groups)
    assert sum(part.count for part in parts) == len(LABELS)
    assert all(part.count > 0 for part in parts)
    found = {texts[0]: texts for part in parts for texts in part.captions}
    assert found["red heart"] == ("red heart", "red heart, tag, red heart")
    hands = [{g for g, t in zip(p.groups, p.captions, strict=True) if t[0] in HANDS.values()} for p in parts]
    assert sorted(map(len, hands)) == [0, 1]


def test_what_is_held_out_is_held_out_of_every_style(tmp_path) -> None:
    folder = emoji_folder(tmp_path)
    tarball(folder / "old.tgz", {f"img/{n}.png": png((0, 0, 255)) for n in (*HANDS, *list(OTHERS)[::2])})
    sets = (DRAWN, Drawings("old.tgz", "img", "blob"))
    alone, both = ([open_emoji(folder, s, sets=some) for s in ("train", "test")] for some in (sets[:1], sets))
    assert both[1].captions == alone[1].captions  # the test is of the first style
    assert both[0].captions[: alone[0].count] == alone[0].captions
    more = both[0].captions[alone[0].count :]
    assert more
    assert all(text.endswith(", blob") for texts in more for text in texts)
    assert {texts[0].removesuffix(", blob") for texts in more} <= {texts[0] for texts in alone[0].captions}
    assert both[0].item(both[0].count - 1) == png((0, 0, 255))
    assert not set(both[0].groups) & set(both[1].groups)


@given(
    first=st.integers(0x1F300, 0x1FAFF).filter(lambda c: not 0x1F1E6 <= c <= 0x1F1FF),
    tone=st.integers(0x1F3FB, 0x1F3FF),
    more=st.lists(st.sampled_from([0x200D, 0xFE0F, 0x2640, 0x2642, 0x1F9B0]), max_size=4),
)
def test_variants_of_an_emoji_share_its_base(first, tone, more) -> None:
    spelled = "-".join(f"{point:X}" for point in (first, tone, *more))
    assert base(code_points(spelled)) == base((first,))


def test_people_are_one_base_and_flags_one_each() -> None:
    people = [base(code_points(name)) for name in ("1F468-200D-1F3A4", "1f469-1f3fb-200d-1f3a4", "1f9d1")]
    assert set(people) == {"1f9d1"}
    assert not held_out("1f9d1")  # a fifth of all pictures: it must stay where it is
    assert base(code_points("1f1e9-1f1ea")) != base(code_points("1f1e9-1f1f0"))
    assert code_points("002a-fe0f-20e3") == code_points("2A-20E3")


def test_transparency_shows_white(tmp_path) -> None:
    folder = emoji_folder(tmp_path)
    found = open_emoji(folder, "train", sets=(DRAWN,))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "1.png").write_bytes(found.item(0))  # red, and wholly transparent
    assert (Images(channels=3).read(tmp_path / "one").images == 255).all()


def test_a_tampered_tarball_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    folder = emoji_folder(tmp_path / "own")
    files = {name: sha256_of(folder / name) for name in ("drawings.tgz", CAPTIONS)}
    source = replace(SOURCES["emoji"], files=files)
    assert fetch(source, path=folder) == folder
    tarball(folder / "drawings.tgz", {"package/img/1f44b.png": png((0, 0, 255))})
    with pytest.raises(DataError, match="is not the emoji of record"):
        fetch(source, path=folder)


def test_npm_packages_come_from_the_registry_that_the_user_has_set(tmp_path, monkeypatch) -> None:
    served = tarball(tmp_path / "a.tgz", {"package/a": b"1"}).read_bytes()
    asked = []

    class Registry(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200 if "pictures" in self.path else 404)
            self.end_headers()
            self.wfile.write(served)

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(w.shutil, "which", lambda name: None)
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{server.server_port}/npm/")
    try:
        w.NpmPackage((("@scope/pictures", "1.2.3"),)).get(tmp_path, lambda text: None)
        assert (tmp_path / "scope-pictures-1.2.3.tgz").read_bytes() == served
        assert asked == ["/npm/@scope/pictures/-/pictures-1.2.3.tgz"]
        with pytest.raises(w.Unavailable, match=r"other 1\.0\.0"):
            w.NpmPackage((("other", "1.0.0"),)).get(tmp_path, lambda text: None)
    finally:
        server.shutdown()
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "file:///etc")
    with pytest.raises(w.Unavailable, match="no web address"):
        w.NpmPackage((("other", "1.0.0"),)).get(tmp_path, lambda text: None)


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize(("name", "counts"), [("emoji", (3478, 308)), ("emoji-3d", (3064, 308))])
def test_the_real_emoji(name, counts, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path))
    parts = [Images(size=32, channels=3).read(Source(name=name, split=split)) for split in ("train", "test")]
    assert tuple(map(len, parts)) == counts
    assert not set(parts[0].groups) & set(parts[1].groups)
    assert check(name).ok


@pytest.mark.network
@pytest.mark.slow
def test_the_real_emoji_in_five_styles(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path))
    domain = Images(size=32, channels=3)
    parts = [domain.read(Source(name="emoji-styles", split=split)) for split in ("train", "test")]
    own = [domain.read(Source(name="emoji", split=split)) for split in ("train", "test")]
    assert tuple(map(len, parts)) == (14_893, 308)
    assert parts[1].sha256() == own[1].sha256()
    assert (parts[0].images[: len(own[0])] == own[0].images).all()
    assert parts[0].captions[: len(own[0])] == own[0].captions
    assert not set(parts[0].groups) & set(parts[1].groups)
    assert check("emoji-styles").ok


def test_every_way_of_keeping_captions_is_read(tmp_path, folder) -> None:
    whole = Images().read(folder)
    names = [file.name for file in sorted(folder.glob("*.png"))]
    table, beside = tmp_path / "table", tmp_path / "beside"
    for other in (table, beside):
        other.mkdir()
        for name in names:
            (other / name).write_bytes((folder / name).read_bytes())
    lines = [f'{name},"{text}"' for name, text in zip(names, whole.prompts(), strict=True)]
    (table / "metadata.csv").write_text("\n".join(["file_name,text", *lines]))
    for name, texts in zip(names, whole.captions, strict=True):
        (beside / name).with_suffix(".txt").write_text("\n".join(texts) + "\n")
    assert Images().read(table).prompts() == whole.prompts()
    assert Images().read(beside).captions == whole.captions
    assert Images().read(beside).card()["ignored"] == 0
    assert Images().read(Source(path=beside, captions="none")).captions == ()


def test_bad_captions_are_refused_in_one_line(tmp_path) -> None:
    def refuses(lines: str, message: str, name: str = "captions.jsonl") -> None:
        (tmp_path / name).write_text(lines)
        with pytest.raises(DataError, match=message) as caught:
            Images().read(tmp_path)
        assert "\n" not in str(caught.value)
        (tmp_path / name).unlink()

    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png((1, 2, 3)))
    a, b = '{"file_name": "a.png", "text": "a"}', '{"file_name": "b.png", "caption": ["b", "c"]}'
    refuses(a, r"1 of 2 pictures have no caption, such as b\.png")
    refuses(f"{a}\n{b}\n{a}", r"line 3: a\.png has a caption already")
    refuses(f"{a}\n{b}\n{a.replace('a.png', 'z.png')}", r"not there, such as z\.png")
    refuses(f"{a}\n{{", "line 2 is not JSON")
    refuses(f"{a}\n[1]", "line 2 is no JSON object")
    refuses(a.replace('"a"', '" "'), "empty or no text")
    refuses("file_name,words\na.png,a", 'should have a "file_name" and a "text"', "metadata.csv")
    refuses("a", r"1 of 2 pictures have no caption, such as b\.png", "a.txt")
    (tmp_path / "b.txt").write_text(" ")
    refuses("a", "is empty", "a.txt")


def test_a_group_is_never_split(folder) -> None:
    held = Images().read(folder).split(0.3, seed=3)
    groups = [{data.groups[row] for row in data.rows} for data in held]
    assert not groups[0] & groups[1]
    assert sum(len(data) for data in held) == 24
    assert sum(map(len, groups)) == 12


def test_a_line_ends_where_json_and_csv_say(tmp_path) -> None:
    from sfumato.domains.captions import folder_captions

    said = "one\u2028two\x85three"
    row = {"file_name": "1.png", "text": said}
    (tmp_path / "captions.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert folder_captions(tmp_path, [tmp_path / "1.png"])[0] == ((said,),)
    (tmp_path / "captions.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text('file_name,text\n1.png,"one\ntwo"\n', encoding="utf-8")
    assert folder_captions(tmp_path, [tmp_path / "1.png"])[0] == (("one\ntwo",),)
