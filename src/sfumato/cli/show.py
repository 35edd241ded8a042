"""What the commands print: progress with time left, short tables, lines that say what was made."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from ..training.callbacks import Callback

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from PIL.Image import Image

    from ..training.validation import HeldOut

console = Console(highlight=False)
_PLAIN_EVERY = 10.0  # seconds between lines where there is no terminal to draw on


def say(text: str) -> None:
    """One line of what is happening."""
    console.print(f"[dim]·[/dim] {escape(text)}")


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 3 min 20 s, 2 h 5 min."""
    if not math.isfinite(seconds):
        return "–"
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    if whole < 5400:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Bar:
    """A progress bar with time left; without a terminal, a line every ten seconds."""

    def __init__(self, what: str, unit: str = ""):
        self.what, self.unit = what, unit
        self._started = self._told = time.monotonic()
        self._done = self._total = 0
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[note]}"),
        ]
        self._progress = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._task = None if self._progress is None else self._progress.add_task(what, total=None, note="")

    def __enter__(self) -> Bar:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, done: int, total: int, note: str = "", left: float | None = None) -> None:
        """Show that `done` of `total` is done; `left` in seconds is estimated if it is not given."""
        now = time.monotonic()
        if done < self._done or total != self._total:  # another stage, with a clock of its own
            self._started = now
        self._done, self._total = done, total
        if left is None:
            left = (now - self._started) / max(done, 1) * (total - done)
        text = ", ".join(part for part in (note, f"{duration(left)} left") if part)
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, note=text)
        elif now - self._told > _PLAIN_EVERY:
            self._told = now
            console.print(f"  {self.what}: {done:,} of {total:,}{self.unit}, {text}")


class Training(Callback):
    """Shows a training: a bar with images per second, and a line for each held-out loss."""

    def __init__(self, bar: Bar):
        self.bar = bar

    def on_step(
        self, images: int, total: int, loss: float, images_per_second: float, seconds_left: float
    ) -> None:
        """Move the bar."""
        loss_text = "" if math.isnan(loss) else f"loss {loss:.4f}, "
        self.bar.update(images, total, f"{loss_text}{images_per_second:,.0f} images/s", seconds_left)

    def on_validate(self, held_out: HeldOut) -> None:
        """A line for each measurement."""
        say(f"{held_out.images:,} images: held-out loss {held_out.loss:.4f}")

    def on_message(self, text: str) -> None:
        """What the user should know."""
        console.print(f"[yellow]![/yellow] {escape(text)}")


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A small table; the first column is text, the others are aligned right."""
    drawn = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for k, head in enumerate(heads):
        drawn.add_column(head, justify="left" if k == 0 else "right")
    for row in rows:
        drawn.add_row(*(escape(str(cell)) for cell in row))
    console.print(drawn)


def pairs(values: Mapping[str, Any]) -> None:
    """Names and values, one a line."""
    drawn = Table(box=None, show_header=False, pad_edge=False)
    drawn.add_column(style="dim")
    drawn.add_column()
    for name, value in values.items():
        drawn.add_row(name, escape(str(value)))
    console.print(drawn)


def write_picture(picture: Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    from ..files import write_atomically

    write_atomically(path, lambda file: picture.save(file, format="PNG"))
