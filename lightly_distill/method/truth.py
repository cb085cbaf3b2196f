"""What the ridge regression is to predict of a real image: as a rule, the target's representation of it and its map.

Shapes: n real images, V fixed views of each, B images of a batch, D numbers of a truth, which is a row of `layout`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from lightly_distill.data.decode import Frame
from lightly_distill.data.pixels import crop_and_flip
from lightly_distill.data.source import Source
from lightly_distill.method.krr import full_precision
from lightly_distill.method.representation_cache import Keeper, RepresentationCache, Representations
from lightly_distill.method.sight import Sight
from lightly_distill.method.target_maps import TargetMaps
from lightly_distill.method.views import Drawn, Views
from lightly_distill.models.projection import Projection
from lightly_distill.models.rows import Layout
from lightly_distill.models.targets import Target, represent
from lightly_distill.runtime.device import send

PROJECTED = 8192  # representations at a time


class Truth(Protocol):
    """What is true of real images and of their views."""

    @property
    def layout(self) -> Layout:
        """What a row holds; its width is D."""
        ...

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
    """The target's representations and maps: of fixed views all kept, of the views of one step computed in it.

    The target is on the device while it computes. Where its representations are kept, it is on the CPU at other times.

    Args:
        source: Real images.
        target: Frozen target model.
        views: Of the images.
        device: Where representations are computed.
        cache: What has or keeps those of fixed views; by default they are kept in memory.
        frame: What the target sees of each image; by default what students see.
        target_maps: Which map of the target is kept; None: none.
        bf16: Whether the target computes in bfloat16.
        keep_plain: Whether those of all images as they are are kept too, for who asks for all of them.

    Attributes:
        projection: Applied to all representations that are returned, on the device; None returns them as they are.
            Maps have their own.

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
        frame: Frame | None = None,
        *,
        target_maps: TargetMaps | None = None,
        bf16: bool = False,
        keep_plain: bool = False,
    ) -> None:
        # on the device, as each step of random views needs it
        self._maps = target_maps and replace(target_maps, projection=target_maps.projection.to(device))
        self._views, self._device, self._bf16 = views, device, bf16
        self._sight = Sight(source, frame or source.frame)
        self.projection: Projection | None = None
        self._target = target.to(device)
        keeper = cache or RepresentationCache()
        rest = self._sight.key + (target_maps.key if target_maps else "")

        def kept(views: Views) -> Representations:
            compute = partial(self._of_all_views, views)
            return keeper.keep(views.key + rest, len(source), compute, bf16=bf16)

        if views.fixed:
            self._kept = kept(views)
        self._plain = self._kept if views.plain else None
        if keep_plain and self._plain is None:
            self._plain = kept(Views(0, len(source), 0))
        self._rest()

    @property
    def layout(self) -> Layout:
        """What a row holds."""
        dim = self._dim if self.projection is None else self.projection.basis.shape[1]
        return Layout(dim, self._maps.channels, self._maps.grid) if self._maps else Layout(dim)

    @property
    def _dim(self) -> int:
        """Numbers of the target's own representation."""
        kept = self._kept if self._views.fixed else self._plain
        if kept is not None:
            width = kept.width
            return width - self._maps.channels * self._maps.grid**2 if self._maps else width
        assert self._target.dim is not None, "it has been asked"
        return self._target.dim

    def of_images(self, indices: Tensor) -> Tensor:
        """Returns the target's representations of images as they are."""
        if self._plain is not None:
            return self._projected(self._plain.gather(torch.zeros_like(indices), indices)).cpu()
        rows = self._sight.represented(self._target, indices, self._device, self._ask)
        self._rest()
        return self._projected(rows).cpu()

    def vectors(self, indices: Tensor) -> Tensor:
        """As `of_images`, without maps."""
        rows = self.of_images(indices)
        return self.layout.split(rows)[0]

    def of_others(self, batches: Iterable[Tensor], total: int) -> Tensor:
        """Returns the truth of images that are not of the source, float32 on the CPU, shape (total, D).

        Args:
            batches: uint8 images, shape (B, 3, T, T).
            total: Of all batches.
        """
        rows = represent(self._target, batches, device=self._device, total=total, ask=self._ask)
        return self._projected(rows).cpu()

    def of_views(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Returns the target's representations of a batch of views."""
        if drawn.numbers is not None:
            return send(self._projected(self._kept.gather(drawn.numbers, drawn.indices)), images.device)
        if not self._sight.apart:  # a few at a time, as a whole batch need not fit beside the students
            parts = torch.split(images, len(self._sight.chunks(drawn.indices)[0]))
            return self._projected(torch.cat([self._unguarded(part) for part in parts]))
        chunks = self._sight.chunks(drawn.indices)
        crops = torch.split(drawn.crops, len(chunks[0]))
        views = (self._view(*each) for each in zip(self._sight.images(chunks), crops, strict=True))
        return self._projected(torch.cat([self._unguarded(view) for view in views]))

    def _of_all_views(self, views: Views, indices: Tensor) -> Iterator[Tensor]:
        """Computes the representations of all fixed views of some images, a few at a time, shape (V, B, D)."""
        chunks = self._sight.chunks(indices)
        for chunk, images in zip(chunks, self._sight.images(chunks), strict=True):
            shown = (self._view(images, crops[chunk]) for crops in views.table)
            yield torch.stack([self._ask(view.float() / 255).cpu() for view in shown])

    def _view(self, images: Tensor, crops: Tensor) -> Tensor:
        return send(crop_and_flip(images, crops, self._sight.scale), self._device)

    def _unguarded(self, images: Tensor) -> Tensor:
        """Asks for the rows of uint8 images; on CUDA, the step looks at them later, with what it makes of them."""
        guarded, self._target.guarded = self._target.guarded, self._device.type != "cuda"
        try:
            return self._ask(images.float() / 255)
        finally:
            self._target.guarded = guarded

    def _ask(self, images: Tensor) -> Tensor:
        with self._precision():
            if self._maps is not None:
                return self._maps.rows(self._target, images)
            representations: Tensor = self._target(images)
        return representations

    def _projected(self, rows: Tensor) -> Tensor:
        if self.projection is None:
            return rows
        return torch.cat([self._of_chunk(send(chunk, self._device)) for chunk in torch.split(rows, PROJECTED)])

    def _of_chunk(self, rows: Tensor) -> Tensor:
        assert self.projection is not None
        with full_precision(self._device):
            representations = self.projection.apply(rows[:, : self._dim])
        return torch.cat([representations, rows[:, self._dim :]], dim=1)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16)

    def _rest(self) -> None:
        """Takes the target off the device, unless every step needs it."""
        if self._views.fixed:
            self._target.to("cpu")
