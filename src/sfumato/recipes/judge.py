"""Judging a bundle: its figures, with a receipt for each set of them, and the model's card brought up to date.

    quality     all measures at the settings the model is sampled with
    steps-N     the same distances at N steps, from fewer samples: quality against cost
    bound, likelihood, cost     as `bench` says, where the recipe asks for them

Samples are drawn as `Model.sample` draws them when it is asked for so many steps and given labels (`Model.plan`): by a
solver tuned to these steps where the bundle holds one, which the receipt then names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluation.cost import Cost
from ..evaluation.measure import Measure
from ..evaluation.receipts import Receipt
from ..files import write_atomically
from ..model import Model
from ..processes import Categorical, Gaussian
from ..sampling import Sampling
from ..solvers import Driver
from .bench import Bench, Progress, sampling_cost, stated
from .card import add_measures
from .recipe import Recipe

CURVE = ("frechet", "agreement")
TITLES = {"frechet": "Fréchet distance"}


@dataclass(frozen=True)
class Judgement:
    """What judging a bundle found. plan: how it is sampled. receipts: name -> the receipt and where it was written."""

    model: Model
    recipe: Recipe
    plan: Sampling
    measures: list[Measure]
    curve: list[dict[str, Any]]
    cost: Cost
    features: dict[str, Any]
    receipts: dict[str, tuple[Receipt, Path]]


def judge(
    folder: str | Path,
    out: str | Path,
    *,
    samples: int | None = None,
    steps: Sequence[int] | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Judgement:
    """Measure a bundle, write `out/receipts/*.json`, and put the figures on the bundle's model card.

    samples, steps, seed: instead of the recipe's [evaluation] values. Raises SfumatoError in one line.
    """
    bench = Bench(folder, progress)
    model, config = bench.model, bench.recipe.evaluation
    samples = config.samples if samples is None else samples
    out = Path(out)
    card = bench.features.card()
    if card.get("accuracy") is not None:
        say(f"judged by a classifier that is right on {card['accuracy']:.2%} of held-out pictures")
    receipts: dict[str, tuple[Receipt, Path]] = {}

    def attest(name: str, settings: dict[str, Any]) -> list[Measure]:
        began = time.monotonic()
        found = bench.figures(settings)
        path = out / "receipts" / f"{name}.json"
        receipts[name] = bench.receipt(found, settings, path, time.monotonic() - began), path
        return found

    def planned(number: int | None = None) -> Sampling:
        return model.plan(steps=number, conditional=bool(model.conditions.names))

    plan, common = planned(), {"seed": config.seed if seed is None else seed, "batch": 250}
    drawn = common | {"what": "quality", "samples": samples, "measures": None}
    drawn |= {"labels": "in the proportions of the training set" if model.classes else "none"}
    if model.info.get("text"):
        drawn["prompts"] = "captions of the training set, in a fixed random order"
    measures = attest("quality", stated(plan) | drawn)
    if config.bound_images and not isinstance(model.denoiser.process, (Gaussian, Categorical)):
        say("no bound: the variational bound is that of a gaussian or categorical process")
    elif config.bound_images:
        bound = {"what": "bound", "steps": bench.recipe.objective.steps, "terms": config.bound_terms}
        measures += attest("bound", common | bound | {"images": min(config.bound_images, len(bench.held))})
    if config.likelihood_images:
        flow = {"what": "likelihood", "steps": config.likelihood_steps, "probes": config.likelihood_probes}
        flow |= {"images": min(config.likelihood_images, len(bench.held))}
        measures += attest("likelihood", common | flow)
    names = [name for name in CURVE if any(m.name == name for m in measures)] or [measures[0].name]
    curve = []
    for point in map(planned, config.steps if steps is None else steps):
        if isinstance(point.solver, Driver):
            say(f"no figures at {point.steps} steps: the {point.solver.kind} solver chooses its own")
            continue
        few = {"samples": min(config.curve_samples, samples), "measures": names}
        found = {m.name: m for m in attest(f"steps-{point.steps:03d}", stated(point) | drawn | few)}
        main = found[names[0]]
        row = {
            "name": TITLES.get(main.name, main.name),
            "steps": point.steps,
            "solver": point.solver.kind,
            "floor": main.floor,
        }
        row |= {"evaluations": sampling_cost(model, 1, 1, point).nfe}
        row |= {"value": main.value, "low": main.low, "high": main.high}
        curve.append(row | ({"agreement": found["agreement"].value} if "agreement" in found else {}))
    cost = sampling_cost(model, plan=plan)
    noted = {"what": "cost", **stated(plan), "measured beside": dict(cost.rows())}
    measures += attest("cost", noted)
    judgement = Judgement(model, bench.recipe, plan, measures, curve, cost, card, receipts)
    _onto_card(Path(folder), judgement)
    return judgement


def _onto_card(folder: Path, judgement: Judgement) -> None:
    path = folder / "README.md"
    if path.is_file():
        plan = judgement.plan
        heading = f"{plan.steps} steps of `{plan.solver.kind}`, guidance {plan.guidance:g}, over features "
        heading += f"`{judgement.features['name']}`"
        if judgement.features.get("accuracy") is not None:
            heading += f" (accuracy on held-out data {judgement.features['accuracy']:.2%})"
        heading += "; receipts beside the model."
        text = add_measures(path.read_text(encoding="utf-8"), judgement.measures, heading)
        write_atomically(path, text.encode())
