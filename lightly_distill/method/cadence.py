"""When a run logs, measures, saves and stops."""

import time

from lightly_distill.method.config import DistillConfig
from lightly_distill.runtime.processes import ALONE, Processes
from lightly_distill.runtime.signals import StopOnSignal

MEASUREMENTS = 10  # of the held-out loss, over the whole run, besides the one at the start


def measures(step: int, steps: int) -> bool:
    """Returns whether the held-out loss is due after this step: `MEASUREMENTS` times, and after the last one."""
    return step == steps or step % max(1, steps // MEASUREMENTS) == 0


class Cadence:
    """Says after each step what is due; inside its block, a signal asks for a stop instead of ending the program.

    Clocks and signals differ between processes, so several of them look at both only after steps that log, and agree
    there: on any signal that one of them was sent, and on the clock of the main one.

    Args:
        config: For the last step, and for what comes how often.
        processes: Which must all do the same.
        step: Steps done before.

    Attributes:
        stop: Number of the signal after which to stop, None before there was one.
    """

    def __init__(self, config: DistillConfig, processes: Processes = ALONE, step: int = 0) -> None:
        self.stop: int | None = None
        self._config, self._processes = config, processes
        self._signals = StopOnSignal()
        self._since = self._saved = time.perf_counter()
        self._from = step  # the step after which `_since` was

    def __enter__(self) -> "Cadence":
        self._signals.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._signals.__exit__(*error)

    def measures(self, step: int) -> bool:
        """Returns whether the held-out loss is due after this step."""
        return measures(step, self._config.steps)

    def logs(self, step: int) -> bool:
        """Returns whether a row is due after this step; every measurement is in one."""
        return self.measures(step) or step % self._config.log_every == 0

    def seconds_per_step(self, step: int) -> float:
        """Returns the mean since the row before, with `step` done."""
        return (time.perf_counter() - self._since) / (step - self._from)

    def logged(self, step: int) -> None:
        """Starts the clock of the next row: what measuring took is in none."""
        self._since, self._from = time.perf_counter(), step

    def saves(self, step: int) -> bool:
        """Returns whether the state is to be saved, and sets `stop`; asked once after each step and its row."""
        stop = self._signals.received
        due = (time.perf_counter() - self._saved) / 60 >= self._config.checkpoint_minutes
        if self._processes.count > 1:
            stop, due = self._agreed(stop, due) if self.logs(step) else (None, False)
        self.stop = stop
        every = self._config.checkpoint_every
        return stop is not None or due or step == self._config.steps or (every is not None and step % every == 0)

    def saved(self) -> None:
        """Starts the minutes to the next checkpoint."""
        self._saved = time.perf_counter()

    def _agreed(self, stop: int | None, due: bool) -> tuple[int | None, bool]:
        everyone = self._processes.gather((stop, due))
        return next((signal for signal, _ in everyone if signal is not None), None), everyone[0][1]
