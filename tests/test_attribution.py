"""Maps of a word over the picture: what they must sum to, where they must point, and that looking changes nothing."""

from __future__ import annotations

import gc
import io
import threading
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sfumato.denoisers import ClassifierFree, Denoiser, check_denoiser
from sfumato.errors import DataError, SolverError
from sfumato.evaluation.attribution import Watched, group_pieces, picture, word_maps
from sfumato.networks import build
from sfumato.noise import Noise
from sfumato.processes import Flow, Gaussian
from sfumato.solvers import AdaptiveODE, DPMpp2M, FlowGrid, Heun, sample

SMALL = {
    "unet": {"width": 8, "multipliers": [1, 2], "blocks": [1, 1], "embedding": 16, "patch": 1, "head": 8,
             "attention": [0]},
    "dit": {"width": 16, "depth": 2, "embedding": 16, "head": 8},
}  # fmt: skip
each_kind = pytest.mark.parametrize("kind", SMALL)


def lively(kind, size=8, **more):
    torch.manual_seed(0)
    network = build(kind, in_channels=1, size=size, text_dim=5, **SMALL[kind], **more)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return Denoiser(network, Gaussian(Flow()), "velocity").eval().requires_grad_(False)


def texts(count=3, tokens=4):
    text = Noise(7, count).normal(torch.empty(count, tokens, 5))
    mask = torch.ones(count, tokens, dtype=torch.bool)
    mask[0, 2:] = False
    mask[-1] = False  # no text at all
    return {"text": text, "text_mask": mask}


def draw(denoiser, count=3, size=(8, 8), solver=None, condition=None):
    solver = solver or DPMpp2M()
    levels = FlowGrid().levels(denoiser.process, 3)
    return sample(
        denoiser, Noise(0, count), (1, *size), solver=solver, levels=levels,
        condition=texts(count) if condition is None else condition,
    )  # fmt: skip


@each_kind
@pytest.mark.parametrize("size", [(8, 8), (9, 6)])  # of which the second is padded inside
def test_maps_sum_to_one_over_tokens_and_are_zero_where_no_token_is(kind, size):
    watched = Watched(lively(kind, list(size)), 3)
    draw(watched, size=size)
    assert watched.maps.shape == (3, 5, *size)
    torch.testing.assert_close(watched.maps.sum(1), torch.ones(3, *size))
    assert float(watched.maps[0, 0].max()) == 0  # the null token, where there is text
    assert float(watched.maps[0, 3:].max()) == 0  # hidden tokens
    torch.testing.assert_close(watched.maps[2, 0], torch.ones(size))  # the null token, where there is none


@each_kind
@pytest.mark.parametrize("solver", [DPMpp2M(), Heun()], ids=lambda s: s.kind)
def test_looking_changes_no_bit_and_a_sample_alone_has_its_own_map(kind, solver):
    denoiser = lively(kind)
    watched, alone = Watched(denoiser, 3), Watched(denoiser, 1)
    assert torch.equal(draw(watched, solver=solver), draw(denoiser, solver=solver))
    first = {name: value[:1] for name, value in texts().items()}
    draw(alone, count=1, solver=solver, condition=first)
    torch.testing.assert_close(alone.maps, watched.maps[:1], rtol=0, atol=1e-5)
    check_denoiser(Watched(denoiser, 1), torch.zeros(2, 1, 8, 8), {k: v[:2] for k, v in texts().items()})


@each_kind
def test_of_guidances_two_branches_the_conditional_one_is_noted(kind):
    denoiser = lively(kind)
    inner, outer = Watched(denoiser, 3), Watched(ClassifierFree(denoiser, 2.0, 0), 3)
    draw(ClassifierFree(inner, 2.0, 0))
    draw(outer)
    torch.testing.assert_close(inner.maps, outer.maps)
    assert float(inner.maps[0, 0].max()) == 0  # the unconditional branch looks at nothing else than the null


