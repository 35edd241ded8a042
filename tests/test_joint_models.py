"""Joint models: what their objective is least at, that leaves keep their times, and tables from a file to rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sfumato import bundle
from sfumato.cli import main
from sfumato.denoisers import GaussianMixture, LabelledMixture, LeafGuided
from sfumato.domains.captioned import Captioned
from sfumato.domains.table import Table
from sfumato.errors import BundleError, DataError, RecipeError, SolverError
from sfumato.evaluation.captioned import captioned_measures
from sfumato.evaluation.table import columns, pairs, table_measures, utility
from sfumato.networks import build
from sfumato.noise import BatchNoise, Noise
from sfumato.objectives import build_objective, check_trains
from sfumato.objectives.joint import JointDenoising
from sfumato.processes import CLEAN, Flow, Gaussian, Joint, MaskedChain, UniformChain
from sfumato.recipes import recipe_from
from sfumato.recipes.bench import Bench
from sfumato.recipes.run import train
from sfumato.solvers import DDIM, sample_joint

MEANS, SPREAD = torch.tensor([[-1.5], [1.5], [0.3]]), torch.tensor([[0.2], [0.2], [0.1]])
WEIGHTS = torch.tensor([0.2, 0.3, 0.5])
CHAINS = pytest.mark.parametrize("chain", [MaskedChain(3), UniformChain(3)], ids=lambda p: p.law)


def mixture(chain):
    return LabelledMixture(GaussianMixture(Gaussian(Flow()), MEANS, SPREAD, WEIGHTS), chain)


def drawn(count: int, seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    label = torch.multinomial(WEIGHTS, count, True, generator=draw)
    x = MEANS[label] + SPREAD[label].sqrt() * torch.randn(count, 1, generator=draw)
    return {"x": x, "label": label[:, None]}


class Bent(nn.Module):
    """An exact denoiser made wrong: what it says of each leaf moved by `by`, or noise levels swapped."""

    def __init__(self, exact, by=0.0, swap=False):
        super().__init__()
        self.exact, self.by, self.swap, self.process = exact, by, swap, exact.process

    def forward(self, x_t, t, condition=None):
        from dataclasses import replace

        said = self.exact(x_t, t, condition)
        x, label = said["x"], said["label"]
        bent = replace(x, value=x.value + self.by)  # an x0
        tilt = torch.tensor([self.by, 0.0, -self.by]).to(label.value)
        return {"x": bent, "label": replace(label, value=label.value + tilt)}


@CHAINS
def test_the_objective_is_least_at_the_exact_answer(chain):
    """Moved either way, the loss of the exact denoiser rises, in both leaves and at all times."""
    objective, batch = JointDenoising(), {"x": drawn(4000)}
    exact = mixture(chain)
    losses = {
        by: float(objective(Bent(exact, by), batch, BatchNoise(0, 1))[0].mean()) for by in (-0.3, 0.0, 0.3)
    }
    assert losses[0.0] < losses[-0.3]
    assert losses[0.0] < losses[0.3]


def test_times_are_held_apart_and_together_as_said():
    process = Joint({name: Gaussian(Flow()) for name in "abcd"})
    known = {name: torch.ones(20_000, dtype=torch.bool) for name in "abcd"}
    known["d"] = torch.zeros(20_000, dtype=torch.bool)
    times, learned = JointDenoising(given=("c",)).draw_times(process, known, BatchNoise(0, 3))
    assert bool((times["c"] == 0).all())
    assert not bool(learned["c"].any())
    assert bool((times["d"] == 1).all()), "what was not recorded is absent"
    assert not bool(learned["d"].any())
    for name in "ab":
        held = (times[name] == 0) | (times[name] == 1)
        assert bool((held == ~learned[name]).all())
        # half the examples hold leaves, two of the three that move, with a chance that is uniform: 1/6 in all; half of
        # the examples hold them all at t = 0, the others half of them: a quarter at t = 1
        assert abs(float(held.double().mean()) - 1 / 6) < 0.01
        assert abs(float((times[name] == 1).double().mean()) - 1 / 24) < 0.006
        moving = times[name][learned[name]]
        assert abs(float(moving.mean()) - 0.5) < 0.02
    _, of_two = JointDenoising(given=("c", "d")).draw_times(process, known, BatchNoise(0, 3))
    assert bool((of_two["a"] | of_two["b"]).all()), "an example without a loss teaches nothing"
    both = learned["a"] & learned["b"]
    same = (times["a"] == times["b"])[both].double().mean()
    assert abs(float(same) - 0.5) < 0.02


def test_what_was_not_recorded_changes_nothing():
    """A missing cell has no loss, and what stands in its place is never seen."""
    chain, batch = MaskedChain(3), {"x": drawn(500)}
    holes = torch.arange(500) % 2 == 0
    x = batch["x"]["x"].clone()
    x[holes] = float("nan")
    objective, noise = JointDenoising(), BatchNoise(0, 2)
    missing, _ = objective(mixture(chain), {"x": {"x": x, "label": batch["x"]["label"]}}, noise)
    whole, _ = objective(mixture(chain), batch, noise)
    assert bool(missing.isfinite().all())
    assert torch.equal(missing[~holes], whole[~holes])
    label = batch["x"]["label"].clone()
    label[holes] = -1
    both = {"x": x, "label": label}
    assert float(objective(mixture(chain), {"x": both}, noise)[0][holes].abs().max()) == 0


def test_objectives_refuse_what_they_are_not_of():
    joint = mixture(MaskedChain(3)).process
    check_trains(build_objective("joint"), joint)
    for objective, process, message in (
        (build_objective("joint"), Gaussian(Flow()), "a joint process is trained by 'joint'"),
        (build_objective("denoising"), joint, "a joint process is trained by 'joint'"),
        (JointDenoising(given=("lable",)), joint, "did you mean 'label'"),
        (JointDenoising(given=("x", "label")), joint, "nothing to learn"),
    ):
        with pytest.raises(RecipeError, match=message):
            check_trains(objective, process)


LEAVES = {
    "n": {"shape": [3, 2]},
    "s": {"shape": [4], "symbols": 5, "outputs": 4},
    "p": {"shape": [3, 8, 8], "patch": 4},
}


def leaves(count: int):
    draw = torch.Generator().manual_seed(0)
    x = {"n": torch.randn(count, 3, 2, generator=draw), "p": torch.randn(count, 3, 8, 8, generator=draw)}
    x["s"] = torch.randint(0, 5, (count, 4), generator=draw)
    return {name: x[name] for name in LEAVES}, {name: torch.rand(count, generator=draw) for name in LEAVES}


def test_the_network_answers_every_leaf_from_all_and_each_sample_alone():
    network = build("joint", leaves=LEAVES, width=32, depth=2, head=16)
    for parameter in network.parameters():  # what starts at zero would hide that nothing is heard
        nn.init.normal_(parameter, std=0.2)
    x, levels = leaves(3)
    out = network(x, levels)
    assert {name: tuple(value.shape) for name, value in out.items()} == {
        "n": (3, 3, 2),
        "s": (3, 4, 4),
        "p": (3, 3, 8, 8),
    }
    alone = network(*({name: value[1:2] for name, value in part.items()} for part in (x, levels)))
    for name in LEAVES:
        assert torch.allclose(out[name][1:2], alone[name], atol=1e-5)
        for other in LEAVES:  # every leaf hears each other's state and level
            for part, moved in ((x, 0), (levels, 1)):
                changed = {**part, other: part[other].flip(0)}
                told = network(*((changed, levels) if moved == 0 else (x, changed)))[name]
                assert not torch.allclose(told, out[name], atol=1e-6), (name, other, moved)
    with pytest.raises(ValueError, match="was built for the leaves"):
        network({"n": x["n"]}, levels)
    with pytest.raises(ValueError, match="does not divide"):
        build("joint", leaves={"p": {"shape": [3, 9, 8], "patch": 4}})


@CHAINS
def test_guidance_between_leaves_is_the_tilted_law(chain):
    """x0_w = x0(none) + w (x0(label) - x0(none)), each known of the mixture; weight 1 is the plain conditional."""
    exact, count = mixture(chain), 6
    label = torch.tensor([[0], [1], [2], [0], [1], [2]])
    nothing = exact.process["label"].prior(label, Noise(0, count).at(0))
    x_t = torch.linspace(-2, 2, count)[:, None]
    level = {"x": exact.process["x"].level(0.6), "label": CLEAN}
    given = exact({"x": x_t, "label": label}, level)["x"].x0
    absent = exact({"x": x_t, "label": nothing}, {**level, "label": chain.level(1.0)})["x"].x0
    for weight in (0.0, 1.0, 2.5):
        guided = LeafGuided(exact, weight, {"label": nothing})({"x": x_t, "label": label}, level)["x"].x0
        assert torch.allclose(guided.double(), (absent + weight * (given - absent)).double(), atol=1e-4)
    noise = Noise(3, 40)
    asked = {"label": torch.zeros(40, 1, dtype=torch.long)}
    settings = {"steps": 8, "solvers": {"x": DDIM()}, "given": asked}
    plain = sample_joint(exact, noise, {"x": (1,)}, **settings)
    same = sample_joint(exact, noise, {"x": (1,)}, guidance=1.0, **settings)
    pulled = sample_joint(exact, noise, {"x": (1,)}, guidance=2.0, **settings)
    assert torch.equal(plain["x"], same["x"])
    assert float(pulled["x"].mean()) < float(plain["x"].mean())  # away from the other labels, which lie above
    with pytest.raises(SolverError, match="did you mean 'label'"):
        LeafGuided(exact, 2.0, {"lable": nothing})


# --- tables ---


def written(folder: Path, rows: list[list[str]], names: str = "a,b,c") -> Path:
    path = folder / "t.csv"
    path.write_text("\n".join([names, *(",".join(row) for row in rows)]) + "\n")
    return path


@given(
    st.lists(st.tuples(st.integers(-50, 50), st.sampled_from("xyz")), min_size=30, max_size=60),
    st.integers(0, 4),
)
def test_cells_come_back_as_they_were(tmp_path_factory, pairs_, decimals):
    """Of columns with gaps, ties and few digits: encoded and decoded, every recorded cell is what was read."""
    folder = tmp_path_factory.mktemp("table")
    rows = [
        [f"{n / 7:.{decimals}f}" if k % 5 else "", text if k % 7 else "NA", "1"]
        for k, (n, text) in enumerate(pairs_)
    ]
    rows += [["-9", "x", "1"], ["9", "y", "1"]]  # so that neither column is of one value
    data = Table(few=2).read(written(folder, rows))
    cells = data.domain.rows(data.tensor())
    order = [column["name"] for column in data.domain.columns]
    for row, back in zip(rows, cells, strict=True):
        for name, cell in zip("abc", row, strict=True):
            if name in order and cell not in ("", "NA"):
                got = back[order.index(name)]
                assert got == cell or float(got) == pytest.approx(float(cell), abs=0.51 * 10.0**-decimals)
    assert Table.from_json(json.loads(json.dumps(data.domain.to_json()))) == data.domain


def test_bad_tables_say_what_is_wrong(tmp_path: Path):
    good = [[str(k), "xy"[k % 2], "5"] for k in range(40)]
    data = Table().read(written(tmp_path, good))
    assert [column["kind"] for column in data.domain.columns] == ["number", "category", "constant"]
    assert data.domain.rows(data.tensor([0]))[0] == ["0", "x", "5"]
    gone = Table().read(written(tmp_path, [[row[0], row[1], ""] for row in good]))
    assert gone.about["left_out_columns"] == ["c"]
    for rows, message in (
        ([], "empty table"),
        ([["1", "x", "5"]] * 3, "no column has two different values"),
        ([["1", "x"]], "line 2: 2 cells for 3 columns"),
    ):
        with pytest.raises(DataError, match=message):
            Table().read(written(tmp_path, rows))
    with pytest.raises(DataError, match="did you mean"):
        Table(drop=("aa",)).read(written(tmp_path, good))
    with pytest.raises(DataError, match=r"lack the column 'b'"):
        data.domain.read(written(tmp_path, good, "a,bb,c"))
    new = data.domain.read(written(tmp_path, [*good[:-1], ["7", "z", "5"]]))
    assert new.about["unknown_values"] == {"b": 1}
    for given_, message in (
        ({"b": "z"}, "value of the column 'b'"),
        ({"a": "much"}, "takes numbers"),
        ({"a": [1, 2]}, "2 values"),
    ):
        with pytest.raises(DataError, match=message):
            data.domain.asked(given_, Noise(0, 3))


def people(folder: Path, count: int = 1500) -> Path:
    """A table whose law is known: z ~ N(0, 1), side by its sign, sum = z + noise, with gaps."""
    draw = np.random.default_rng(0)
    z = draw.normal(size=count)
    total = 2 * z + 0.3 * draw.normal(size=count)
    path = folder / "people.csv"
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["z", "side", "total"])
        for k in range(count):
            out.writerow([f"{z[k]:.3f}" if k % 10 else "", "up" if z[k] > 0 else "down", f"{total[k]:.2f}"])
    return path


RECIPE = {
    "name": "people",
    "process": {"kind": "joint"},
    "network": {"kind": "joint", "width": 48, "depth": 2, "head": 16, "embedding": 48},
    "objective": {"kind": "joint"},
    "training": {
        "images": 40_000, "batch": 250, "learning_rate": 3e-3, "warmup": 2_000, "ema": [0.1], "log_every": 10_000,
        "decay": "cosine",
    },
    "sampling": {"solver": {"kind": "ancestral"}, "grid": {"kind": "uniform"}, "steps": 25},
    "evaluation": {"samples": 300},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    source = {"domain": "table", "source": str(people(folder)), "settings": {"target": "side"}}
    train(recipe_from({**RECIPE, "data": source}), folder / "run")
    return folder / "run" / "model"


def test_a_table_is_learned_and_any_column_can_be_given(model: Path):
    made = bundle.load(model)
    rows = made.domain.decode(made.sample(600, seed=1))
    up = rows["side"] == list(made.domain.leaves["side"]["values"]).index("up")
    assert abs(up.mean() - 0.5) < 0.1
    assert ((rows["z"] > 0) == up).mean() > 0.85
    assert np.corrcoef(rows["z"], rows["total"])[0, 1] > 0.85
    # one model, every conditional: a category given a number, numbers given a category, one given two
    for asked, check in (
        ({"total": 2.5}, lambda r: (r["z"] > 0).mean() > 0.9 and abs(r["z"].mean() - 1.25) < 0.4),
        ({"side": "down"}, lambda r: (r["total"] < 0.5).mean() > 0.85),
        ({"side": "up", "z": 0.5}, lambda r: abs(r["total"].mean() - 1.0) < 0.4),
    ):
        given_rows = made.domain.decode(made.sample(300, condition=asked, seed=2))
        assert check(given_rows), asked
        for name, value in asked.items():
            cells = made.domain.rows(made.sample(3, condition=asked))
            got = {row[[c["name"] for c in made.domain.columns].index(name)] for row in cells}
            assert got == {value} if isinstance(value, str) else {float(g) for g in got} == {value}
    with pytest.raises(DataError, match="did you mean 'down'"):
        made.sample(2, condition={"side": "dwn"})
    with pytest.raises(BundleError, match="did you mean 'side'"):
        made.sample(2, condition={"sides": "up"})


def test_a_row_depends_on_its_seed_alone(model: Path):
    made = bundle.load(model)
    every = made.domain.text(made.sample(6, seed=5, batch=4))
    assert made.domain.text(made.sample(indices=[4], seed=5)) == every[4:5]


def call(*words: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(list(words))
    assert left.value.code == 0


def test_the_command_line_writes_one_file_and_judges(model: Path, tmp_path: Path, capsys):
    out = tmp_path / "rows"
    call("sample", str(model), "--count", "20", "--given", "side=up", "--out", str(out))
    with (out / "samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert {row["side"] for row in rows} == {"up"}
    with pytest.raises(SystemExit, match="1"):
        main(["sample", str(model), "--given", "side"])
    assert "NAME=VALUE" in capsys.readouterr().err
    call("inspect", str(model))
    assert "a leaf each: z, side, total" in capsys.readouterr().out.replace("\n", " ")
    bench = Bench(model)
    plan = bench.model.sampling
    settings = {
        "solver": plan.solver,
        "grid": plan.grid,
        "steps": 25,
        "guidance": 1.0,
        "seed": 0,
        "batch": 300,
    }
    found = {m.name: m for m in bench.quality(settings | {"samples": 300, "measures": None})}
    assert found["utility"].value > 0.9
    assert found["columns"].value > 0.85
    assert found["copies"].value < 0.2


def test_measures_catch_what_is_planted(tmp_path: Path):
    data = Table(target="side").read(people(tmp_path))
    known, held = data.split(0.3)
    real = held.raw
    shuffled = {**real, "total": np.random.default_rng(0).permutation(real["total"])}
    assert columns(data.domain, shuffled, known.raw) == pytest.approx(columns(data.domain, real, known.raw))
    assert pairs(data.domain, shuffled, known.raw) < pairs(data.domain, real, known.raw) - 0.1
    moved = {**real, "total": real["total"] + 1}
    assert columns(data.domain, moved, known.raw) < columns(data.domain, real, known.raw) - 0.05
    flipped = {**known.raw, "side": 1 - np.asarray(known.raw["side"])}
    assert utility(data.domain, flipped, real) < 0.1 < 0.9 < utility(data.domain, known.raw, real)
    copied = {m.name: m.value for m in table_measures(data.domain, known.tensor(), None, known, held)}
    assert copied["copies"] == 1
    assert copied["closest"] == 0


# --- pictures, captions and labels ---


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """24 pictures in two folders, red circles and blue squares, with captions beside them."""
    from PIL import Image, ImageDraw

    folder = tmp_path_factory.mktemp("captioned")
    for k in range(24):
        own = folder / ("squares" if k % 2 else "circles")
        own.mkdir(exist_ok=True)
        picture = Image.new("RGB", (8, 8), "white")
        pen = ImageDraw.Draw(picture)
        box = (1 + k % 3, 1, 6, 6)
        pen.rectangle(box, "blue") if k % 2 else pen.ellipse(box, "red")
        picture.save(own / f"{k}.png")
        (own / f"{k}.txt").write_text(f"a {'blue square' if k % 2 else 'red circle'} of size {k}")
    return Captioned(size=8, patch=4).read(folder)


def test_pictures_with_captions_and_labels_are_three_leaves(captioned):
    domain, state = captioned.domain, captioned.tensor()
    assert {name: tuple(leaf.shape[1:]) for name, leaf in state.items()} == domain.shape
    assert domain.symbols == {"label": 2}
    assert domain.classes == ("circles", "squares")
    # a vector has the size of 1 a number, and of a real one the nearest caption is its own
    assert float(state["caption"].square().mean()) == pytest.approx(1, abs=1e-3)
    assert domain.text(state) == [
        f"{domain.classes[k]}: {text}" for k, text in zip(captioned.raw["label"], domain.known, strict=True)
    ]
    asked = domain.asked({"caption": domain.known[3], "label": "squares"}, Noise(0, 2))
    assert torch.allclose(asked["caption"], state["caption"][3].expand(2, -1, -1), atol=1e-3)
    assert asked["label"].tolist() == [[1], [1]]
    assert Captioned.from_json(json.loads(json.dumps(domain.to_json()))) == domain
    for given_, message in (
        ({"label": "square"}, "did you mean 'squares'"),
        ({"label": 2}, "labels are 0 to 1"),
        ({"caption": ["a", "b", "c"]}, "3 of 'caption' were given for 2"),
        ({"picture": torch.zeros(2, 3, 4, 4)}, "need pictures"),
    ):
        with pytest.raises(DataError, match=message):
            domain.asked(given_, Noise(0, 2))
    with pytest.raises(DataError, match="does not divide"):
        Captioned(size=9, patch=4)


def test_judges_of_leaves_see_what_does_not_go_together(captioned):
    state = captioned.tensor()
    good = {m.name: m.value for m in captioned_measures(captioned.domain, state, None, captioned, captioned)}
    wrong = {**state, "label": 1 - state["label"]}
    bad = {m.name: m.value for m in captioned_measures(captioned.domain, wrong, None, captioned, captioned)}
    for name in ("label of caption", "label of picture"):
        assert good[name] == 1
        assert bad[name] == 0
    assert good["pictures"] == pytest.approx(0, abs=1e-3)
