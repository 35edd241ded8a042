"""Joint states: a mixture and its labels, whose joint law, conditionals and marginals are all known."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sfumato.denoisers import (
    CategoricalDenoiser,
    Denoiser,
    GaussianMixture,
    JointDenoiser,
    LabelledMixture,
)
from sfumato.errors import SolverError
from sfumato.noise import Noise
from sfumato.processes import (
    CLEAN,
    Cosine,
    Flow,
    Gaussian,
    Joint,
    Langevin,
    MaskedChain,
    UniformChain,
    build_process,
)
from sfumato.solvers import (
    DDIM,
    Adams,
    AdaptiveODE,
    Ancestral,
    Heun,
    TauLeaping,
    UniformGrid,
    integrate,
    integrate_joint,
    sample_joint,
)

MEANS = torch.tensor([[-1.5, 0.5], [1.5, 0.0], [0.3, -1.2]])
SPREAD = torch.tensor([[0.3, 0.1], [0.2, 0.2], [0.1, 0.4]])
WEIGHTS = torch.tensor([0.2, 0.3, 0.5])
COUNT = 1500
SHAPES = {"x": (2,), "label": (1,)}
CHAINS = pytest.mark.parametrize("chain", [MaskedChain(3), UniformChain(3)], ids=lambda p: p.law)


def exact(chain):
    return LabelledMixture(GaussianMixture(Gaussian(Flow()), MEANS, SPREAD, WEIGHTS), chain)


def shares(label):
    return F.one_hot(label[:, 0], 3).double().mean(0)


def close(found, want, spread, count, bias=0.0):
    assert ((found - want).abs() < 5 * spread / count**0.5 + bias).all(), (found, want)


@CHAINS
def test_the_joint_law_is_met(chain):
    """Shares of the labels, mean and variance of each one's x; a bias of first order in the step is allowed."""
    x = sample_joint(exact(chain), Noise(0, COUNT), SHAPES, steps=40, solvers={"x": Ancestral()})
    close(shares(x["label"]), WEIGHTS, 0.5, COUNT, 0.01)
    for k in range(3):
        own = x["x"][x["label"][:, 0] == k]
        close(own.mean(0), MEANS[k], SPREAD[k].sqrt(), len(own), 0.05)
        close(own.var(0), SPREAD[k], SPREAD[k] * 2**0.5, len(own), 0.05)


@CHAINS
def test_x_given_a_label_is_that_component(chain):
    """Held clean, the label makes the joint sampler the plain one of a component: the same numbers, to rounding."""
    label = torch.arange(30)[:, None].remainder(3)
    joint = exact(chain)
    drawn = sample_joint(joint, Noise(1, 30), SHAPES, steps=9, given={"label": label})
    assert torch.equal(drawn["label"], label)
    levels = UniformGrid().levels(joint.mixture.process, 9)
    start = joint.process.prior({"x": torch.empty(30, 2)}, Noise(1, 30).at(0))["x"]
    plain = integrate(joint.mixture, DDIM(), levels, start, Noise(1, 30), {"label": label[:, 0]})
    assert torch.allclose(drawn["x"], plain, atol=1e-5)


@CHAINS
def test_a_label_given_x_has_the_responsibilities(chain):
    joint = exact(chain)
    place = torch.tensor([0.8, -0.4])
    x = place.expand(COUNT, 2)
    want = joint.mixture.responsibilities(place[None])[0]
    assert 0.1 < want.max() < 0.9
    for steps in (1, 4):  # one symbol alone is drawn without error in any number of steps
        drawn = sample_joint(joint, Noise(2, COUNT), SHAPES, steps=steps, given={"x": x})
        assert torch.equal(drawn["x"], x)
        close(shares(drawn["label"]), want, (want * (1 - want)).sqrt(), COUNT)


def test_absent_leaves_leave_the_marginals():
    joint = exact(MaskedChain(3))
    drawn = sample_joint(joint, Noise(3, 40), SHAPES, steps=12, absent=["label"])
    assert drawn.keys() == {"x"}
    levels = UniformGrid().levels(joint.mixture.process, 12)
    start = joint.process.prior({"x": torch.empty(40, 2)}, Noise(3, 40).at(0))["x"]
    plain = integrate(joint.mixture, DDIM(), levels, start, Noise(3, 40))
    assert torch.allclose(drawn["x"], plain, atol=1e-5)
    labels = sample_joint(joint, Noise(4, COUNT), SHAPES, steps=2, absent=["x"])["label"]
    close(shares(labels), WEIGHTS, (WEIGHTS * (1 - WEIGHTS)).sqrt(), COUNT)


