"""Samplers of symbols: the law of a whole run, exactly, by their one-step kernels on a table of sequences."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch.nn import functional as F

from sfumato.denoisers import GaussianMixture
from sfumato.editing import fill_gaps
from sfumato.editing.filling import Shown
from sfumato.errors import SolverError
from sfumato.noise import Noise
from sfumato.processes import (
    Cosine,
    Flow,
    Gaussian,
    LawBroken,
    MaskedChain,
    MatrixChain,
    UniformChain,
)
from sfumato.solvers import (
    Ancestral,
    Euler,
    FlowGrid,
    PredictorCorrector,
    Remasking,
    TauLeaping,
    UniformGrid,
    Unmasking,
    build_solver,
    chain_errors,
    chain_law,
    check_served,
    check_solver,
    integrate,
    sample,
    total_variation,
)
from sfumato.solvers.categorical_laws import CHAIN_STEPS, example
from sfumato.solvers.laws import fitted_order

RATES = ((-1.0, 0.8, 0.2), (0.1, -0.5, 0.4), (0.6, 0.3, -0.9))
SOLVERS = [Ancestral(), TauLeaping(), Remasking(2.0)]
each = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.kind)


@each
@pytest.mark.parametrize(
    "process",
    [MaskedChain(3), UniformChain(3), MatrixChain(3, Flow(), RATES), MaskedChain(2, Cosine())],
    ids=lambda p: f"{p.law}-{p.schedule.kind}",
)
def test_the_law_comes_nearer_with_the_stated_order(solver, process):
    errors = chain_errors(solver, process)
    assert fitted_order(CHAIN_STEPS, errors) == pytest.approx(1, abs=0.15), errors
    assert errors[-1] < 0.02


@pytest.mark.parametrize("process", [MaskedChain(3), UniformChain(3)], ids=lambda p: p.law)
def test_one_position_is_drawn_without_error(process):
    """With one position nothing is lost by drawing positions alone: any grid, even of one step, is exact."""
    table = example(process, 1)
    for grid, steps in ((UniformGrid(), 1), (UniformGrid(), 3), (FlowGrid(rho=2.0), 4)):
        law = chain_law(Ancestral(), table, grid.levels(process, steps))
        assert total_variation(law, table.law()) < 1e-12


def test_without_renewals_remasking_is_the_bridge():
    process = MaskedChain(3)
    levels, table = UniformGrid().levels(process, 5), example(process)
    laws = [chain_law(solver, table, levels) for solver in (Ancestral(), Remasking(0.0), Remasking(9.0))]
    assert torch.allclose(laws[0], laws[1], atol=1e-14)
    assert total_variation(laws[0], laws[2]) > 1e-3


def test_remasking_hides_what_is_seen_at_the_papers_rate():
    """Wang et al. 2025, eq. 6: hidden again with sigma, shown with (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)."""
    process, solver = MaskedChain(3), Remasking(5.0)
    t, s = process.level(0.6), process.level(0.5)
    x_t = torch.tensor([[3, 1]])
    chances = solver.chances(example(process, 2)(x_t, t), s)
    sigma = (1 - torch.exp(torch.tensor(-0.5, dtype=torch.float64))) * (1 - s.alpha)
    assert torch.allclose(chances[0, 1, 3], sigma, atol=1e-12)
    shown = (s.alpha - (1 - sigma) * t.alpha) / (1 - t.alpha)
    assert torch.allclose(1 - chances[0, 0, 3], shown, atol=1e-12)


def test_unmasking_the_surest_position_first_is_exact_one_at_a_time():
    off = {
        (solver.by, steps): chain_errors(solver, MaskedChain(3), (steps,))[0]
        for solver in (Unmasking(), Unmasking("drawn"))
        for steps in (1, 3)
    }
    assert off["certainty", 3] < 1e-12
    assert off["drawn", 3] > 0.02  # MaskGIT's order prefers likely symbols
    assert off["certainty", 1] > 0.05  # all at once they know nothing of each other
    assert off["certainty", 1] == pytest.approx(off["drawn", 1], abs=1e-12)
    with pytest.raises(SolverError, match="temperature 0"):
        chain_errors(Unmasking(temperature=1.0), MaskedChain(3))


def test_the_enumerated_law_of_unmasking_is_that_of_its_samples():
    process = MaskedChain(3)
    table, levels = example(process, 2), UniformGrid().levels(process, 2)
    law = chain_law(Unmasking("drawn"), table, levels)
    x = sample(table, Noise(8, 1000), (2,), solver=Unmasking("drawn"), levels=levels)
    found = F.one_hot((x * torch.tensor([3, 1])).sum(1), 9).double().mean(0)
    assert ((found - law).abs() < 5 * (law * (1 - law) / 1000).sqrt() + 1e-3).all()


@dataclass(frozen=True)
class Peeks(Unmasking):  # ranks by what was drawn while it says it does not
    def step(self, denoise, process, x, t, s, carry, noise):
        return Unmasking("drawn").step(denoise, process, x, t, s, carry, noise)


def test_unmasking_shows_as_many_as_the_schedule_wants():
    process = MaskedChain(3, Cosine())
    table, counts = example(process, 6), []
    levels = FlowGrid().levels(process, 4)
    x = process.prior(torch.empty(9, 6), Noise(0, 9))
    x[:, 1] = 2  # a given symbol is no part of the count, and stays
    integrate(
        table,
        Unmasking(temperature=2.0),
        levels,
        x,
        Noise(0, 9),
        callback=lambda i, n, x, p: counts.append(x),
    )
    for level, state in zip(levels[1:], counts, strict=True):
        assert ((state == 3).sum(1) == int(5 * (1 - level.alpha) + 1e-6)).all()
        assert (state[:, 1] == 2).all()


def test_a_hot_order_is_another_order():
    process = MaskedChain(3)
    table, levels = example(process, 4), UniformGrid().levels(process, 4)
    firsts = []
    for solver in (Unmasking(), Unmasking(temperature=100.0)):
        x = process.prior(torch.empty(200, 4), Noise(0, 200))
        x, _ = solver.step(table, process, x, levels[0], levels[1], None, Noise(3, 200).at(1))
        firsts.append(F.one_hot((x != 3).long().argmax(1), 4).double().mean(0))
    assert firsts[0].max() == 1  # every sample begins at the same, surest place
    assert (firsts[1] - 0.25).abs().max() < 5 * (0.25 * 0.75 / 200) ** 0.5


@pytest.mark.parametrize("solver", [Ancestral(), TauLeaping(), Unmasking()], ids=lambda s: s.kind)
def test_a_gap_is_filled_by_what_is_around_it(solver):
    """From t = 1, where no symbol could be seen by chance; the one hidden position has its conditional law."""
    process = MaskedChain(3)
    table = example(process)
    x = torch.tensor([[0, 3, 2]]).expand(1200, 3)
    drawn = integrate(table, solver, UniformGrid().levels(process, 3), x, Noise(4, 1200))
    assert torch.equal(drawn[:, [0, 2]], x[:, [0, 2]])
    want = table.law().reshape(3, 3, 3)[0, :, 2]
    want = want / want.sum()
    found = F.one_hot(drawn[:, 1], 3).double().mean(0)
    assert ((found - want).abs() < 5 * (want * (1 - want) / 1200).sqrt()).all()


FILLERS = [Ancestral(), TauLeaping(), Unmasking(), Remasking(8.0)]


@pytest.mark.parametrize("solver", FILLERS, ids=lambda s: s.kind)
def test_what_is_given_stays_and_the_rest_has_its_conditional_law(solver):
    """The law of the filled positions against the table's conditional, by total variation."""
    n, process = 1500, MaskedChain(3)
    table, levels = example(process), UniformGrid().levels(process, 24)
    for row in ([1, -1, -1], [2, -1, 0]):
        given = torch.tensor(row)
        known = given != -1
        drawn = fill_gaps(table, given.expand(n, 3), Noise(6, n), solver=solver, levels=levels)
        assert bool((drawn[:, known] == given[known]).all())
        want = torch.where((table.sequences[:, known] == given[known]).all(1), table.law(), 0.0)
        want = want / want.sum()
        found = F.one_hot((drawn * torch.tensor([9, 3, 1])).sum(1), 27).double().mean(0)
        # n draws are off by 1/2 sum sqrt(2 q (1 - q) / (pi n)) on average, and 24 steps by up to .02 where two
        # positions are free; positions drawn without knowing each other would be off by .24 in the first row
        chance = 0.5 * float((2 * want * (1 - want) / (torch.pi * n)).sqrt().sum())
        assert total_variation(found, want) < 2.5 * chance + 0.02 * (known.sum() == 1)


