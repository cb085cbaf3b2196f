"""What the distillers that need labels share: real images whose labels stand for the target's representations."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightly_distill.data.labels import rank_in_class
from lightly_distill.data.source import Source
from lightly_distill.errors import UsageError
from lightly_distill.method.config import DistillConfig
from lightly_distill.method.pool import StudentBuilder
from lightly_distill.method.real_images import RealImages
from lightly_distill.method.step import RealBatch
from lightly_distill.models.students import student_builder
from lightly_distill.models.targets import IMAGENET_MEAN, IMAGENET_STD, Target
from lightly_distill.runtime import seeding
from lightly_distill.runtime.settings import to_dict


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


def students_of(config: DistillConfig, image_size: int) -> list[tuple[str, StudentBuilder]]:
    """Returns name and builder of each student of a configuration, checked at this image size."""
    batch_size = min(2, config.num_images)
    return [(name, student_builder(name, image_size, batch_size=batch_size)) for name in config.students]


def baseline_facts(distiller: str, source: Source, config: DistillConfig, started: float) -> dict[str, Any]:
    """Returns the provenance of a set that a baseline made; `started` is when, of `time.perf_counter`."""
    return {
        "distiller": distiller,
        "source": {"name": source.name, "fingerprint": source.fingerprint, "images": len(source)},
        "config": to_dict(config),
        "steps": config.steps,
        "seconds": round(time.perf_counter() - started, 1),
    }
