"""Randomness is a function of what it is for: never of the batch, the order of asking, or the type asked for."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from sfumato.noise import BatchNoise, Brownian, Noise, Path

big = st.integers(0, 2**64 - 1)
key = st.integers(0, 2**32)
shapes = st.lists(st.integers(1, 7), min_size=0, max_size=3).map(tuple)


@given(shape=shapes, seed=big, first=st.integers(0, 2**40), row=st.integers(0, 63), step=key, stream=key)
def test_a_row_of_64_is_the_sample_alone(shape, seed, first, row, step, stream):
    batch = Noise(seed, range(first, first + 64))
    alone = Noise(seed, [first + row])
    for kind in ("normal", "uniform"):
        many = getattr(batch, kind)(torch.empty(64, *shape), step, stream)
        one = getattr(alone, kind)(torch.empty(1, *shape), step, stream)
        assert torch.equal(many[row], one[0])
        assert torch.equal(getattr(alone.at(step), kind)(torch.empty(1, *shape), stream), one)


@given(indices=st.lists(big, min_size=1, max_size=9), seed=big)
def test_order_and_company_do_not_matter(indices, seed):
    like = torch.empty(len(indices), 5)
    forwards = Noise(seed, indices).normal(like)
    backwards = Noise(seed, indices[::-1]).normal(like)
    assert torch.equal(forwards, backwards.flip(0))
    assert torch.equal(forwards, Noise(seed, indices).normal(like)), "asking twice is asking once"


def test_a_count_means_the_first_samples():
    assert Noise(3, 4) == Noise(3, range(4)) == Noise(3, np.int64(4))
    assert Noise(3, 0).normal(torch.empty(0, 2)).shape == (0, 2)


def test_normals_are_normal_and_uniforms_uniform():
    like = torch.empty(50, 20_001)
    z, u = (getattr(Noise(7, 50), kind)(like).double().flatten() for kind in ("normal", "uniform"))
    n = z.numel()
    # the standard errors of the first four moments of n normals; five of them leave one failure in two million
    for power, mean, spread in ((1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)):
        assert abs(float((z**power).mean()) - mean) < 5 * spread / n**0.5
    assert 0 <= float(u.min()) < 1e-5
    assert 1 - 1e-5 < float(u.max()) < 1
    assert stats.kstest(z[:200_000].numpy(), "norm").pvalue > 1e-4
    assert stats.kstest(u[:200_000].numpy(), "uniform").pvalue > 1e-4
    assert stats.kstest(BatchNoise(1, 2).normal(torch.empty(100_000)).numpy(), "norm").pvalue > 1e-4


def test_the_tail_reaches_as_far_as_it_should():
    z = Noise(1, 64).normal(torch.empty(64, 40_000)).abs()
    expected = 2 * stats.norm.sf(4) * z.numel()
    assert abs(int((z > 4).sum()) - expected) < 6 * expected**0.5
    assert torch.isfinite(z).all()


@pytest.mark.parametrize("change", ["seed", "index", "step", "stream"])
def test_changing_any_part_of_the_key_gives_independent_draws(change):
    like = torch.empty(1, 100_000)

    def draw(**given):
        part = {"seed": 1, "index": 2, "step": 3, "stream": 4} | given
        return Noise(part["seed"], [part["index"]]).normal(like, part["step"], part["stream"])[0].double()

    base = draw()
    for value in (0, 9, 2**63):
        other = draw(**{change: value})
        assert abs(float((base * other).mean())) < 5 / 100_000**0.5
        assert abs(float((base**2 * other**2).mean()) - 1) < 5 * 8**0.5 / 100_000**0.5
        assert float((base == other).double().mean()) < 1e-3
    # swapping two parts of a key is another key, too
    assert not torch.equal(Noise(1, [2]).normal(like), Noise(2, [1]).normal(like))
    assert not torch.equal(Noise(1, [2]).normal(like, 3, 4), Noise(1, [2]).normal(like, 4, 3))


def test_neither_type_nor_layout_nor_order_of_asking_matters():
    noise = Noise(11, (5, 3))
    single = noise.normal(torch.empty(2, 3, 4, 5))
    double = noise.normal(torch.empty(2, 3, 4, 5, dtype=torch.float64))
    half = noise.normal(torch.empty(2, 3, 4, 5, dtype=torch.bfloat16))
    assert (single.dtype, double.dtype, half.dtype) == (torch.float32, torch.float64, torch.bfloat16)
    assert torch.equal(single.double(), double)
    assert torch.equal(single.bfloat16(), half)
    turned = torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert torch.equal(noise.normal(turned), single)
    late = noise.normal(torch.empty(2, 3, 4, 5), step=1)
    assert torch.equal(noise.normal(torch.empty(2, 3, 4, 5)), single)
    assert not torch.equal(late, single)
    torch.manual_seed(99)
    assert torch.equal(noise.normal(torch.empty(2, 3, 4, 5)), single), "the global generator has no say"


def test_the_first_numbers_stay_what_they_are():
    """Samples are promised to be reproducible from their seed: this may only change with a new major version."""
    words = np.random.Generator(np.random.Philox(key=[5, 6], counter=[0, 0, 2, 1])).bit_generator.random_raw(
        2
    )
    first = words.view(np.uint32)
    want = (first >> 8).astype(np.float32) * np.float32(2**-24)
    assert np.array_equal(Noise(5, [6]).uniform(torch.empty(1, 4), 1, 2).numpy()[0], want)
    u, v = (first[:2].astype(np.float64) + 0.5) / 2**32, first[2:].astype(np.float64) / 2**32
    r = np.sqrt(-2 * np.log(u))
    want = np.concatenate([r * np.cos(2 * np.pi * v), r * np.sin(2 * np.pi * v)])
    assert np.allclose(Noise(5, [6]).normal(torch.empty(1, 4), 1, 2).numpy()[0], want, atol=2e-6)


@given(seed=st.integers(0, 2**63), step=st.integers(0, 2**40), stream=st.integers(0, 9))
def test_batch_noise_is_a_function_of_its_key(seed, step, stream):
    like = torch.empty(3, 4)
    draw = BatchNoise(seed, step).normal(like, stream)
    assert torch.equal(draw, BatchNoise(seed, step).normal(like, stream))
    for other in (BatchNoise(seed + 1, step), BatchNoise(seed, step + 1)):
        assert not torch.equal(draw, other.normal(like, stream))
    assert not torch.equal(draw, BatchNoise(seed, step).normal(like, stream + 1))
    u = BatchNoise(seed, step).uniform(like.double(), stream)
    assert u.dtype == torch.float64
    assert bool(((u >= 0) & (u < 1)).all())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Noise(-1, 4), "seed"),
        (lambda: Noise(2**64, 4), "seed"),
        (lambda: Noise(1.5, 4), "seed"),  # type: ignore[arg-type]
        (lambda: Noise(True, 4), "seed"),
        (lambda: Noise(0, [0, -1]), "index"),
        (lambda: Noise(0, -3), "number of samples"),
        (lambda: Noise(0, 4).normal(torch.empty(3, 2)), "batch of 3 .* 4 samples"),
        (lambda: Noise(0, 3).normal(torch.empty(3, 2), step=-1), "step"),
        (lambda: Noise(0, 3).at(1).uniform(torch.empty(3, 2), stream=-1), "stream"),
        (lambda: BatchNoise(-1, 0), "seed"),
        (lambda: BatchNoise(0, -1), "step"),
    ],
)
def test_a_wrong_key_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# -- Brownian paths ------------------------------------------------------------------------------------------------

place = st.floats(1e-6, 1e6)


def brownian(rows=64, seed=3, depth=12, shape=()):
    return Brownian(Noise(seed, rows), depth), torch.empty(rows, *shape, dtype=torch.float64)


def leaves(tree, *places):
    return len({tree.leaf(q) for q in places}) == len(places)


@settings(max_examples=25)
@given(places=st.lists(place, min_size=3, max_size=6, unique=True), seed=big, depth=st.integers(6, 30))
def test_increments_add_up_wherever_an_interval_is_split(places, seed, depth):
    tree, like = brownian(3, seed, depth, (2,))
    places = sorted(places)
    assume(leaves(tree, *places))
    whole = tree.increment(like, places[0], places[-1])
    parts = sum(tree.increment(like, a, b) for a, b in pairwise(places))
    assert torch.allclose(whole, parts, rtol=0, atol=1e-12 * places[-1] ** 0.5)


@settings(max_examples=15)
@given(places=st.permutations([1e-5, 0.3, 0.31, 1.0, 2.5, 7.0, 4e4]), seed=big, row=st.integers(0, 8))
def test_a_path_does_not_depend_on_the_order_of_asking_or_on_company(places, seed, row):
    tree, like = brownian(9, seed, shape=(3,))
    seen = {q: tree.at(like, q) for q in places}
    alone = Brownian(Noise(seed, [row]), 12)
    for q in sorted(places):
        assert torch.equal(alone.at(like[:1], q), seen[q][row : row + 1])
        assert torch.equal(tree.at(like, q), seen[q])


def test_increments_are_independent_normals_of_the_length_s_variance():
    tree, like = brownian(40, 9, shape=(500,))
    n = like.numel()
    # in different leaves, near and far, at nodes (1 is the root), in the middles of leaves and across the root
    places = [0.0, 1e-4, 0.2, 0.2 + 0.003, 0.9, 1.0, 1.013, 1.03, 6.0, 6561.0, 2e4]
    assert leaves(tree, *places)
    unit = torch.stack([tree.increment(like, a, b).flatten() / (b - a) ** 0.5 for a, b in pairwise(places)])
    covariance = unit @ unit.T / n
    # standard errors sqrt(2/n) and sqrt(1/n); five of them, over 55 entries
    assert torch.allclose(covariance, torch.eye(len(unit)).double(), atol=5 * (2 / n) ** 0.5)
    assert float(unit.mean(1).abs().max()) < 5 / n**0.5
    for row in unit:
        assert stats.kstest(row.numpy(), "norm").pvalue > 1e-5


def test_other_streams_seeds_and_draws_are_other_paths():
    tree, like = brownian(1, 4, shape=(50_000,))
    base = tree.at(like, 3.0).flatten() / 3**0.5
    for other in (Brownian(Noise(5, 1)), Brownian(Noise(4, [1])), Brownian(Noise(4, 1), stream=1)):
        assert abs(float((base * other.at(like, 3.0).flatten()).mean())) < 5 * 3**0.5 / 50_000**0.5
    for step in range(4):
        assert abs(float((base * Noise(4, 1).normal(like, step).flatten()).mean())) < 5 / 50_000**0.5
    # the root's normal is W(1): it is drawn by its node, on a stream of its own
    assert torch.equal(tree.at(like, 1.0), Noise(4, 1).normal(like, 1, 2**63))


def test_a_path_gives_a_run_its_increments_and_leaves_the_rest_to_the_noise():
    noise, like = Noise(8, 5), torch.empty(5, 2)
    path = Path(noise, (0.0, 0.5, 2.0, math.inf))
    tree = Brownian(noise)
    assert path.indices == noise.indices
    assert torch.equal(path.at(0).normal(like), noise.normal(like))
    assert torch.allclose(path.at(2).normal(like), tree.increment(like, 0.5, 2.0) / 1.5**0.5)
    assert torch.allclose(path.at(1).normal(like, 3), Brownian(noise, stream=3).at(like, 0.5) / 0.5**0.5)
    assert torch.equal(path.at(3).normal(like), noise.normal(like, 3))
    assert torch.equal(path.at(2).uniform(like), noise.uniform(like, 2))
    assert path.at(2).normal(like.double()).dtype == torch.float64
    assert path.at(2).normal(like.half()).dtype == torch.float16


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Brownian(Noise(0, 2), 0), "depth"),
        (lambda: Brownian(Noise(0, 2)).at(torch.empty(2), -1.0), "from 0 to below infinity"),
        (lambda: Brownian(Noise(0, 2)).at(torch.empty(2), math.nan), "from 0 to below infinity"),
        (lambda: Brownian(Noise(0, 2)).increment(torch.empty(2), 1.1, 1.1001), "greater depth"),
        (lambda: Path(Noise(0, 2), (0.5, 0.2)), "must rise"),
        (lambda: Path(Noise(0, 2), (0.5, 0.5001)), "another leaf"),
        (lambda: Path(Noise(0, 2), (-1.0, 0.5)), "from 0"),
    ],
)
def test_a_wrong_place_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
