"""Work that a thread does while the program goes on: one piece at a time, and no way out before it is done."""

import threading
import weakref
from collections.abc import Callable

_all: "weakref.WeakSet[Background]" = weakref.WeakSet()


class Background:
    """Does one piece of work at a time in a thread, which Python waits for before it ends."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        _all.add(self)

    def start(self, work: Callable[[], object]) -> None:
        """Begins a piece of work, after the one before it.

        Raises:
            Exception: What that failed with; then nothing is begun.
        """
        self.finish()
        self._thread = threading.Thread(target=self._do, args=(work,), name="background")
        self._thread.start()

    def finish(self) -> None:
        """Returns when the work is done.

        Raises:
            Exception: What it failed with, once.
        """
        self.wait()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Returns when the work is done, or has failed."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            self._error = error


def finish_all() -> None:
    """Waits for all work in hand, before the process is ended from another thread than the main one."""
    for each in list(_all):
        each.wait()
