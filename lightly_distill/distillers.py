"""Other distillers, as baselines: supervised kernel ridge and distribution matching.

Both need labels of the real images. They take the size, student and number of steps of the set that they are compared
with. A student is pre-trained on what they make as on any other set, by the mean squared error; what it predicts are
labels then: one-hot vectors minus 1/C, learned ones of supervised kernel ridge, fixed ones of distribution matching.

The error is a mean over the numbers of a vector, so a learning rate that suits representations of 256 numbers is 25
times too high for 10 classes: a student of seed 0 diverged on 100 real images of cifar10. Labels may therefore be made
as long, with zeros, and as large as representations (`dim` and `scale`), and all of the recipe stays as it is.

Shapes: n real images, m synthetic ones, C classes, p features, d the larger of C and `dim`.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from lightly_distill import seeding
from lightly_distill.augmentation import augment
from lightly_distill.config import DistillConfig, to_dict
from lightly_distill.device import resolve_device
from lightly_distill.distill import DistillState, distill
from lightly_distill.errors import DistillError, UsageError
from lightly_distill.pool import StudentBuilder
from lightly_distill.real import RealImages
from lightly_distill.run_folder import RunFolder
from lightly_distill.source import Source
from lightly_distill.step import RealBatch
from lightly_distill.students import student_builder
from lightly_distill.synthetic import SyntheticSet
from lightly_distill.targets import IMAGENET_MEAN, IMAGENET_STD, Target
from lightly_distill.tasks import rank_in_class

# Distribution matching, arXiv:2110.04181, section 4.1, and the authors' released code, main_DM.py.
REAL_PER_CLASS = 256  # real images of each class in a step; fewer where a class has fewer
MATCHING: dict[str, Any] = {"lr": 1.0, "momentum": 0.5}  # SGD on the images
CHUNK = 2048  # images through a network at a time


class LabelledImages(RealImages):
    """Real images whose labels stand for the target's representations: one-hot vectors minus 1/C.

    Args:
        source: Decoded real images.
        labels: int64 in 0..C-1, shape (n,).
        config: As for `RealImages`.
        device: Where batches are delivered.
        mean: Of each channel in units of [0, 1].
        std: As `mean`.
        dim: Numbers of a label at least.
        scale: Factor of the labels.

    Raises:
        UsageError: If there is not one label an image, there are fewer than 2 classes, or too few images.
    """

    def __init__(
        self,
        source: Source,
        labels: Tensor,
        config: DistillConfig,
        device: torch.device,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        dim: int = 0,
        scale: float = 1.0,
    ) -> None:
        if len(labels) != len(source):
            raise UsageError(f"{source.name} has {len(source)} usable images, and {len(labels)} labels were given.")
        self.classes = int(labels.max()) + 1
        if self.classes < 2:
            raise UsageError(f"The images of {source.name} are all of one class: there are no labels to distil.")
        self._labels = labels
        # Centred, as in KIP (Nguyen et al., arXiv:2107.13034) and FRePo (Zhou et al., arXiv:2206.00719).
        centred = F.one_hot(labels, self.classes).float() - 1 / self.classes
        targets = F.pad(scale * centred, (0, max(0, dim - self.classes)))
        super().__init__(source, Target(_no_model, name="labels", mean=mean, std=std), config, device, given=targets)

    def initial(self, count: int) -> tuple[Tensor, RealBatch]:
        """Draws as many images of each class as can be, as both papers do; ordered by class."""
        order = self._shuffled("initial")
        chosen = order[torch.argsort(rank_in_class(self._labels[order]), stable=True)][:count]
        return self._by_class(chosen)

    def of_each_class(self, count: int, step: int) -> tuple[Tensor, RealBatch]:
        """Draws `count` images of each class anew for a step, or all that a class has; ordered by class."""
        order = self._shuffled("classes", step)
        return self._by_class(order[rank_in_class(self._labels[order]) < count])

    def labels(self, indices: Tensor) -> Tensor:
        """Returns the labels of images by index, on the device."""
        return self._labels[indices].to(self._device)

    def _shuffled(self, *draw: str | int) -> Tensor:
        return self._train[torch.randperm(len(self._train), generator=seeding.generator(self._seed, *draw))]

    def _by_class(self, chosen: Tensor) -> tuple[Tensor, RealBatch]:
        indices = chosen[torch.argsort(self._labels[chosen], stable=True)]
        return indices, self._plain(indices)


def _no_model(images: Tensor) -> Tensor:
    raise AssertionError("labels are looked up, not computed")


def supervised_ridge(
    source: Source,
    labels: Tensor,
    config: DistillConfig,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dim: int = 0,
    scale: float = 1.0,
) -> SyntheticSet:
    """Distils labelled images by kernel ridge regression of their labels.

    This is KRR-ST with labels in the place of representations, in all else the same stage: about what FRePo does (Zhou
    et al., NeurIPS 2022, arXiv:2206.00719), after KIP (Nguyen et al., NeurIPS 2021, arXiv:2107.13034), which takes the
    kernel of an infinitely wide network instead of a pool's features. Labels are learned too.

    Args:
        source: Real images.
        labels: Of these, int64 in 0..C-1, shape (n,).
        config: Settings of the stage; its `init` is not looked at, as it starts from real images of all classes.
        mean: Of each channel in units of [0, 1].
        std: As `mean`.
        dim: Numbers of a label at least; zeros are added.
        scale: Factor of the labels.

    Returns:
        The set; its representations are the learned labels, shape (m, d).

    Raises:
        UsageError: If labels, source and configuration do not fit together.
        DistillError: As `distill`.
    """
    started, device = time.perf_counter(), resolve_device(config.device)
    students = _students(config, source.image_size)
    real = LabelledImages(source, labels, config, device, mean, std, dim, scale)
    state = DistillState.start(real, students, config)
    run = RunFolder(None, {})
    distill(state, real, config, run)
    losses = {"initial": state.initial["heldout_loss"], "final": run.last("heldout_loss")}
    return SyntheticSet(
        state.images.detach().cpu(),
        state.representations.detach().cpu(),
        mean=mean,
        std=std,
        source_index=state.source_index,
        provenance={**_facts("krr-labels", source, config, started), "heldout_loss": losses},
    )


def check_classes(num_images: int, labels: Tensor) -> None:
    """Refuses fewer images than classes, which distribution matching cannot do.

    Raises:
        UsageError: If there is not an image for each class.
    """
    classes = int(labels.max()) + 1
    if num_images < classes:
        raise UsageError(
            f"Distribution matching (dm) needs an image of each class at least: {num_images} images are too few for "
            f"{classes} classes. Distil more images, or leave dm out."
        )


def distribution_matching(
    source: Source,
    labels: Tensor,
    config: DistillConfig,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dim: int = 0,
    scale: float = 1.0,
) -> SyntheticSet:
    """Distils labelled images by matching mean features, class by class (Zhao & Bilen, WACV 2023, arXiv:2110.04181).

    Each step takes a fresh random network, and moves the synthetic images of a class so that the mean of their features
    comes nearer to that of `REAL_PER_CLASS` real images of the class, both changed by the same augmentation. Batch norm
    sees all classes at once, as in the authors' code; there, features are one pass, here passes of `CHUNK` images.

    Args:
        source: Real images.
        labels: Of these, int64 in 0..C-1, shape (n,).
        config: For student, number of images and steps, seed, device. Its batch size is not looked at.
        mean: Of each channel in units of [0, 1].
        std: As `mean`.
        dim: Numbers of a label at least; zeros are added.
        scale: Factor of the labels.

    Returns:
        The set; its representations are fixed labels, one-hot minus 1/C, shape (m, d). The paper trains on such a set
        by cross-entropy with augmentation; an arm of `evaluate` is pre-trained as all arms are.

    Raises:
        UsageError: If labels, source and configuration do not fit together.
        DistillError: If the distance is no longer a finite number.
    """
    check_classes(config.num_images, labels)
    started, device = time.perf_counter(), resolve_device(config.device)
    students = _students(config, source.image_size)
    real = LabelledImages(source, labels, config, device, mean, std, dim, scale)
    index, start = real.initial(config.num_images)
    images = start.images.clone().requires_grad_()
    optimizer = torch.optim.SGD([images], **MATCHING)
    distances: list[float] = []
    bar = trange(config.steps, desc="Matching distributions", unit="step", disable=None)
    for step in bar:
        chosen, batch = real.of_each_class(REAL_PER_CLASS, step)
        with _random_student(students, config.seed, step, device) as student:
            wanted = _class_means(student, batch.images, real.labels(chosen), real.classes, seed=config.seed, step=step)
            means = _class_means(student, images, real.labels(index), real.classes, seed=config.seed, step=step)
            distance = (means - wanted).square().sum()
        optimizer.zero_grad()
        torch.autograd.backward(distance)
        distances.append(float(distance.detach()))
        if not distances[-1] < float("inf"):
            raise DistillError(f"The distance of the class means is {distances[-1]} in step {step + 1}.")
        optimizer.step()
        bar.set_postfix(distance=f"{distances[-1]:.4g}")
    return SyntheticSet(
        images.detach().cpu(),
        start.representations.cpu(),
        mean=mean,
        std=std,
        source_index=index,
        provenance={
            **_facts("dm", source, config, started),
            "distance": {"initial": distances[0], "final": distances[-1]},
        },
    )


def _class_means(student: nn.Module, images: Tensor, labels: Tensor, classes: int, *, seed: int, step: int) -> Tensor:
    """Returns the mean features of augmented images of each class, shape (C, p); both are ordered by class.

    The draw is that of the class and the step, so it is the same for real and synthetic images. Gradients flow to
    images that want them.
    """
    counts = torch.bincount(labels, minlength=classes)
    draws = [seeding.generator(seed, "dm", "augment", step, label) for label in range(classes)]
    parts = zip(torch.split(images, counts.tolist()), draws, strict=True)
    changed = torch.cat([augment(part, draw) for part, draw in parts if len(part)])
    passes = range(math.ceil(len(images) / CHUNK))  # each takes images of all classes
    features = torch.cat([student(changed[first :: len(passes)]) for first in passes])
    order = torch.cat([labels[first :: len(passes)] for first in passes])
    sums = features.new_zeros(classes, features.shape[1]).index_add(0, order, features)
    return sums / counts.clamp(min=1)[:, None]


@contextmanager
def _random_student(
    students: Sequence[tuple[str, StudentBuilder]], seed: int, step: int, device: torch.device
) -> Iterator[nn.Module]:
    """Gives the fresh network of a step, in training mode, without gradients to its weights."""
    _, build = students[step % len(students)]
    with seeding.global_seed(seed, "dm", "student", step, device=device):
        student = build().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        yield student.train().requires_grad_(False)


def _students(config: DistillConfig, image_size: int) -> list[tuple[str, StudentBuilder]]:
    batch_size = min(2, config.num_images)
    return [(name, student_builder(name, image_size, batch_size=batch_size)) for name in config.students]


def _facts(distiller: str, source: Source, config: DistillConfig, started: float) -> dict[str, Any]:
    return {
        "distiller": distiller,
        "source": {"name": source.name, "fingerprint": source.fingerprint, "images": len(source)},
        "config": to_dict(config),
        "steps": config.steps,
        "seconds": round(time.perf_counter() - started, 1),
    }
