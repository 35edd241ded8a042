"""Judging: what is measured is what `sample` draws, and every receipt can be computed again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from sfumato import bundle
from sfumato.cli import main
from sfumato.evaluation.receipts import Receipt
from sfumato.noise import Noise
from sfumato.recipes.bench import Bench
from sfumato.solvers import adams
from sfumato.solvers.likelihood import bits_per_dimension
from sfumato.solvers.tuning import Errors, Tuning

pytest.importorskip("sklearn")
pytest.importorskip("jinja2")

SMALL = [
    "network.width=8", "network.multipliers=[1]", "network.blocks=[1]", "training.images=512", "training.batch=64",
    "training.warmup=64", "training.checkpoint_every=512", "training.validate_every=512", "training.log_every=512",
    "training.optimizer=adamw", "training.compile=false", "sampling.steps=3", "evaluation.samples=60",
    "evaluation.curve_samples=60", "evaluation.steps=[2, 3]", "evaluation.bound_images=0",
    "evaluation.likelihood_images=8", "evaluation.likelihood_steps=4", "evaluation.likelihood_probes=4",
]  # fmt: skip


def run(capsys: pytest.CaptureFixture, *words: object) -> tuple[int, str, str]:
    """A command in this process: exit code, output, errors."""
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    seen = capsys.readouterr()
    return int(left.value.code or 0), seen.out, seen.err


def keep_tuned(folder: Path, order: int) -> None:
    """Put a solver of 3 steps into a bundle, as tuning would have found it."""
    model, good = bundle.load(folder), Errors(0.1, 0.1, 0.1, 0.1, 0.1)
    solver = dataclasses.replace(
        adams(model.denoiser.process, 3, order),
        weights=model.fingerprint,
        guidance=model.sampling.guidance,
        conditional=True,
    )
    errors = {"tuned": good, "other": Errors(0.2, 0.2, 0.2, 0.2, 0.2)}
    bundle.save_tuned(folder, Tuning(solver, solver, errors, 9, 3, 1, 1.0))


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the digits recipe with a very small network, with a solver tuned to 3 steps, evaluated."""
    out = tmp_path_factory.mktemp("judge") / "run"
    for words in (["train", "digits", *SMALL, "--out", str(out)], ["evaluate", str(out / "model")]):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert not left.value.code
        if words[0] == "train":
            keep_tuned(out / "model", 2)
    return out


def receipt(judged: Path, name: str) -> Receipt:
    return Receipt.read(judged / "receipts" / f"{name}.json")


def values(measures) -> dict[str, float]:
    return {m.name: m.value for m in measures}


def test_a_bundle_is_judged_by_the_solver_that_it_is_sampled_with(judged: Path):
    """At the tuned number of steps it is the tuned one, named in the receipt; at others it is the model's own."""
    bench = Bench(judged / "model")
    (own,), plain = bench.model.tuned, bench.model.sampling
    named = {"kind": "tuned", "steps": 3, "sha256": own.sha256}
    for name in ("quality", "steps-003", "cost"):
        assert receipt(judged, name).sampling["solver"] == named
    settings = dict(receipt(judged, "steps-003").sampling)
    found = values(receipt(judged, "steps-003").measures)
    assert found == values(bench.quality(settings | {"solver": own, "grid": own.grid}))
    untuned = values(bench.quality(settings | {"solver": plain.solver, "grid": plain.grid}))
    assert found["frechet"] != untuned["frechet"]
    other = receipt(judged, "steps-002")
    assert other.sampling["solver"] == plain.solver.to_json()
    assert values(other.measures) == values(
        bench.quality(settings | {"steps": 2, "solver": plain.solver, "grid": plain.grid})
    )
    # two branches at each of three evaluations
    assert values(receipt(judged, "cost").measures)["evaluations"] == 6
    assert f"3 steps of `tuned`, guidance {plain.guidance:g}" in (judged / "model" / "README.md").read_text()
    assert "tuned" in (judged / "report.html").read_text()


def test_every_receipt_agrees_when_it_is_computed_again(judged: Path, capsys: pytest.CaptureFixture):
    names = {path.stem for path in (judged / "receipts").iterdir()}
    assert names == {"quality", "likelihood", "steps-002", "steps-003", "cost"}
    bench = Bench(judged / "model")
    for name in names:
        assert all(row.agrees for row in bench.recompute(receipt(judged, name))), name
    for name in ("likelihood", "steps-003"):
        code, out, err = run(capsys, "evaluate", "--receipt", judged / "receipts" / f"{name}.json")
        assert code == 0, err
        assert "The receipt agrees" in out


def test_the_likelihood_on_the_receipt_is_that_of_the_held_out_pictures(judged: Path):
    """Each picture alone, by the plain function: the mean and its interval are those of eight numbers."""
    bench, written = Bench(judged / "model"), receipt(judged, "likelihood")
    (stated,) = written.measures
    assert (stated.name, stated.n) == ("bits per dimension (flow)", 8)
    rows = torch.linspace(0, len(bench.held) - 1, 8).long().tolist()
    labels, bits = bench.held.targets, []
    assert labels is not None
    for row in rows:
        condition = {"label": torch.tensor([int(labels[row])])}
        noise = Noise(written.sampling["seed"], [row])
        x = bench.held.tensor([row])
        bits.append(bits_per_dimension(bench.model.denoiser, x, noise, condition, steps=4, probes=4))
    each = torch.cat(bits)
    # the network sees eight pictures at once there and one here: its products are summed in another order
    assert stated.value == pytest.approx(float(each.mean()), rel=1e-4)
    assert stated.high - stated.value == pytest.approx(1.96 * float(each.std()) / 8**0.5, rel=1e-3)


def test_a_receipt_of_a_solver_that_was_tuned_anew_is_refused(
    judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    import shutil

    shutil.copytree(judged, tmp_path / "run")
    keep_tuned(tmp_path / "run" / "model", 3)
    path = tmp_path / "run" / "receipts" / "steps-003.json"
    code, _, err = run(capsys, "evaluate", tmp_path / "run" / "model", "--receipt", path)
    assert code == 1
    assert "tuned anew" in err
    assert "\n" not in err.strip()
    code, _, err = run(
        capsys, "evaluate", tmp_path / "run" / "model", "--receipt", path.with_name("steps-002.json")
    )
    assert code == 0, err
    assert json.loads(path.read_text())["sampling"]["grid"] == {"kind": "tuned"}
