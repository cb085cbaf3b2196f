"""How far long work has come: a bar on a terminal, elsewhere a line of the log now and then."""

import logging
import time

from tqdm import tqdm
from typing_extensions import Self

from lightly_distill.runtime.words import duration

EVERY = 30.0  # seconds between two lines of the log

_logger = logging.getLogger(__name__)


class Progress:
    """Counts what is done, and shows the speed and the time left.

    Args:
        what: Is being done, such as `Representations`.
        total: How many there are.
        unit: Of these, such as `image`.
        shown: Whether this process is the one that speaks.
    """

    def __init__(self, what: str, total: int, unit: str, *, shown: bool = True) -> None:
        self._what, self._total, self._unit = what, total, unit
        # disable=None: quiet without a terminal
        self._bar = tqdm(total=total, desc=what, unit=unit, disable=None if shown else True)
        self._logs = shown and bool(self._bar.disable)
        self._done = 0
        self._started = self._last = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def add(self, count: int) -> None:
        """Counts what was just done."""
        self._done += count
        self._bar.update(count)
        now = time.perf_counter()
        if self._logs and now - self._last >= EVERY:
            self._last, speed = now, self._done / (now - self._started)
            left = duration((self._total - self._done) / speed)
            _logger.info(
                "%s: %s of %s, %.3g %ss a second, %s left.",
                self._what,
                f"{self._done:,}",
                f"{self._total:,}",
                speed,
                self._unit,
                left,
            )
