"""What a student is pre-trained on, to be compared: the synthetic set and what it has to beat.

Shapes: m images of a set, n real images, d numbers of a representation.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lightly_distill import seeding
from lightly_distill.config import DistillConfig
from lightly_distill.distillers import check_classes, distribution_matching, supervised_ridge
from lightly_distill.kmeans import nearest_to_centroids
from lightly_distill.source import Source
from lightly_distill.students import student_builder
from lightly_distill.synthetic import SyntheticSet
from lightly_distill.targets import Target, represent

CHUNK = 256  # images to the target at a time


@dataclass
class RealSide:
    """The real images, the target model, and the target's representations of the images, computed once.

    Args:
        source: Real images.
        target: Frozen target model, on `device`.
        device: Where representations are computed.
    """

    source: Source
    target: Target
    device: torch.device

    @cached_property
    def representations(self) -> Tensor:
        """Of all real images, float32, shape (n, d)."""
        chunks = torch.split(torch.arange(len(self.source)), CHUNK)
        return represent(self.target, self.source.stream(chunks), device=self.device, total=len(self.source))

    def chosen(self, indices: Tensor) -> SyntheticSet:
        """Returns these real images and the target's representations of them."""
        return self._as_set(self.source.read(indices), self.representations[indices], indices)

    def noise(self, count: int, seed: int) -> SyntheticSet:
        """Returns uniform noise and the target's representations of it."""
        size = self.source.image_size
        generator = seeding.generator(seed, "arm", "noise")
        images = torch.randint(256, (count, 3, size, size), generator=generator).byte()
        batches = torch.split(images, CHUNK)
        return self._as_set(images, represent(self.target, batches, device=self.device, total=count), None)

    def _as_set(self, images: Tensor, representations: Tensor, indices: Tensor | None) -> SyntheticSet:
        return SyntheticSet(
            normalise(images, self.target.mean, self.target.std),
            representations,
            mean=self.target.mean,
            std=self.target.std,
            source_index=indices,
        )


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Maps uint8 images (B, 3, H, W) to normalised float32."""
    shift, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    return (images.float() / 255 - shift) / scale


def random_images(real: RealSide, count: int, seed: int) -> SyntheticSet:
    """Draws real images: the baseline to beat."""
    order = torch.randperm(len(real.source), generator=seeding.generator(seed, "arm", "random"))
    return real.chosen(order[:count])


def kmeans_images(real: RealSide, count: int, seed: int) -> SyntheticSet:
    """Takes the real image nearest to each of `count` centroids of the representations, each image once."""
    return real.chosen(nearest_to_centroids(real.representations, count, seed))


# Arms that need the real images and the target; each gets them, m and a seed.
REAL_ARMS: dict[str, Callable[[RealSide, int, int], SyntheticSet]] = {
    "random": random_images,
    "kmeans": kmeans_images,
    "noise": lambda real, count, seed: real.noise(count, seed),
    "full": lambda real, _count, _seed: real.chosen(torch.arange(len(real.source))),
}


# Arms that need labels of the real images: other distillers, with the settings of the set that they are compared with.
LABELLED_ARMS: dict[str, Callable[..., SyntheticSet]] = {"krr-labels": supervised_ridge, "dm": distribution_matching}


@dataclass
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

    def check(self, arms: Collection[str]) -> None:
        """Refuses arms that these labels and settings do not allow.

        Raises:
            UsageError: If there are fewer images than classes for distribution matching, or a student does not fit.
        """
        if "dm" in arms:
            check_classes(self.config.num_images, self.labels)
        for name in self.config.students:
            student_builder(name, self.source.image_size)

    def distil(self, arm: str, seed: int) -> SyntheticSet:
        """Runs another distiller of `LABELLED_ARMS`."""
        own, classes = self.own, int(self.labels.max()) + 1
        spread = own.representations.var(0, correction=0).sum().item()  # of centred one-hot labels: 1 - 1/C
        return LABELLED_ARMS[arm](
            self.source,
            self.labels,
            replace(self.config, seed=seed),
            mean=own.mean,
            std=own.std,
            dim=own.dim,
            scale=(spread / (1 - 1 / classes)) ** 0.5,
        )
