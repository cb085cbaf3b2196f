"""What a script prints that has not set up logging: what is found, how far it is, and where it was written.

A library does not set up logging. So our lines reach the console for as long as one of our functions runs, and only
where the script has no handlers of its own.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

from lightly_distill.runtime.processes import is_main

P = ParamSpec("P")
T = TypeVar("T")

_LOGGERS = ("lightly_distill", "lightly_distill_integrations")
_shown: ContextVar[bool] = ContextVar("shown", default=True)
_told: ContextVar[set[str] | None] = ContextVar("told", default=None)


def shown() -> bool:
    """Returns whether progress is shown."""
    return _shown.get()


def tell_once(logger: logging.Logger, level: int, message: str, *args: object) -> None:
    """Logs a line, unless it was told in the block of the outermost `aloud` already, as each part of a sweep would.

    Of several processes, the first one tells what all of them would: Python shows warnings of others on their own.
    """
    if not is_main():
        return
    told = _told.get()
    if told is not None and message % args in told:
        return
    if told is not None:
        told.add(message % args)
    logger.log(level, message, *args)


@contextmanager
def aloud(verbose: bool = True, told: set[str] | None = None) -> Iterator[None]:
    """Shows lines and progress, or neither.

    Args:
        verbose: False: no bars, and nothing below a warning on the console. Handlers of the script's own get all lines.
        told: What `tell_once` has told in blocks before that belong together with this one.
    """
    token = _shown.set(verbose and shown())
    before = _told.get()
    told_token = _told.set(before if before is not None else set() if told is None else told)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    silent = [logger for logger in loggers if not logger.hasHandlers()] if shown() and is_main() else []
    handler, levels = logging.StreamHandler(), [logger.level for logger in silent]
    for logger in silent:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(silent, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
        _told.reset(told_token)
        _shown.reset(token)


def speaking(function: Callable[P, T]) -> Callable[P, T]:
    """Decorates a function whose keyword `verbose` decides."""

    @wraps(function)
    def spoken(*args: P.args, **kwargs: P.kwargs) -> T:
        with aloud(bool(kwargs.get("verbose", True))):
            return function(*args, **kwargs)

    return spoken
