"""Who is given the measurements of a run as they are taken."""

from typing import Any, Protocol, runtime_checkable

from lightly_distill.errors import UsageError


@runtime_checkable
class RunLog(Protocol):
    """What `DistillationStage.run` takes as `log`. Of several processes, only the main one calls it."""

    def start(self) -> None:
        """Prepares; called when the folder of the run is there, before the long work. What fails here costs nothing."""

    def log(self, row: dict[str, Any]) -> None:
        """Takes one row of measurements, such as `{"step": 10, "loss": 0.1}`."""


def require_run_log(log: Any) -> None:
    """Refuses what cannot be given measurements; None is nobody.

    Raises:
        UsageError: If it lacks a method of `RunLog`.
    """
    if log is not None and not isinstance(log, RunLog):
        raise UsageError(
            f"log must be an object with the methods start() and log(row); got {log!r}. Put a function of each row "
            "into a class as its method log, beside a start that does nothing."
        )
