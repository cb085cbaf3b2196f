"""Does a synthetic set transfer? A student pre-trained on it, and on what it has to beat, tried on labelled tasks."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lightly_distill.data.pixels import normalise
from lightly_distill.errors import DistillError, UsageError
from lightly_distill.evaluation.baselines.arms import LABELLED_ARMS, REAL_ARMS, labelled_side, set_of
from lightly_distill.evaluation.data_free import make_teacher
from lightly_distill.evaluation.plan import check_arms, check_recipe, open_tasks, seed_list
from lightly_distill.evaluation.probes import PROBES
from lightly_distill.evaluation.report import evaluation_report
from lightly_distill.evaluation.results import Arm, Evaluation, write_results
from lightly_distill.evaluation.tasks import Task
from lightly_distill.evaluation.trial import FINETUNE_STEPS, Transfer, Trial
from lightly_distill.models.students import student_builder
from lightly_distill.models.targets import Target
from lightly_distill.runs.origin import RealSide, check_origin, real_side
from lightly_distill.runs.run_folder import run_metrics
from lightly_distill.runtime import seeding
from lightly_distill.runtime.device import free_memory, resolve_device
from lightly_distill.runtime.files import empty_folder
from lightly_distill.runtime.usage import Cost, measured
from lightly_distill.synthetic.pretrain import pretrain
from lightly_distill.synthetic.synthetic_set import SyntheticSet

_logger = logging.getLogger(__name__)


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
            what a teacher answers, and nothing else; see `data_free.data_free_accuracy`).
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
                    arm_set = set_of(name, own, given, real, labelled, seed) if tried else None  # for all students
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
        evaluation_report.write(
            results, own, folder, [] if isinstance(synthetic, SyntheticSet) else run_metrics(Path(synthetic))
        )
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


def _as_set(value: "SyntheticSet | str | Path") -> SyntheticSet:
    return value if isinstance(value, SyntheticSet) else SyntheticSet.load(value)


def _shape(synthetic: SyntheticSet) -> str:
    return "x".join(map(str, synthetic.images.shape[1:]))


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
