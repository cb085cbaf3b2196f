"""What the ridge regression is to predict of a real image: as a rule, the target's representation of it.

Shapes: n real images, V fixed views of each, B images of a batch, D numbers of a truth.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from lightly_distill.data.pixels import crop_and_flip
from lightly_distill.data.source import Source
from lightly_distill.method.krr import full_precision
from lightly_distill.method.representation_cache import Keeper, RepresentationCache
from lightly_distill.method.views import Drawn, Views
from lightly_distill.models.projection import Projection
from lightly_distill.models.targets import Target, represent

CHUNK = 512  # images to the target at a time
PROJECTED = 8192  # representations at a time


class Truth(Protocol):
    """What is true of real images and of their views."""

    def of_images(self, indices: Tensor) -> Tensor:
        """Returns the truth of images as they are, float32 on the CPU, shape (B, D)."""
        ...

    def of_views(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Returns the truth of a batch of views, float32, shape (B, D), on the device of the images.

        Args:
            images: The views, uint8, shape (B, 3, S, S).
            drawn: Which views of which images they are.
        """
        ...


class TargetTruth:
    """The target's representations: of fixed views all kept, of the views of one step computed in it.

    The target is on the device while it computes. Where its representations are kept, it is on the CPU at other times.

    Args:
        source: Real images.
        target: Frozen target model.
        views: Of the images.
        device: Where representations are computed.
        cache: What has or keeps those of fixed views; by default they are kept in memory.
        bf16: Whether the target computes in bfloat16.

    Attributes:
        projection: Applied to all representations that are returned, on the device; None returns them as they are.

    Raises:
        DistillError: If the target fails, or a representation cannot be kept.
    """

    def __init__(
        self,
        source: Source,
        target: Target,
        views: Views,
        device: torch.device,
        cache: Keeper | None = None,
        *,
        bf16: bool = False,
    ) -> None:
        self._source, self._views, self._device, self._bf16 = source, views, device, bf16
        self.projection: Projection | None = None
        self._target = target.to(device)
        if views.fixed:
            kept = cache or RepresentationCache()
            self._kept = kept.keep(views.key, len(source), self._of_all_views, bf16=bf16)
        self._rest()

    def of_images(self, indices: Tensor) -> Tensor:
        """Returns the target's representations of images as they are."""
        if self._views.plain:
            return self._projected(self._kept.gather(torch.zeros_like(indices), indices)).cpu()
        images = self._source.stream(torch.split(indices, CHUNK))
        with self._precision():
            representations = represent(self._target, images, device=self._device, total=len(indices))
        self._rest()
        return self._projected(representations).cpu()

    def of_views(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Returns the target's representations of a batch of views."""
        if drawn.numbers is not None:
            return self._projected(self._kept.gather(drawn.numbers, drawn.indices)).to(images.device)
        return self._projected(self._ask(images))

    def _of_all_views(self, indices: Tensor) -> Iterator[Tensor]:
        """Computes the representations of all fixed views of some images, a few at a time, shape (V, B, D)."""
        chunks = torch.split(indices, CHUNK)
        for chunk, images in zip(chunks, self._source.stream(chunks), strict=True):
            views = [crop_and_flip(images, crops[chunk]).to(self._device) for crops in self._views.table]
            yield torch.stack([self._ask(view).cpu() for view in views])

    def _ask(self, images: Tensor) -> Tensor:
        with self._precision():
            representations: Tensor = self._target(images.float() / 255)
        return representations

    def _projected(self, representations: Tensor) -> Tensor:
        if self.projection is None:
            return representations
        with full_precision(self._device):
            chunks = torch.split(representations, PROJECTED)
            return torch.cat([self.projection.apply(chunk.to(self._device)) for chunk in chunks])

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16)

    def _rest(self) -> None:
        """Takes the target off the device, unless every step needs it."""
        if self._views.fixed:
            self._target.to("cpu")
