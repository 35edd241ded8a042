"""Ctrl-C and `kill` end a run after the step in hand, with a checkpoint.

The first SIGINT or SIGTERM sets a flag that the trainer looks at between steps; a second SIGINT is meant: the
old handler gets it at once (KeyboardInterrupt, or death). Handlers are put back when the block ends. Signals
belong to the main thread of a process: in any other thread nothing is installed.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """`with Interrupts() as asked: ... if asked.signal: ...`, where signal is None, "SIGINT" or "SIGTERM"."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._old: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal and number == signal.SIGINT:
            self._restore()
            signal.raise_signal(
                number
            )  # to this thread: sent to the process, it may come late by way of another
        self.signal = signal.Signals(number).name

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