def test_remasking_alone_does_not_know_what_is_given():
    """Why there is `fill_gaps`: begun with what is known, this solver hides it and draws it anew."""
    process = MaskedChain(3)
    table, levels, start = example(process), UniformGrid().levels(process, 12), torch.tensor([[0, 3, 2]])
    alone = integrate(table, Remasking(8.0), levels, start.expand(300, 3), Noise(4, 300))
    kept = fill_gaps(table, torch.tensor([[0, -1, 2]]).expand(300, 3), Noise(4, 300), solver=Remasking(8.0),
                     levels=levels)  # fmt: skip
    assert (alone[:, 0] != 0).double().mean() > 0.2
    assert bool((kept[:, [0, 2]] == torch.tensor([0, 2])).all())


def test_the_time_that_is_told_is_that_of_as_many_masks():
    """Of a state with a third hidden, whatever the run's time; what is said is the same, and is about the run's."""
    for schedule in (Flow(), Cosine()):
        process = MaskedChain(3, schedule)
        table, told = example(process), []

        def asked(x_t, t, condition=None, table=table, told=told):
            told.append(t)
            return table(x_t, t, condition)

        asked.process = process
        x, t = torch.tensor([[0, 3, 2], [3, 3, 1]]), process.level(0.9)
        found = Shown(asked)(x, t)
        share = 1 - process.level(told[0]).alpha
        torch.testing.assert_close(share, torch.tensor([1, 2], dtype=torch.float64) / 3, rtol=1e-6, atol=0)
        assert found.level == t
        torch.testing.assert_close(found.value.exp(), table(x, t).value.exp())


