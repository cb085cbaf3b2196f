"""Does a synthetic set transfer? A student pre-trained on it, and on what it has to beat, tried on labelled tasks."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lightly_distill import report, seeding
from lightly_distill.arms import LABELLED_ARMS, REAL_ARMS, LabelledSide, RealSide, normalise
from lightly_distill.config import did_you_mean
from lightly_distill.cost import Cost, measured
from lightly_distill.device import resolve_device
from lightly_distill.errors import DistillError, UsageError
from lightly_distill.files import replacing
from lightly_distill.memory import free_memory
from lightly_distill.origin import check_origin, labelled_side, real_side
from lightly_distill.pretrain import empty_folder, pretrain
from lightly_distill.probes import FINETUNE_STEPS, PROBES, Transfer, Trial, make_teacher
from lightly_distill.results import Arm, Evaluation
from lightly_distill.run_folder import run_metrics
from lightly_distill.students import student_builder
from lightly_distill.synthetic import SyntheticSet
from lightly_distill.targets import Target
from lightly_distill.tasks import Task, open_task

_logger = logging.getLogger(__name__)

ARMS = ("scratch", "random", "kmeans", "noise", "krr-labels", "dm", "distilled", "full", "target")


def evaluate(
    synthetic: "SyntheticSet | str | Path",
    student: str,
    tasks: Sequence[Any],
    *,
    data: Any = None,
    target: "Target | nn.Module | str | None" = None,
    baselines: Sequence[str] = ("scratch", "random", "kmeans"),
    others: Mapping[str, "SyntheticSet | str | Path"] | None = None,
    probes: Sequence[str] = ("knn", "linear"),
    labels: Sequence["int | float | None"] = (None,),
    seeds: int | Sequence[int] = 3,
    epochs: int = 500,
    full_epochs: int = 20,
    lr: float = 0.1,
    finetune_steps: int = FINETUNE_STEPS,
    device: str = "auto",
    out: "str | Path | None" = None,
) -> list[Evaluation]:
    """Pre-trains students on a synthetic set and on what it has to beat, and tries them on labelled tasks.

    Every arm is pre-trained with the same recipe and seeds; nothing is ever chosen by looking at test images.

    Args:
        synthetic: The set, its folder, or that of the run that made it.
        student: Name of the backbone; several, comma separated.
        tasks: What `open_task` takes: labelled sources with a split for training and one for testing, or pairs. Or what
            it returned, which spares decoding it for each of many evaluations.
        data: The real images that the set was distilled from. Only some arms need them: random, kmeans, noise, full,
            and with labels krr-labels and dm. Default: what the run's configuration says.
        target: The target model or its specification, for these arms and for `target`. Default: as `data`.
        baselines: Arms besides `distilled`, of `ARMS`. `scratch`: not pre-trained. `random`: as many real images, with
            the target's representations. `kmeans`: the real images nearest to as many centroids of the representations.
            `noise`: as many images of noise. `krr-labels` and `dm`: other distillers, which are run once for each seed,
            with the settings of the set and labels of the real images: the same stage with labels instead of
            representations, and distribution matching. `full`: all real images, the ceiling. `target`: the target
            model itself.
        others: More arms, name to a set or its folder.
        probes: Of `PROBES`: `knn`, `linear`, `linear-pooled` (a last map averaged, not flattened), `finetune` (of all
            arms but `target`, which stays frozen), `data-free` (of arms with images: a fresh student learns from them
            what a teacher answers, and nothing else; see `probes.data_free_accuracy`).
        labels: How many labelled images a task is learned from, several times if several; a fraction, if below 1; None
            takes all. They are drawn anew for each seed, as many of each class.
        seeds: Repetitions: of the weights, of the draws of images and labels. How many, or which.
        epochs: Of pre-training on a set; see `pretrain`.
        full_epochs: Of pre-training on all real images, which are many more steps an epoch.
        lr: Learning rate of pre-training, of all arms.
        finetune_steps: Steps of fine-tuning, and of data-free distillation.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        out: New or empty folder for `results.json`, tables, charts and the report. None writes nothing.

    Returns:
        The results of each student. An arm whose pre-training diverges is left out, and `failed` tells so.

    Raises:
        UsageError: If set, tasks, students, arms or folder do not fit together; before any long work.
    """
    names = check_arms(baselines, others or {})
    probes, labels = list(dict.fromkeys(probes)), list(dict.fromkeys(labels))
    check_recipe(probes, labels, epochs=epochs, full_epochs=full_epochs, lr=lr, finetune_steps=finetune_steps)
    used = seed_list(seeds)
    place = resolve_device(device)
    folder = None if out is None else empty_folder(Path(out))
    own = _as_set(synthetic)
    size = own.images.shape[-1]
    given = {name: _as_set(value) for name, value in (others or {}).items()}
    for name, other in given.items():
        if other.images.shape[1:] != own.images.shape[1:]:
            raise UsageError(
                f"The set '{name}' has images of {_shape(other)}, the distilled one of {_shape(own)}: one student "
                "cannot be tried on both."
            )
        if (other.mean, other.std) != (own.mean, own.std):
            raise UsageError(
                f"The set '{name}' is normalised with mean {other.mean} and std {other.std}, the distilled one with "
                f"{own.mean} and {own.std}: they are of different targets."
            )
    students = list(dict.fromkeys(part.strip() for part in student.split(",")))
    builders = {name: student_builder(name, size) for name in students}
    opened = open_tasks(tasks, labels, image_size=size)
    real = real_side(synthetic, data, target, size, place) if set(names) & {*REAL_ARMS, "target"} else None
    if real is not None:
        check_origin(own, real)
    if "full" in names:
        assert real is not None
        _check_memory(len(real.source), size)
    labelled = labelled_side(synthetic, data, own, real, place) if set(names) & {*LABELLED_ARMS} else None
    if labelled is not None:
        labelled.check(names)

    setting = {
        "tasks": [task.name for task in opened],
        "labels": list(labels),
        "probes": list(probes),
        "epochs": epochs,
        "full_epochs": full_epochs,
        "lr": lr,
        "finetune_steps": finetune_steps,
        "device": str(place),
        "images": len(own),
        "set": own.provenance,
    }
    for name in students:  # the first training loads libraries, which no arm is to pay for
        pretrain(name, _first_two(own), epochs=1, batch_size=2, lr=1e-6, device=str(place), progress=False)
    results = [Evaluation(name, setting, used, {}) for name in students]
    with tqdm(total=len(used) * len(names) * len(results), desc="Evaluating", unit="arm", disable=None) as progress:
        for seed in used:
            teachers: dict[Any, nn.Module] = {}  # of data-free distillation, by student and task, for all arms
            for name in names:
                tried = [result for result in results if name not in result.failed]
                progress.update(len(results) - len(tried))
                try:
                    arm_set = _set_of(name, own, given, real, labelled, seed) if tried else None  # for all students
                except DistillError as error:  # another distiller diverged
                    _leave_out(name, tried, seed, error)
                    progress.update(len(tried))
                    continue
                for result in tried:
                    progress.set_postfix(student=result.student, arm=name, seed=seed)
                    build = builders[result.student]
                    recipe = {"epochs": full_epochs if name == "full" else epochs, "lr": lr}
                    try:
                        backbone, cost = _pretrained(name, result.student, build, arm_set, real, seed, place, recipe)
                    except DistillError as error:  # what the other arms measured is not lost for it
                        _leave_out(name, [result], seed, error)
                        progress.update()
                        continue
                    arm = result.arms.setdefault(name, Arm(len(arm_set or ()), _bytes(name, arm_set)))
                    arm.seconds.append(cost.seconds)
                    if arm_set is not None:
                        arm.peak_memory.append(cost.bytes)
                    for task, count in product(opened, labels):
                        trial = _trial(task, count, backbone, own, seed, finetune_steps)
                        if "data-free" in probes and arm_set is not None:
                            which = (result.student, task.name, count)
                            teachers[which] = teachers.get(which) or make_teacher(trial, build)
                            trial.transfer = Transfer(arm_set.images, teachers[which], build)
                        for probe in probes:
                            if _applies(probe, name, trial):
                                key = f"{task.name}/{_measure(probe, count)}"
                                arm.values.setdefault(key, []).append(PROBES[probe](trial))
                    progress.update()
                if folder is not None:  # what is measured is not lost, whatever comes
                    write_results(results, folder)
    if folder is not None:
        write_results(results, folder)
        report.write(results, own, folder, [] if isinstance(synthetic, SyntheticSet) else run_metrics(Path(synthetic)))
    return results


def _check_memory(count: int, size: int) -> None:
    """Refuses `full` where the real images do not fit as float32, twice while they are made."""
    need, free = count * 3 * size * size * 4 * 2, free_memory(torch.device("cpu"))
    if need > free:
        raise UsageError(
            f"The arm full needs {need / 2**30:.1f} GiB of memory for all {count:,} real images, "
            f"{free / 2**30:.1f} are free: leave it out."
        )


def _leave_out(arm: str, results: Iterable[Evaluation], seed: int, error: DistillError) -> None:
    for result in results:
        result.arms.pop(arm, None)
        result.failed[arm] = f"seed {seed}: {error}"
        _logger.warning("%s, arm %s is left out: %s", result.student, arm, result.failed[arm])


def _first_two(synthetic: SyntheticSet) -> SyntheticSet:
    return SyntheticSet(synthetic.images[:2], synthetic.representations[:2], mean=synthetic.mean, std=synthetic.std)


def _applies(probe: str, arm: str, trial: Trial) -> bool:
    if probe == "data-free":
        return trial.transfer is not None
    return (arm, probe) != ("target", "finetune")  # it is frozen: that would be a linear probe


def _measure(probe: str, labels: "int | float | None") -> str:
    return probe if labels is None else f"{probe}@{int(labels) if labels >= 1 else labels}"


def write_results(results: Sequence[Evaluation], folder: Path) -> None:
    """Writes `results.json`."""
    told = [result.to_dict() for result in results]
    with replacing(folder / "results.json") as partial:
        partial.write_text(json.dumps(told, indent=2) + "\n")


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


def _as_set(value: "SyntheticSet | str | Path") -> SyntheticSet:
    return value if isinstance(value, SyntheticSet) else SyntheticSet.load(value)


def _shape(synthetic: SyntheticSet) -> str:
    return "x".join(map(str, synthetic.images.shape[1:]))


def _set_of(
    name: str,
    own: SyntheticSet,
    given: Mapping[str, SyntheticSet],
    real: RealSide | None,
    labelled: LabelledSide | None,
    seed: int,
) -> SyntheticSet | None:
    if name == "distilled":
        return own
    if name in given:
        return given[name]
    if name in REAL_ARMS:
        assert real is not None
        return REAL_ARMS[name](real, len(own), seed)
    if name in LABELLED_ARMS:
        assert labelled is not None
        return labelled.distil(name, seed)
    return None


def _pretrained(
    name: str,
    student: str,
    build: Callable[[], nn.Module],
    arm_set: SyntheticSet | None,
    real: RealSide | None,
    seed: int,
    device: torch.device,
    recipe: Mapping[str, Any],
) -> tuple[nn.Module, Cost]:
    """Returns the backbone of an arm and what its pre-training cost."""
    if name == "target":
        assert real is not None
        return _TargetBackbone(real.target), Cost()
    with measured(device) as cost:
        if arm_set is None:
            with seeding.global_seed(seed, "pretrain", "init"):  # the weights that `pretrain` starts from
                backbone = build().to(device)
        else:
            backbone = pretrain(student, arm_set, **recipe, seed=seed, device=str(device), progress=False)
    if arm_set is not None and device.type == "cpu":  # a GPU was given a copy of it inside
        cost.bytes += arm_set.images.nbytes + arm_set.representations.nbytes
    return backbone, cost


class _TargetBackbone(nn.Module):
    """The target as a backbone: takes normalised images, as students do."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target

    def forward(self, images: Tensor) -> Tensor:
        target = self.target
        representation: Tensor = target(images * target._std + target._mean)
        return representation


def _trial(
    task: Task, labels: "int | float | None", backbone: nn.Module, own: SyntheticSet, seed: int, finetune_steps: int
) -> Trial:
    chosen = task.few(labels, seed)
    return Trial(
        backbone,
        normalise(task.images[chosen], own.mean, own.std),
        task.labels[chosen],
        normalise(task.test_images, own.mean, own.std),
        task.test_labels,
        len(task.classes),
        seed,
        finetune_steps,
    )


def _bytes(name: str, arm_set: SyntheticSet | None) -> int:
    if arm_set is None:
        return 0
    learned = name not in REAL_ARMS
    return arm_set.images.numel() * (4 if learned else 1) + arm_set.representations.numel() * 4
