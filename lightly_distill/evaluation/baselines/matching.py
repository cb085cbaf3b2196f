"""Distribution matching of labelled images, a baseline.

It takes the size, student and number of steps of the set that it is compared with.

Shapes: n real images, m synthetic ones, C classes, p features, d the larger of C and `dim`.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import trange

from lightly_distill.data.source import Source
from lightly_distill.errors import DistillError
from lightly_distill.evaluation.augmentation import augment
from lightly_distill.evaluation.baselines.labelled import LabelledImages, baseline_facts, check_classes, students_of
from lightly_distill.method.config import DistillConfig
from lightly_distill.method.pool import StudentBuilder
from lightly_distill.models.targets import IMAGENET_MEAN, IMAGENET_STD
from lightly_distill.runtime import seeding
from lightly_distill.runtime.device import resolve_device
from lightly_distill.synthetic.synthetic_set import SyntheticSet

# Distribution matching, arXiv:2110.04181, section 4.1, and the authors' released code, main_DM.py.
REAL_PER_CLASS = 256  # real images of each class in a step; fewer where a class has fewer
MATCHING: dict[str, Any] = {"lr": 1.0, "momentum": 0.5}  # SGD on the images
CHUNK = 2048  # images through a network at a time


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
    students = students_of(config, source.image_size)
    labelled = LabelledImages(source, labels, config, device, mean, std, dim, scale)
    index, start = labelled.initial(config.num_images)
    images = start.images.clone().requires_grad_()
    optimizer = torch.optim.SGD([images], **MATCHING)
    distances: list[float] = []
    bar = trange(config.steps, desc="Matching distributions", unit="step", disable=None)
    for step in bar:
        chosen, batch = labelled.of_each_class(REAL_PER_CLASS, step)
        with _random_student(students, config.seed, step, device) as student:
            draw: dict[str, Any] = {"seed": config.seed, "step": step}
            wanted = class_means(student, batch.images, labelled.labels(chosen), labelled.classes, **draw)
            means = class_means(student, images, labelled.labels(index), labelled.classes, **draw)
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
            **baseline_facts("dm", source, config, started),
            **({"distance": {"initial": distances[0], "final": distances[-1]}} if distances else {}),
        },
    )


def class_means(student: nn.Module, images: Tensor, labels: Tensor, classes: int, *, seed: int, step: int) -> Tensor:
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
