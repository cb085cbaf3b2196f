"""How far long work has come: a bar on a terminal, elsewhere a line of the log now and then."""

import logging
import time

from tqdm import tqdm
from typing_extensions import Self

from lightly_distill.runtime import console
from lightly_distill.runtime.words import duration

EVERY = 30.0  # seconds between two lines of the log
_SMOOTHING = 0.05  # of a bar's speed: with tqdm's 0.3 the time left jumps with each step that measures or saves

_logger = logging.getLogger(__name__)


class Progress:
    """Counts what is done, and shows the speed and the time left.

    Args:
        what: Is being done, such as `Representations`.
        total: How many there are, None if that is not known.
        unit: Of these, such as `image`.
        shown: Whether this process is the one that speaks.
        done: How many are done already.
        delay: Seconds that pass before a bar appears.
    """

    def __init__(
        self, what: str, total: int | None, unit: str, *, shown: bool = True, done: int = 0, delay: float = 0
    ) -> None:
        self._what, self._total, self._unit = what, total, unit
        shown = shown and console.shown()
        # disable=None: quiet without a terminal
        quiet = None if shown else True
        self._bar = tqdm(
            total=total, initial=done, desc=what, unit=unit, disable=quiet, delay=delay, smoothing=_SMOOTHING
        )
        self._logs = shown and bool(self._bar.disable)
        self._done = done
        self._last = time.perf_counter()
        # from where on the speed is measured: anew once something was done, as what comes first is slow
        self._from, self._since, self._begun = done, self._last, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def add(self, count: int = 1, note: str = "") -> None:
        """Counts what was just done.

        Args:
            count: How many.
            note: What is seen of them, such as `loss 0.12`.
        """
        self._done += count
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(count)
        now = time.perf_counter()
        if self._logs and now - self._last >= EVERY and self._done > self._from:
            self._last, speed = now, (self._done - self._from) / (now - self._since)
            of = "" if self._total is None else f" of {self._total:,}"
            left = "" if self._total is None else f", {duration((self._total - self._done) / speed)} left"
            said = f"; {note}" if note else ""
            _logger.info(
                "%s: %s%s, %.3g %ss a second%s%s.", self._what, f"{self._done:,}", of, speed, self._unit, left, said
            )
        if count and not self._begun:
            self._begun, self._from, self._since = True, self._done, now
