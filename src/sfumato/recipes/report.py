"""The page that a run leaves: what was made, how good it is, and how to compute every figure again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from ..evaluation.report import (
    Commands,
    Curve,
    Facts,
    Measures,
    Pictures,
    Receipts,
    Report,
    Table,
    figure_loss_by_noise,
    figure_quality_vs_steps,
    figure_training,
)
from ..files import write_atomically
from ..film import film
from ..model import Model
from ..training.logbook import read_log
from .judge import Judgement
from .run import png, sample_sheet

FILM = (
    "How samples come about: what the model takes the finished picture to be, from almost pure noise on the left to "
    "the sample on the right."
)


def write_pictures(model: Model, out: Path, columns: int = 10) -> dict[str, Path]:
    """Write `out/samples.png` (a row for each class) and `out/film.png` (how samples come about)."""
    out.mkdir(parents=True, exist_ok=True)
    paths = {"samples": out / "samples.png", "film": out / "film.png"}
    sheet = sample_sheet(model, columns)
    write_atomically(paths["samples"], sheet)
    count = min(len(model.classes) or len(model.conditions.examples) or 6, 10)
    condition = model.conditions.in_turn(count)
    shots, captions = film(model, count, condition=condition)
    strip = png(model.domain.strip(shots, captions))
    write_atomically(paths["film"], strip)
    return paths


def _rows(model: Model) -> str:
    if model.classes:
        return ", one row for each class"
    return ", one row for each caption" if model.conditions.examples else ""


def write_report(judgement: Judgement, run: Path, out: Path, commands: list[tuple[str, str]]) -> Path:
    """Write the report of a judgement to `out/report.html`, with the training's curves if `run` has a log."""
    model, recipe = judgement.model, judgement.recipe
    pictures = write_pictures(model, out)
    info = model.info
    sections: list[Any] = [
        Pictures(
            [
                (
                    Image.open(pictures["samples"]),
                    f"Samples that the model drew{_rows(model)}; seed 0.",
                )
            ],
            title="What it makes",
        ),
        Pictures([(Image.open(pictures["film"]), FILM)]),
        Measures(judgement.measures, title="How good it is", features=judgement.features),
    ]
    if judgement.curve:
        floor = judgement.curve[0]["floor"]
        curve = [row | {"steps": row["evaluations"]} for row in judgement.curve]
        name = judgement.curve[0]["name"]
        heads = ["steps", "solver", "evaluations", name, "low", "high"]
        cells = [
            [row["steps"], row["solver"], row["evaluations"], row["value"], row["low"], row["high"]]
            for row in judgement.curve
        ]
        if "agreement" in judgement.curve[0]:
            heads.append("class agreement")
            cells = [[*line, row["agreement"]] for line, row in zip(cells, judgement.curve, strict=True)]
        number = min(recipe.evaluation.curve_samples, recipe.evaluation.samples)
        sections += [
            Curve(
                figure_quality_vs_steps(curve, floor, name),
                f"{name} against steps, {number:,} samples a point, with 95 % intervals; fewer samples give "
                "a higher distance, for the model and for held-out data alike.",
                title="Quality against steps",
            ),
            Table(heads, cells),
        ]
    sections += _training(run)
    sections += [
        Table(
            ["what", "how much"], [list(row) for row in judgement.cost.rows()], title="What a sample costs"
        ),
        Facts(_facts(judgement), title="The model"),
    ]
    folded = [(path.name, receipt) for receipt, path in judgement.receipts.values()]
    folder = next(iter(judgement.receipts.values()))[1].parent
    sections.append(
        Receipts(folded, title="Receipts", text=f"In {folder}: one for each set of figures on this page.")
    )
    sections.append(Commands(commands, title="What next"))
    lead = recipe.about or f"A diffusion model of {info['data']['train']['name']}."
    return Report(recipe.name, lead, sections).write(out / "report.html")


def _training(run: Path) -> list[Any]:
    if not (run / "log.jsonl").is_file():
        return []
    rows = read_log(run / "log.jsonl")
    sections: list[Any] = []
    trained = [row for row in rows if "loss" in row]
    tested = [row for row in rows if "held_out" in row]
    if trained:
        held = [{"images": row["images"], "held_loss": row["held_out"]["loss"]} for row in tested]
        sections.append(Curve(figure_training(trained + held), "Loss while training.", title="Training"))
    if tested:
        bins = tested[-1]["held_out"]["by_noise"]
        # the two outermost bins are open: they are drawn as wide as the others
        middles = [
            (
                (b["to"] - 2 if b["from"] is None else b["from"])
                + (b["from"] + 2 if b["to"] is None else b["to"])
            )
            / 2
            for b in bins
        ]
        caption = "Mean squared error of v on held-out pictures by noise level: data on the left, noise on the right."
        sections.append(Curve(figure_loss_by_noise(middles, [b["error"] for b in bins]), caption))
    return sections


def _facts(judgement: Judgement) -> list[tuple[str, object]]:
    model, info = judgement.model, judgement.model.info
    data, training, plan = info["data"]["train"], info["training"], judgement.plan
    return [
        ("network", f"{info['network']['kind']}, {info['parameters']:,} parameters"),
        ("process", model.denoiser.process.schedule.kind),
        ("predicts", model.denoiser.parameterisation),
        ("trained", f"{training['images']:,} images in {training['seconds']:,.0f} s"),
        ("sampled", f"{plan.steps} steps of {plan.solver.kind}, guidance {plan.guidance:g}"),
        (
            "data",
            f"{data['name']}: {data['count']:,} pictures, {info['data']['held_out']['count']:,} held out",
        ),
        ("licence of the data", data["licence"]),
        ("bundle", info["sha256"][:16]),
    ]
