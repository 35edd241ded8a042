"""Categorical processes: their laws, their two shapes of one formula, and draws that have the stated chances."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sfumato.errors import SolverError
from sfumato.noise import Apart, BatchNoise, Noise, symbols
from sfumato.processes import (
    CLEAN,
    DDPM,
    VE,
    Cosine,
    Flow,
    LawBroken,
    Linear,
    MaskedChain,
    MatrixChain,
    UniformChain,
    ZeroTerminalSNR,
    build_process,
    check_process,
)
from sfumato.processes.categorical import CategoricalPrediction

CYCLE = ((-1.0, 1.0, 0.0, 0.0), (0.0, -2.0, 2.0, 0.0), (0.0, 0.0, -1.5, 1.5), (0.5, 0.0, 0.0, -0.5))
MASKING = ((-1.0, 0, 0, 1), (0, -1.0, 0, 1), (0, 0, -1.0, 1), (0, 0, 0, 0))
PROCESSES = [
    MaskedChain(3),
    UniformChain(4, Cosine()),
    MatrixChain(4, Linear(), CYCLE),
    MatrixChain(3, Flow(), MASKING),
]
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{p.law}-{p.symbols}")


def some_prediction(process, x_t, t, seed=0):
    logits = Noise(seed, len(x_t)).normal(torch.empty(*x_t.shape, process.symbols, dtype=torch.float64))
    return CategoricalPrediction(process.known(logits, x_t, process.level(t)), x_t, process.level(t), process)


@each
def test_a_process_obeys_its_laws(process):
    check_process(process)


@pytest.mark.parametrize("schedule", [DDPM(), ZeroTerminalSNR()], ids=lambda s: s.kind)
def test_any_schedule_serves(schedule):
    check_process(UniformChain(3, schedule), 3)
    check_process(MaskedChain(2, schedule), 3)


rates_of = st.integers(2, 5).flatmap(
    lambda n: st.lists(st.lists(st.floats(0.05, 3), min_size=n, max_size=n), min_size=n, max_size=n)
)


@settings(max_examples=5, deadline=None)
@given(rates_of)
def test_any_generator_obeys_them(rows):
    rates = torch.tensor(rows, dtype=torch.float64).fill_diagonal_(0)
    check_process(MatrixChain(2, Flow(), rates - rates.sum(1).diag()), 1)


@dataclass(frozen=True)
class LosesChance(UniformChain):
    def push(self, weights, t, s=None):
        return 0.99 * super().push(weights, t, *(() if s is None else (s,)))


@dataclass(frozen=True)
class Forgets(UniformChain):  # the likelihood of the whole way in place of that of the step
    def reverse(self, prediction, s, eta=1.0):
        chances = self.push(self.weights(prediction), self.level(s))
        chances = chances * self.pull(prediction.x_t, prediction.level, CLEAN, chances.dtype)
        return chances / chances.sum(-1, keepdim=True)


@dataclass(frozen=True)
class WrongHolding(UniformChain):
    def _holding(self, prediction, s, eta):
        return 0.5 * super()._holding(prediction, s, eta) + 0.5 / self.symbols


@dataclass(frozen=True)
class TwiceAsFast(UniformChain):
    def _into(self, x, dtype):
        return 2 * super()._into(x, dtype)


@dataclass(frozen=True)
class NotItsEnd(UniformChain):
    @property
    def stationary(self):
        return torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)

    def transition(self, t, s=CLEAN):
        return UniformChain(self.symbols, self.schedule).transition(t, s)


@pytest.mark.parametrize(
    ("process", "words"),
    [
        (LosesChance(3), "push"),
        (Forgets(3), "marginal to marginal"),
        (WrongHolding(3), "eta = 0.5"),
        (TwiceAsFast(3), "reverse rates"),
        (NotItsEnd(3), "prior"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_planted_defects_are_caught(process, words):
    with pytest.raises(LawBroken, match=words):
        check_process(process)


@pytest.mark.parametrize(
    ("closed", "rates"),
    [
        (MaskedChain(3), MASKING),
        (UniformChain(3), (torch.full((3, 3), 1 / 3) - torch.eye(3)).double()),
    ],
    ids=["masked", "uniform"],
)
def test_the_closed_forms_are_those_of_the_matrix_exponential(closed, rates):
    """Two ways to one number: nothing of the closed form is used by the other."""
    dense = MatrixChain(3, closed.schedule, rates)
    x_t = torch.tensor(list(product(range(closed.states), repeat=2)))
    for t, s in ((1.0, 0.7), (0.6, 0.59), (0.3, 0.0)):
        a, b = some_prediction(closed, x_t, t), some_prediction(dense, x_t, t)
        b = CategoricalPrediction(a.value, x_t, b.level, dense)
        assert torch.allclose(closed.reverse(a, s), dense.reverse(b, s), atol=1e-12)
        assert torch.allclose(closed.reverse_rates(a), dense.reverse_rates(b), atol=1e-9)
        rows = torch.full((len(x_t),), t, dtype=torch.float64)
        again = CategoricalPrediction(a.value, x_t, dense.level(rows), dense)
        assert torch.allclose(closed.reverse(a, s), dense.reverse(again, s), atol=1e-12)


def test_the_masked_bridge_is_the_papers():
    """Sahoo et al. 2024, eq. 7."""
    process = MaskedChain(3)
    x_t = torch.tensor([[3, 1, 3, 0]])
    t, s = process.level(0.8), process.level(0.5)
    prediction = some_prediction(process, x_t, t)
    chances = process.reverse(prediction, s)
    shown = (s.alpha - t.alpha) / (1 - t.alpha)
    hidden = torch.cat([shown * prediction.chances, torch.full((1, 4, 1), 1 - shown)], -1)
    seen = F.one_hot(x_t, 4).double()
    assert torch.allclose(chances, torch.where((x_t == 3)[..., None], hidden, seen), atol=1e-12)
    # D3PM's chain of eq. 3 with (x_t, x_0) both known, for the uniform law
    uniform = UniformChain(3)
    known = uniform.certain(torch.tensor([[0, 1]]), torch.tensor([[0, 2]]), t, torch.float64)
    a, b, ratio = t.alpha, s.alpha, t.alpha / s.alpha
    forward = ratio * F.one_hot(known.x_t, 3).double() + (1 - ratio) / 3
    before = b * F.one_hot(torch.tensor([[0, 1]]), 3).double() + (1 - b) / 3
    both = a * torch.tensor([[1.0, 0.0]]).double() + (1 - a) / 3
    assert torch.allclose(uniform.reverse(known, s), forward * before / both[..., None], atol=1e-12)


@each
def test_draws_have_the_chances_that_are_stated(process):
    """Corrupted, bridged and pure states of 20,000 samples, each symbol within five standard errors."""
    count = 20_000
    noise = Noise(3, 1).at  # one sample of many positions costs one key
    x0 = torch.arange(count).remainder(process.symbols)[None]
    x_t = process.corrupt(x0, 0.5, noise(1))
    prediction = some_prediction(process, x_t, 0.5)
    before = process.bridge(x_t, prediction, 0.5, 0.2, noise(2))
    pure = process.prior(torch.empty(1, count), noise(3))
    law = process.transition(0.5)
    stated = {
        "corrupt": (x_t, law[x0]),
        "bridge": (before, process.reverse(prediction, 0.2)),
        "prior": (pure, process.stationary.expand(1, count, -1)),
    }
    for name, (drawn, chances) in stated.items():
        found = F.one_hot(drawn, process.states).double().sum(1)
        error = (chances * (1 - chances)).sum(1).sqrt()
        assert ((found - chances.sum(1)).abs() <= 5 * error + 1e-6).all(), (name, found, chances.sum(1))


@each
def test_a_sample_alone_is_the_same_sample_in_a_batch(process):
    x0 = torch.arange(24).reshape(6, 4).remainder(process.symbols)
    x_t = process.corrupt(x0, 0.7, Noise(7, 6).at(1))
    assert torch.equal(x_t[3:4], process.corrupt(x0[3:4], 0.7, Noise(7, (3,)).at(1)))
    prediction = some_prediction(process, x_t, 0.7)
    alone = CategoricalPrediction(prediction.value[3:4], x_t[3:4], prediction.level, process)
    whole = process.bridge(x_t, prediction, 0.7, 0.3, Noise(7, 6).at(2))
    assert torch.equal(whole[3:4], process.bridge(x_t[3:4], alone, 0.7, 0.3, Noise(7, (3,)).at(2)))


def test_a_time_for_each_sample_is_each_samples_time():
    for process in PROCESSES:
        x0 = torch.arange(8).reshape(2, 4).remainder(process.symbols)
        times = torch.tensor([0.3, 0.9], dtype=torch.float64)
        x_t = process.corrupt(x0, times, Noise(1, 2))
        for i, t in enumerate(times.tolist()):
            assert torch.equal(x_t[i : i + 1], process.corrupt(x0[i : i + 1], t, Noise(1, (i,))))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=7), st.integers(0, 2**32))
def test_a_chance_of_zero_is_never_drawn(weights, seed):
    chances = torch.tensor(weights, dtype=torch.float64)
    if float(chances.sum()) == 0:
        with pytest.raises(SolverError, match="not all 0"):
            symbols(chances.expand(1, 5, -1), Noise(seed, 1))
        return
    drawn = symbols(chances.expand(1, 50, -1), Noise(seed, 1))
    assert (chances[drawn] > 0).all()
    # at the ends of the uniforms too
    for u in (0.0, 1 - 2**-24, 1 - 2**-53):
        assert (chances[symbols(chances.expand(1, 1, -1), At(u))] > 0).all()


class At:
    def __init__(self, u):
        self.u = u

    def uniform(self, like, stream=0):
        return torch.full_like(like, self.u)


def test_symbols_have_their_chances():
    chances = torch.tensor([0.5, 0.0, 0.125, 0.375])
    drawn = symbols(4 * chances.expand(1, 40_000, -1), Noise(0, 1))
    share = F.one_hot(drawn, 4).double().mean((0, 1))
    assert (share - chances).abs().max() < 5 * math.sqrt(0.25 / 40_000)
    assert torch.equal(drawn, symbols(chances.expand(1, 40_000, -1), Noise(0, 1)))  # whatever they add up to
    for bad in (math.nan, math.inf):
        with pytest.raises(SolverError, match="finite"):
            symbols(torch.tensor([[[0.5, bad]]]), Noise(0, 1))


def test_parts_of_a_state_share_no_numbers():
    like, noise = torch.empty(2, 50), Noise(0, 2).at(4)
    a, b = Apart(noise, 1 << 42), Apart(noise, 2 << 42)
    assert torch.equal(a.normal(like, 1), noise.normal(like, (1 << 42) + 1))
    assert not torch.equal(a.uniform(like), b.uniform(like))
    assert not torch.equal(a.uniform(like), noise.uniform(like))
    assert torch.equal(
        Apart(BatchNoise(1, 2), 1 << 42).uniform(like), BatchNoise(1, 2).uniform(like, 1 << 42)
    )


def test_holding_the_noise_keeps_more_of_the_state():
    """What eta = 0 holds, eta = 1 partly renews, and both arrive at the same marginal (`check_process`)."""
    process = UniformChain(5)
    x_t = torch.zeros(1, 1, dtype=torch.long)
    prediction = CategoricalPrediction(torch.zeros(1, 1, 5).double(), x_t, process.level(0.6), process)
    stays = [float(process.reverse(prediction, 0.3, eta)[0, 0, 0]) for eta in (0.0, 0.5, 1.0)]
    assert stays[0] > stays[1] > stays[2]
    masked = MaskedChain(5)
    prediction = some_prediction(masked, torch.tensor([[5, 2]]), 0.6)
    assert torch.allclose(masked.reverse(prediction, 0.3, 0.0), masked.reverse(prediction, 0.3), atol=1e-12)


@each
def test_a_process_is_made_again_from_what_it_writes(process):
    assert build_process(**json.loads(json.dumps(process.to_json(), allow_nan=False))) == process


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MaskedChain(1), "at least 2 symbols, not 1"),
        (lambda: MaskedChain(True), "at least 2"),
        (lambda: UniformChain(3, VE()), "what is kept"),
        (lambda: MatrixChain(3, Flow(), ((0, 0), (0, 0))), "square of at least as many"),
        (lambda: MatrixChain(2, Flow(), ((-1, 1), (1, -2))), "add up to 0"),
        (lambda: MatrixChain(2, Flow(), ((1, -1), (1, -1))), "0 or more off the diagonal"),
        (lambda: MatrixChain(2, Flow(), ((0, 0), (0, 0))), "more than one law"),
        (lambda: MatrixChain(2, Flow(), ((math.nan, 0), (0, 0))), "diagonal"),
        (lambda: MaskedChain(3).corrupt(torch.tensor([[3]]), 0.5, Noise(0, 1)), "from 0 to 2; these run"),
        (lambda: MaskedChain(3).corrupt(torch.tensor([[1.0]]), 0.5, Noise(0, 1)), "int64"),
        (lambda: UniformChain(3).rate(1.0), "infinitely fast"),
        (lambda: build_process("categorical", schedule={"kind": "flow"}), "number of symbols"),
        (lambda: build_process("categorical", schedule={"kind": "flow"}, law="maskd"), "did you mean 'masked'"),
        (lambda: build_process("categorical", schedule={"kind": "flow"}, symbols=3, rate=1), "rate"),
        (lambda: build_process("gaussian", schedule={"kind": "flow"}, symbols=3), "symbols"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_in_one_line(make, words):
    with pytest.raises(SolverError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_eta_is_refused_where_it_says_nothing():
    for process, eta, words in ((PROCESSES[2], 0.5, "masked and uniform"), (PROCESSES[1], 1.5, r"\[0, 1\]")):
        prediction = some_prediction(process, torch.zeros(1, 2, dtype=torch.long), 0.5)
        with pytest.raises(SolverError, match=words):
            process.reverse(prediction, 0.2, eta)
