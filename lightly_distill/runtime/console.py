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


def shown() -> bool:
    """Returns whether progress is shown."""
    return _shown.get()


@contextmanager
def aloud(verbose: bool = True) -> Iterator[None]:
    """Shows lines and progress, or neither.

    Args:
        verbose: False: no bars, and nothing below a warning on the console. Handlers of the script's own get all lines.
    """
    token = _shown.set(verbose and shown())
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
        _shown.reset(token)


def speaking(function: Callable[P, T]) -> Callable[P, T]:
    """Decorates a function whose keyword `verbose` decides."""

    @wraps(function)
    def spoken(*args: P.args, **kwargs: P.kwargs) -> T:
        with aloud(bool(kwargs.get("verbose", True))):
            return function(*args, **kwargs)

    return spoken
