"""Estimates that agree with what is told: what is told is in every sample, and nothing else is touched."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sfumato.denoisers import Agreeing, Denoiser, GaussianMixture, InPhase, SequenceTable
from sfumato.errors import SolverError
from sfumato.noise import Noise
from sfumato.processes import Flow, Gaussian, Langevin, Linear, MaskedChain
from sfumato.solvers import AngleGrid, DPMpp2M, sample
from test_denoisers import Small, each_schedule, mixture
from test_guidance import points


@each_schedule
def test_what_is_told_is_in_every_sample_and_what_is_independent_of_it_is_untouched(schedule):
    # the first number is the component's, the second is not
    means = torch.tensor([[-1.0, 0.5], [1.0, 0.5]], dtype=torch.float64)
    model = GaussianMixture(
        Gaussian(schedule), means, torch.eye(2, dtype=torch.float64).expand(2, 2, 2) * 0.3
    )
    told = {"first": torch.tensor([[0.4], [-2.0], [1.1]], dtype=torch.float64)}

    class Deaf(nn.Module):  # it is told, and does not listen
        process = model.process

        def forward(self, x_t, t, condition=None):
            return model(x_t, t)

    agreeing = Agreeing(Deaf(), lambda x0, condition: torch.cat([condition["first"], x0[:, 1:]], 1))
    noise, like = Noise(0, 3), torch.empty(0, dtype=torch.float64)
    levels = AngleGrid().levels(model.process, 8)
    drawn = [
        sample(own, noise, (2,), solver=DPMpp2M(), levels=levels, condition=told, like=like)
        for own in (Deaf(), agreeing)
    ]
    assert torch.allclose(drawn[1][:, :1], told["first"], atol=1e-6)
    assert torch.allclose(drawn[1][:, 1:], drawn[0][:, 1:], atol=1e-10)
    # no estimate is further from an x0 that has what is told
    x0 = torch.cat([told["first"], points(1, 3)[:, 1:]], 1)
    x_t, level = points(2, 3), model.process.level(0.5)
    off = [(own(x_t, level, told).x0 - x0).square().sum(1) for own in (Deaf(), agreeing)]
    assert (off[1] <= off[0]).all()
    assert torch.equal(agreeing(x_t, level).x0, model(x_t, level).x0)


def test_what_agrees_keeps_the_variance_and_the_phase_space_and_takes_no_symbols():
    doubled = lambda x0, condition: 2 * x0  # noqa: E731
    process = Gaussian(Linear())
    learned = Denoiser(Small(out=2).double(), process, learned_variance=True)
    x, told = points(0, 3, 4), {"any": torch.zeros(3)}
    plain, made = learned(x, 0.4, told), Agreeing(learned, doubled)(x, 0.4, told)
    assert torch.equal(made.variance, plain.variance)
    assert torch.equal(made.x0, 2 * plain.x0)
    langevin = InPhase(mixture(Gaussian(Flow())), Langevin())
    x = points(1, 3, 4)  # positions and velocities in the plane
    plain, made = langevin(x, 0.4, told), Agreeing(langevin, doubled)(x, 0.4, told)
    assert torch.allclose(made.x0, 2 * plain.x0)
    assert made.to("eps").shape == plain.to("eps").shape
    assert Agreeing(learned, doubled).guides  # so it is given no likelihood
    symbols = SequenceTable(MaskedChain(3), torch.ones(3, 3) / 9)
    with pytest.raises(SolverError, match="not those of MaskedChain"):
        Agreeing(symbols, doubled)
