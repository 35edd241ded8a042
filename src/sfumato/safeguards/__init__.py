"""What stands between a model and those who see what it makes: a filter on the way out.

    checker   `Filter`: any scorer of pictures and a threshold; verdicts, blanks and a record of them
    nsfw      `NSFW`: the Open-NSFW classifier, from a package

A filter lowers a risk and does not remove it: what a checker was never taught to see passes.
"""

from __future__ import annotations

from typing import Any

from ..errors import SolverError, choose
from .checker import Checker, CheckFailed, Filter, Screened, Verdict, blank
from .nsfw import NSFW

__all__ = [
    "CHECKERS",
    "NSFW",
    "CheckFailed",
    "Checker",
    "Filter",
    "Screened",
    "Verdict",
    "blank",
    "build_filter",
]

CHECKERS: dict[str, Any] = {NSFW.name: NSFW}


def build_filter(text: str, action: str = "blank") -> Filter:
    """A filter from `name` or `name:threshold`, as the command line writes it.

    Raises SolverError for an unknown name or a threshold that is no number from 0 to 1, MissingExtra where its package
    is not installed.
    """
    name, colon, number = text.partition(":")
    kind = CHECKERS[choose(name, CHECKERS, "filter", SolverError)]
    try:
        threshold = float(number) if colon else kind.threshold
    except ValueError:
        raise SolverError(f"a filter is written NAME or NAME:THRESHOLD, as nsfw:0.5, not {text!r}") from None
    return Filter(kind(), threshold, action)