def test_attention_built_by_hand_gives_its_map():
    """The left half of the picture is made to look for token 0, the right for token 1."""
    denoiser = lively("dit", patch=1)
    network = denoiser.network
    with torch.no_grad():
        # tokens' embeddings: e0 for token 0, e1 for token 1, nothing else
        conditioning = network.conditioning
        conditioning.text_in.weight.zero_()
        conditioning.text_in.bias.zero_()
        conditioning.text_in.weight[0, 0] = conditioning.text_in.weight[1, 1] = 1.0
        network.stem.weight.zero_()
        network.stem.bias.zero_()
        network.position.zero_()
        where = network.position.unflatten(0, (8, 8))  # place (i, j) is e0 on the left, e1 on the right
        where[:, :4, 0] = 1.0
        where[:, 4:, 1] = 1.0
        for block in network.blocks:
            for layer in (block.words.query, block.words.key_value):
                layer.weight.zero_()
                layer.bias.zero_()
            for head in range(2):  # each head of 8 sees coordinates 0 and 1
                for k in range(2):
                    block.words.query.weight[8 * head + k, k] = 1.0
                    block.words.key_value.weight[8 * head + k, k] = 1.0
            block.modulation.weight.zero_()  # every block is the identity, so the second sees what the first did
            block.modulation.bias.zero_()
    watched = Watched(denoiser, 1)
    text = torch.zeros(1, 2, 5)
    text[0, 0, 0] = text[0, 1, 1] = 1.0
    draw(watched, count=1, condition={"text": text})
    # q . k / sqrt(8), both of unit mean square: (sqrt 8)^2 / sqrt 8 for the word, 0 for the other
    share = float(torch.sigmoid(torch.tensor(8.0) ** 0.5))
    expected = torch.full((8, 8), 1 - share)
    expected[:, :4] = share
    torch.testing.assert_close(watched.maps[0, 1], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(watched.maps[0, 2], 1 - expected, rtol=0, atol=1e-4)


def test_records_of_two_threads_are_their_own_and_nothing_is_left_behind():
    denoiser = lively("unet")
    alone = Watched(denoiser, 3)
    draw(alone)
    records = [Watched(denoiser, 3) for _ in range(3)]
    threads = [threading.Thread(target=draw, args=(record,)) for record in records]
    for thread in threads:
        thread.start()
    draw(denoiser)  # unwatched, meanwhile
    for thread in threads:
        thread.join()
    for record in records:
        assert record.calls == alone.calls
        torch.testing.assert_close(record.maps, alone.maps)
    assert not any(module._forward_hooks for module in denoiser.modules())
    sizes = {name: tuple(t.shape) for name, t in records[0]._sums.items()}
    draw(records[0])  # twice the steps take the room of once
    assert {name: tuple(t.shape) for name, t in records[0]._sums.items()} == sizes
    gone = weakref.ref(records[0])
    del record, records, threads, thread
    gc.collect()
    assert gone() is None


@given(st.lists(st.lists(st.sampled_from(["a", "bc", "d"]), min_size=1, max_size=3), min_size=1, max_size=6))
def test_pieces_come_back_as_the_words_they_were_cut_from(cut):
    tokens = ["[CLS]"] + [("##" if k else "") + p for word in cut for k, p in enumerate(word)] + ["[SEP]"]
    words, groups = group_pieces(tokens)
    assert words == ["".join(word) for word in cut]
    assert [n for group in groups for n in group] == list(range(1, len(tokens) - 1))
    maps = torch.softmax(torch.randn(2, len(tokens) + 1, 3, 3), 1)
    rest = maps[:, [0, 1, -1]].sum(1)
    torch.testing.assert_close(word_maps(maps, groups).sum(1) + rest, torch.ones(2, 3, 3))


def test_the_picture_has_a_row_a_sample():
    maps = torch.softmax(torch.randn(2, 3, 8, 8), 1)
    png = picture(np.zeros((2, 8, 8, 3), np.uint8), maps, ("red", "hat", "cat"))
    assert Image.open(io.BytesIO(png)).size[0] > 400
    with pytest.raises(DataError, match="need maps of"):
        picture(np.zeros((2, 8, 8, 3), np.uint8), maps, ("red",))


def test_what_cannot_be_watched_is_refused_in_one_line():
    plain = Denoiser(build("unet", in_channels=1, size=8, width=8), Gaussian(Flow()))
    with pytest.raises(SolverError, match="does not attend to text"):
        Watched(plain, 1)
    watched = Watched(lively("unet"), 3)
    with pytest.raises(SolverError, match="nothing was recorded"):
        _ = watched.maps
    draw(watched)
    with pytest.raises(SolverError, match="a text of 2 tokens was asked of a record of 4"):
        draw(watched, condition={"text": torch.zeros(3, 2, 5)})
    with pytest.raises(SolverError, match="with a solver that steps them together"):
        draw(Watched(lively("unet"), 4), count=3, solver=AdaptiveODE(tolerance=1e-2))
    with pytest.raises(DataError, match="no token 4"):
        word_maps(watched.maps, [[4]])
