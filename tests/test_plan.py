"""One plan: samples, the film and the inspector of one command are of one run, and its record alone makes it again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato import bundle
from sfumato.cli import app
from sfumato.domains.source import Source
from sfumato.evaluation.trace import record, trace
from sfumato.film import film, planned
from sfumato.model import Model
from sfumato.networks import build
from sfumato.sampling import Sampling
from sfumato.solvers import DPMpp2M, FlowGrid, Heun, KarrasGrid, Tuned, adams
from sfumato.solvers.tuning import Errors, Tuning

GOOD, BAD = Errors(0.1, 0.1, 0.1, 0.1, 0.1), Errors(0.2, 0.2, 0.2, 0.2, 0.2)


def keep_tuned(folder: Path, steps: int, order: int, guidance: float, conditional: bool) -> None:
    model = bundle.load(folder)
    fitted = {"weights": model.fingerprint, "guidance": guidance, "conditional": conditional}
    solver = dataclasses.replace(adams(model.denoiser.process, steps, order), **fitted)
    found = Tuning(solver, solver, {"tuned": GOOD, "other": BAD}, 9, 3, 1, 1.0)
    bundle.save_tuned(folder, found)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A model of ten classes, tuned to 3 steps at two guidances, and one without labels, tuned to 3; some pictures."""
    from demo_model import make_demo_run

    root = tmp_path_factory.mktemp("plan")
    make_demo_run(root)
    keep_tuned(root / "model", 3, 2, 1.0, True)
    keep_tuned(root / "model", 3, 3, 2.0, True)
    model = bundle.load(root / "model")
    torch.manual_seed(1)
    network = build(
        "unet", in_channels=1, size=8, classes=0, width=16, multipliers=[1], blocks=[1], embedding=32
    )
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    denoiser = type(model.denoiser)(network, model.denoiser.process, "velocity")
    bundle.save(
        Model(denoiser, dataclasses.replace(model.domain, classes=()), model.sampling), root / "plain"
    )
    keep_tuned(root / "plain", 3, 2, 1.0, False)
    model.domain.write(model.sample(3, seed=5, steps=4), root / "pictures")
    return {"labels": root / "model", "plain": root / "plain", "pictures": root / "pictures"}


OWN, NODES = DPMpp2M(), FlowGrid()
CASES = {
    "tuned steps": ("labels", "--steps 3", "tuned", None),
    "tuned steps and guidance": ("labels", "--steps 3 --guidance 2", "tuned", None),
    "no labels": ("plain", "--steps 3", "tuned", None),
    "other steps": ("labels", "--steps 4", OWN, NODES),
    "other guidance": ("labels", "--steps 3 --guidance 1.5", OWN, NODES),
    "nothing said": ("labels", "", OWN, NODES),
    "a solver": ("labels", "--steps 3 --solver heun:frame=angle", Heun("angle"), NODES),
    "the tuned solver by name": ("labels", "--steps 3 --solver tuned", "tuned", None),
    "a grid": ("labels", "--steps 3 --grid karras", OWN, KarrasGrid()),
    "pictures to start from": (
        "labels",
        "--steps 3 --from PICTURES --strength 0.5",
        OWN,
        FlowGrid(start=0.5),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_samples_film_and_inspector_are_of_the_run_that_the_record_states(folders, case, tmp_path):
    which, words, solver, grid = case
    model, out = bundle.load(folders[which]), tmp_path / "out"
    given = words.replace("PICTURES", str(folders["pictures"])).split()
    ask = [
        "sample",
        str(folders[which]),
        "--count",
        "3",
        "--seed",
        "7",
        "--film",
        "--inspect",
        "--out",
        str(out),
    ]
    assert app([*ask, *given, *(["--label", "4"] if model.classes else [])]) == 0
    written = json.loads((tmp_path / "out-steps.json").read_text())
    stated = Sampling.from_json(written)
    if solver == "tuned":
        assert isinstance(stated.solver, Tuned)
        assert (stated.solver.steps, stated.solver.guidance) == (stated.steps, stated.guidance)
        assert stated.grid == stated.solver.grid
    else:
        assert (stated.solver, stated.grid) == (solver, grid)
    # all that the record says, said explicitly
    settings = {
        "seed": written["seed"],
        **{name: getattr(stated, name) for name in ("solver", "grid", "steps")},
    }
    settings |= {"guidance": stated.guidance, "condition": {"label": 4} if model.classes else None}
    if written["from"] is not None:
        pictures = model.domain.read(Source(path=folders["pictures"], labels="none"))
        settings["start"] = pictures.tensor([0, 1, 2]), written["from"]
    again = model.sample(3, **settings)
    files = np.stack([np.asarray(Image.open(path)) for path in sorted(out.glob("*.png"))])
    assert np.array_equal(files, model.domain.pixels(again)[..., 0])
    shots, captions = film(model, 3, **settings)
    assert len(shots) == min(stated.steps, 8)
    assert torch.equal(shots[-1], again)
    strip = np.asarray(model.domain.strip(shots, captions))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out-film.png")), strip)
    assert len(written["trace"]) == stated.steps
    traced = json.loads(json.dumps(record(trace(model, 3, **settings))))
    assert traced == {"rings": written["rings"], "trace": written["trace"]}


@pytest.mark.parametrize("condition", [None, {"label": 4}], ids=["no condition", "a condition"])
def test_a_solver_tuned_to_conditions_is_for_conditions_only(folders, condition):
    """Of a model with labels, which may also be asked without any."""
    model = bundle.load(folders["labels"])
    settings = {"condition": condition, "steps": 3, "seed": 7}
    plan = planned(model, settings)
    assert isinstance(plan.solver, Tuned) == (condition is not None)
    drawn = model.sample(3, **settings)
    explicit = model.sample(3, solver=plan.solver, grid=plan.grid, **settings)
    assert torch.equal(drawn, explicit)
    assert torch.equal(film(model, 3, **settings)[0][-1], drawn)
    assert torch.equal(trace(model, 3, keep=3, **settings).shots[-1], drawn)
