"""Features, judging, cost, receipts, report: what is around the metrics."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.errors import DataError
from sfumato.evaluation.classifier import ClassifierConfig, classifier_features, train_classifier
from sfumato.evaluation.cost import CallCounter, count_flops, machine_peak, measure_cost
from sfumato.evaluation.evaluate import MEASURES, Judge, Settings, evaluate
from sfumato.evaluation.features import Features, PixelFeatures, build_features, in_batches, to_unit
from sfumato.evaluation.measure import Measure
from sfumato.evaluation.receipts import Receipt, compare

SHORT = ClassifierConfig(width=8, dim=16, steps=60)


def bars(n, seed):
    """Pictures of 8 × 8 of two classes, upright and lying bars, under noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    x = rng.integers(0, 60, (n, 8, 8, 1))
    for i, label in enumerate(labels):
        at = rng.integers(1, 7)
        x[i, at, :] += 180 * (1 - label)
        x[i, :, at] += 180 * label
    return SimpleNamespace(images=x.astype(np.uint8), labels=labels, classes=("lying", "upright"))


TRAIN, HELD = bars(400, 0), bars(200, 1)


@pytest.fixture(scope="module")
def classifier():
    return train_classifier(TRAIN, HELD, SHORT)


# Features


def test_the_classifier_is_deterministic_and_leaves_the_random_state_alone(classifier):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = train_classifier(TRAIN, HELD, SHORT)
    assert torch.equal(before, torch.get_rng_state())
    assert again.hash == classifier.hash
    assert (
        train_classifier(TRAIN, HELD, ClassifierConfig(width=8, dim=16, steps=60, seed=1)).hash
        != classifier.hash
    )
    assert classifier.accuracy > 0.95
    low, high = classifier.card()["accuracy_interval"]
    assert low <= classifier.accuracy <= high


def test_features_of_an_image_do_not_depend_on_its_batch(classifier):
    images = to_unit(HELD.images[:9])
    together, chances = classifier(images)
    assert together.shape == (9, 16)
    assert torch.allclose(chances.sum(1), torch.ones(9))
    alone = torch.cat([classifier(image[None])[0] for image in images])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(classifier(images * 0.5 + 0.2)[0], together, rtol=0.1, atol=0.1)  # standardised
    mean_square = in_batches(classifier, TRAIN.images)[0].square().mean()
    assert 0.8 < mean_square < 1.2


def test_the_classifier_is_kept_and_read_back(tmp_path):
    first = classifier_features(TRAIN, HELD, SHORT, tmp_path)
    kept = next(tmp_path.glob("*.safetensors"))
    written = kept.stat().st_mtime_ns
    second = classifier_features(TRAIN, HELD, SHORT, tmp_path)
    assert kept.stat().st_mtime_ns == written
    images = to_unit(HELD.images)
    assert torch.equal(first(images)[0], second(images)[0])
    assert first.accuracy == second.accuracy
    kept.write_bytes(kept.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(DataError, match="not the ones its record describes; delete"):
        classifier_features(TRAIN, HELD, SHORT, tmp_path)


def test_digits_are_told_apart():
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    images = np.round(digits.images * 255 / 16).astype(np.uint8)[order, ..., None]
    labels = digits.target[order]
    train, held = (
        SimpleNamespace(images=images[p], labels=labels[p], classes=())
        for p in (slice(1437), slice(1437, None))
    )
    features = train_classifier(train, held, ClassifierConfig(steps=200))
    assert features.accuracy > 0.97


def test_build_features_refuses_what_cannot_be(tmp_path):
    with pytest.raises(DataError, match="did you mean 'pixels'"):
        build_features("pixel", train=TRAIN)
    bare = SimpleNamespace(images=TRAIN.images, labels=None, classes=())
    with pytest.raises(DataError, match="no labels"):
        build_features("classifier", train=bare, held=HELD)
    with pytest.raises(DataError, match="did you mean 'width'"):
        build_features("classifier", train=TRAIN, held=HELD, widht=3)
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        to_unit(torch.full((1, 1, 2, 2), -1.0))
    pixels = build_features("pixels", train=TRAIN, size=4)
    assert isinstance(pixels, Features)
    assert pixels.dim == 16
    assert pixels(to_unit(TRAIN.images))[0].shape == (400, 16)


def test_efficientnet_gives_its_features():
    pytest.importorskip("efficientnet_lite_pytorch")
    features = build_features("efficientnet-lite0", train=TRAIN)
    f, p = features(to_unit(TRAIN.images[:2]))
    assert f.shape == (2, 1280)
    assert p is not None
    assert p.sum(1) == pytest.approx(torch.ones(2), abs=1e-4)
    assert features.card()["shown_as"] == "FD-EffNetLite0"


# Judging


def sampler(seed, noise=0.0):
    def sample(n):
        data = bars(n, seed)
        images = to_unit(data.images)
        extra = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed)) * noise
        return (images + extra).clamp(0, 1), torch.from_numpy(data.labels)

    return sample


