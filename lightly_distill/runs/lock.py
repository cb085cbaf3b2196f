"""One run at a time in an output folder. The system holds the lock, so a killed run leaves none behind."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from lightly_distill.errors import UsageError
from lightly_distill.runtime.files import writing

_LOCK, _HOLDER = ".running.lock", ".running"
NAMES = (_LOCK, _HOLDER)  # in the folder; the first one stays there, empty
_PROBE_TAKES = 0.5  # seconds at most for which `refuse_running` of another process holds the lock


@contextlib.contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """Holds the lock of a folder, which is made if it is not there and removed if it stays empty.

    Raises:
        UsageError: If another run holds it.
        DistillError: If the folder cannot be written to.
    """
    if folder is None:
        yield
        return
    new = not folder.exists()
    lock = FileLock(folder / _LOCK)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=_PROBE_TAKES)
        except Timeout:
            raise _in_use(folder) from None
    try:
        with writing(folder / _HOLDER):
            (folder / _HOLDER).write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / _HOLDER).unlink(missing_ok=True)
            if [path.name for path in folder.iterdir()] == [_LOCK]:
                (folder / _LOCK).unlink()
                if new:
                    folder.rmdir()
        lock.release()


def refuse_running(folder: Path) -> None:
    """Refuses a folder that a run is writing to.

    Raises:
        UsageError: If there is such a run; the message names its process and machine.
        DistillError: If the folder cannot be written to.
    """
    if not (folder / _LOCK).exists():
        return
    lock = FileLock(folder / _LOCK)
    with writing(folder):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise _in_use(folder) from None
    lock.release()


def _in_use(folder: Path) -> UsageError:
    try:
        holder = (folder / _HOLDER).read_text()
    except OSError:
        holder = "another process"
    return UsageError(f"The output folder {folder} is in use by {holder}: wait for it, or choose another --out.")
