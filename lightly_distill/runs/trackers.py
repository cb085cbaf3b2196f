"""Experiment trackers such as TensorBoard and Weights & Biases, through Accelerate."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightly_distill.errors import DistillError, UsageError, did_you_mean, first_line
from lightly_distill.runs.run_folder import TRACKERS, run_config

PROJECT = "lightly_distill"  # under which a tracker files its runs

_logger = logging.getLogger(__name__)


class Trackers:
    """Hands the measurements of a run to trackers; inside a `with`, which finishes them.

    It is a `RunLog`. Trackers start when the folder of the run is there, before the warm-up, and are given its
    configuration. One that fails later is left out of the rest of the run, with a warning.

    Args:
        names: As Accelerate has them, such as `["tensorboard", "wandb"]`.
        folder: Of the run. Trackers that keep files keep them in `trackers` there.

    Raises:
        UsageError: If there is no such tracker, or its package is not installed.
    """

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        self._names = tuple(dict.fromkeys(names))
        self._folder = folder
        self._trackers: dict[str, Any] = {}  # by name
        _require_installed(self._names)

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *error: object) -> None:
        for name, tracker in self._trackers.items():
            try:
                with _accelerate_state():
                    tracker.finish()
            except Exception as fault:  # somebody else's server; the run is done
                _logger.warning("The tracker %s did not finish: %s", name, first_line(fault))

    def log(self, row: dict[str, Any]) -> None:
        """Hands one row of measurements on."""
        values = numbers({name: value for name, value in row.items() if name != "step"})
        for name, tracker in list(self._trackers.items()):
            try:
                with _accelerate_state():
                    tracker.log(values, step=row["step"])
            except Exception as error:  # such as a lost connection: metrics.jsonl has it all
                _logger.warning("The tracker %s fails and is left out from now on: %s", name, first_line(error))
                del self._trackers[name]

    def start(self) -> None:
        """Starts the trackers.

        Raises:
            DistillError: If one cannot be started.
        """
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        config = _flat(run_config(self._folder))
        for name in self._names:
            kind = LOGGER_TYPE_TO_CLASS[name]
            place = (str(self._folder / TRACKERS),) if kind.requires_logging_directory else ()
            try:
                with _accelerate_state():
                    tracker = kind(PROJECT, *place)
                    getattr(tracker, "start", bool)()  # older versions start when they are made
                    self._trackers[name] = tracker
                    tracker.store_init_configuration(config)
            except Exception as error:  # no key, no server
                reason = first_line(error).rstrip(".")
                raise DistillError(
                    f"The tracker {name} cannot be started: {reason}. Set it up, or leave it out of --log-with."
                ) from error


@contextmanager
def _accelerate_state() -> Iterator[None]:
    """Gives trackers Accelerate's state, which they ask which process this is; one that was not there is taken away.

    It is the whole program's: made here, it would decide the device of an `Accelerator` that the user makes later.
    """
    from accelerate import PartialState

    there = bool(PartialState._shared_state)
    PartialState(cpu=True)
    try:
        yield
    finally:
        if not there:
            PartialState._reset_state()


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a row of measurements; those of each student of a mixed pool as `NAME/STUDENT`."""
    flat: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{inner}": number for inner, number in numbers(value).items()}
        elif isinstance(value, int | float):
            flat[name] = value
    return flat


def _require_installed(names: tuple[str, ...]) -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers  # here: it takes a second to import

    installed = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UsageError(f"Unknown tracker '{name}'.{did_you_mean(name, LOGGER_TYPE_TO_CLASS)}")
        if name not in installed:
            raise UsageError(f"The tracker {name} is not installed: pip install {name}")


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns settings as trackers take them: one level, and text for what is neither number nor text."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
