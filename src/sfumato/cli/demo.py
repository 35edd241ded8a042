"""`sfumato demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def demo(*, out: Annotated[Path, Parameter(alias="-o")] = Path("runs/demo")) -> int:
    """Train, sample and judge a model of handwritten digits, all real, in a few minutes.

    Parameters
    ----------
    out
        The run's folder; a finished demo is only judged again, an interrupted one goes on.
    """
    import time

    from ..recipes.judge import judge
    from ..recipes.report import write_report
    from ..recipes.run import train
    from ..training import Interrupted
    from .evaluate import show
    from .show import Bar, Training, console, duration, say

    began = time.monotonic()
    say("1 of 3: training a class-conditional diffusion model on handwritten digits")
    with Bar("training", " images") as bar:
        _, result = train("digits", out, resume=True, callbacks=[Training(bar)], say=say)
    if isinstance(result, Interrupted):
        console.print(f"Interrupted at {result.images:,} images; saved. Go on with: sfumato demo --out {out}")
        return 130
    folder = out / "model"
    say("2 of 3: judging it on samples it has never been asked for before")
    with Bar("judging") as bar:
        found = judge(folder, out, progress=lambda what, done, total: bar.update(done, total, what), say=say)
    say("3 of 3: drawing the pictures and the report")
    commands = [
        (
            "draw sixteen threes",
            f"sfumato sample {folder} --count 16 --label 3 --film --out {out / 'threes'}",
        ),
        (
            "compute the figures again and compare",
            f"sfumato evaluate --receipt {out / 'receipts/quality.json'}",
        ),
        ("train on 60,000 pictures of clothing", "sfumato train fashion-mnist --out runs/fashion"),
    ]
    page = write_report(found, out, out, commands)
    show(found)
    named = {m.name: m for m in found.measures}
    agreement, precision, recall = named["agreement"], named["precision"], named["recall"]
    accuracy = found.features["accuracy"]
    console.print()
    console.print(f"[bold]Made in {duration(time.monotonic() - began)}[/bold]:", soft_wrap=True)
    console.print(f"  {folder}  the model, with its card        {page}  the report", soft_wrap=True)
    console.print(
        f"  {out / 'samples.png'}  samples by class       {out / 'film.png'}  how they come about",
        soft_wrap=True,
    )
    console.print(
        f"[bold]How good:[/bold] {agreement.value:.1%} of {agreement.n:,} generated digits are what was asked "
        f"for, by a classifier right on {accuracy:.1%} of held-out real digits; precision {precision.value:.2f} "
        f"and recall {recall.value:.2f} where held-out real digits have {precision.floor:.2f} and {recall.floor:.2f}.",
        soft_wrap=True,
    )
    console.print("[bold]Next:[/bold]")
    for why, command in commands:
        console.print(f"  {command}  [dim]# {why}[/dim]", soft_wrap=True)
    return 0
