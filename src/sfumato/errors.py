"""What goes wrong, said in one line: what was given, what is allowed, and the nearest right thing.

Every error a user can cause is an `SfumatoError`, so that the command line prints it as one line and
leaves with a non-zero code, while a bug in sfumato itself still shows its traceback. Each class is also
the built-in error that a Python programmer would expect to catch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SfumatoError(Exception):
    """Base of every error whose cause lies in what the user gave."""


class RecipeError(SfumatoError, ValueError):
    """A recipe, or an override of one, that does not say something possible."""


class DataError(SfumatoError, ValueError):
    """Data that are missing, damaged or not what the recipe expects."""


class BundleError(SfumatoError, ValueError):
    """A model bundle that is damaged, foreign, or asked for what it cannot do."""


class SolverError(SfumatoError, ValueError):
    """A solver, grid or conversion asked for what its mathematics cannot give."""


class RunError(SfumatoError, RuntimeError):
    """A training run that cannot start, continue or be saved."""


class MissingExtra(SfumatoError, ImportError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str):
        super().__init__(f"this needs {package}, which is not installed: pip install 'sfumato[{extra}]'")


def nearest(given: object, allowed: Iterable[str]) -> str | None:
    """The allowed name closest in spelling to what was given, or None if none is close."""
    names = {name.lower(): name for name in allowed}
    close = difflib.get_close_matches(str(given).lower(), names, n=1, cutoff=0.5)
    return names[close[0]] if close else None


def choose(given: object, allowed: Iterable[str], what: str, error: type[SfumatoError] = RecipeError) -> str:
    """Return `given` if it is one of the allowed names; otherwise say which are and which was probably meant."""
    names = list(allowed)
    if isinstance(given, str) and given in names:
        return given
    close = nearest(given, names)
    hint = f"; did you mean {close!r}?" if close else ""
    raise error(f"unknown {what} {given!r}: allowed are {', '.join(names)}{hint}")
