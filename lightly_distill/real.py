"""Real batches as a function of the step: which images, which views of them, and the target's representations."""

from collections.abc import Iterator
from itertools import tee

import torch
from torch import Tensor
from torch.nn import functional as F

from lightly_distill import seeding
from lightly_distill.config import DistillConfig
from lightly_distill.errors import UsageError
from lightly_distill.kmeans import nearest_to_centroids
from lightly_distill.source import Source
from lightly_distill.step import RealBatch
from lightly_distill.targets import Target, represent

PAD = 4  # pixels; the authors' random crop
CHUNK = 512  # images to the target model at a time


class RealImages:
    """The source, split into images for the outer steps and held-out ones, with representations kept where they can be.

    Args:
        source: Decoded real images.
        target: Frozen target model, on `device`.
        config: For seed, views, batch size and held-out count.
        device: Where batches are delivered.
        representations: What stands for the target's representation of each image and of all its views, such as its
            label, float32, shape (n, D). The target then gives the normalisation only.

    Raises:
        UsageError: If the source has too few images for the synthetic set.
    """

    def __init__(
        self,
        source: Source,
        target: Target,
        config: DistillConfig,
        device: torch.device,
        representations: Tensor | None = None,
    ) -> None:
        self._source, self._target, self._device, self._given = source, target, device, representations
        self._seed, self._views, self._init = config.seed, config.source_views, config.init
        self.mean, self.std = target.mean, target.std
        held = min(config.holdout, len(source) // 10)
        order = torch.randperm(len(source), generator=seeding.generator(config.seed, "holdout"))
        self._held_out, self._train = order[:held].sort().values, order[held:].sort().values
        if len(self._train) < config.num_images:
            raise UsageError(
                f"{source.name} has {len(source)} usable images ({held} of them held out), fewer than "
                f"num_images={config.num_images}: ask for fewer synthetic images or give a larger source."
            )
        self._batch_size = min(config.batch_size, len(self._train))
        # kept[view, i]: representation of that view of image i; empty if every step draws its own view
        self._table, self._kept = self._keep_representations()

    def _keep_representations(self) -> tuple[Tensor, Tensor]:
        count = 0 if self._views == "random" else max(1, int(self._views))
        shape = (count, len(self._source))
        if not self._views or not count:
            table = _no_crop(shape)
        else:
            table = _draw_crops(shape, seeding.generator(self._seed, "views"))
        if self._given is not None:
            return table, self._given.expand(count, *self._given.shape)
        kept = []
        for crops in table:
            chunks = torch.split(torch.arange(len(self._source)), CHUNK)
            views = (
                crop_and_flip(images, crops[indices])
                for indices, images in zip(chunks, self._source.stream(chunks), strict=True)
            )
            kept.append(represent(self._target, views, device=self._device, total=len(self._source)))
        return table, torch.stack(kept) if kept else torch.empty(0)

    def normalise(self, images: Tensor) -> Tensor:
        """Maps uint8 images (B, 3, H, W) to the normalised space of the students, on the device."""
        mean, std = (torch.tensor(v, device=self._device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (images.to(self._device).float() / 255 - mean) / std

    def initial(self, count: int) -> tuple[Tensor, RealBatch]:
        """Chooses the images that the synthetic set starts from.

        Returns:
            Their indices in the source, shape (count,), and the batch.
        """
        if self._init == "kmeans":
            chosen = nearest_to_centroids(self._represent(self._train), count, self._seed)
        else:
            chosen = torch.randperm(len(self._train), generator=seeding.generator(self._seed, "initial"))[:count]
        indices = self._train[chosen]
        return indices, self._plain(indices)

    def held_out(self) -> RealBatch | None:
        """Returns the held-out images as they are, or None if there are none."""
        return self._plain(self._held_out) if len(self._held_out) else None

    def _plain(self, indices: Tensor) -> RealBatch:
        return RealBatch(self.normalise(self._source.read(indices)), self._represent(indices).to(self._device))

    def _represent(self, indices: Tensor) -> Tensor:
        """Returns the target's representations of images as they are, shape (B, D)."""
        if self._given is not None:
            return self._given[indices]
        if self._views == 0:
            return self._kept[0, indices]
        images = self._source.stream(torch.split(indices, CHUNK))
        return represent(self._target, images, device=self._device, total=len(indices))

    def batches(self, first_step: int, last_step: int) -> Iterator[RealBatch]:
        """Yields the real batch of each step from `first_step` to before `last_step`."""
        # the source may read ahead; tee holds no more than what it has
        ahead, indices = tee(self._indices(first_step, last_step))
        for step, chosen, images in zip(range(first_step, last_step), indices, self._source.stream(ahead), strict=True):
            yield self._batch(step, chosen, images)

    def _indices(self, first_step: int, last_step: int) -> Iterator[Tensor]:
        """Each image once an epoch, in an order of that epoch; what does not fill a batch waits for another epoch."""
        current, order = -1, self._train
        for step in range(first_step, last_step):
            epoch, position = divmod(step, len(self._train) // self._batch_size)
            if epoch != current:
                current, generator = epoch, seeding.generator(self._seed, "batches", epoch)
                order = self._train[torch.randperm(len(self._train), generator=generator)]
            yield order[position * self._batch_size :][: self._batch_size]

    def _batch(self, step: int, indices: Tensor, images: Tensor) -> RealBatch:
        generator = seeding.generator(self._seed, "view", step)
        if self._views == "random":
            images = crop_and_flip(images, _draw_crops((len(indices),), generator)).to(self._device)
            if self._given is not None:
                return RealBatch(self.normalise(images), self._given[indices].to(self._device))
            with torch.no_grad():
                representations = self._target(images.float() / 255)
            return RealBatch(self.normalise(images), representations)
        view = torch.randint(len(self._table), (len(indices),), generator=generator)
        images = crop_and_flip(images, self._table[view, indices])
        return RealBatch(self.normalise(images), self._kept[view, indices].to(self._device))


def _no_crop(shape: tuple[int, ...]) -> Tensor:
    return torch.tensor([PAD, PAD, 0]).expand(*shape, 3)


def _draw_crops(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draws offsets and flips, shape (*shape, 3): rows, columns in 0..2 PAD, and 1 where the image is flipped."""
    corners = torch.randint(2 * PAD + 1, (*shape, 2), generator=generator)
    return torch.cat([corners, torch.randint(2, (*shape, 1), generator=generator)], dim=-1)


def crop_and_flip(images: Tensor, crops: Tensor) -> Tensor:
    """Pads images by PAD black pixels, crops them back to their size, and mirrors some.

    Args:
        images: uint8, shape (B, C, H, W).
        crops: int64, shape (B, 3): top row and left column in the padded image, and 1 to mirror. (PAD, PAD, 0) is the
            image itself.

    Returns:
        The views, same shape and type.
    """
    if (crops == torch.tensor([PAD, PAD, 0])).all():
        return images
    height, width = images.shape[-2:]
    padded = F.pad(images, (PAD, PAD, PAD, PAD))
    rows = crops[:, 0, None] + torch.arange(height)
    straight = torch.arange(width)
    columns = crops[:, 1, None] + torch.where(crops[:, 2, None] == 1, straight.flip(0), straight)
    number = torch.arange(len(images))[:, None, None]
    return padded[number, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
