"""One run at a time in an output folder. The system holds the lock, so a killed run leaves none behind."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from lightly_distill.errors import UsageError
from lightly_distill.runtime.files import NOT_SUPPORTED, writing

_LOCK, _HOLDER = ".running.lock", ".running"
NAMES = (_LOCK, _HOLDER)  # in the folder; the first one stays there, empty
_logger = logging.getLogger(__name__)

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
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = _acquired(folder, _PROBE_TAKES)
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
        if lock is not None:
            lock.release()


def refuse_running(folder: Path) -> None:
    """Refuses a folder that a run is writing to.

    Raises:
        UsageError: If there is such a run; the message names its process and machine.
        DistillError: If the folder cannot be written to.
    """
    if not (folder / _LOCK).exists():
        return
    lock = _acquired(folder, 0)
    if lock is not None:
        lock.release()


def _acquired(folder: Path, patience: float) -> FileLock | None:
    """Returns the lock of a folder, or None where its file system has no locks, which is told once."""
    # without filelock's own way out, a file that a killed run would leave
    lock = FileLock(folder / _LOCK, fallback_to_soft=False)
    with writing(folder):
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            raise _in_use(folder) from None
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
            _tell(folder)
            return None
    return lock


@cache
def _tell(folder: Path) -> None:
    _logger.warning(
        "The file system of %s has no locks: nothing keeps a second run from writing there at the same time.", folder
    )


def _in_use(folder: Path) -> UsageError:
    try:
        holder = (folder / _HOLDER).read_text()
    except OSError:
        holder = "another process"
    return UsageError(f"The output folder {folder} is in use by {holder}: wait for it, or choose another --out.")
