"""Recipes: every slip is answered before anything starts, in one line that says what was meant."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.domains.examples import Examples
from sfumato.domains.fields import Fields
from sfumato.errors import RecipeError, SfumatoError
from sfumato.processes import Flow, Gaussian
from sfumato.recipes import packaged, parse_overrides, read_recipe, recipe_from
from sfumato.recipes.parts import tell_of_means
from sfumato.recipes.recipe import to_toml
from sfumato.solvers import noisiest


@pytest.mark.parametrize("name", packaged())
def test_packaged_recipes_survive_being_written(name: str):
    recipe = read_recipe(name)
    assert recipe_from(tomllib.loads(to_toml(recipe))) == recipe


@given(
    st.integers(1, 10**6),
    st.floats(1e-6, 1),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])),
)
def test_overrides_reach_their_place(batch: int, rate: float, about: str):
    recipe = read_recipe(
        "digits",
        {"training.batch": batch, "training.learning_rate": rate, "about": about, "training.warmup": 0},
    )
    assert (recipe.training.batch, recipe.training.learning_rate, recipe.about) == (batch, rate, about)
    assert recipe_from(tomllib.loads(to_toml(recipe))) == recipe


def test_overrides_are_read_as_toml_or_as_text():
    texts = ["a.b=1", "a.c=[1, 2]", "a.d=true", "a.e=runs/x", 'a.f="1"', "a.g=none", "a.h={ kind = 'x' }"]
    assert parse_overrides(texts) == {
        "a.b": 1, "a.c": [1, 2], "a.d": True, "a.e": "runs/x", "a.f": "1", "a.g": None, "a.h": {"kind": "x"},
    }  # fmt: skip


def test_none_is_no_value_except_where_it_is_one():
    recipe = read_recipe("digits", ["data.labels=none", "data.limit=5"])
    assert (recipe.data.labels, recipe.data.limit) == ("none", 5)
    assert read_recipe("digits", ["data.limit=none"]).data.limit is None


def test_another_kind_forgets_the_settings_of_the_old():
    recipe = read_recipe("digits", ["objective.times.kind=log-normal"])
    assert recipe.objective.times == {"kind": "log-normal"}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.bach=3", "did you mean 'batch'"),
        ("batch=3", "did you mean 'training.batch'"),
        ("traning.batch=3", "did you mean 'training'"),
        ("training.batch=many", "training.batch = 'many'"),
        ("training.batch=0", "greater than 0"),
        ("training.learning_rate=-1", "greater than 0"),
        ("denoiser.parameterisation=velocty", "did you mean 'velocity'"),
        ("objective.drop=1.5", "objective.drop"),
        ("sampling.steps=0", "sampling.steps"),
        ("name.first=x", "is a value, not a section"),
        ("training", "section.name=value"),
        ("=3", "section.name=value"),
    ],
)
def test_a_slip_says_what_was_meant(override: str, says: str):
    with pytest.raises(RecipeError) as caught:
        read_recipe("digits", [override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_recipes(tmp_path: Path):
    with pytest.raises(RecipeError, match="did you mean 'digits'"):
        read_recipe("digts")
    with pytest.raises(RecipeError, match="cannot read"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = [")
    with pytest.raises(RecipeError, match="not TOML"):
        read_recipe(tmp_path / "bad.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="not TOML"):
        read_recipe(tmp_path / "bad.toml")
    (tmp_path / "bad.toml").write_text("name = 'x'")
    with pytest.raises(RecipeError, match="'data' is missing"):
        read_recipe(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    "override",
    [
        "network.widht=3", "network.classes=4", "process.schedule.kind=flwo",
        "process.schedule={ kind = 'flow', x = 1 }",
        "objective.weighting.kind=snrr", "objective.times.kind=gaussian", "objective.times.std=-1",
        "sampling.solver.kind=heunn", "sampling.grid.kind=x", "data.source=dgits", "data.source=/no/such/folder",
        "training.batch=100000", "data.held_out=1.5", "data.held_out=tset",
    ],
)  # fmt: skip
def test_what_the_recipe_cannot_know_fails_before_training(override: str):
    pytest.importorskip("sklearn")
    from sfumato.recipes.run import set_up

    with pytest.raises(SfumatoError) as caught:
        set_up(read_recipe("digits", [override]))
    assert "\n" not in str(caught.value)


def test_the_order_of_overrides_does_not_matter():
    given = ["network.depth=4", "network.kind=dit"]
    assert read_recipe("digits", given) == read_recipe("digits", given[::-1])
    assert read_recipe("digits", given).network.model_dump() == {"kind": "dit", "depth": 4}


@pytest.mark.parametrize("kind", ["denoising", "hybrid"])
def test_another_objective_keeps_what_all_of_them_have(kind: str):
    before = read_recipe("digits").objective
    after = read_recipe("digits", [f"objective.kind={kind}"]).objective
    assert after == before.model_copy(update={"kind": kind})


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sampling.solver={}", "[sampling]"),
        ("sampling.grid.rho=a", "[sampling]"),
        ("process.schedule={}", "[process]"),
        ("objective.times.std=a", "[objective]"),
        # digits samples with guidance: found out now, not when the trained model is to be written
        ("objective.drop=0", "guidance 1"),
        ("data.labels=none", "evaluation.features"),
    ],
)
def test_what_cannot_be_sampled_is_not_trained(override: str, says: str):
    pytest.importorskip("sklearn")
    from sfumato.recipes.run import set_up

    with pytest.raises(RecipeError) as caught:
        set_up(read_recipe("digits", [override]))
    assert says in str(caught.value)
    set_up(read_recipe("digits", ["objective.drop=0", "sampling.guidance=1"]))


@pytest.mark.parametrize(("deviation", "told"), [(0.05, False), (1.0, True)])
def test_fields_whose_means_vary_more_than_noise_hides_are_told_of(deviation: float, told: bool):
    """Of variance D^2 a start at s draws s^2 / (s^2 + D^2), see `test_grids`: s = 80, D = 64 deviations."""
    rng = np.random.default_rng(0)
    tiles = rng.normal(size=(200, 1, 64, 64)) + deviation * rng.normal(size=(200, 1, 1, 1))
    domain = Fields(variables=("z",), size=(64, 64), mean=(0.0,), std=(1.0,))
    process, said = Gaussian(Flow()), []
    tell_of_means(Examples(domain, tiles.astype(np.float32)), process, noisiest(process), said.append)
    assert bool(said) == told
    if told:
        share = 1 / (1 + (64 * tiles.mean((1, 2, 3)).std() / 80) ** 2)
        assert f"{share:.0%} of the variance" in said[0]
    tell_of_means(Examples(domain, tiles.astype(np.float32)), process, process.level(1.0), said.append)
    assert len(said) == told  # pure noise hides everything
