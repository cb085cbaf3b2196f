"""What the ridge regression is to predict of a real image: as a rule, the target's representation of it.

Shapes: n real images, V fixed views of each, B images of a batch, D numbers of a truth.
"""

from typing import Protocol

import torch
from torch import Tensor

from lightly_distill.data.decode import Frame
from lightly_distill.data.pixels import crop_and_flip
from lightly_distill.data.source import Source
from lightly_distill.method.representation_cache import RepresentationCache
from lightly_distill.method.sight import Sight
from lightly_distill.method.views import Drawn, Views
from lightly_distill.models.targets import Target


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
        cache: Where those of fixed views are kept; by default in memory.
        frame: What the target sees of each image; by default what students see.

    Raises:
        DistillError: If the target fails, or a representation cannot be kept.
    """

    def __init__(
        self,
        source: Source,
        target: Target,
        views: Views,
        device: torch.device,
        cache: RepresentationCache | None = None,
        frame: Frame | None = None,
    ) -> None:
        self._views, self._device = views, device
        self._sight = Sight(source, frame or source.frame)
        self._target = target.to(device)
        if views.fixed:
            key = views.key + self._sight.key
            self._kept = (cache or RepresentationCache()).keep(key, len(source), self._of_all_views)
        self._rest()

    def of_images(self, indices: Tensor) -> Tensor:
        """Returns the target's representations of images as they are."""
        if self._views.plain:
            return self._kept.gather(torch.zeros_like(indices), indices)
        representations = self._sight.represented(self._target, indices, self._device)
        self._rest()
        return representations

    def of_views(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Returns the target's representations of a batch of views."""
        if drawn.numbers is not None:
            return self._kept.gather(drawn.numbers, drawn.indices).to(images.device)
        if not self._sight.apart:
            return self._ask(images)
        chunks = self._sight.chunks(drawn.indices)
        crops = torch.split(drawn.crops, len(chunks[0]))
        views = (self._view(*each) for each in zip(self._sight.images(chunks), crops, strict=True))
        return torch.cat([self._ask(view) for view in views])

    def _of_all_views(self, indices: Tensor) -> Tensor:
        """Computes the representations of all fixed views of some images, shape (V, N, D)."""
        chunks = self._sight.chunks(indices)
        parts = []
        for chunk, images in zip(chunks, self._sight.images(chunks), strict=True):
            views = (self._view(images, crops[chunk]) for crops in self._views.table)
            parts.append(torch.stack([self._ask(view).cpu() for view in views]))
        return torch.cat(parts, dim=1)

    def _view(self, images: Tensor, crops: Tensor) -> Tensor:
        return crop_and_flip(images, crops, self._sight.scale).to(self._device)

    def _ask(self, images: Tensor) -> Tensor:
        representations: Tensor = self._target(images.float() / 255)
        return representations

    def _rest(self) -> None:
        """Takes the target off the device, unless every step needs it; all images of a pass have been seen."""
        self._sight.report()
        if self._views.fixed:
            self._target.to("cpu")
