"""Signals that ask a run to stop: the step in hand is finished and saved first."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

# Windows has no SIGUSR1
STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))


class StopOnSignal:
    """Inside the block, the first SIGTERM, SIGINT or SIGUSR1 only sets `received`; a second one leaves at once.

    That is, it does what it did before the block, as every signal does after it. A signal that the program ignores
    stays ignored. Does nothing in another thread than the main one, where Python has no signals.

    Attributes:
        received: Number of the signal, None before there was one.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                handler = signal.getsignal(number)
                if handler not in (None, signal.SIG_IGN):  # None: not Python's to give back
                    self._before[number] = handler
                    signal.signal(number, self._set)
        return self

    def __exit__(self, *error: object) -> None:
        self._give_back()

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class EndOnSignal(StopOnSignal):
    """Inside the block, the first signal ends the program at once, by a function that says what is left of the work.

    Args:
        end: Is given the number of the signal, and raises what `leave` does.
    """

    def __init__(self, end: Callable[[int], NoReturn]) -> None:
        super().__init__()
        self._end = end

    def _set(self, number: int, frame: FrameType | None) -> None:
        super()._set(number, frame)
        self._end(number)


def leave(number: int) -> NoReturn:
    """Does what the signal asks, now that the state is saved.

    Raises:
        KeyboardInterrupt: For SIGINT, as Python does.
        SystemExit: For the others: an exit status of 128 + `number`, after the program's own handler if it has one.
    """
    handler = signal.getsignal(number)
    if callable(handler):
        handler(number, None)  # Python's own for SIGINT raises KeyboardInterrupt
    raise SystemExit(128 + number)
