"""Real batches as a function of the step: which images, which views of them, and what is true of these."""

from collections.abc import Iterable, Iterator
from itertools import tee

import torch
from torch import Tensor

from lightly_distill.data.pixels import crop_and_flip
from lightly_distill.data.source import Source
from lightly_distill.method.config import DistillConfig
from lightly_distill.method.projection import check_dims, fit_projection
from lightly_distill.method.representation_cache import Keeper
from lightly_distill.method.rounding import Rounding, fit_scales
from lightly_distill.method.sight import Sight, target_frame
from lightly_distill.method.split import Split
from lightly_distill.method.step import RealBatch
from lightly_distill.method.target_maps import TargetMaps, find_grid, kept_maps
from lightly_distill.method.truth import TargetTruth, Truth
from lightly_distill.method.views import Views
from lightly_distill.models.projection import Projection
from lightly_distill.models.targets import Target
from lightly_distill.runtime import seeding
from lightly_distill.runtime.device import free_memory, send
from lightly_distill.runtime.processes import ALONE, SOLO, Processes, Team

_SAMPLE = 512  # images that show how large the numbers of targets are


class RealImages:
    """Batches of real images, normalised, with what is true of them; `of_target` makes the usual ones.

    Args:
        source: Decoded real images.
        split: Of the source.
        views: Of the images.
        truth: Of images and views.
        config: For seed and batch size.
        device: Where batches are delivered.
        mean: Of each channel, in units of [0, 1], by which images are normalised.
        std: As `mean`.

    Attributes:
        batch_size: Images of a batch.
        projection: Of the truth's vectors, on the CPU; None where there is none.
        target_maps: Which map of the target the truth has; None where it has none.
        resident: All images, uint8, on a GPU, where they fit; None: they are read from the source.
    """

    def __init__(
        self,
        source: Source,
        split: Split,
        views: Views,
        truth: Truth,
        config: DistillConfig,
        device: torch.device,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        self.source, self.split, self.views, self.truth = source, split, views, truth
        self.mean, self.std = mean, std
        self.projection: Projection | None = None
        self.target_maps: TargetMaps | None = None
        self.batch_size = min(config.batch_size, len(split.train))
        self.resident = _on_device(source, device)
        self._seed, self._device = config.seed, device
        self._mean, self._std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (mean, std))

    @classmethod
    def of_target(
        cls,
        source: Source,
        target: Target,
        config: DistillConfig,
        device: torch.device,
        cache: Keeper | None = None,
        *,
        projection: Projection | None = None,
        target_maps: TargetMaps | None = None,
        processes: Processes = ALONE,
    ) -> "RealImages":
        """Makes batches of images with the target's representations, which are computed here where they can be kept.

        Args:
            source: Decoded real images.
            target: Frozen target model.
            config: For seed, views, batch size, held-out count and the size that the target sees.
            device: Where batches are delivered and representations computed.
            cache: What has or keeps representations; by default they are kept in memory.
            projection: Of a run that goes on. Default: it is fitted here, where `config.target_dims` asks for one.
            target_maps: Of a run that goes on. Default: fitted here, where `config.target_map` asks for one.
            processes: Of the run; the main one fits what is fitted.

        Raises:
            UsageError: If the source has too few images for the synthetic set or for the projection, before any work;
                or if representations do not vary in so many directions.
            DistillError: If the target fails, or a representation cannot be kept.
        """
        split = Split.of(source, config)
        views = Views(config.source_views, len(source), config.seed)
        if config.target_dims is not None:
            check_dims(config.target_dims, images=len(split.train))
        bf16 = config.precision == "bf16" and device.type == "cuda"
        frame = target_frame(source, target, config.target_size)
        grid = find_grid(target.to(device), frame.size, config.target_map, device)
        if grid and target_maps is None:
            sight = Sight(source, frame)
            target_maps = kept_maps(sight, target, len(source), device, grid, config.map_dims, cache, processes)
        asks_for_all = config.target_dims is not None or config.init == "kmeans"
        truth = TargetTruth(
            source,
            target,
            views,
            device,
            cache,
            frame,
            target_maps=target_maps,
            bf16=bf16,
            keep_plain=asks_for_all,
        )
        if config.target_dims is not None:
            dims, whiten = config.target_dims, config.target_whiten
            projection = projection or processes.in_main(
                lambda: fit_projection(truth.vectors, split.train, dims, whiten=whiten)
            )
            truth.projection = projection.to(device)
        real = cls(source, split, views, truth, config, device, mean=target.mean, std=target.std)
        real.projection, real.target_maps = projection, target_maps
        return real

    def normalise(self, images: Tensor) -> Tensor:
        """Maps uint8 images (B, 3, H, W) to the normalised space of the students, on the device."""
        return (images.to(self._device).float() / 255 - self._mean) / self._std

    def plain(self, indices: Tensor) -> RealBatch:
        """Returns images as they are, whatever the views."""
        images = self.normalise(self.source.read(indices))
        return RealBatch(images, self.truth.of_images(indices).to(self._device))

    def rounding(self, config: DistillConfig) -> Rounding:
        """Returns how a set that is made of these images is rounded."""
        sample = self.split.train[:: max(1, -(-len(self.split.train) // _SAMPLE))]
        rows = self.truth.of_images(sample).to(self._device)
        scales = fit_scales(rows, self.truth.layout, config.target_bits)
        return Rounding(self._mean, self._std, scales)

    def held_out(self) -> RealBatch | None:
        """Returns the held-out images as they are, or None if there are none."""
        return self.plain(self.split.held_out) if len(self.split.held_out) else None

    def batches(self, first_step: int, last_step: int, *, team: Team = SOLO) -> Iterator[RealBatch]:
        """Yields the real batch of each step from `first_step` to before `last_step`, or this process's part of it."""
        split, divide = team.split, team.divide
        numbers = range(first_step * split.count + split.index, last_step * split.count, split.count)
        # the source may read ahead; tee holds no more than what it has
        ahead, kept = tee(self._indices(numbers))
        parts = (indices[divide.share(len(indices))] for indices in ahead)
        stream = self.source.stream(parts) if self.resident is None else map(self._of_resident, parts)
        for number, indices, images in zip(numbers, kept, stream, strict=True):
            # drawn for the whole batch, whichever part of it this process takes
            drawn = self.views.draw(number, indices)[divide.share(len(indices))]
            shown = send(crop_and_flip(images, drawn.crops), self._device)
            yield RealBatch(self.normalise(shown), self.truth.of_views(shown, drawn), len(indices))

    def _of_resident(self, indices: Tensor) -> Tensor:
        assert self.resident is not None
        return self.resident[send(indices, self._device)]

    def _indices(self, numbers: Iterable[int]) -> Iterator[Tensor]:
        """Each image once an epoch, in an order of that epoch; what does not fill a batch waits for another epoch."""
        train = self.split.train
        current, order = -1, train
        for number in numbers:
            epoch, position = divmod(number, len(train) // self.batch_size)
            if epoch != current:
                current, generator = epoch, seeding.generator(self._seed, "batches", epoch)
                order = train[torch.randperm(len(train), generator=generator)]
            yield order[position * self.batch_size :][: self.batch_size]


class Ahead:
    """Iterates over real batches, of which the next one can be made before it is asked for."""

    def __init__(self, batches: Iterator[RealBatch]) -> None:
        self._batches = batches
        self._next: RealBatch | None = None

    def prepare(self) -> None:
        """Makes the next batch, if there is one and it is not made yet."""
        self._next = self._next or next(self._batches, None)

    def __iter__(self) -> Iterator[RealBatch]:
        while True:
            self.prepare()
            batch, self._next = self._next, None
            if batch is None:
                return
            yield batch


def _on_device(source: Source, device: torch.device) -> Tensor | None:
    """Returns all images on a GPU, if they are in memory and take less than a quarter of what is free there."""
    if device.type != "cuda" or not source.in_memory:
        return None
    size = len(source) * 3 * source.image_size**2
    return source.read(torch.arange(len(source))).to(device) if size < free_memory(device) // 4 else None
