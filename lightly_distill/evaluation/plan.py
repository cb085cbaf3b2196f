"""What an evaluation is asked to do, checked before anything is opened or trained."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from lightly_distill.data.reading import Reading, as_range, check_column
from lightly_distill.errors import UsageError, did_you_mean
from lightly_distill.evaluation.baselines.arms import ARMS, Arm
from lightly_distill.evaluation.probes import PROBES
from lightly_distill.evaluation.results import DISTILLED
from lightly_distill.evaluation.tasks import Task, open_task
from lightly_distill.evaluation.trial import FINETUNE_STEPS
from lightly_distill.runtime.settings import check_number
from lightly_distill.synthetic.pretrain import PretrainConfig, PretrainOptions


@dataclass(frozen=True)
class TransferConfig(PretrainConfig):
    """How students are pre-trained on a set and on what it has to beat, and tried on labelled tasks.

    The recipe of `PretrainConfig` is that of all arms, but for what `recipe` says of steps and mixup.
    """

    baselines: Sequence[str] = ("scratch", "random", "kmeans")
    """Arms besides `distilled`, of `ARMS`, whose `words` say what each is."""
    probes: Sequence[str] = ("knn", "linear")
    """Of `PROBES`: `knn`, `linear`, `linear-pooled` (a last map averaged, not flattened), `finetune` (of all arms but
    `target`, which stays frozen), `data-free` (of arms with images: a fresh student learns from them what a teacher
    answers, and nothing else; see `data_free.data_free_accuracy`)."""
    labels: Sequence[int | float | None] = (None,)
    """How many labelled images a task is learned from, several times if several; a fraction, if below 1; None takes
    all. They are drawn anew for each seed, as many of each class."""
    seeds: int | Sequence[int] = 3
    """Repetitions: of the weights, of the draws of images and labels. How many, or which."""
    full_epochs: int = 20
    """Passes over all real images in the arm `full`, without mixup and other colours; at least four times the steps of
    the other arms."""
    finetune_steps: int = FINETUNE_STEPS
    """Steps of fine-tuning, and of data-free distillation."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:N`, `mps` or `xpu`."""
    num_workers: int = 0
    """Processes that read real images and tasks; 0: none, see `DistillConfig`."""
    column: str | None = None
    """Name under which a row or a sample has its image, of tasks and real images, where there are several; several
    names, comma separated, are tried in turn. Default: of the real images, as they were read for the set."""
    value_range: tuple[float, float] | str | None = None
    """LOW,HIGH: the values that become black and white, of tasks and real images, where pixels have more than 8 bits or
    are floating point. Default: of a task, found from its images for training, and the same for those for testing; of
    the real images, as they were read for the set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels is None or isinstance(self.labels, (int, float)):
            object.__setattr__(self, "labels", (self.labels,))
        for name in ("baselines", "probes"):
            if isinstance(getattr(self, name), str):
                given = tuple(part.strip() for part in getattr(self, name).split(",") if part.strip())
                object.__setattr__(self, name, given)
        for name in ("baselines", "probes", "labels"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        if not self.probes or not self.labels:
            missing = "a probe" if self.labels else "a number of labels, or all"
            raise UsageError(f"Nothing would be measured: name {missing}.")
        _check_known("baseline", self.baselines, ARMS)
        _check_known("probe", self.probes, PROBES)
        for count in self.labels:
            if count is not None and not (0 < count < 1 or (count >= 1 and count % 1 == 0)):
                raise UsageError(f"labels takes whole numbers, shares below 1, or None for all; got {count}.")
        if not self.seed_list:
            raise UsageError(f"seeds is a number of repetitions, at least 1; got {self.seeds}.")
        check_number(self, "full_epochs", "finetune_steps")
        check_number(self, "num_workers", least=0)
        check_column(self.column)
        if self.value_range is not None:
            object.__setattr__(self, "value_range", tuple(as_range(self.value_range)))

    @property
    def seed_list(self) -> list[int]:
        """The seeds, each once."""
        if isinstance(self.seeds, Iterable):
            return list(dict.fromkeys(map(int, self.seeds)))
        return list(range(int(self.seeds)))

    @property
    def reading(self) -> Reading:
        """How tasks and real images are read."""
        return Reading(self.num_workers, self.column, None if self.value_range is None else as_range(self.value_range))

    @property
    def arms(self) -> list[Arm]:
        """`distilled` and the baselines, in the order of the tables."""
        return [arm for name, arm in ARMS.items() if name == DISTILLED or name in self.baselines]

    def recipe(self, arm: Arm, images: int) -> PretrainConfig:
        """Returns how students are pre-trained on an arm of so many images.

        More images want more steps: several times the bytes twice as many, the whole source those of `full_epochs` and
        four times as many at least; that without mixup and other colours, which are for want of images.
        """
        own = PretrainConfig(**{field.name: getattr(self, field.name) for field in fields(PretrainConfig)})
        steps = self.steps * arm.longer
        if arm.size_matters:
            return replace(own, steps=steps)
        passes = self.full_epochs * math.ceil(images / self.batch_size)
        return replace(own, steps=max(steps, passes), mixup=False, color_jitter=0)

    def recorded(self) -> dict[str, Any]:
        """Returns as plain values what decides the numbers of an arm, but for its seed and device."""
        apart = ("baselines", "seeds", "device", "num_workers")
        plain = {name: value for name, value in asdict(self).items() if name not in apart}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


class TransferOptions(PretrainOptions, total=False):
    """The fields of `TransferConfig` as keywords."""

    baselines: Sequence[str]
    probes: Sequence[str]
    labels: Sequence[int | float | None]
    seeds: int | Sequence[int]
    full_epochs: int
    finetune_steps: int
    device: str
    num_workers: int
    column: str | None
    value_range: tuple[float, float] | str | None


def student_names(student: str | Sequence[str]) -> list[str]:
    """Returns the names of students, each once, from a sequence or from one text with commas."""
    names = student.split(",") if isinstance(student, str) else student
    return list(dict.fromkeys(name.strip() for name in names))


def check_other_names(names: Iterable[str]) -> None:
    """Refuses another set that has the name of an arm."""
    taken = sorted(set(names) & set(ARMS))
    if taken:
        raise UsageError(f"The name of another set cannot be that of an arm: {', '.join(taken)}.")


def open_tasks(
    tasks: Sequence[Any], labels: Sequence["int | float | None"], *, image_size: int, reading: Reading
) -> list[Task]:
    """Opens the tasks of `evaluate`.

    Raises:
        UsageError: If there are none, two have one name, or one has too few labels or cannot be opened.
    """
    if isinstance(tasks, (str, Path)) or _is_one_task(tasks):
        tasks = [tasks]
    opened = [open_task(task, image_size=image_size, reading=reading) for task in tasks]
    check_task_names([task.name for task in opened])
    for task in opened:
        if task.images.shape[-1] != image_size:
            raise UsageError(
                f"The task {task.name} was opened with images of {task.images.shape[-1]} pixels, and the set has "
                f"{image_size}: open_task(..., image_size={image_size})."
            )
    for task in opened:
        for count in labels:
            task.few(count, 0)  # refuses too few or too many now
    return opened


def _is_one_task(tasks: Any) -> bool:
    """Returns whether this is one pair of datasets, with a name or without, and not a tuple of tasks."""
    if not isinstance(tasks, tuple) or len(tasks) not in (2, 3):
        return False
    return not any(isinstance(part, (str, Path, Task, tuple)) for part in tasks[-2:])


def check_task_names(names: Sequence[str]) -> None:
    """Refuses no tasks, and two of one name."""
    if not names:
        raise UsageError("Name a task to try the students on.")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"Two tasks are named {name}: give one of them another name, as (name, train, test).")


def _check_known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuses a name that is not known, and suggests the nearest."""
    for name in names:
        if name not in known:
            raise UsageError(f"Unknown {what} '{name}'.{did_you_mean(name, known)}")
