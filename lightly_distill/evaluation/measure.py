"""One arm with one student and one seed: the student is pre-trained, then tried on each task by each probe."""

from dataclasses import dataclass, field
from itertools import product

import torch
from torch import nn

from lightly_distill.data.pixels import Normalised
from lightly_distill.evaluation.baselines.arms import Arm, Inputs, Made, TargetBackbone
from lightly_distill.evaluation.data_free import make_teacher
from lightly_distill.evaluation.plan import TransferConfig
from lightly_distill.evaluation.probes import PROBES, Probe
from lightly_distill.evaluation.tasks import Task
from lightly_distill.evaluation.trial import Transfer, Trial
from lightly_distill.method.pool import StudentBuilder
from lightly_distill.runtime import seeding
from lightly_distill.runtime.usage import Cost, measured
from lightly_distill.synthetic.pretrain import pretrain
from lightly_distill.synthetic.synthetic_set import SyntheticSet


@dataclass(frozen=True)
class Bench:
    """What all arms are tried with, opened and checked.

    Attributes:
        config: How.
        device: Where students are trained.
        arms: In the order of the tables.
        inputs: Of the arms.
        students: By name, and how each is built.
        tasks: Labelled.
    """

    config: TransferConfig
    device: torch.device
    arms: list[Arm]
    inputs: Inputs
    students: dict[str, StudentBuilder]
    tasks: list[Task]

    def warm_up(self) -> None:
        """Trains each student a little: the first training loads libraries, which no arm is to pay for."""
        two = self.inputs.own.part(torch.arange(2))
        for name in self.students:
            pretrain(name, two, steps=1, batch_size=2, lr=1e-6, device=str(self.device), verbose=False)


@dataclass
class Attempt:
    """One arm with one seed.

    Attributes:
        bench: What it is tried with.
        arm: Which.
        made: By the arm with this seed, for all students.
        seed: Of all draws.
        teachers: Of data-free distillation with this seed, by student, task and number of labels: one for all arms.
    """

    bench: Bench
    arm: Arm
    made: Made
    seed: int
    teachers: dict[tuple[str, str, "int | float | None"], nn.Module] = field(default_factory=dict)

    def pretrained(self, student: str) -> tuple[nn.Module, Cost]:
        """Returns the backbone and what its pre-training cost.

        Raises:
            DistillError: If it diverges.
        """
        made, device = self.made, self.bench.device
        if isinstance(made, nn.Module):
            return made, Cost()
        with measured(device) as cost:
            if made is None:
                with seeding.global_seed(self.seed, "pretrain", "init"):  # the weights that `pretrain` starts from
                    backbone = self.bench.students[student]().to(device)
            else:
                recipe = self.bench.config.recipe(self.arm, len(made))
                backbone = pretrain(student, made, config=recipe, seed=self.seed, device=str(device), verbose=False)
        if made is not None and device.type == "cpu":  # a GPU was given a copy of it inside
            cost.bytes += made.normalised.nbytes + made.targets.nbytes
        return backbone, cost

    def accuracies(self, student: str, backbone: nn.Module) -> dict[str, float]:
        """Tries a backbone on all tasks.

        Returns:
            Accuracy in [0, 1] by `task/probe`, of the probes that fit the arm.
        """
        found, bench = {}, self.bench
        for task, count in product(bench.tasks, bench.config.labels):
            trial = self._trial(task, count, backbone)
            for name, probe in self._probes().items():
                if probe.needs_images:
                    trial.transfer = self._transfer(student, task, count, trial)
                found[f"{task.name}/{_measure(name, count)}"] = probe.accuracy(trial)
        return found

    def _probes(self) -> dict[str, Probe]:
        """Returns the probes that fit what the arm made."""
        has_images, frozen = isinstance(self.made, SyntheticSet), isinstance(self.made, nn.Module)
        asked = {name: PROBES[name] for name in self.bench.config.probes}
        return {
            name: probe
            for name, probe in asked.items()
            if (has_images or not probe.needs_images) and not (frozen and probe.trains)
        }

    def _transfer(self, student: str, task: Task, labels: "int | float | None", trial: Trial) -> Transfer:
        assert isinstance(self.made, SyntheticSet)
        which, build = (student, task.name, labels), self.bench.students[student]
        if which not in self.teachers:
            self.teachers[which] = make_teacher(trial, build)
        return Transfer(self.made.normalised, self.teachers[which], build)

    def _trial(self, task: Task, labels: "int | float | None", backbone: nn.Module) -> Trial:
        chosen, own = task.few(labels, self.seed), self.bench.inputs.own
        trial = Trial(
            backbone,
            Normalised(task.images[chosen], own.mean, own.std),
            task.labels[chosen],
            Normalised(task.test_images, own.mean, own.std),
            task.test_labels,
            len(task.classes),
            self.seed,
            self.bench.config.finetune_steps,
        )
        if isinstance(backbone, TargetBackbone) and task.sources is not None:
            trial.features = trial.pooled = backbone.features(task, chosen)
        return trial


def _measure(probe: str, labels: "int | float | None") -> str:
    return probe if labels is None else f"{probe}@{int(labels) if labels >= 1 else labels}"
