"""The command line: `sfumato train digits --out runs/digits`.

Each command is a thin file that turns words into calls; it is imported when it is used, so that `sfumato --help`
answers at once. A `SfumatoError`, and what the system refuses (`OSError`), is printed as one line and ends with code 1,
wrong usage with 2, an interrupted training with 130; anything else is a bug and shows its traceback.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

from cyclopts import App

from .. import __version__

app = App(
    name="sfumato",
    version=__version__,
    help="Turn data into a diffusion model you can trust: train it, sample it, judge it.",
    help_epilogue="Start with: sfumato train digits --out runs/digits",
    result_action="return_value",
)
app.command("sfumato.cli.train:train", help="Train a recipe into a model.")
app.command("sfumato.cli.finetune:finetune", help="Teach a model a few pictures.")
app.command("sfumato.cli.sample:sample", help="Draw samples from a model.")
app.command(
    "sfumato.cli.edit:app",
    name="edit",
    help="Change pictures: fill in, enlarge, colour, sharpen, restyle, interpolate.",
)
app.command("sfumato.cli.tune:tune", help="Fit a solver of few steps to a model.")
app.command("sfumato.cli.evaluate:evaluate", help="Measure a model; every figure gets a receipt.")
app.command(
    "sfumato.cli.study:study",
    help="Say where the error of a model's samples comes from: model, steps or schedule.",
)
app.command("sfumato.cli.inspect:inspect", help="Show what is in a model's folder.")
app.command(
    "sfumato.cli.directions:directions",
    help="Find what may be changed in a model's pictures, without labels.",
)
app.command(
    "sfumato.cli.recipes:app",
    name="recipes",
    help="List, show and copy recipes: whole experiments as TOML files.",
)
app.command("sfumato.cli.data:app", name="data", help="List, fetch and check data.")
app.command(
    "sfumato.cli.demo:demo", help="Train, sample and judge a model of handwritten digits in a few minutes."
)


def _warn(message: Warning | str, *where: Any, **more: Any) -> None:
    """A warning in one line, without the place in the code that it comes from."""
    print(f"sfumato: {message}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave with its code."""
    from ..errors import SfumatoError

    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            code = app(None if arguments is None else list(arguments))
    except SfumatoError as error:
        print(f"sfumato: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("sfumato: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)  # the reader of our output has left
    except OSError as error:  # a disk that is full, a folder that may not be written to
        print(f"sfumato: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
