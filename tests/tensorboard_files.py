"""What TensorBoard's files hold."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read_back(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Returns the curves in the files of TensorBoard: steps and values by name."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(file))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            curves.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
    return curves
