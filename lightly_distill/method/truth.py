"""What the ridge regression is to predict of a real image: as a rule, the target's representation of it.

Shapes: n real images, V fixed views of each, B images of a batch, D numbers of a truth.
"""

from typing import Protocol

import torch
from torch import Tensor

from lightly_distill.data.pixels import crop_and_flip
from lightly_distill.data.source import Source
from lightly_distill.method.representation_cache import RepresentationCache
from lightly_distill.method.views import Drawn, Views
from lightly_distill.models.targets import Target, represent

CHUNK = 512  # images to the target at a time


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
    ) -> None:
        self._source, self._views, self._device = source, views, device
        self._target = target.to(device)
        if views.fixed:
            self._kept = (cache or RepresentationCache()).keep(views.key, len(source), self._of_all_views)
        self._rest()

    def of_images(self, indices: Tensor) -> Tensor:
        """Returns the target's representations of images as they are."""
        if self._views.plain:
            return self._kept.gather(torch.zeros_like(indices), indices)
        images = self._source.stream(torch.split(indices, CHUNK))
        representations = represent(self._target, images, device=self._device, total=len(indices))
        self._rest()
        return representations

    def of_views(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Returns the target's representations of a batch of views."""
        if drawn.numbers is not None:
            return self._kept.gather(drawn.numbers, drawn.indices).to(images.device)
        return self._ask(images)

    def _of_all_views(self, indices: Tensor) -> Tensor:
        """Computes the representations of all fixed views of some images, shape (V, N, D)."""
        chunks = torch.split(indices, CHUNK)
        parts = []
        for chunk, images in zip(chunks, self._source.stream(chunks), strict=True):
            views = [crop_and_flip(images, crops[chunk]).to(self._device) for crops in self._views.table]
            parts.append(torch.stack([self._ask(view).cpu() for view in views]))
        return torch.cat(parts, dim=1)

    def _ask(self, images: Tensor) -> Tensor:
        representations: Tensor = self._target(images.float() / 255)
        return representations

    def _rest(self) -> None:
        """Takes the target off the device, unless every step needs it."""
        if self._views.fixed:
            self._target.to("cpu")
