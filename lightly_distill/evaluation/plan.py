"""What an evaluation is asked to do, checked before anything is opened or trained."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightly_distill.errors import UsageError, did_you_mean
from lightly_distill.evaluation.baselines.arms import ARMS
from lightly_distill.evaluation.probes import PROBES
from lightly_distill.evaluation.tasks import Task, open_task


def check_recipe(probes: Sequence[str], labels: Sequence["int | float | None"], **numbers: float) -> None:
    """Refuses probes, label counts and numbers of `evaluate` that cannot be, before anything is opened.

    Raises:
        UsageError: If there are none, one is unknown, or a number is out of range.
    """
    if not probes or not labels:
        raise UsageError(f"Nothing would be measured: name {'a probe' if labels else 'a number of labels, or all'}.")
    check_known("probe", probes, PROBES)
    for count in labels:
        if count is not None and not (0 < count < 1 or (count >= 1 and count % 1 == 0)):
            raise UsageError(f"labels takes whole numbers, shares below 1, or None for all; got {count}.")
    for name, value in numbers.items():
        if not (value > 0 if name == "lr" else value >= 1):
            raise UsageError(f"{name} must be {'above 0' if name == 'lr' else 'at least 1'}; got {value}.")


def seed_list(seeds: int | Sequence[int]) -> list[int]:
    """Returns the seeds of `evaluate`: so many, or these.

    Raises:
        UsageError: If there are none.
    """
    used = list(range(seeds)) if isinstance(seeds, int) else list(dict.fromkeys(seeds))
    if not used:
        raise UsageError(f"seeds is a number of repetitions, at least 1; got {seeds}.")
    return used


def open_tasks(tasks: Sequence[Any], labels: Sequence["int | float | None"], *, image_size: int) -> list[Task]:
    """Opens the tasks of `evaluate`.

    Raises:
        UsageError: If there are none, two have one name, or one has too few labels or cannot be opened.
    """
    opened = [task if isinstance(task, Task) else open_task(task, image_size=image_size) for task in tasks]
    check_task_names([task.name for task in opened])
    for task in opened:
        for count in labels:
            task.few(count, 0)  # refuses too few or too many now
    return opened


def check_task_names(names: Sequence[str]) -> None:
    """Refuses no tasks, and two of one name."""
    if not names:
        raise UsageError("Name a task to try the students on.")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"Two tasks are named {name}: give one of them another name, as (name, train, test).")


def check_arms(baselines: Sequence[str], others: Mapping[str, Any]) -> list[str]:
    """Returns the names of all arms, in the order of the tables.

    Raises:
        UsageError: If a baseline is unknown, or another set has the name of an arm.
    """
    check_known("baseline", baselines, ARMS)
    taken = sorted(set(others) & set(ARMS))
    if taken:
        raise UsageError(f"The name of another set cannot be that of an arm: {', '.join(taken)}.")
    # in the order of ARMS, which is that of the tables
    return [name for name in ARMS if name == "distilled" or name in baselines] + list(others)


def check_known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuses a name that is not known, and suggests the nearest."""
    for name in names:
        if name not in known:
            raise UsageError(f"Unknown {what} '{name}'.{did_you_mean(name, known)}")
