"""How a run tells what it does: the trainer never prints, it calls.

A callback that raises is told to the log of Python (`logging`) once and not called again: a broken progress
bar must not cost a night's training. KeyboardInterrupt and its like pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .validation import HeldOut

logger = logging.getLogger(__name__)


class Callback:
    """What may be told; every method does nothing by default."""

    def on_step(
        self, images: int, total: int, loss: float, images_per_second: float, seconds_left: float
    ) -> None:
        """After each step. loss: of the newest step that was looked at (nan before the first)."""

    def on_log(self, record: dict[str, Any]) -> None:
        """A line of the log was written."""

    def on_validate(self, held_out: HeldOut) -> None:
        """The held-out loss was measured."""

    def on_checkpoint(self, path: Path) -> None:
        """A checkpoint was saved."""

    def on_message(self, text: str) -> None:
        """Something the user should read: a damaged checkpoint was skipped, a preview failed."""


class Callbacks:
    """Calls several callbacks, shielding the run from what they raise."""

    def __init__(self, callbacks: Sequence[Callback] = ()):
        self._callbacks = list(callbacks)

    def _each(self, call: Callable[[Callback], None]) -> None:
        for callback in list(self._callbacks):
            try:
                call(callback)
            except Exception:
                logger.exception("the callback %s failed and is not called again", type(callback).__name__)
                self._callbacks.remove(callback)

    def on_step(
        self, images: int, total: int, loss: float, images_per_second: float, seconds_left: float
    ) -> None:
        self._each(lambda c: c.on_step(images, total, loss, images_per_second, seconds_left))

    def on_log(self, record: dict[str, Any]) -> None:
        self._each(lambda c: c.on_log(record))

    def on_validate(self, held_out: HeldOut) -> None:
        self._each(lambda c: c.on_validate(held_out))

    def on_checkpoint(self, path: Path) -> None:
        self._each(lambda c: c.on_checkpoint(path))

    def on_message(self, text: str) -> None:
        """With no callback to hear it, a message goes to `logging`, so that it is never lost."""
        if not self._callbacks:
            logger.warning(text)
        self._each(lambda c: c.on_message(text))
