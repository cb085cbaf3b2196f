"""Real batches as a function of the step: which images, which views of them, and the target's representations."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import tee

import torch
from torch import Tensor

from lightly_distill.data.pixels import crop_and_flip, draw_crops, no_crop
from lightly_distill.data.source import Source
from lightly_distill.errors import UsageError
from lightly_distill.method.config import DistillConfig
from lightly_distill.method.kmeans import nearest_to_centroids
from lightly_distill.method.representation_cache import RepresentationCache
from lightly_distill.method.step import RealBatch
from lightly_distill.models.targets import Target, represent
from lightly_distill.runtime import seeding
from lightly_distill.runtime.device import free_memory
from lightly_distill.runtime.processes import SOLO, Team

CHUNK = 512  # images to the target model at a time
SAMPLE = 4096  # real images of which a start from noise has mean and covariance


class RealImages:
    """The source, split into images for the outer steps and held-out ones, with representations kept where they can be.

    Args:
        source: Decoded real images.
        target: Frozen target model, on `device`.
        config: For seed, views, batch size and held-out count.
        device: Where batches are delivered.
        cache: Where representations are kept; by default in memory.
        given: What stands for the target's representation of each image and of all its views, such as its label,
            float32, shape (n, D). The target then gives the normalisation only.

    Raises:
        UsageError: If the source has too few images for the synthetic set.
    """

    def __init__(
        self,
        source: Source,
        target: Target,
        config: DistillConfig,
        device: torch.device,
        cache: RepresentationCache | None = None,
        given: Tensor | None = None,
    ) -> None:
        self._source, self._target, self._device, self._given = source, target, device, given
        self._seed, self._views, self._init = config.seed, config.source_views, config.init
        self.mean, self.std = target.mean, target.std
        self._mean, self._std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        held = require_enough(source, config)
        order = torch.randperm(len(source), generator=seeding.generator(config.seed, "holdout"))
        self._held_out, self._train = order[:held].sort().values, order[held:].sort().values
        self._resident = _on_device(source, device)
        self.batch_size = min(config.batch_size, len(self._train))
        if self._views == "random":
            return  # every step draws its own views
        shape = (max(1, self._views), len(source))
        # table[view, i]: that view of image i
        self._table = draw_crops(shape, seeding.generator(self._seed, "views")) if self._views else no_crop(shape)
        name = hashlib.sha256(self._table.numpy().data).hexdigest() if self._views else "none"
        self._kept = (cache or RepresentationCache()).keep(name, len(source), self._represent)

    def _represent(self, indices: Tensor) -> Tensor:
        """Computes the representations of all views of some images, shape (views, N, D)."""
        if self._given is not None:
            return self._given[indices].expand(len(self._table), -1, -1)
        chunks = torch.split(indices, CHUNK)
        parts = []
        for chunk, images in zip(chunks, self._source.stream(chunks), strict=True):
            views = [crop_and_flip(images, crops[chunk]).to(self._device) for crops in self._table]
            parts.append(torch.stack([self._target(view.float() / 255).cpu() for view in views]))
        return torch.cat(parts, dim=1)

    def normalise(self, images: Tensor) -> Tensor:
        """Maps uint8 images (B, 3, H, W) to the normalised space of the students, on the device."""
        return (images.to(self._device).float() / 255 - self._mean) / self._std

    def initial(self, count: int) -> tuple[Tensor, RealBatch]:
        """Chooses what the synthetic set starts from, as `DistillConfig.init` says.

        Returns:
            Indices in the source, shape (count,), -1 where it is no real image, and the batch.
        """
        if self._init == "noise":
            return self._noise(count)
        if self._init == "kmeans":
            chosen = nearest_to_centroids(self._of_plain(self._train), count, self._seed)
        else:
            chosen = torch.randperm(len(self._train), generator=seeding.generator(self._seed, "initial"))[:count]
        indices = self._train[chosen]
        return indices, self._plain(indices)

    def _noise(self, count: int) -> tuple[Tensor, RealBatch]:
        """Draws noise with the spread of real images and of their representations.

        From white noise little is learned, as the target's representations of it are all alike. So images and
        representations are drawn together, from the normal distribution that has mean and covariance of those of up to
        `SAMPLE` real images: coloured as these are, and like no one of them.
        """
        generator = seeding.generator(self._seed, "initial", "noise")
        sample = self._train[torch.randperm(len(self._train), generator=generator)[:SAMPLE]]
        # normal numbers, summed up over the centred rows, have the covariance of the rows
        weights = torch.randn(count, len(sample), generator=generator) / max(len(sample) - 1, 1) ** 0.5
        mean, noise = torch.zeros(()), torch.zeros(())
        for indices, weight in zip(torch.split(sample, CHUNK), torch.split(weights, CHUNK, dim=1), strict=True):
            real = self._plain(indices)
            rows = torch.cat([real.images.flatten(1), real.representations], dim=1).cpu()
            mean, noise = mean + rows.sum(0) / len(sample), noise + weight @ rows
        noise = noise + (1 - weights.sum(1, keepdim=True)) * mean
        size = self._source.image_size
        images, representations = noise.split([3 * size * size, noise.shape[1] - 3 * size * size], dim=1)
        images = images.reshape(count, 3, size, size).to(self._device)
        return torch.full((count,), -1), RealBatch(images, representations.contiguous().to(self._device))

    def held_out(self) -> RealBatch | None:
        """Returns the held-out images as they are, or None if there are none."""
        return self._plain(self._held_out) if len(self._held_out) else None

    def _plain(self, indices: Tensor) -> RealBatch:
        return RealBatch(self.normalise(self._source.read(indices)), self._of_plain(indices).to(self._device))

    def _of_plain(self, indices: Tensor) -> Tensor:
        """Returns the target's representations of images as they are, shape (B, D)."""
        if self._given is not None:
            return self._given[indices]
        if self._views == 0:
            return self._kept.gather(torch.zeros_like(indices), indices)
        images = self._source.stream(torch.split(indices, CHUNK))
        return represent(self._target, images, device=self._device, total=len(indices))

    def free_target(self) -> None:
        """Takes the target off the device, unless every step needs it: its representations are kept."""
        if self._views != "random":
            self._target.to("cpu")

    def batches(self, first_step: int, last_step: int, *, team: Team = SOLO) -> Iterator[RealBatch]:
        """Yields the real batch of each step from `first_step` to before `last_step`, or this process's part of it."""
        split, divide = team.split, team.divide
        numbers = range(first_step * split.count + split.index, last_step * split.count, split.count)
        # the source may read ahead; tee holds no more than what it has
        ahead, kept = tee(self._indices(numbers))
        parts = (indices[divide.share(len(indices))] for indices in ahead)
        stream = self._source.stream(parts) if self._resident is None else map(self._resident.__getitem__, parts)
        for number, indices, images in zip(numbers, kept, stream, strict=True):
            yield self._batch(number, indices, images, divide.share(len(indices)))

    def _indices(self, numbers: Iterable[int]) -> Iterator[Tensor]:
        """Each image once an epoch, in an order of that epoch; what does not fill a batch waits for another epoch."""
        current, order = -1, self._train
        for number in numbers:
            epoch, position = divmod(number, len(self._train) // self.batch_size)
            if epoch != current:
                current, generator = epoch, seeding.generator(self._seed, "batches", epoch)
                order = self._train[torch.randperm(len(self._train), generator=generator)]
            yield order[position * self.batch_size :][: self.batch_size]

    def _batch(self, number: int, indices: Tensor, images: Tensor, part: slice) -> RealBatch:
        generator = seeding.generator(self._seed, "view", number)  # draws for the whole batch, whoever takes which part
        if self._views == "random":
            images = crop_and_flip(images, draw_crops((len(indices),), generator)[part]).to(self._device)
            if self._given is not None:
                given = self._given[indices[part]].to(self._device)
                return RealBatch(self.normalise(images), given, len(indices))
            with torch.no_grad():
                representations = self._target(images.float() / 255)
            return RealBatch(self.normalise(images), representations, len(indices))
        view = torch.randint(len(self._table), (len(indices),), generator=generator)
        view, chosen = view[part], indices[part]
        images = crop_and_flip(images, self._table[view, chosen])
        return RealBatch(self.normalise(images), self._kept.gather(view, chosen).to(self._device), len(indices))


def _on_device(source: Source, device: torch.device) -> Tensor | None:
    """Returns all images on a GPU, if they are in memory and take less than a quarter of what is free there."""
    if device.type != "cuda" or not source.in_memory:
        return None
    size = len(source) * 3 * source.image_size**2
    return source.read(torch.arange(len(source))).to(device) if size < free_memory(device) // 4 else None


def require_enough(source: Source, config: DistillConfig) -> int:
    """Returns how many images are held out.

    Raises:
        UsageError: If the source has too few images for the synthetic set.
    """
    held = min(config.holdout, len(source) // 10)
    if len(source) - held < config.num_images:
        raise UsageError(
            f"{source.name} has {len(source)} usable images ({held} of them held out), fewer than "
            f"num_images={config.num_images}: ask for fewer synthetic images or give a larger source."
        )
    return held
