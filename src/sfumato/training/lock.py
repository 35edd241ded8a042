"""One process a run folder.

The lock is flock's, on `<run>/.lock`: the kernel releases it when the process ends, however it ends, so a
killed run leaves no stale lock to be removed by hand. The file holds the owner's process id, for the message
only.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from sfumato.errors import RunError


class RunLock:
    """`with RunLock(folder): ...`; raises RunError "run folder X is in use by process N" if another process
    holds it."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._file: int | None = None

    def acquire(self) -> RunLock:
        import fcntl  # not on Windows: imported where it is needed

        self.folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(file, 32).decode(errors="replace").strip() or "unknown"
            os.close(file)
            raise RunError(f"run folder {self.folder} is in use by process {owner}") from None
        except OSError as error:
            os.close(file)
            raise RunError(f"run folder {self.folder} cannot be locked: {error.strerror}") from error
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        self._file = file
        return self

    def release(self) -> None:
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.close(self._file)  # closing releases the lock; the file stays, as removing it would race
            self._file = None

    def __enter__(self) -> RunLock:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
