"""Laws of adapters: what they add has their rank, starts as nothing, adds up, and belongs to one set of weights."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sfumato
from sfumato.adapter_files import load_adapter, parse_adapter, save_adapter
from sfumato.denoisers import Denoiser
from sfumato.domains.images import Images
from sfumato.errors import BundleError, RecipeError
from sfumato.model import Model, Sampling
from sfumato.networks import build
from sfumato.personal import Adapter, Speller, attach, fresh, merge, place, read, rooms, spoken, unmerge
from sfumato.processes import Flow, Gaussian
from sfumato.solvers import DPMpp2M, FlowGrid, Tuned

SIZE = {"in_channels": 1, "size": 8, "embedding": 32}
KINDS = {
    "unet": {"width": 16, "multipliers": [1, 2], "blocks": [1, 1], "attention": [1], "head": 16},
    "dit": {"width": 32, "depth": 2, "head": 16},
}


def network(kind: str = "unet", seed: int = 0, **more):
    torch.manual_seed(seed)
    made = build(kind, **SIZE, **KINDS[kind], **more)
    with torch.no_grad():  # a new network answers 0 everywhere
        for weight in made.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return made.eval().requires_grad_(False)


def model(classes: int = 3, seed: int = 0, **more) -> Model:
    denoiser = Denoiser(
        network(seed=seed, classes=classes, **more), Gaussian(Flow(), sigma_data=0.5), "velocity"
    )
    names = tuple("abcdefgh"[:classes])
    return Model(
        denoiser, Images(size=8, channels=1, classes=names), Sampling(DPMpp2M(), FlowGrid(), steps=3)
    )


def taught(of: Model, seed: int = 1, size: float = 0.3, **settings) -> Adapter:
    """An adapter that changes something."""
    adapter = fresh(of.denoiser.network, of.fingerprint, seed=seed, **{"rank": 2, **settings})
    generator = torch.Generator().manual_seed(seed)
    updates = {
        name: (down, size * torch.randn(up.shape, generator=generator))
        for name, (down, up) in adapter.updates.items()
    }
    return replace(
        adapter, updates=updates, classes={n: torch.randn(len(r)) for n, r in adapter.classes.items()}
    )


def asked(batch: int = 2, **condition):
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(batch, 1, 8, 8, generator=generator)
    return x, torch.linspace(-0.5, 0.5, batch), condition


# --- what an update is ---


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_of_rank_r_has_rank_r_in_every_layer(kind: str):
    base = network(kind)
    adapter = fresh(base, "base", rank=3)
    torch.manual_seed(1)
    adapter = replace(adapter, updates={n: (d, torch.randn_like(u)) for n, (d, u) in adapter.updates.items()})
    changed = copy.deepcopy(base)
    merge(changed, [(adapter, 1.0)])
    assert len(adapter.updates) > 5
    for name in rooms(base):
        change = (changed.get_submodule(name).weight - base.get_submodule(name).weight).double().flatten(1)
        values = torch.linalg.svdvals(change)
        # what lies beyond the rank is the float32 rounding of the weights
        assert int((values > 1e-4 * values[0].clamp(min=1e-9)).sum()) == (3 if name in adapter.updates else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_is_the_base_bit_for_bit_and_a_new_class_is_no_label(kind: str):
    base = network(kind, classes=3)
    adapter = fresh(base, "base", rank=2, classes=["new"])
    beside = copy.deepcopy(base)
    attach(beside, adapter)
    x, level, _ = asked(4)
    old = torch.tensor([0, 1, 2, 0])
    assert torch.equal(beside(x, level, {"label": old}), base(x, level, {"label": old}))
    none, new = torch.full((4,), 4), torch.full((4,), 3)
    assert torch.equal(beside(x, level, {"label": new}), base(x, level))
    assert torch.equal(beside(x, level, {"label": none}), base(x, level))
    assert torch.equal(beside(x, level), base(x, level))
    assert beside.config["classes"] == 4
    merge(merged := copy.deepcopy(base), [(adapter, 1.0)])
    assert torch.equal(merged(x, level, {"label": new}), base(x, level))


@pytest.mark.parametrize("kind", KINDS)
def test_merged_answers_as_unmerged_and_unmerging_gives_the_weights_back(kind: str):
    own = Model(Denoiser(network(kind, classes=3), Gaussian(Flow(), 0.5), "velocity"), Images(size=8), None)  # type: ignore[arg-type]
    adapter = taught(own, classes=["new"], alpha=3.0)
    base = own.denoiser.network
    attach(beside := copy.deepcopy(base), adapter)
    merge(inside := copy.deepcopy(base), [(adapter, 1.0)])
    x, level, _ = asked(4)
    condition = {"label": torch.tensor([0, 2, 3, 4])}
    one, other = beside(x, level, condition).detach(), inside(x, level, condition).detach()
    assert float((one - base(x, level, {"label": torch.tensor([0, 2, 3, 3])})).abs().max()) > 1e-2
    assert float((one - other).abs().max()) < 1e-5 * float(other.abs().max().clamp(min=1))
    unmerge(inside, [(adapter, 1.0)])
    assert inside.state_dict().keys() == base.state_dict().keys()
    for name, weight in base.state_dict().items():
        # one rounding to float32 on the way there and one on the way back, of weights as large as the merged ones
        assert torch.allclose(inside.state_dict()[name], weight, rtol=0, atol=3e-7), name
    assert inside.config == base.config


def test_convolutions_with_strides_and_padding_are_adapted_as_they_are():
    torch.manual_seed(0)
    base = nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2, padding=2, dilation=2, padding_mode="circular"),
        nn.Conv2d(6, 6, 1, groups=3),
    )
    adapter = fresh(base, "base", rank=2)
    assert list(adapter.updates) == ["0"]  # no convolutions in groups
    down, up = adapter.updates["0"]
    adapter = replace(adapter, updates={"0": (down, torch.randn_like(up))})
    attach(beside := copy.deepcopy(base), adapter)
    merge(inside := copy.deepcopy(base), [(adapter, 1.0)])
    x = torch.randn(3, 2, 9, 9)
    assert torch.allclose(beside(x), inside(x), atol=1e-5)
    assert not torch.allclose(base(x), inside(x), atol=1e-2)


@given(weights=st.lists(st.floats(-2, 2), min_size=2, max_size=3), turned=st.randoms(use_true_random=False))
def test_stacking_is_additive_and_the_order_does_not_matter(weights: list[float], turned):
    base = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    adapters = []
    for seed, _ in enumerate(weights):
        adapter = fresh(base, "base", rank=2, seed=seed)
        torch.manual_seed(seed)
        updates = {n: (d, torch.randn_like(u)) for n, (d, u) in adapter.updates.items()}
        adapters.append(replace(adapter, updates=updates))
    pairs = list(zip(adapters, weights, strict=True))
    merge(together := copy.deepcopy(base), pairs)
    one_by_one = copy.deepcopy(base)
    for pair in pairs:
        merge(one_by_one, [pair])
    turned.shuffle(pairs)
    merge(other := copy.deepcopy(base), pairs)
    for name, weight in together.state_dict().items():
        assert torch.allclose(other.state_dict()[name], weight, rtol=0, atol=1e-6)
        assert torch.allclose(one_by_one.state_dict()[name], weight, rtol=0, atol=3e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_adapter_has_a_gradient(kind: str):
    beside = network(kind, classes=3)
    attach(beside, fresh(beside, "base", rank=2, classes=["new"]))
    x, level, _ = asked(2)
    beside(x, level, {"label": torch.tensor([3, 0])}).square().mean().backward()
    trained = {name for name, p in beside.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.rsplit(".", 1)[1] in ("low_rank_down", "low_rank_up", "new_rows") for name in trained)
    for name, p in beside.named_parameters():
        assert (p.grad is not None) == (name in trained), name


def test_networks_of_diffusers_are_adapted_too():
    diffusers = pytest.importorskip("diffusers")
    from sfumato.adapters import from_diffusers

    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    denoiser = from_diffusers(unet, diffusers.DDIMScheduler()).eval()
    own = Model(denoiser, Images(size=8, channels=1), Sampling(DPMpp2M(), FlowGrid(), steps=2))
    adapter = taught(own, size=0.1)
    assert any("to_q" in name for name in adapter.updates)
    attach((beside := copy.deepcopy(denoiser)).network, adapter)
    changed = own.with_adapters([adapter])
    x = torch.randn(2, 1, 8, 8)
    one, other = beside(x, 0.4).value, changed.denoiser(x, 0.4).value
    assert torch.allclose(one, other, atol=1e-5)
    assert not torch.allclose(denoiser(x, 0.4).value, other, atol=1e-2)


# --- which layers, which rank ---


def test_patterns_choose_layers_and_impossible_ones_are_refused_in_a_line():
    base = network()
    assert all(n.startswith("middle.") for n in fresh(base, "b", rank=2, layers=["middle.*"]).updates)
    with pytest.raises(RecipeError, match=r"no layer matches 'midle\.\*'.*conditioning"):
        fresh(base, "b", layers=["midle.*"])
    with pytest.raises(RecipeError, match="rank 5 is larger than the layer out, which has rank 4"):
        fresh(base, "b", rank=5, layers=["out"])
    assert "out" not in fresh(base, "b", rank=5).updates
    with pytest.raises(RecipeError, match="rank 4096 is larger than every layer: the largest has rank"):
        fresh(base, "b", rank=4096)
    for rank in (0, -1, 2.5, True):
        with pytest.raises(RecipeError, match="whole number from 1"):
            fresh(base, "b", rank=rank)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="no table of labels"):
        fresh(base, "b", rank=2, classes=["new"])


@given(alpha=st.sampled_from([0.0, -1.0, math.inf, math.nan]))
def test_an_adapter_checks_itself(alpha: float):
    pair = (torch.zeros(2, 3), torch.zeros(4, 2))
    with pytest.raises(BundleError, match="alpha"):
        Adapter("b", {"layer": pair}, alpha)
    with pytest.raises(BundleError, match="must hold something"):
        Adapter("b")
    with pytest.raises(BundleError, match="none of rank"):
        Adapter("b", {"layer": (torch.zeros(3, 3), torch.zeros(4, 2))})
    with pytest.raises(BundleError, match="not finite"):
        Adapter("b", {"layer": (pair[0], torch.full((4, 2), math.nan))})


# --- models with adapters ---


def test_a_model_with_an_adapter_is_a_new_one_and_the_old_one_is_untouched():
    base = model()
    before = copy.deepcopy(base.denoiser.state_dict())
    adapter = taught(base, classes=["new"])
    new = base.with_adapters([adapter])
    assert all(torch.equal(before[name], value) for name, value in base.denoiser.state_dict().items())
    assert base.classes == tuple("abc")
    assert new.classes == (*"abc", "new")
    assert new.fingerprint != base.fingerprint
    together = new.sample(4, condition={"label": ["a", "new", "c", "new"]}, seed=3)
    alone = new.sample(indices=[1], condition={"label": "new"}, seed=3)
    assert torch.allclose(together[1:2], alone, atol=1e-5)
    assert not torch.allclose(base.sample(1, condition={"label": "a"}, seed=3), together[:1], atol=1e-3)
    none = base.with_adapters([(taught(base), 0.0)])
    assert none.fingerprint == base.fingerprint


def test_an_adapter_of_another_model_is_refused_in_one_line():
    one, other = model(seed=0), model(seed=1)
    with pytest.raises(BundleError, match="made for another model: for weights with the SHA-256 ") as refused:
        other.with_adapters([taught(one)])
    assert "\n" not in str(refused.value)
    with pytest.raises(BundleError, match="given together"):
        one.with_adapters([taught(one)]).with_adapters([taught(one)])
    forged = replace(taught(one), base="x")  # the same fingerprint, other layers: the shapes tell
    wide = model()
    wide.denoiser.network = network("dit", classes=3)
    with pytest.raises(BundleError, match="of another network: it updates a layer"):
        wide.with_adapters([replace(forged, base=wide.fingerprint)])


def test_two_adapters_cannot_teach_the_same_class_and_weights_are_finite():
    base = model()
    with pytest.raises(BundleError, match="class 'new' already"):
        base.with_adapters([taught(base, classes=["new"]), taught(base, classes=["new"], seed=2)])
    with pytest.raises(BundleError, match="class 'a' already"):
        base.with_adapters([taught(base, classes=["a"])])
    with pytest.raises(BundleError, match="weight must be finite"):
        base.with_adapters([(taught(base), math.nan)])
    both = base.with_adapters([taught(base, classes=["x"]), (taught(base, classes=["y"], seed=2), 0.5)])
    assert both.classes == (*"abc", "x", "y")


def test_a_tuned_solver_of_the_base_is_not_the_adapted_models(monkeypatch: pytest.MonkeyPatch):
    base = model()
    solver = object.__new__(Tuned)
    for name, value in {"weights": base.fingerprint, "guidance": 1.0, "conditional": False}.items():
        object.__setattr__(solver, name, value)
    new = base.with_adapters([taught(base)])
    assert new.tuned == ()
    base._check_tuned(solver, 1.0, False)
    with pytest.raises(BundleError, match="tuned to another model"):
        new._check_tuned(solver, 1.0, False)


def test_a_merged_model_is_saved_as_an_ordinary_bundle(tmp_path: Path):
    base = model()
    base.info = {"guidable": False}
    new = base.with_adapters([(taught(base, classes=["new"]), 0.7)])
    sfumato.save(new, tmp_path / "model")
    again = sfumato.load(tmp_path / "model")
    assert again.fingerprint == new.fingerprint
    assert again.classes == new.classes
    assert again.info["guidable"] is False
    assert again.info["adapters"][0]["weight"] == 0.7
    drawn = [m.sample(2, condition={"label": "new"}, seed=0) for m in (new, again)]
    assert torch.equal(*drawn)


# --- in a folder ---


def test_what_is_saved_is_loaded_to_the_bit(tmp_path: Path):
    base = model(text_dim=6)
    adapter = replace(taught(base, classes=["new"]), words={"mine": torch.randn(2, 6)}, about={"note": "x"})
    save_adapter(adapter, tmp_path / "a")
    again = load_adapter(tmp_path / "a")
    assert (again.base, again.alpha, again.rank) == (adapter.base, adapter.alpha, 2)
    assert again.about["note"] == "x"
    one, other = adapter.tensors(), again.tensors()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert base.with_adapters([again]).fingerprint == base.with_adapters([adapter]).fingerprint
    sfumato.save(base.with_adapters([again]), tmp_path / "model")
    assert torch.equal(sfumato.load(tmp_path / "model").words["mine"], adapter.words["mine"])


def test_damaged_adapters_are_refused(tmp_path: Path):
    folder = tmp_path / "a"
    save_adapter(taught(model()), folder)
    record, weights = folder / "adapter.json", folder / "weights.safetensors"
    text, content = record.read_text(), weights.read_bytes()
    for path, damaged, said in (
        (record, text[:-40], "damaged"),
        (record, "[]", "does not describe an adapter"),
        (record, text.replace('"rank": 2', '"rank": 3'), "edited or damaged"),
        (record, text.replace('"version": 1', '"version": 9'), "version 9"),
        (weights, content[:-1], "truncated"),
        (weights, b"\x80\x04K\x01." + content, "it is a pickle"),
    ):
        path.write_bytes(damaged.encode() if isinstance(damaged, str) else damaged)
        with pytest.raises(BundleError, match=said) as refused:
            load_adapter(folder)
        assert "\n" not in str(refused.value)
        record.write_text(text)
        weights.write_bytes(content)
    weights.unlink()
    with pytest.raises(BundleError, match="missing"):
        load_adapter(folder)
    with pytest.raises(BundleError, match="is no adapter"):
        load_adapter(tmp_path / "nothing")
    assert json.loads(text)["base"] == model().fingerprint


def test_a_path_may_carry_a_weight(tmp_path: Path):
    save_adapter(taught(model()), tmp_path / "a")
    save_adapter(taught(model()), tmp_path / "b:2")
    assert parse_adapter(str(tmp_path / "a"))[1] == 1.0
    assert parse_adapter(f"{tmp_path / 'a'}:-0.5")[1] == -0.5
    assert parse_adapter(str(tmp_path / "b:2"))[1] == 1.0
    for text, said in (
        ("a:much", "no weight"),
        ("a:inf", "finite"),
        ("a:nan", "finite"),
        ("c", "no adapter"),
    ):
        with pytest.raises(BundleError, match=said):
            parse_adapter(str(tmp_path / text))


def test_an_adapter_is_read_back_from_what_was_trained():
    base = model()
    adapter = taught(base, classes=["new"])
    attach(base.denoiser.network, adapter)
    again = read(base.denoiser.state_dict(), adapter, "network.")
    assert all(torch.equal(value, again.tensors()[name]) for name, value in adapter.tensors().items())


# --- words ---


def test_a_word_is_seen_where_it_is_placed_and_nowhere_else():
    base = network(text_dim=6)
    torch.manual_seed(2)
    text, mask, word = torch.randn(3, 4, 6), torch.ones(3, 4, dtype=torch.bool), torch.randn(2, 6)
    mask[1, 2:] = False
    said, seen = place(text, mask, word, torch.tensor([True, False, True]))
    assert said.shape == (3, 6, 6)
    assert seen.sum(1).tolist() == [6, 2, 6]
    x, level, _ = asked(3)
    with_word = base(x, level, {"text": said, "text_mask": seen})
    without = base(x, level, {"text": text, "text_mask": mask})
    assert torch.allclose(with_word[1], without[1], atol=1e-6)
    assert not torch.allclose(with_word[0], without[0], atol=1e-3)
    for k in range(3):
        alone = base(x[k : k + 1], level[k : k + 1], {"text": said[k : k + 1], "text_mask": seen[k : k + 1]})
        assert torch.allclose(alone, with_word[k : k + 1], atol=1e-5)
    with pytest.raises(BundleError, match="does not fit"):
        place(text, mask, torch.zeros(1, 7))


def test_prompts_name_words():
    encoded = []

    def encode(prompts):
        encoded.extend(prompts)
        return torch.zeros(len(prompts), 3, 6), torch.ones(len(prompts), 3, dtype=torch.bool)

    words = {"cat": torch.ones(1, 6), "hat": 2 * torch.ones(2, 6)}
    found = spoken(["a <cat> in a <hat>", "a dog", "two <hat> here"], words, encode)
    assert encoded == ["a in a", "a dog", "two here"]
    assert found["text_mask"].sum(1).tolist() == [6, 3, 5]
    assert found["text"][0, 3:].tolist() == [[1.0] * 6, [2.0] * 6, [2.0] * 6]
    with pytest.raises(BundleError, match="did you mean 'cat'"):
        spoken(["a <cad>"], words, encode)
    with pytest.raises(BundleError, match="has learned none"):
        spoken(["a <cat>"], {}, encode)


def test_only_the_word_is_trained_and_needs_a_text_slot():
    speller = Speller(network(text_dim=6), torch.zeros(2, 6))
    assert [name for name, p in speller.named_parameters() if p.requires_grad] == ["word"]
    x, level, _ = asked(2)
    speller(x, level).square().mean().backward()
    assert speller.word.grad is not None
    assert float(speller.word.grad.abs().max()) > 0
    with pytest.raises(BundleError, match="takes no text"):
        Speller(network(), torch.zeros(2, 6))
    with pytest.raises(BundleError, match=r"is \(tokens, 6\)"):
        Speller(network(text_dim=6), torch.zeros(2, 5))
    base = model()
    with pytest.raises(BundleError, match="the model takes no text"):
        base.with_adapters([Adapter(base.fingerprint, words={"w": torch.zeros(1, 6)})])
