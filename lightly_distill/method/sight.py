"""What the target sees of each real image: the region that students see, decoded at a size of the target's own.

Shapes: n real images, B images of a batch, S height and width that students see, T those that the target sees.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightly_distill.data.decode import Frame
from lightly_distill.data.loader import Decoder
from lightly_distill.data.reading import Reading
from lightly_distill.data.source import Source, find_images, first_images
from lightly_distill.errors import DistillError, UsageError
from lightly_distill.models.targets import Target, represent, sizes_taken
from lightly_distill.runtime.console import tell_once
from lightly_distill.runtime.words import called

CHUNK = 512  # images to the target at a time, where it sees what students see
_PIXELS = 2**21  # of the images to the target at a time, else; 41 images of 224x224

_logger = logging.getLogger(__name__)


class Sight:
    """Gives the target the images of a source.

    Args:
        source: Real images.
        frame: What the target sees of them, from `target_frame`.

    Attributes:
        apart: Whether that is another size than the source's own, so that the images are decoded again.
        scale: T/S.
    """

    def __init__(self, source: Source, frame: Frame) -> None:
        self._source, self.frame = source, frame
        self.apart = frame.size != source.image_size
        self.scale = frame.size / source.image_size
        self._said = False

    @property
    def key(self) -> str:
        """Tells this way of seeing apart from others of the same source; empty where T is S.

        The fingerprint of a source is of its images at S, which larger and smaller originals may share.
        """
        if not self.apart:
            return ""
        frame = self.frame
        return f" at {frame.size}, {frame.crop:g}, {frame.interpolation}, of {self._source.originals[:16]}"

    def chunks(self, indices: Tensor) -> Sequence[Tensor]:
        """Divides indices into as many as the target is given at a time."""
        count = max(1, min(CHUNK, _PIXELS // self.frame.size**2)) if self.apart else CHUNK
        return torch.split(indices, count)

    def images(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yields the images of each chunk of indices, uint8, shape (B, 3, T, T); see `Source.again`."""
        if not self.apart:
            yield from self._source.stream(chunks)
            return
        self._report()
        yield from self._source.again(chunks, self.frame)

    def represented(
        self,
        target: Target,
        indices: Tensor,
        device: torch.device,
        ask: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Returns the target's representations of images as they are, float32 on the CPU, shape (B, D).

        Args:
            target: Frozen target model.
            indices: Of the images, shape (B,).
            device: Where to compute.
            ask: As for `represent`.
        """
        # a stream is read from the front once, and a disk is quicker in its order
        order = indices.argsort() if self.apart else torch.arange(len(indices))
        images = self.images(self.chunks(indices[order]))
        found = represent(target, images, device=device, total=len(indices), ask=ask)
        result = torch.empty_like(found)
        result[order] = found
        return result

    def _report(self) -> None:
        """Logs how many images of the source have to be enlarged, if any; once."""
        smaller = 0 if self._said else self._source.smaller_than(self.frame)
        self._said = True
        if smaller:
            tell_once(
                _logger,
                logging.WARNING,
                "%d of %d images of %s are smaller than the %d pixels that the target sees, and are enlarged.",
                smaller,
                len(self._source),
                called(self._source.name),
                self.frame.size,
            )


def find_for_target(
    data: Any,
    target: Target,
    *,
    image_size: int | None,
    target_size: int | None,
    at_random: bool = False,
    reading: Reading | None = None,
) -> tuple[Source | Decoder, Frame]:
    """Finds real images, of which target and students will see the same region.

    Args:
        data: As for `find_images`.
        target: Says which size and region it expects.
        image_size: S, or None for the source's own.
        target_size: T, or None for the target's own.
        at_random: Whether the target will be given images in any order.
        reading: As for `find_images`.

    Returns:
        What `open_source` takes, and what the target sees of each image.

    Raises:
        UsageError: As `find_images`, or if the target does not take the size, or the images cannot be decoded again in
            any order.
    """
    images = find_images(data, image_size=image_size, reading=reading)
    size = _target_size(images, target, target_size)
    if size != images.image_size:
        tell_once(
            _logger, logging.INFO, "The target sees images of %d pixels, the students of %d.", size, images.image_size
        )
        if at_random and not images.in_any_order:
            raise UsageError(
                f"A stream cannot be read again in any order, as source_views=random with target_size={size} needs it: "
                f"give a number of fixed views, target_size={images.image_size}, or a dataset with an index."
            )
        if isinstance(images, Decoder):
            images = images.into(replace(images.frame, crop=target.crop))
    return images, _frame(images, target, size)


def target_frame(source: Source, target: Target, target_size: int | None) -> Frame:
    """Returns what the target sees of each image of an open source.

    Raises:
        UsageError: If the target does not take the size.
    """
    return _frame(source, target, _target_size(source, target, target_size))


def try_target(images: Source | Decoder, target: Target, frame: Frame, device: torch.device) -> int | None:
    """Tries the target on the first images; returns d, or None if none of them is usable.

    Raises:
        UsageError: If it does not take images of this size, with sizes that it takes.
        DistillError: If it fails at the size of the source.
    """
    apart = frame.size != images.image_size
    first = first_images(images, frame=frame if apart else None)
    if not len(first):
        return None
    try:
        dim: int = target(first.to(device).float() / 255).shape[1]
        return dim
    except DistillError as error:
        if not apart:
            raise
        sizes = sizes_taken(target, frame.size, device)
        cure = f"It takes {', '.join(map(str, sizes))}." if sizes else "No size near it works either."
        raise UsageError(f"target_size={frame.size} does not suit the target {target.name}. {cure} {error}") from error


def _target_size(images: Source | Decoder, target: Target, target_size: int | None) -> int:
    size, own = images.image_size, target.input_size or target.own_size
    if target_size is None:
        # an original that students see whole has no more to show
        return own if own not in (None, size) and images.original_side > size else size
    if target_size not in (size, target.input_size) and target.input_size is not None:
        raise UsageError(
            f"The target {target.name} takes images of {target.input_size} pixels only; got target_size={target_size}. "
            f"Give {target.input_size}, or {size} to have it see the enlarged images of the students."
        )
    return target_size


def _frame(images: Source | Decoder, target: Target, size: int) -> Frame:
    if size == images.image_size:
        return images.frame
    return Frame(size, images.frame.crop, target.interpolation)