def test_a_perfect_sampler_scores_the_floor_and_a_worse_one_less(classifier):
    told = []
    judge = Judge(TRAIN, HELD, classifier, Settings(resamples=40), lambda *step: told.append(step[0]))
    perfect = {m.name: m for m in judge(sampler(7), n=200)}
    assert tuple(perfect) == MEASURES
    for m in perfect.values():
        assert m.floor is not None
        slack = 3 * (m.high - m.low)
        assert m.low - slack <= m.floor <= m.high + slack
    assert "no more copying" in perfect["copying"].details["verdict"]
    worse = {m.name: m for m in judge(sampler(7, noise=0.9), n=200)}
    assert worse["frechet"].low > perfect["frechet"].high
    assert worse["precision"].value < perfect["precision"].value
    assert told.count("features of train") == 2  # two batches, once: the second judging had them already
    again = evaluate(sampler(7), TRAIN, HELD, classifier, n=200, settings=Settings(resamples=40))
    assert again == list(perfect.values())


def test_a_sampler_that_copies_is_found(classifier):
    copies = lambda n: (to_unit(TRAIN.images[:n]), torch.from_numpy(TRAIN.labels[:n]))  # noqa: E731
    (found,) = evaluate(copies, TRAIN, HELD, classifier, measures=["copying"], n=50)
    assert found.value == 1
    assert found.details["alarm"]
    assert "50 exact copies" in found.note


def test_judging_refuses_what_it_cannot_do(classifier):
    pixels = PixelFeatures((1, 8, 8))
    with pytest.raises(DataError, match="'inception' needs class probabilities"):
        evaluate(sampler(0), TRAIN, HELD, pixels, measures=["inception"], n=20)
    with pytest.raises(DataError, match="did you mean 'frechet'"):
        evaluate(sampler(0), TRAIN, HELD, pixels, measures=["frechett"], n=20)
    unasked = lambda n: (sampler(0)(n)[0], None)  # noqa: E731
    with pytest.raises(DataError, match="'agreement' needs asked labels"):
        evaluate(unasked, TRAIN, HELD, classifier, measures=["agreement"], n=20)
    with pytest.raises(DataError, match="20 samples were asked for, 19 came"):
        evaluate(lambda n: sampler(0)(n - 1), TRAIN, HELD, pixels, n=20)
    (few,) = evaluate(sampler(0), TRAIN, HELD.images[:30], pixels, measures=["frechet"], n=50)
    assert "floor rests on 30 held-out samples, not 50" in few.note


# Cost


def test_flops_are_those_of_the_formula_and_attention_counts():
    linear = torch.nn.Linear(10, 20)
    assert count_flops(linear, torch.zeros(3, 10)) == 2 * 3 * 10 * 20
    q = torch.zeros(1, 2, 16, 8)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert count_flops(attention, q, q, q) == 2 * (2 * 2 * 16 * 16 * 8)


def test_cost_counts_calls_and_states_energy_only_when_asked():
    net = torch.nn.Linear(4, 4)
    counter = CallCounter(net)
    assert counter.in_features == 4

    def draw():
        x = torch.zeros(6, 4)
        for _ in range(5):
            x = counter(x)
        return x

    cost = measure_cost(draw, counter, network=net, flops_per_call=32, repeats=2)
    assert (cost.nfe, cost.samples, cost.parameters, cost.flops_per_sample) == (5, 6, 20, 160)
    assert cost.joules is None
    assert not any("energy" in name for name, _ in cost.rows())
    assert cost.peak_memory > 2**20
    watts = measure_cost(draw, counter, watts=10.0)
    assert watts.joules == pytest.approx(10 * watts.seconds)
    with pytest.raises(DataError, match="no denoiser call"):
        measure_cost(lambda: torch.zeros(2, 4), CallCounter(net))
    assert machine_peak(128, 0.01) > 0.1


# Receipts


def receipt(**changes):
    measures = (Measure("frechet", 1.25, 1.0, 1.5, 100, floor=0.5), Measure("kernel", -0.1, -0.2, 0.1, 100))
    fields = {
        "measures": measures,
        "model": {"hash": "m" * 64},
        "data": {"hash": "d" * 64},
        "features": {"name": "classifier", "hash": "f" * 64, "accuracy": 0.9},
        "sampling": {
            "seed": 0,
            "n": 100,
            "solver": "ddim",
            "steps": 20,
            "guidance": 1.0,
            "labels": "in turn",
        },
        "command": "sfumato evaluate run/model --seed 0",
        "seconds": 1.5,
    }
    return Receipt(**(fields | changes))


