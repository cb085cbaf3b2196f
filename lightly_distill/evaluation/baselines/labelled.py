"""What the distillers that need labels share: real images with labels as what is true of them."""

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
from lightly_distill.method.split import Split
from lightly_distill.method.step import RealBatch
from lightly_distill.method.views import Drawn, Views
from lightly_distill.models.students import student_builder
from lightly_distill.models.targets import IMAGENET_MEAN, IMAGENET_STD
from lightly_distill.runtime import seeding
from lightly_distill.runtime.settings import to_dict


class LabelTruth:
    """A `Truth`: the vector of an image's label, whatever the view.

    Args:
        vectors: Of the labels of all images, float32, shape (n, D).
    """

    def __init__(self, vectors: Tensor) -> None:
        self._vectors = vectors

    def of_images(self, indices: Tensor) -> Tensor:
        """Returns the vectors of images as they are."""
        return self._vectors[indices]

    def of_views(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Returns the vectors of a batch of views."""
        return self._vectors[drawn.indices].to(images.device)


class LabelledImages:
    """Real images with their labels as one-hot vectors minus 1/C, and draws of as many of each class as can be.

    Args:
        source: Decoded real images.
        labels: int64 in 0..C-1, shape (n,).
        config: For seed, views, batch size and held-out count.
        device: Where batches are delivered.
        mean: Of each channel in units of [0, 1].
        std: As `mean`.
        dim: Numbers of a vector at least; zeros are added.
        scale: Factor of the vectors.

    Attributes:
        real: The images with these vectors.
        classes: C.

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
        # Centred, as in KIP (Nguyen et al., arXiv:2107.13034) and FRePo (Zhou et al., arXiv:2206.00719).
        centred = F.one_hot(labels, self.classes).float() - 1 / self.classes
        truth = LabelTruth(F.pad(scale * centred, (0, max(0, dim - self.classes))))
        views = Views(config.source_views, len(source), config.seed)
        self._labels, self._seed, self._device = labels, config.seed, device
        self.real = RealImages(
            source, Split.of(source, config), views, truth, config, device, mean=tuple(mean), std=tuple(std)
        )

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
        train = self.real.split.train
        return train[torch.randperm(len(train), generator=seeding.generator(self._seed, *draw))]

    def _by_class(self, chosen: Tensor) -> tuple[Tensor, RealBatch]:
        indices = chosen[torch.argsort(self._labels[chosen], stable=True)]
        return indices, self.real.plain(indices)


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
