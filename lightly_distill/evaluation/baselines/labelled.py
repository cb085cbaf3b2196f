"""What the distillers that need labels share: real images with labels as what is true of them.

A student is pre-trained on what they make as on any other set, by the mean squared error; what it predicts are labels
then: one-hot vectors minus 1/C, learned ones of supervised kernel ridge, fixed ones of distribution matching.

The error is a mean over the numbers of a vector, so a learning rate that suits representations of 256 numbers is 25
times too high for 10 classes: a student of seed 0 diverged on 100 real images of cifar10. Labels may therefore be made
as long, with zeros, and as large as representations (`dim` and `scale`), and all of the recipe stays as it is.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightly_distill.data.labels import rank_in_class, source_labels
from lightly_distill.data.reading import Reading
from lightly_distill.data.source import Source
from lightly_distill.errors import UsageError
from lightly_distill.method.config import DistillConfig
from lightly_distill.method.pool import StudentBuilder
from lightly_distill.method.real_images import RealImages
from lightly_distill.method.split import Split
from lightly_distill.method.step import RealBatch
from lightly_distill.method.views import Drawn, Views
from lightly_distill.models.rows import Layout
from lightly_distill.models.students import student_builder
from lightly_distill.models.targets import IMAGENET_MEAN, IMAGENET_STD
from lightly_distill.runs.origin import RealSide, check_recorded, config_of_run, open_recorded, recorded_config
from lightly_distill.runtime import seeding
from lightly_distill.runtime.device import send
from lightly_distill.runtime.settings import to_dict
from lightly_distill.synthetic.synthetic_set import SyntheticSet


class LabelTruth:
    """A `Truth`: the vector of an image's label, whatever the view.

    Args:
        vectors: Of the labels of all images, float32, shape (n, D).
    """

    def __init__(self, vectors: Tensor) -> None:
        self._vectors = vectors

    @property
    def layout(self) -> Layout:
        """Vectors without maps."""
        return Layout(self._vectors.shape[1])

    def of_images(self, indices: Tensor) -> Tensor:
        """Returns the vectors of images as they are."""
        return self._vectors[indices]

    def of_views(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Returns the vectors of a batch of views."""
        return send(self._vectors[drawn.indices], images.device)


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


@dataclass(frozen=True)
class LabelledSide:
    """The real images with their labels, and how a set is distilled from them.

    Args:
        source: Real images.
        labels: Of these, int64 in 0..C-1, shape (n,).
        config: Settings of the set that is compared; the seed is each arm's own.
        own: That set; labels are made as long and as large as its representations, as one recipe is to suit both.
    """

    source: Source
    labels: Tensor
    config: DistillConfig
    own: SyntheticSet

    def distil(self, distiller: Callable[..., SyntheticSet], seed: int) -> SyntheticSet:
        """Runs a distiller that takes labels, such as `supervised_ridge`."""
        own, classes = self.own, int(self.labels.max()) + 1
        spread = own.representations.var(0, correction=0).sum().item()  # of centred one-hot labels: 1 - 1/C
        return distiller(
            self.source,
            self.labels,
            replace(self.config, seed=seed),
            mean=own.mean,
            std=own.std,
            dim=own.dim,
            scale=(spread / (1 - 1 / classes)) ** 0.5,
        )


def labelled_side(
    synthetic: Any,
    data: Any,
    own: SyntheticSet,
    real: RealSide | None,
    device: torch.device,
    arms: str,
    reading: Reading | None = None,
) -> LabelledSide:
    """Opens the real images with their labels, and finds the settings that the set was distilled with.

    Args:
        synthetic: The set, its folder, or that of the run that made it.
        data: The real images. Default: what the run's configuration says.
        own: The set.
        real: The real images and the target, if they are open already.
        device: Where to distil.
        arms: Those that need labels, for messages.
        reading: How the images are read, where it is not as the set records.

    Raises:
        UsageError: If the images, their labels or the settings are missing or are not those of the set, or a student of
            the settings does not fit.
    """
    data = data if data is not None else config_of_run(synthetic).get("data")
    if data is None:
        raise UsageError(
            f"The arms {arms} need the real images that the set was distilled from, with labels: give data, or leave "
            "these arms out."
        )
    recorded = recorded_config(own)
    if recorded is None:
        raise UsageError(
            f"The set has no record of how it was distilled, which the arms {arms} repeat with labels: leave these "
            "arms out."
        )
    config = replace(recorded, num_images=len(own), device=str(device))
    source = open_recorded(data, own, reading) if real is None else real.source
    check_recorded("source", own, "fingerprint", source.fingerprint, source.name)
    side = LabelledSide(source, source_labels(data, source.kept), config, own)
    for name in config.students:
        student_builder(name, source.image_size)
    return side