def test_a_leaf_may_move_after_another():
    """Any path of times will do: labels first and then x, or both at once, is one law."""
    joint = exact(MaskedChain(3))
    grids = {n: UniformGrid().levels(joint.process[n], k) for n, k in (("label", 4), ("x", 12))}
    paths = {
        "label": [*grids["label"], *[CLEAN] * 12],
        "x": [*[grids["x"][0]] * 4, *grids["x"]],
    }
    noise = Noise(6, COUNT)
    start = joint.process.prior({"x": torch.empty(COUNT, 2), "label": torch.empty(COUNT, 1)}, noise.at(0))
    end = integrate_joint(joint, {"x": DDIM(), "label": Ancestral()}, paths, start, noise)
    close(shares(end["label"]), WEIGHTS, (WEIGHTS * (1 - WEIGHTS)).sqrt(), COUNT)
    for k in range(3):
        own = end["x"][end["label"][:, 0] == k]
        close(own.mean(0), MEANS[k], SPREAD[k].sqrt(), len(own), 0.02)


def test_a_sample_alone_is_the_same_sample_in_a_batch():
    joint = exact(UniformChain(3))
    many = sample_joint(
        joint, Noise(7, 9), SHAPES, steps=6, solvers={"label": TauLeaping(), "x": Ancestral()}
    )
    one = sample_joint(
        joint, Noise(7, (5,)), SHAPES, steps=6, solvers={"label": TauLeaping(), "x": Ancestral()}
    )
    assert torch.allclose(many["x"][5:6], one["x"], atol=1e-5)
    assert torch.equal(many["label"][5:6], one["label"])


def test_what_is_drawn_for_a_leaf_does_not_depend_on_the_others():
    x = torch.arange(12).reshape(4, 3).remainder(3)
    two = Joint({"a": UniformChain(3), "b": UniformChain(3)}).corrupt({"a": x, "b": x}, 0.8, Noise(0, 4))
    one = Joint({"b": UniformChain(3)}).corrupt({"b": x}, 0.8, Noise(0, 4))
    assert torch.equal(two["b"], one["b"])
    assert not torch.equal(two["a"], two["b"])  # and leaves share no numbers


def test_every_leaf_is_noised_to_its_own_time_and_bridged_back():
    process = Joint({"x": Gaussian(Cosine()), "s": MaskedChain(3)})
    x0 = {"x": torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), "s": torch.zeros(5, 4).long()}
    there = process.corrupt(x0, {"x": 0.0, "s": 1.0}, Noise(0, 5))
    assert torch.allclose(there["x"], x0["x"], atol=1e-6)
    assert (there["s"] == 3).all()
    own = Noise(0, 5)
    assert torch.equal(
        process.corrupt(x0, 0.5, own)["s"], process["s"].corrupt(x0["s"], 0.5, process.draws("s", own))
    )
    known = {"s": process["s"].certain(x0["s"], there["s"], 1.0, torch.float64)}
    back = process.bridge(there, known, {"x": 0.0, "s": 1.0}, {"x": 0.0, "s": CLEAN}, Noise(0, 5))
    assert torch.equal(back["x"], there["x"])  # its time stands still
    assert torch.equal(back["s"], x0["s"])


