"""Guidance as a value, in models and bundles, and the classifier of noisy data."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from guidance_cases import points
from sfumato.denoisers import (
    Classifier,
    ClassifierFree,
    Denoiser,
    GaussianMixture,
    Guidance,
    ScoreGuided,
    build_guidance,
)
from sfumato.errors import BundleError, RecipeError, SolverError
from sfumato.noise import BatchNoise
from sfumato.objectives import build_objective
from sfumato.processes import Flow, Gaussian
from sfumato.sampling import Sampling
from sfumato.solvers import DPMpp2M, FlowGrid
from sfumato.solvers.tuned import Tuned, adams
from test_denoisers import Small

words = st.dictionaries(
    st.sampled_from(["label", "text"]), st.text(min_size=1) | st.integers(0, 99), min_size=1
)
guidances = st.builds(
    Guidance,
    weight=st.floats(-50, 50),
    interval=st.none() | st.floats(0, 1).flatmap(lambda a: st.tuples(st.just(a), st.floats(1.5, math.inf))),
    rescale=st.floats(0, 1),
    parallel=st.floats(0, 1),
    norm=st.none() | st.floats(1e-3, 1e3),
    threshold=st.none() | st.floats(0.1, 1),
    negative=st.none() | words,
    also=st.lists(st.tuples(st.floats(-5, 5), words), max_size=2).map(tuple),
)


@settings(max_examples=20)
@given(guidances)
def test_guidance_survives_text_and_settings_json(guidance):
    assert build_guidance(guidance.to_json()) == build_guidance(guidance)
    plan = Sampling(DPMpp2M(), FlowGrid(), 5, guidance)
    assert Sampling.from_json(json.loads(json.dumps(plan.to_json(), allow_nan=False))) == plan
    tuned = dataclasses.replace(adams(Gaussian(Flow()), 3), guidance=guidance)
    read = json.loads(json.dumps(tuned.to_json(), allow_nan=False))
    assert Tuned(**{key: value for key, value in read.items() if key != "kind"}) == tuned


def test_a_mere_weight_stays_a_number():
    for value in (2, 2.0, "2", Guidance(2), "2:rescale=0"):
        assert type(build_guidance(value)) is float
        assert build_guidance(value) == 2
    spec = "2.5:interval=0.2..3,rescale=0.7,negative=label:Bag,also=-0.5*label:Coat"
    built = build_guidance(spec)
    assert built == Guidance(
        2.5, (0.2, 3.0), 0.7, negative={"label": "Bag"}, also=((-0.5, {"label": "Coat"}),)
    )
    assert f"{built:g}" == str(built)
    assert f"{build_guidance('2.5:interval=.2..inf'):g}" == "2.5:interval=0.2..inf"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("much", "must be a number, not 'much'"),
        ("2:rescal=0.7", "did you mean 'rescale'"),
        ("2:rescale", "weight:name=value"),
        ("2:rescale=2", r"in \[0, 1\], not 2"),
        ("2:interval=3", "low..high"),
        ("2:interval=3..1", "low < high"),
        ("2:threshold=0", "threshold"),
        ("2:norm=-1", "positive"),
        ("2:negative=Bag", "name:value"),
        ("2:also=label:Bag", "weight\\*name:value"),
        (math.nan, "finite"),
        ("inf", "finite"),
        (1e30, "overflows"),
        (True, "finite"),
    ],
)
def test_guidance_that_cannot_be_is_refused_in_one_line(value, said):
    with pytest.raises(SolverError, match=said) as caught:
        build_guidance(value)
    assert "\n" not in str(caught.value)


def test_a_weight_that_overflows_is_named():
    huge = 1e38 * torch.ones(2, 4)

    class Far(Small):
        def forward(self, x, noise_level, condition=None):
            return huge.repeat(len(x) // 2, 1) * torch.where(condition["label"] == 3, -1.0, 1.0)[:, None]

    guided = ClassifierFree(Denoiser(Far(), Gaussian(Flow()), "x0"), 1e4, 3)
    with pytest.raises(SolverError, match="weight overflows"):
        guided(torch.ones(2, 4), 0.5, {"label": torch.tensor([0, 1])})


# -- in a model ----------------------------------------------


def test_a_model_takes_every_form_and_refuses_words_it_does_not_know(demo_folder):
    import sfumato

    model = sfumato.load(demo_folder / "runs" / "demo" / "model")
    ask = {"condition": {"label": 3}, "steps": 3}
    by_text = model.sample(2, guidance="2:interval=0.2..3,negative=label:7", **ask)
    by_value = model.sample(2, guidance=Guidance(2, (0.2, 3), negative={"label": "7"}), **ask)
    assert torch.equal(by_text, by_value)
    assert not torch.equal(by_text, model.sample(2, guidance="2:interval=0.2..3", **ask))
    assert torch.equal(model.sample(2, guidance="2", **ask), model.sample(2, guidance=2.0, **ask))
    with pytest.raises(BundleError, match="out of range"):
        model.sample(2, guidance="2:negative=label:77", **ask)
    with pytest.raises(BundleError, match="unknown condition 'txt'"):
        model.sample(2, guidance="2:also=1*txt:hello", **ask)
    with pytest.raises(SolverError, match="overflows"):
        model.sample(2, guidance=1e9, **ask)


def test_a_tuned_solver_is_bound_to_the_whole_guidance(demo_folder):
    import sfumato

    model = sfumato.load(demo_folder / "runs" / "demo" / "model")
    spec = "2:interval=0.2..3,rescale=0.7"
    own = dataclasses.replace(
        adams(model.denoiser.process, 3), weights=model.fingerprint, guidance=spec, conditional=True
    )
    model = dataclasses.replace(model, tuned=(own,))
    ask = {"steps": 3, "conditional": True}
    assert model.plan(guidance=spec, **ask).solver == own
    assert model.plan(guidance=build_guidance(spec), **ask).solver == own
    for other in (2.0, "2:interval=0.2..3", "2:interval=0.2..4,rescale=0.7"):
        assert model.plan(guidance=other, **ask).solver == model.sampling.solver
        with pytest.raises(BundleError, match=r"tuned to guidance 2:interval=0\.2\.\.3,rescale=0\.7, not 2"):
            model.plan("tuned", guidance=other, **ask)
    # what is put around changes the flow: then the tuned solver is used only if it is asked for
    asked = {"condition": {"label": 3}, "steps": 3, "guidance": spec, "seed": 1}
    aside = model.sample(1, around=lambda denoiser: denoiser, **asked)
    untuned = dataclasses.replace(model, tuned=()).sample(1, **asked)
    assert torch.equal(aside, untuned)
    tuned = model.sample(1, solver="tuned", around=lambda denoiser: denoiser, **asked)
    assert torch.equal(tuned, model.sample(1, **asked))
    assert not torch.equal(tuned, untuned)


# -- the classifier of noisy data ----------------------------------------------


def test_the_classifier_learns_the_posterior_of_a_mixture():
    """Trained on two Gaussians, whose log-odds are linear in x_t at each level, it gives the exact posterior."""
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
    model = GaussianMixture(Gaussian(Flow()), means, torch.full((2, 2), 0.2))

    class Odds(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(
                nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 2)
            )

        def forward(self, x, noise_level, condition=None):
            return self.body(torch.cat([x, noise_level[:, None]], 1))

    torch.manual_seed(0)
    judge = Classifier(Odds(), model.process)
    objective, optimiser = build_objective("classifier"), torch.optim.Adam(judge.parameters(), 1e-2)
    for step in range(250):
        label = torch.randint(2, (256,))
        x0 = (means[label] + 0.2**0.5 * torch.randn(256, 2)).float()
        noise = BatchNoise(3, 256 * step)
        loss, figures = objective(judge, {"x": x0, "condition": {"label": label}}, noise)
        assert set(figures) == {"log_snr", "error"}
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
    for t in (0.3, 0.6):
        x = points(4, 400).float()
        exact = torch.softmax(model._parts(x, model.process.level(t), None)[2], 1)[:, 1]
        with torch.no_grad():
            got = judge(x, t).softmax(1)[:, 1]
        assert float((got - exact).abs().mean()) < 0.05
    with pytest.raises(RecipeError, match="labels"):
        objective(judge, {"x": x0}, noise)


def test_the_label_that_means_none_is_not_pulled():
    class Two(nn.Module):
        def forward(self, x, noise_level, condition=None):
            return x

    judge, x = Classifier(Two(), Gaussian(Flow())), torch.randn(3, 2, requires_grad=True)
    value = judge.log_probability(x, Flow().level(0.5), {"label": torch.tensor([0, 1, 2])})
    (slope,) = torch.autograd.grad(value.sum(), x)
    assert slope[:2].abs().min() > 0
    assert not slope[2].any()
    with pytest.raises(SolverError, match="towards a label"):
        judge.log_probability(x, Flow().level(0.5), None)


def test_a_recipe_trains_a_classifier_whose_bundle_guides_another_model(tmp_path, demo_folder, capsys):
    pytest.importorskip("sklearn")
    import sfumato
    from sfumato.cli import main

    small = ["objective.kind=classifier", "network.kind=classifier", "network.width=8", "network.patch=1"]
    small += [
        "network.multipliers=[1, 2]",
        "training.images=6400",
        "training.batch=64",
        "training.log_every=640",
    ]
    small += ["training.warmup=64", "training.validate_every=6400"]
    with pytest.raises(SystemExit) as left:
        main(["train", "digits", *small, "--out", str(tmp_path / "judge")])
    assert not left.value.code
    judge = sfumato.load(tmp_path / "judge" / "model")
    data = sfumato.Images().read("digits")
    x, label = data.tensor(range(300)), torch.as_tensor(data.targets[:300])
    with torch.no_grad():
        right = (judge.denoiser(x, 0.05).argmax(1) == label).double().mean()
        lost = (judge.denoiser(torch.randn_like(x), 0.999).argmax(1) == label).double().mean()
    assert right > 0.5 > 0.3 > lost
    with pytest.raises(BundleError, match="draws nothing"):
        judge.sample(1)
    model = sfumato.load(demo_folder / "runs" / "demo" / "model")
    ask = {"condition": {"label": 3}, "steps": 4, "grid": "angle", "seed": 2}

    def towards(denoiser):
        return ScoreGuided(denoiser, judge.denoiser.log_probability, 3.0, of="state")

    def said(x):
        with torch.no_grad():
            return judge.denoiser(x, 0.0).log_softmax(1)[:, 3].mean()

    pulled, plain = model.sample(16, around=towards, **ask), model.sample(16, **ask)
    assert said(pulled) > said(plain)
    command = [
        "sample",
        str(demo_folder / "runs/demo/model"),
        "-n",
        "2",
        "--label",
        "3",
        "--steps",
        "4",
        "--grid",
        "angle",
    ]
    for folder, code, words in (
        (tmp_path / "judge" / "model", 0, ""),
        (demo_folder / "runs" / "demo" / "model", 1, "no classifier"),
    ):
        with pytest.raises(SystemExit) as left:
            main([*command, "--classifier", str(folder), "--out", str(tmp_path / "out")])
        assert int(left.value.code or 0) == code
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("override", ["objective.kind=classifier", "network.kind=classifier"])
def test_a_classifier_is_one_on_both_sides(override):
    pytest.importorskip("sklearn")
    from sfumato.recipes import read_recipe
    from sfumato.recipes.run import set_up

    with pytest.raises(RecipeError, match="both or neither"):
        set_up(read_recipe("digits", [override]))