def test_a_receipt_comes_back_as_it_was(tmp_path):
    path = receipt().write(tmp_path / "deep" / "r.json")
    assert Receipt.read(path) == Receipt.read(path)
    assert Receipt.read(path).to_json() == json.loads(path.read_text())
    assert Receipt.read(path).measures == receipt().measures
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]  # nothing left beside it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("1.25", "0.25"), "was changed after it was written"),
        (lambda text: text[: len(text) // 2], "cut short or not JSON"),
        (lambda text: '{"kind": "other"}', "not a sfumato receipt"),
        (lambda text: "[]", "not a sfumato receipt"),
        (lambda text: text.replace('"schema": 1', '"schema": 9'), "update sfumato"),
        (lambda text: text.replace('"sampling"', '"samplings"'), "incomplete: sampling missing"),
    ],
)
def test_a_receipt_that_is_not_what_was_written_is_refused(tmp_path, change, message):
    path = receipt().write(tmp_path / "r.json")
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=message):
        Receipt.read(path)


def test_receipts_refuse_what_could_not_be_repeated(tmp_path):
    for changes in ({"command": " "}, {"measures": ()}, {"model": {"name": "x"}}):
        with pytest.raises(DataError):
            receipt(**changes)
    with pytest.raises(DataError, match="JSON values only"):
        receipt(sampling={"x": float("nan")}).write(tmp_path / "r.json")


def test_compare_says_for_each_figure_whether_it_agrees():
    stated = receipt()
    _, b = stated.measures
    assert [row.verdict for row in compare(stated, stated.measures)] == ["bit-equal"] * 2
    near = Measure("frechet", 1.25 * (1 + 1e-9), 1.0, 1.5, 100)
    assert compare(stated, [near, b])[0].verdict == "within tolerance"
    moved = Measure("frechet", 1.25, 0.9, 1.5, 100)  # the value agrees, the interval does not
    rows = compare(stated, [moved])
    assert [row.verdict for row in rows] == ["disagrees", "not recomputed"]
    assert not any(row.agrees for row in rows)
    assert compare(stated, [Measure("frechet", 1.25, 1.0, 1.5, 99)])[0].verdict == "disagrees"


# Report


def test_the_report_is_whole_and_points_nowhere(tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    from sfumato.evaluation import report as r

    steps = [{"steps": s, "value": 9 / s, "low": 8 / s, "high": 10 / s, "solver": "<b>"} for s in (5, 10, 20)]
    rng = np.random.default_rng(0)
    curve = r.figure_quality_vs_steps(steps, 0.3)
    page = r.Report(
        "A <script> title",
        "Lead & more.",
        [
            r.Facts([("parameters", "1.2 M")]),
            r.Pictures([(Image.new("L", (8, 8)), "A picture.")], title="Pictures"),
            r.Measures(receipt().measures, features=receipt().features),
            r.Curve(curve, "Quality."),
            r.Curve(r.figure_loss_by_noise(rng.normal(size=300), rng.random(300)), "Error."),
            r.Curve(r.figure_training([{"images": i, "loss": 1 / (i + 1)} for i in range(50)]), "Loss."),
            r.Table(["method", "seconds"], [["a", 0.5]]),
            r.Commands([("again", "sfumato report run")]),
            r.Receipts([("quality", receipt())]),
        ],
    ).write(tmp_path / "report.html")
    html = page.read_text(encoding="utf-8")
    assert "://" not in html
    assert not re.search(r'(src|href)="(?!data:image/png|#)', html)
    assert not re.search(r"@import|<link|<script|url\((?!#)", html)
    assert "A &lt;script&gt; title" in html
    assert "<b>Figure 4.</b> Loss." in html
    assert "1 to 1.5" in html
    assert "var(--a)" in html
    assert "#0a0b0c" not in html  # every stand-in colour found its variable
    assert curve == r.figure_quality_vs_steps(steps, 0.3)  # the same rows, the same bytes


def test_the_few_points_of_a_binned_curve_are_all_drawn():
    pytest.importorskip("matplotlib")
    from sfumato.evaluation.figures import figure_loss_by_noise

    levels = np.arange(-9.0, 10.0, 2.0)
    drawn = figure_loss_by_noise(levels, levels**2)
    assert drawn.count('style="fill: var(--a); stroke: var(--a)"') == len(levels)


def test_figures_and_reports_refuse_what_they_cannot_show():
    pytest.importorskip("matplotlib")
    from sfumato.evaluation import report as r

    with pytest.raises(DataError, match="'steps' and 'value'"):
        r.figure_quality_vs_steps([{"steps": 3}])
    with pytest.raises(DataError, match="cannot go with"):
        r.figure_loss_by_noise([1.0, 2.0], [1.0])
    with pytest.raises(DataError, match="no row of the log"):
        r.figure_training([{"x": 1}])
    with pytest.raises(DataError, match="2 cells"):
        r.Report("t", "", [r.Table(["a", "b"], [[1]])]).html()
    with pytest.raises(DataError, match="SVG element"):
        r.Report("t", "", [r.Curve("<img>", "c")]).html()