class Both(nn.Module):
    """A network of both leaves: numbers see the symbols' mean, symbols see the numbers."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.embed, self.x, self.s = nn.Embedding(4, 2), nn.Linear(2, 2), nn.Linear(2, 3)

    def forward(self, state, noise_level, condition=None):
        h = self.embed(state["s"])
        x = self.x(state["x"] + h.mean(1)) + noise_level["s"][:, None]
        return {"x": x, "s": self.s(h + state["x"][:, None]) + noise_level["x"][:, None, None]}


class Alone(nn.Module):
    """One leaf of `Both`, the other being fixed."""

    def __init__(self, both, leaf, other, level):
        super().__init__()
        self.both, self.leaf, self.other, self.level = both, leaf, other, level

    def forward(self, x, noise_level, condition=None):
        rest = {"x": "s", "s": "x"}[self.leaf]
        told = {self.leaf: noise_level, rest: self.level}
        return self.both({self.leaf: x, rest: self.other}, told)[self.leaf]


def test_a_joint_denoiser_says_of_a_leaf_what_a_denoiser_of_that_leaf_would():
    numbers, symbols, both = Gaussian(Cosine()), MaskedChain(3), Both()
    denoiser = JointDenoiser(both, Joint({"x": numbers, "s": symbols}), {"x": "edm"})
    state = {"x": torch.randn(4, 2), "s": torch.tensor([[3, 0, 3]]).expand(4, 3)}
    said = denoiser(state, {"x": 0.3, "s": 0.8})
    level = {
        n: torch.full((4,), -float(p.level(t).log_snr) / 8)
        for n, p, t in (("x", numbers, 0.3), ("s", symbols, 0.8))
    }
    scaled = numbers.view(state["x"], numbers.level(0.3))[0]
    x = Denoiser(Alone(both, "x", state["s"], level["s"]), numbers, "edm")(state["x"], 0.3)
    s = CategoricalDenoiser(Alone(both, "s", scaled, level["x"]), symbols)(state["s"], 0.8)
    assert torch.allclose(said["x"].x0, x.x0, atol=1e-6)
    assert torch.allclose(said["s"].value, s.value, atol=1e-6)
    drawn = sample_joint(denoiser, Noise(0, 4), {"x": (2,), "s": (3,)}, steps=3)
    assert drawn["s"].shape == (4, 3)
    assert (drawn["s"] < 3).all()
    assert drawn["x"].isfinite().all()


def test_one_question_a_step():
    joint, calls = exact(MaskedChain(3)), []

    class Counted(nn.Module):
        process = joint.process

        def forward(self, x_t, t, condition=None):
            calls.append(t)
            return joint(x_t, t, condition)

    sample_joint(Counted(), Noise(0, 3), SHAPES, steps=7, solvers={"x": Adams(2)})
    assert len(calls) == 7


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda d: sample_joint(d, Noise(0, 2), SHAPES, steps=3, solvers={"x": Heun()}), "ask once a step"),
        (lambda d: sample_joint(d, Noise(0, 2), SHAPES, steps=3, solvers={"x": AdaptiveODE()}), "ask once"),
        (lambda d: sample_joint(d, Noise(0, 2), SHAPES, steps=3, solvers={"label": DDIM()}), "serves Gaussian"),
        (lambda d: sample_joint(d, Noise(0, 2), SHAPES, steps=3, absent=["lable"]), "did you mean 'label'"),
        (lambda d: sample_joint(d, Noise(0, 2), {"x": (2,)}, steps=3), "needs a shape"),
        (lambda d: sample_joint(d, Noise(0, 2), SHAPES, steps=3, given={"x": torch.zeros(3, 2)}), "3 rows"),
        (
            lambda d: sample_joint(d, Noise(0, 2), SHAPES, steps=3, given={"x": torch.zeros(2, 2)}, absent="x"),
            "both given and absent",
        ),
        (lambda d: d({"x": torch.zeros(2, 2)}, 0.5), "lack"),
        (lambda d: d.process.corrupt({"x": torch.zeros(2, 2)}, 0.5, Noise(0, 2)), "data lack the leaf 'label'"),
        (lambda d: d.process.level({"x": 0.5}), "times lack the leaf 'label'"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(call, words):
    with pytest.raises(SolverError, match=words):
        call(exact(MaskedChain(3)))


def test_what_is_no_joint_process_is_refused():
    for wrong, words in (
        ({}, "dict of processes"),
        ({"x": Langevin()}, "gaussian or categorical"),
        ({"x": 3}, "is int"),
        ([Gaussian(Flow())], "dict of processes"),
    ):
        with pytest.raises(SolverError, match=words):
            Joint(wrong)  # type: ignore[arg-type]
    with pytest.raises(SolverError, match="does not name 3 components"):
        LabelledMixture(GaussianMixture(Gaussian(Flow()), MEANS, SPREAD), UniformChain(4))
    with pytest.raises(SolverError, match="needs a joint process"):
        JointDenoiser(Both(), Gaussian(Flow()))  # type: ignore[arg-type]


def test_a_joint_process_is_made_again_from_what_it_writes():
    process = Joint({"x": Gaussian(Cosine()), "s": UniformChain(5)})
    assert build_process(**json.loads(json.dumps(process.to_json()))) == process
    with pytest.raises(SolverError, match="no schedule of its own"):
        build_process("joint", schedule={"kind": "flow"})
    with pytest.raises(SolverError, match="a schedule and no"):
        build_process("gaussian")
