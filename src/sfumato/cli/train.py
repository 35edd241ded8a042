"""`sfumato train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def train(
    recipe: str = "",
    /,
    *overrides: str,
    out: Annotated[Path, Parameter(alias="-o")],
    resume: bool = False,
) -> int:
    """Train a recipe; the model is left in OUT/model.

    Ctrl-C (or SIGTERM) saves and leaves; the same command with --resume goes on where it was, to the same bits. Any
    value of the recipe can be overridden by its name: sfumato train digits training.batch=128 --out runs/digits

    Parameters
    ----------
    recipe
        A packaged recipe (see: sfumato recipes list) or a TOML file. With --resume it may be left out.
    overrides
        Section.name=value, as often as needed.
    out
        The run's folder.
    resume
        Go on with the run in OUT.
    """
    from ..errors import RecipeError, RunError
    from ..recipes import parse_overrides, read_recipe

    if "=" in recipe and resume:
        recipe, overrides = "", (recipe, *overrides)
    if not recipe:
        if not resume:
            raise RecipeError("which recipe? for example: sfumato train digits --out runs/digits")
        if not (out / "recipe.toml").is_file():
            raise RunError(f"there is no run to resume in {out}: it has no recipe.toml")
        recipe = str(out / "recipe.toml")
    read = read_recipe(
        recipe, parse_overrides(overrides)
    )  # before torch is loaded: a slip is answered at once

    from ..codec import LatentCodec
    from ..recipes.run import train as run
    from ..training import Interrupted
    from .show import Bar, Training, console, duration, say

    with Bar(f"training {read.name}", " images") as bar:
        model, result = run(read, out, resume=resume, callbacks=[Training(bar)], say=say)
    if isinstance(result, Interrupted):
        console.print(
            f"Interrupted at {result.images:,} images; saved. Go on with: sfumato train --resume --out {out}"
        )
        return 130
    held = "" if result.held_out is None else f", held-out loss {result.held_out:.4f}"
    console.print(f"Trained on {result.images:,} images in {duration(result.seconds)}{held}.")
    console.print(f"The model is in {out / 'model'}. Next:")
    if isinstance(model, LatentCodec):
        console.print(f"  sfumato evaluate {out / 'model'}", soft_wrap=True)
        console.print(f"  sfumato train RECIPE codec.bundle={out / 'model'} --out FOLDER", soft_wrap=True)
        return 0
    label = f" --label {model.classes[0]!r}" if model.classes else ""
    if model.conditions.examples:
        label = f" --prompt {model.conditions.examples[0]!r}"
    console.print(
        f"  sfumato sample {out / 'model'} --count 16{label} --out {out / 'samples'}", soft_wrap=True
    )
    console.print(f"  sfumato evaluate {out / 'model'}", soft_wrap=True)
    return 0
