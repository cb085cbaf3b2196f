"""An error in one of several processes ends them all: the others would wait for hours for what it does not send.

It is told through the store by which the processes found each other. A thread of each looks there, as the process
itself may be inside an exchange that nothing can interrupt.
"""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

from torch import distributed

from lightly_distill.errors import DistillError
from lightly_distill.runtime import background
from lightly_distill.runtime.processes import Processes

LOOK_EVERY = 0.5  # seconds
GRACE = 5.0  # seconds in which a process that is told may end by itself: by the same error, or as its peer is gone

_blocks = count()  # all processes come to the same ones in the same order

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def failing_together(processes: Processes) -> Iterator[None]:
    """Inside the block, an error in one process ends all of them within seconds; all leave it together.

    A process that is told of another's error and does not end by itself ends with exit status 1, whatever it does.

    Raises:
        DistillError: If another process failed first and the exchange with it broke off.
    """
    if processes.count == 1:
        yield
        return
    notice = _Notice(processes)
    watch = threading.Thread(target=notice.watch, name="watch", daemon=True)
    watch.start()
    try:
        yield
        processes.wait()  # for one that has more to do and may still fail
    except Exception as error:
        first = notice.post(error)
        if first is not None and not isinstance(error, DistillError):
            raise DistillError(first) from error
        raise
    finally:
        notice.left.set()
        watch.join(LOOK_EVERY)


class _Notice:
    """The place where the first process that fails says so, in the store of the group, which may be the user's.

    Attributes:
        left: Set when this process leaves the block.
        first: What the first process to fail has told, if it is another one and this one has read it.
    """

    def __init__(self, processes: Processes) -> None:
        store = distributed.distributed_c10d._get_default_store()
        # a connection of its own, from torch 2.8 on: one that waits for a key lets no other thread ask
        self._store: Any = getattr(store, "clone", lambda: store)()
        self._processes = processes
        self._error = f"lightly_distill/failed/{next(_blocks)}"
        self._seen = f"{self._error}/seen"
        self.left = threading.Event()
        self.first: str | None = None

    def watch(self) -> None:
        """Ends the process if another fails and this one does not leave the block."""
        try:
            while not self._store.check([self._error]):
                if self.left.wait(LOOK_EVERY):
                    return
            if self.left.is_set():  # it may be this one's own
                return
            self._read(self._store.get(self._error).decode())
        except RuntimeError:  # the store is gone, with the process that holds it or the network: launchers see to that
            return
        if self.left.wait(GRACE):
            return
        _logger.error("%s. This process ends with it.", self.first)
        background.finish_all()  # such as a checkpoint that is half written
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(1)

    def post(self, error: Exception) -> str | None:
        """Tells the others of an error, unless one of them failed before; returns what that one told."""
        self.left.set()
        own = self._processes.failure(error)
        with contextlib.suppress(RuntimeError):  # the store is gone, and what could be read has been
            if self.first is None:
                first = self._store.compare_set(self._error, "", own).decode()
                if first != own:
                    self._read(first)
                else:
                    self._stay_until_read()
        return self.first

    def _read(self, told: str) -> None:
        self.first = told
        self._store.add(self._seen, 1)

    def _stay_until_read(self) -> None:
        """Waits for the others, as the store may go with this very process."""
        deadline = time.monotonic() + GRACE
        while self._store.add(self._seen, 0) < self._processes.count - 1 and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY / 5)