def test_what_cannot_be_told_what_is_given_is_refused():
    given, levels = torch.tensor([[0, -1]]), UniformGrid().levels(MaskedChain(3), 4)
    numbers = GaussianMixture(Gaussian(Flow()), torch.zeros(1, 2), torch.ones(1, 2))
    for denoiser, solver, x, words in (
        (example(UniformChain(3), 2), Ancestral(), given, "uniform chain cannot be told"),
        (numbers, Ancestral(), given, "restore"),
        (example(MaskedChain(3), 2), Euler(), given, "euler solver serves Gaussian"),
        (example(MaskedChain(3), 2), Ancestral(), torch.tensor([[3, -1]]), "from 0 to 2"),
    ):
        with pytest.raises(SolverError, match=words):
            fill_gaps(denoiser, x, Noise(0, 1), solver=solver, levels=levels)


@dataclass(frozen=True)
class Hasty(TauLeaping):
    def chances(self, prediction, s):
        chances = super().chances(prediction, s)
        return chances if s.sigma == 0 else 0.9 * chances + 0.1 / chances.shape[-1]


@dataclass(frozen=True)
class Boasts(TauLeaping):
    order: ClassVar[int] = 2


@dataclass(frozen=True)
class Otherwise(TauLeaping):
    def step(self, denoise, process, x, t, s, carry, noise):
        return process.bridge(x, denoise(x, t), t, s, noise), None


@dataclass(frozen=True)
class Lingers(Ancestral):
    def step(self, denoise, process, x, t, s, carry, noise):
        return x, denoise(x, t) and None


@pytest.mark.parametrize(
    ("solver", "words"),
    [
        (Hasty(), "order 1 but"),
        (Boasts(), "order 2 but"),
        (Otherwise(), "chances that it states"),
        (Lingers(), "clean data"),
        (Peeks(), "one position at a time"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_check_solver_catches_planted_defects(solver, words):
    with pytest.raises(LawBroken, match=words):
        check_solver(solver)


@pytest.mark.parametrize("solver", [Unmasking("drawn"), Unmasking(temperature=3.0), Remasking(0.0)])
def test_check_solver_passes_their_variants(solver):  # the defaults' are in test_solvers.py
    check_solver(solver)


def test_sampling_from_the_prior_gives_data_of_the_law():
    """The whole public way, by frequencies: 1,000 samples at 12 steps, against the law that is known of the run."""
    process = UniformChain(3)
    table, levels = example(process, 2), UniformGrid().levels(process, 12)
    x = sample(table, Noise(5, 1000), (2,), solver=Ancestral(), levels=levels)
    assert x.dtype == torch.long
    found = F.one_hot((x * torch.tensor([3, 1])).sum(1), 9).double().mean(0)
    law = chain_law(Ancestral(), table, levels)
    assert ((found - law).abs() < 5 * (law * (1 - law) / 1000).sqrt()).all()
    assert torch.equal(x[7:8], sample(table, Noise(5, (7,)), (2,), solver=Ancestral(), levels=levels))


def test_a_solver_refuses_what_it_does_not_serve():
    numbers = GaussianMixture(Gaussian(Flow()), torch.zeros(1, 2), torch.ones(1, 2)).process
    for solver, process, words in (
        (TauLeaping(), numbers, "serves Categorical processes, not Gaussian"),
        (Unmasking(), UniformChain(3), "serves MaskedChain processes, not UniformChain"),
        (Euler(), MaskedChain(3), "serves Gaussian processes, not MaskedChain"),
        (Ancestral("chain"), MaskedChain(3), "serves Gaussian"),
        (PredictorCorrector(), MaskedChain(3), "serves Gaussian"),
    ):
        with pytest.raises(SolverError, match=words):
            check_served(solver, process)


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        ("remasking", {"renewals": -1.0}, "0 or more"),
        ("unmasking", {"by": "certainity"}, "did you mean 'certainty'"),
        ("unmasking", {"temperature": float("nan")}, "temperature"),
        ("tau-leaping", {"tau": 1}, "tau"),
    ],
)
def test_wrong_values_are_refused(kind, values, words):
    with pytest.raises(SolverError, match=words):
        build_solver(kind, **values)
    plain = build_solver(kind)
    assert build_solver(**json.loads(json.dumps(plain.to_json()))) == plain
