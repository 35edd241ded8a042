"""Denoisers and bounds of symbols, on tables of sequences whose every chance is known by enumeration."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sfumato.denoisers import (
    CategoricalDenoiser,
    ClassifierFree,
    Denoiser,
    Guidance,
    SequenceTable,
    check_denoiser,
)
from sfumato.errors import RecipeError, SolverError
from sfumato.noise import BatchNoise, Noise, symbols
from sfumato.objectives import Bound, CategoricalBound, Denoising, build_objective, check_trains
from sfumato.processes import (
    CLEAN,
    Cosine,
    Flow,
    Gaussian,
    Linear,
    MaskedChain,
    MatrixChain,
    UniformChain,
)
from sfumato.processes.categorical import CategoricalPrediction
from sfumato.solvers import Ancestral, UniformGrid, chain_law
from sfumato.solvers.categorical_laws import example
from sfumato.solvers.laws import fitted_order

CHAINS = [MaskedChain(3), UniformChain(3)]
each = pytest.mark.parametrize("process", CHAINS, ids=lambda p: p.law)
MASKING = ((-1.0, 0, 0, 1), (0, -1.0, 0, 1), (0, 0, -1.0, 1), (0, 0, 0, 0))


class Guesses(nn.Module):
    """A small network: every position sees its neighbours, the noise level and a label."""

    def __init__(self, states=4, symbols=3, classes=2, width=8):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.symbols, self.classes = nn.Embedding(states, width), nn.Embedding(classes + 1, width)
            self.mixed, self.out = nn.Linear(2 * width + 1, width), nn.Linear(width, symbols)

    def forward(self, x, noise_level, condition=None):
        h = self.symbols(x)
        if condition is not None:
            h = h + self.classes(condition["label"])[:, None]
        level = noise_level[:, None, None].expand(*x.shape, 1)
        return self.out(
            torch.tanh(self.mixed(torch.cat([h, h.mean(1, keepdim=True).expand_as(h), level], -1)))
        )


def states_of(process, length):
    return torch.cartesian_prod(*[torch.arange(process.states)] * length).reshape(-1, length)


# -- denoisers -------------------------------------------------------------------------------------------------------


@each
def test_the_table_is_bayes_rule(process):
    """Against a plain sum over sequences, one state at a time."""
    table = example(process)
    t = process.level(0.6)
    law, move = table.law(), process.transition(t)
    x = states_of(process, 3)[::7]
    chances = table(x, t).chances
    for row, x_t in zip(chances, x, strict=True):
        found = torch.zeros(3, 3, dtype=torch.float64)
        for p, x0 in zip(law.tolist(), table.sequences.tolist(), strict=True):
            joint = p * math.prod(float(move[a, b]) for a, b in zip(x0, x_t.tolist(), strict=True))
            for i, symbol in enumerate(x0):
                found[i, symbol] += joint
        assert torch.allclose(row, found / found.sum(1, keepdim=True), atol=1e-12)


@each
def test_the_ends_of_the_table_are_ordinary(process):
    table = example(process)
    x = process.prior(torch.empty(1, 3), Noise(0, 1))
    singles = torch.stack(
        [table.law().reshape(3, 3, 3).sum([j for j in range(3) if j != i]) for i in range(3)]
    )
    assert torch.allclose(table(x, 1.0).chances[0], singles, atol=1e-12)
    seen = table(torch.tensor([[2, 0, 1]]), CLEAN)
    assert torch.equal(seen.x0, torch.tensor([[2, 0, 1]]))
    assert float(seen.chances.max(-1).values.min()) > 1 - 1e-12


def test_a_table_of_classes_is_asked_for_one_of_them():
    chances = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    process = UniformChain(3)
    both, x = SequenceTable(process, chances, classes=2), states_of(process, 2)
    for label in (0, 1):
        own = SequenceTable(process, chances[label])
        told = {"label": torch.full((9,), label)}
        assert torch.allclose(both(x, 0.4, told).chances, own(x, 0.4).chances, atol=1e-12)
        assert torch.allclose(both.law({"label": torch.tensor([label])})[0], own.law(), atol=1e-12)
    whole = SequenceTable(process, chances.sum(0))
    assert torch.allclose(both(x, 0.4, {"label": torch.full((9,), 2)}).chances, whole(x, 0.4).chances)


def test_samples_of_the_table_have_its_law():
    table = example(MaskedChain(3))
    drawn = table.sample(Noise(2, 4000))
    found = F.one_hot((drawn * torch.tensor([9, 3, 1])).sum(1), 27).double().mean(0)
    law = table.law()
    assert ((found - law).abs() < 5 * (law * (1 - law) / 4000).sqrt()).all()
    assert torch.equal(drawn[5:6], table.sample(Noise(2, (5,))))


@each
def test_a_network_is_completed_by_what_is_certain(process):
    model = CategoricalDenoiser(Guesses(process.states), process)
    x = states_of(process, 3)
    label = {"label": torch.zeros(len(x), dtype=torch.long)}
    check_denoiser(model, x, label)
    with torch.no_grad():
        prediction = model(x, 0.5, label)
        alone = model(x[5:6], torch.tensor([0.5]), {"label": torch.zeros(1, dtype=torch.long)})
    assert torch.allclose(prediction.value[5:6], alone.value, atol=1e-5)
    assert prediction.value.shape == (len(x), 3, 3)
    assert torch.allclose(prediction.chances.sum(-1), torch.ones(len(x), 3), atol=1e-6)
    seen = x < 3
    copied = (prediction.x0 == x) & (prediction.chances.max(-1).values > 1 - 1e-6)
    assert copied[seen].all() if isinstance(process, MaskedChain) else not copied.any()
    with torch.no_grad():  # where there is hardly any noise, what is seen is what is
        assert (model(x, 1e-4, label).x0 == x)[seen].all()
    # a bridge of such a prediction takes back nothing that is seen
    if isinstance(process, MaskedChain):
        after = process.bridge(x, prediction, 0.5, 0.3, Noise(0, len(x)))
        assert torch.equal(after[seen], x[seen])


def test_wrong_networks_and_states_are_refused():
    process = MaskedChain(3)
    x = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(SolverError, match=r"\(2, 3, 4\) of \(2, 3\) symbols.*\(2, 3, 3\)"):
        CategoricalDenoiser(Guesses(symbols=4), process)(x, 0.5)
    with pytest.raises(SolverError, match="categorical process, not Gaussian"):
        CategoricalDenoiser(Guesses(), Gaussian(Flow()))  # type: ignore[arg-type]
    with pytest.raises(SolverError, match="no row 'x0'"):
        CategoricalDenoiser(Guesses(), process)(x, 0.5).to("x0")
    with pytest.raises(SolverError, match="3 chances along each"):
        SequenceTable(process, torch.ones(3, 4))
    with pytest.raises(SolverError, match="0 or more"):
        SequenceTable(process, -torch.ones(3, 3))
    sure = SequenceTable(process, F.one_hot(torch.tensor(4), 9).reshape(3, 3).double())
    with pytest.raises(SolverError, match="no chance to any sequence"):
        sure(torch.tensor([[0, 3]]), 0.5)


# -- guidance --------------------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("weight", [0.5, 2.5])
def test_guidance_tilts_the_chances_and_asks_once(process, weight):
    chances = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.05
    table, calls = SequenceTable(process, chances, classes=2), []

    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.process = process

        def forward(self, x_t, t, condition=None):
            calls.append(len(x_t))
            return table(x_t, t, condition)

    x = states_of(process, 2)
    label = torch.arange(len(x)) % 2
    guided = ClassifierFree(Counted(), weight, classes=2)(x, 0.5, {"label": label})
    own, base = table(x, 0.5, {"label": label}).chances, table(x, 0.5).chances
    tilted = own**weight * base ** (1 - weight)
    tilted = torch.where(base > 0, tilted, 0.0)
    assert calls == [2 * len(x)]
    assert torch.allclose(guided.chances, tilted / tilted.sum(-1, keepdim=True), atol=1e-10)


def test_a_guided_sampler_has_the_tilted_law():
    """One position: nothing is lost by drawing positions alone, so the law is p(x | c)^w p(x)^(1-w) exactly."""
    chances = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], dtype=torch.float64)
    process = MaskedChain(3)
    table = SequenceTable(process, chances, classes=2)
    guided = ClassifierFree(table, 3.0, classes=2)

    class Of(SequenceTable):
        def forward(self, x_t, t, condition=None):
            return guided(x_t, t, {"label": torch.ones(len(x_t), dtype=torch.long)})

    law = chain_law(Ancestral(), Of(process, chances.sum(0)), UniformGrid().levels(process, 5))
    tilted = (chances[1] / chances[1].sum()) ** 3 * (chances.sum(0) / chances.sum()) ** -2
    assert torch.allclose(law, tilted / tilted.sum(), atol=1e-12)


def test_repairs_of_pictures_are_refused_for_symbols():
    table = SequenceTable(MaskedChain(3), torch.ones(2, 3, 3), classes=2)
    guided = ClassifierFree(table, Guidance(2.0, rescale=0.5), classes=2)
    with pytest.raises(SolverError, match="repairs of guidance"):
        guided(torch.full((1, 2), 3), 0.5, {"label": torch.tensor([0])})
    # outside its interval the model's own answer passes
    narrow = ClassifierFree(table, Guidance(2.0, interval=(1.0, 9.0)), classes=2)
    told, x = {"label": torch.tensor([0])}, torch.full((1, 2), 3)
    assert torch.equal(narrow(x, 0.1, told).value, table(x, 0.1, told).value)


# -- the bound -------------------------------------------------------------------------------------------------------


def gathered(process, denoiser, t, cost):
    """The mean over x_t of a cost(prediction, x_0), for every x_0 (27,), by a sum over all that it can become."""
    x0, x_t = table_of_all(), states_of(process, 3)
    move = process.transition(t)
    weight = torch.stack([move[x0[:, i]][:, x_t[:, i]] for i in range(3)]).prod(0)
    x_t, weight = x_t[weight.sum(0) > 0], weight[:, weight.sum(0) > 0]
    said = denoiser(x_t, t)
    first, second = (weight > 0).nonzero(as_tuple=True)
    many = CategoricalPrediction(said.value[second], x_t[second], said.level, process)
    found = weight[first, second] * cost(many, x0[first])
    return torch.zeros(27, dtype=torch.float64).index_add(0, first, found)


def table_of_all():
    return states_of(UniformChain(3), 3)


def continuous(process, denoiser, nodes=40):
    """The continuous bound of every x_0 (27,), by quadrature over time and a sum over x_t."""
    t, w = np.polynomial.legendre.leggauss(nodes)
    total = torch.zeros(27, dtype=torch.float64)
    for v, share in zip((t + 1) / 2, w / 2, strict=True):
        # t = v^2 (3 - 2 v): dense at both ends, where logarithms of t stand
        level = process.level(float(v * v * (3 - 2 * v)))
        total = total + share * 6 * v * (1 - v) * gathered(process, denoiser, level, CategoricalBound.rate)
    return total


def in_steps(process, denoiser, steps):
    """The bound of a chain of T steps of every x_0 (27,), exactly."""
    total = torch.zeros(27, dtype=torch.float64)
    for t, s in pairwise(UniformGrid().levels(process, steps)):
        total = total + gathered(
            process, denoiser, t, lambda said, x0, s=s: CategoricalBound.divergence(said, x0, s)
        )
    return total


@each
def test_with_exact_chances_the_continuous_bound_is_the_entropy(process):
    table = example(process)
    law = table.law()
    entropy = -float((law * law.log()).sum()) / 3
    bound = float((law * continuous(process, table)).sum())
    assert bound == pytest.approx(entropy, abs=1e-5 if process.law == "uniform" else 1e-9)


@each
def test_the_bound_in_steps_bounds_its_sampler_and_tends_to_the_continuous_one(process):
    table = example(process)
    law = table.law()
    limit, gaps = float((law * continuous(process, table)).sum()), []
    for steps in (4, 8, 16):
        bound = in_steps(process, table, steps)
        drawn = chain_law(Ancestral(), table, UniformGrid().levels(process, steps))
        assert (3 * bound >= -drawn.log() - 1e-9).all()  # for every sequence
        gaps.append(float((law * bound).sum()) - limit)
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert fitted_order((4, 8, 16), gaps) == pytest.approx(1, abs=0.25)


def test_the_masked_bound_is_the_general_one_and_the_same_for_every_schedule():
    model = CategoricalDenoiser(Guesses().double(), MaskedChain(3))
    dense = MatrixChain(3, Flow(), MASKING)
    with torch.no_grad():
        x0 = table_of_all().repeat(8, 1)
        x_t = model.process.corrupt(x0, 0.37, Noise(0, len(x0)))
        said = model(x_t, 0.37)
        same = CategoricalPrediction(said.value, x_t, said.level, dense)
        assert torch.allclose(CategoricalBound.rate(said, x0), CategoricalBound.rate(same, x0), atol=1e-9)

        class TimeBlind(Guesses):
            def forward(self, x, noise_level, condition=None):
                return super().forward(x, torch.zeros_like(noise_level), condition)

        bounds = [
            continuous(process, CategoricalDenoiser(TimeBlind().double(), process), 24)
            for process in (MaskedChain(3), MaskedChain(3, Cosine()))
        ]
    assert torch.allclose(*bounds, atol=1e-6)


@each
@pytest.mark.parametrize("steps", [None, 5])
def test_the_loss_and_its_gradient_are_those_of_the_whole_bound(process, steps):
    """Means over many draws against the enumerated bound, within five standard errors in every direction tried."""
    model = CategoricalDenoiser(Guesses(process.states, width=4).double(), process)
    if steps is None:
        whole = continuous(process, model, 16).mean()
    else:
        whole = in_steps(process, model, steps).mean()
    weights = list(model.parameters())
    directions = [torch.randn(w.shape, generator=torch.Generator().manual_seed(4)).double() for w in weights]

    def along(value):
        grads = torch.autograd.grad(value, weights, allow_unused=True)
        return float(sum((g * d).sum() for g, d in zip(grads, directions, strict=True) if g is not None))

    exact = float(whole.detach()), along(whole)
    found = []
    for seed in range(12):
        batch = {"x": table_of_all().repeat(16, 1)}
        loss, figures = CategoricalBound(steps)(model, batch, BatchNoise(seed, 0))
        assert loss.shape == figures["error"].shape == figures["log_snr"].shape == (27 * 16,)
        value = loss.mean()
        found.append((float(value.detach()), along(value)))
    for want, got in zip(exact, np.array(found).T, strict=True):
        assert abs(got.mean() - want) < 5 * got.std() / math.sqrt(len(got)) + 1e-4, (want, got.mean())


@pytest.mark.parametrize("steps", [None, 4])
def test_bits_are_nats_over_log_two_and_do_not_depend_on_the_batch(steps):
    table, many = example(MaskedChain(3)), 20
    bound, law, x0 = CategoricalBound(steps), table.law(), table_of_all().repeat(many, 1)
    bits = bound.bits_per_symbol(table, x0, Noise(1, len(x0)), terms=8)
    whole = continuous(table.process, table) if steps is None else in_steps(table.process, table, steps)
    want, got = float((law * whole).sum()) / math.log(2), bits.reshape(many, 27) @ law
    assert abs(float(got.mean()) - want) < 5 * float(got.std()) / math.sqrt(many)
    alone = bound.bits_per_symbol(table, x0[4:5], Noise(1, (4,)), terms=8)
    assert torch.allclose(alone, bits[4:5], atol=1e-12)


def test_without_its_own_evidence_a_model_of_the_uniform_chain_has_no_finite_bound():
    """The rate grows as 1/t towards the data, so that its integral does not exist; with it, it stays."""
    process, rates = UniformChain(3), {}
    with torch.no_grad():
        for kind in ("chances", "evidence"):
            model = CategoricalDenoiser(Guesses(3).double(), process, kind)
            rates[kind] = [
                float(gathered(process, model, process.level(t), CategoricalBound.rate).mean())
                for t in (1e-2, 1e-3, 1e-4)
            ]
    assert rates["chances"][1] / rates["chances"][0] > 5
    assert rates["chances"][2] / rates["chances"][1] > 9
    assert rates["evidence"][2] / rates["evidence"][1] < 2  # a logarithm at most


def test_what_cannot_be_bounded_is_refused():
    model = CategoricalDenoiser(Guesses(), MaskedChain(3, Linear()))
    with pytest.raises(RecipeError, match="still seen at t = 1"):
        CategoricalBound()(model, {"x": table_of_all()}, BatchNoise(0, 0))
    gaussian = Denoiser(nn.Identity(), Gaussian(Flow()))
    with pytest.raises(RecipeError, match="of a categorical process"):
        CategoricalBound()(gaussian, {"x": torch.zeros(2, 3)}, BatchNoise(0, 0))
    for wrong in ({"steps": 0}, {"steps": True}, {"drop": 1.5}):
        with pytest.raises(RecipeError):
            CategoricalBound(**wrong)


def test_recipes_say_which_objective_trains_symbols():
    assert build_objective("categorical") == CategoricalBound()
    assert build_objective("categorical-steps", steps=64) == CategoricalBound(64)
    assert build_objective("categorical", drop=0.1, classes=5) == CategoricalBound(None, 0.1, 5)
    check_trains(CategoricalBound(), UniformChain(3))
    for objective, process in (
        (CategoricalBound(), Gaussian(Flow())),
        (Denoising(), MaskedChain(3)),
        (Bound(), MaskedChain(3)),
    ):
        with pytest.raises(RecipeError, match="trained by 'categorical'"):
            check_trains(objective, process)


class Places(nn.Module):
    """A network that knows where it looks: three positions at once, three symbols each."""

    def __init__(self, states):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.symbols = nn.Embedding(states, 8)
            self.layers = nn.Sequential(
                nn.Linear(25, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 9)
            )

    def forward(self, x, noise_level, condition=None):
        seen = torch.cat([self.symbols(x).flatten(1), noise_level[:, None]], 1)
        return self.layers(seen).reshape(len(x), 3, 3)


@each
def test_a_network_trained_by_the_bound_comes_to_the_entropy(process):
    table = example(process)
    law = table.law()
    model = CategoricalDenoiser(Places(process.states), process)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(300):
        x0 = table.sequences[symbols(law.expand(1, 128, -1), BatchNoise(1, step))[0]]
        loss, _ = CategoricalBound()(model, {"x": x0}, BatchNoise(0, step))
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
    entropy = -float((law * law.log()).sum()) / 3
    alone = math.log(3)  # what a model that learned nothing would say, nearly
    with torch.no_grad():
        bound = float((law * continuous(process, model, 24)).sum())
    assert entropy - 1e-4 < bound < entropy + 0.4 * (alone - entropy)


def test_dropped_conditions_train_both_branches():
    model = CategoricalDenoiser(Guesses(), MaskedChain(3))
    x = table_of_all()
    batch = {"x": x, "condition": {"label": torch.zeros(27, dtype=torch.long)}}
    loss, _ = CategoricalBound(None, 0.5, 2)(model, batch, BatchNoise(0, 0))
    loss.mean().backward()
    grads = model.network.classes.weight.grad.abs().sum(1)
    assert grads[0] > 0
    assert grads[2] > 0
    assert grads[1] == 0
