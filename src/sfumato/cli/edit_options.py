"""The options that the subcommands of `sfumato edit` share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True)
class Drawn:
    """What every edit takes."""

    out: Annotated[Path, Parameter(alias="-o")] = Path("edited")
    "Where to write the pictures; OUT-sheet.png shows them beside what was given."
    label: str | None = None
    "The class to draw, by name or number; default: none, if the model may go without."
    prompt: str | None = None
    "What to draw, in words, of a model that takes text."
    seed: int = 0
    "Another seed gives other pictures."
    steps: int | None = None
    "Steps of the solver; default: the model's own."
    guidance: str | None = None
    "Classifier-free weight, where there is a label or a prompt; also with repairs, 2:interval=0.2..3."
    adapter: list[str] | None = None
    "An adapter's folder, or FOLDER:weight: what `sfumato finetune` taught the model."
    filter_: Annotated[str | None, Parameter(name="--filter")] = None
    "Check every picture before it is written: nsfw, or nsfw:0.5; what is rejected is crossed out."

    @property
    def condition(self) -> dict[str, Any] | None:
        """The label and the prompt as a condition."""
        found = {"label": self.label, "text": self.prompt}
        return {name: value for name, value in found.items() if value is not None} or None

    def without(self, command: str, *names: str) -> None:
        """Raise BundleError for options that a command has no use for."""
        from ..errors import BundleError

        for name in names:
            if getattr(self, name) not in (None, 0):
                raise BundleError(f"`edit {command}` has no use for --{name.rstrip('_')}: leave it out")


@Parameter(name="*")
@dataclass(frozen=True)
class Restored(Drawn):
    """What an edit takes that restores a measured picture."""

    count: int = 1
    "How many answers for each picture."
    method: str | None = None
    "ddnm, pigdm, dps, moments, replacement, repaint:repeats=5 or particles:particles=16."
    # default: repaint where a part is missing, since ddnm's parts may not fit each other; ddnm for the rest
