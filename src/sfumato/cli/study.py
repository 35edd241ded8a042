"""`sfumato study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def study(
    bundle: Path,
    /,
    *,
    steps: Annotated[list[int] | None, Parameter(consume_multiple=True)] = None,
    solver: str | None = None,
    grid: str | None = None,
    examples: int = 512,
    seed: int = 0,
    out: Annotated[Path, Parameter(alias="-o")] = Path("study"),
) -> int:
    """Say where the error of a model's samples comes from: the model, the steps, or the ends of the schedule.

    All are in one unit, how far a finished sample is moved (root mean square, where pixels run from -1 to 1), so they
    say what to improve: while the steps cost most, take more or another solver; once the score does, train a better
    model. Writes OUT/study.png, and OUT/study.json, a receipt that `sfumato evaluate --receipt` computes again.

    Parameters
    ----------
    bundle
        The model's folder; the data it was trained on are read again.
    steps
        Numbers of steps to compare (default 4 8 16 32).
    solver
        A deterministic solver, such as heun, euler or dpm++2m; default: the model's own.
    grid
        Where the steps lie; default: the model's own.
    examples
        How many held-out pictures, and how many trained on, the score is judged by. More narrow the intervals.
    seed
        Another seed starts from other noise.
    out
        Where to write.
    """
    import time

    from ..evaluation.study import Plan
    from ..evaluation.study_report import picture, verdict
    from ..files import check_folder, write_atomically
    from ..recipes.bench import Bench
    from .show import Bar, console, table

    check_folder(out)
    began = time.monotonic()
    with Bar("studying") as bar:
        bench = Bench(bundle, lambda what, done, total: bar.update(done, total, what))
        own = bench.model.sampling.with_(solver, grid)
        numbers = tuple(steps or (4, 8, 16, 32))
        plan = Plan(own.solver, own.grid, numbers, max(128, 2 * max(numbers)), seed=seed)
        settings = {
            "what": "study",
            "solver": plan.solver.to_json(),
            "grid": plan.grid.to_json(),
            "steps": list(plan.steps),
            "fine": plan.fine,
            "starts": plan.starts,
            "levels": plan.levels,
            "seed": plan.seed,
            "examples": examples,
            "guidance": 1.0,
        }
        found = bench.study(settings)
    title = f"{bench.recipe.name}: {plan.solver.kind} on the {plan.grid.kind} grid, guidance 1"
    png = picture(found, title)
    bench.receipt(found, settings, out / "study.json", time.monotonic() - began)
    write_atomically(out / "study.png", png)
    rows = [[m.name, f"{m.value:.3g}", f"{m.low:.3g} … {m.high:.3g}", m.n, m.note] for m in found]
    table("", ["moves a sample by", "RMS", "95 % interval", "samples", ""], rows)
    order = next(m.details["order"] for m in found if "steps" in m.details)
    if order is not None:
        console.print(f"The error of the steps falls with order {order:.2f}.")
    console.print(f"{verdict(found, own.steps)}.", soft_wrap=True)
    console.print(f"picture: {out / 'study.png'}, numbers: {out / 'study.json'}", soft_wrap=True)
    return 0
