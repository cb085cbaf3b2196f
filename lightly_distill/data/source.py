"""The real images, decoded once: kept in memory where they fit, else in a temporary file.

At another size they are decoded again, in batches that nothing keeps.

Shapes: n kept images, B images of a batch, S height and width in pixels, T those at another size.
"""

import hashlib
import logging
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from lightly_distill.data.decode import LARGEST_DEFAULT_SIZE, Frame, UnusableImage
from lightly_distill.data.items import Items, plain_list, steady_items, undecoded
from lightly_distill.data.loader import LOOKED_AT, Decoder, decode_batches
from lightly_distill.data.locate import locate
from lightly_distill.data.reading import Reading
from lightly_distill.data.spool import Spool
from lightly_distill.data.streams import is_stream, steady_stream
from lightly_distill.data.values import ValueRange
from lightly_distill.errors import DistillError, UsageError
from lightly_distill.runtime.console import tell_once
from lightly_distill.runtime.device import free_memory
from lightly_distill.runtime.progress import Progress
from lightly_distill.runtime.words import called

CHUNK = 64  # images at a time

_logger = logging.getLogger(__name__)


class Source(ABC):
    """Real images, decoded to uint8 RGB of one size. Made by `open_source`.

    Attributes:
        name: What the user gave, such as `cifar10#train`, or the name of a dataset's class.
        image_size: S.
        fingerprint: SHA-256, in hexadecimal, of the bytes of the kept images in order, of their shape and, where they
            have more than 8 bits, of the range of their values.
        skipped: How many items were skipped, by reason.
        kept: Index of each kept image among the items of the dataset, int64, shape (n,).
        in_memory: Whether the decoded images are kept in memory.
        located: Whether its name, given to `open_source`, finds it again.
        frame: What is shown of each image; its size is S.
        scale: How values of more than 8 bits are read.
        value_range: Of these; None where no image that was looked at has more.
        original_side: Shorter side of the largest of the first originals, in pixels; see `Decoder.original_side`.
        originals: SHA-256 of the shorter sides of all: sources whose images are alike at S may have originals of other
            sizes.
        sides: These sides, in pixels, int64, shape (n,).
        in_any_order: Whether `again` takes indices in any order; else in increasing order only.
    """

    in_memory = False

    def __init__(
        self,
        decoder: Decoder,
        kept: Tensor,
        sides: Tensor,
        fingerprint: str,
        skipped: dict[str, int],
    ) -> None:
        self._decoder, self._items, self._num_workers = decoder, decoder.items, decoder.num_workers
        self.scale, self.value_range = decoder.items.scale, _value_range(decoder)
        self.kept = kept
        self.name = decoder.items.name
        self.located = decoder.located
        self.frame = decoder.frame
        self.image_size = decoder.image_size
        self.sides = sides
        self.original_side = int(sides[kept < kept[0] + LOOKED_AT].max())
        self.originals = hashlib.sha256(sides.numpy().data).hexdigest()
        self.in_any_order = decoder.items.in_any_order
        self.fingerprint = fingerprint
        self.skipped = skipped

    @abstractmethod
    def __len__(self) -> int:
        """Returns n."""

    @abstractmethod
    def read(self, indices: Tensor) -> Tensor:
        """Returns images by index.

        Args:
            indices: int64, shape (B,), in 0..n-1.

        Returns:
            uint8, shape (B, 3, S, S).

        Raises:
            DistillError: If the disk does not give them back.
        """

    @abstractmethod
    def stream(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yields `read` of each batch of indices, in order; may take batches ahead of what it has yielded."""

    def again(self, batches: Iterable[Tensor], frame: Frame) -> Iterator[Tensor]:
        """Decodes images once more, into another frame; of files, threads are ahead of what was yielded.

        Args:
            batches: Indices, int64, each of shape (B,); increasing, within a batch and from one to the next, where they
                cannot be read in any order.
            frame: Its size is T.

        Yields:
            uint8, shape (B, 3, T, T), of each batch, in order.

        Raises:
            DistillError: If an image can no longer be decoded, naming it.
        """
        decoder = Decoder(self._items, frame, num_workers=self._num_workers)
        for decoded in decode_batches(decoder, (self._items.keys(self.kept[some].tolist()) for some in batches)):
            for number, reason in decoded.skipped.items():
                raise DistillError(
                    f"{self._items.label(number)} of {self.name} was decoded at {self.image_size} pixels and cannot be "
                    f"at {frame.size}: {reason}."
                )
            if decoded.fault:
                raise DistillError(f"{self.name} changed since it was first read. {decoded.fault}")
            yield decoded.images

    def part(self, indices: Tensor) -> "Source":
        """Returns some of the images, in memory, as a source of its own, which has their originals too.

        Args:
            indices: int64, shape (B,); increasing.
        """
        images = self.read(indices)
        fingerprint = hashlib.sha256(images.numpy().data).hexdigest()
        return _MemorySource(images, self._decoder, self.kept[indices], self.sides[indices], fingerprint, {})

    def smaller_than(self, frame: Frame) -> int:
        """Returns how many of the originals have fewer pixels than a frame, so that they are enlarged into it."""
        return int((self.sides.double() * frame.crop < frame.size).sum())


class _MemorySource(Source):
    in_memory = True

    def __init__(self, images: Tensor, *facts: Any) -> None:
        super().__init__(*facts)
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: Tensor) -> Tensor:
        return self._images.index_select(0, indices)  # copies whole images; `[indices]` takes up to 90 times as long

    def stream(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        return map(self.read, batches)


class _SpooledSource(Source):
    def __init__(self, spool: Spool, *facts: Any) -> None:
        super().__init__(*facts)
        self._spool = spool

    def __len__(self) -> int:
        return len(self._spool)

    def read(self, indices: Tensor) -> Tensor:
        return self._spool.read(indices)

    def stream(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        return map(self.read, batches)


def find_images(
    data: Any,
    *,
    image_size: int | None = None,
    crop: float = 1.0,
    reading: Reading | None = None,
    name: str | None = None,
) -> Source | Decoder:
    """Finds real images, their size and the range of their values; looks at no more than a few of them.

    Args:
        data: `SCHEME:NAME`, a path or a Hub dataset id, each with `#SPLIT` if wanted; see `locate`. Or a dataset whose
            items are images, tuples that begin with one, or mappings that hold one; a list of images; a tensor
            (N, C, H, W), or an array of that shape or with channels last: whole numbers, or floating point in [0, 1].
            Or a stream of such items, without an index: it is read from the front, a few times for the first items and
            once to its end. An open source is returned as it is.
        image_size: S, in pixels. Default: the shorter side of the first usable image, at most 64.
        crop: Fraction of the shorter side of each image that is shown; an open source keeps its own.
        reading: How it is read; an open source has been.
        name: For messages. Default: `data` itself if it is a name, else its type.

    Returns:
        What `open_source` takes; its `image_size` is S.

    Raises:
        UsageError: If there is no such source, or one of the first items is no image.
        DistillError: If a stream breaks.
    """
    if isinstance(data, Source):
        if image_size not in (None, data.image_size):
            raise UsageError(
                f"{data.name} was opened with image_size={data.image_size}, now {image_size} is asked for."
            )
        return data
    if image_size is not None and image_size < 1:
        raise UsageError(f"image_size is a number of pixels above 0; got {image_size}.")
    located = isinstance(data, (str, Path))
    data, own_name = locate(data) if located else (data, type(data).__name__)
    name = name or own_name
    data = _only_split(data)
    reading = reading or Reading()
    items = (steady_stream if is_stream(data) else steady_items)(data, name, reading)
    items.find_scale()
    frame = Frame(image_size or _own_size(items), crop)
    return Decoder(items, frame, located=located, num_workers=reading.num_workers)


def first_images(images: Source | Decoder, count: int = 4, frame: Frame | None = None) -> Tensor:
    """Returns the usable ones of the first few images, uint8, shape (at most count, 3, S, S).

    Args:
        images: From `find_images` or `open_source`.
        count: How many are looked at.
        frame: Another one than that of the images.

    Raises:
        UsageError: If one of the items is no image.
    """
    if isinstance(images, Source):
        first = torch.arange(min(count, len(images)))
        return images.read(first) if frame in (None, images.frame) else next(images.again([first], frame))
    decoder = images if frame is None else images.into(frame)
    decoded = decoder.__getitems__(list(islice(images.items.each_key(), count)))
    if decoded.fault:
        raise UsageError(decoded.fault)
    return decoded.images


def count_and_size(data: Any, image_size: int | None, reading: Reading) -> tuple[int | None, int]:
    """Returns how many images there are, None of a stream, and their size in pixels; see `find_images`.

    Args:
        data: As for `find_images`.
        image_size: S, or None for the source's own.
        reading: How it is read.
    """
    images = find_images(data, image_size=image_size, reading=reading)
    return len(images) if isinstance(images, Source) else images.items.count, images.image_size


def first_items(data: Any, count: int) -> Any:
    """Returns the first items of what `find_images` takes, as it would be given by itself."""
    if isinstance(data, Source):
        return data
    data = plain_list(locate(data)[0] if isinstance(data, (str, Path)) else _only_split(data))
    if is_stream(data):
        return _Front(undecoded(data), count)
    if isinstance(data, (list, Tensor, np.ndarray)):
        return data[:count]
    few = range(min(count, len(data)))
    return data.select(few) if hasattr(data, "select") else Subset(data, few)


def _only_split(data: Any) -> Any:
    """Returns the split of a mapping that has no other, such as a DatasetDict."""
    return next(iter(data.values())) if isinstance(data, Mapping) and len(data) == 1 else data


class _Front:
    """The first items of a stream, each time it is read."""

    def __init__(self, data: Iterable[Any], count: int) -> None:
        self._data, self._count = data, count

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self._data), self._count)


def open_source(
    data: Any, *, image_size: int | None = None, memory_limit: int | None = None, reading: Reading | None = None
) -> Source:
    """Opens and decodes real images.

    Args:
        data: As for `find_images`, or what that returned.
        image_size: As for `find_images`.
        memory_limit: Bytes that decoded images may take; beyond, and for a stream, whose length is not known, they are
            kept in a file in the system's temporary folder. Default: half of the memory that is free.
        reading: How it is read, unless `find_images` was told.

    Raises:
        UsageError: If there is no such source, no usable image in it, an item that is no image, or no room on the disk.
        DistillError: If a stream breaks, or the disk fills up.
    """
    decoder = data if isinstance(data, Decoder) else find_images(data, image_size=image_size, reading=reading)
    if isinstance(decoder, Source):
        return decoder
    if memory_limit is None:
        memory_limit = free_memory(torch.device("cpu")) // 2
    count, size = decoder.items.count, decoder.image_size
    if count is not None and fits(decoder, memory_limit):
        images: Tensor | Spool = torch.empty(count, 3, size, size, dtype=torch.uint8)
    else:
        images = Spool(decoder.items.name, size, count)
    return first_pass(decoder, images).source(decoder, images)


def fits(decoder: Decoder, memory_limit: int) -> bool:
    """Returns whether all decoded images are known to fit into so many bytes."""
    count = decoder.items.count
    return count is not None and count * 3 * decoder.image_size**2 <= memory_limit


def _own_size(items: Items) -> int:
    for key in items.each_key():
        try:
            size = items.decode(key, None).pixels.shape[-1]
        except UnusableImage:
            continue
        label = items.label(items.number(key))
        tell_once(_logger, logging.INFO, "Image size: %d, as %s of %s.", size, label, called(items.name))
        return size
    return LARGEST_DEFAULT_SIZE  # no usable image; the first pass says why


class FirstPass(NamedTuple):
    """What was found when everything was decoded; the names are those of `Source`."""

    kept: Tensor
    sides: Tensor
    fingerprint: str
    skipped: dict[str, int]

    def source(self, decoder: Decoder, images: Tensor | Spool) -> Source:
        """Returns the source that has these images."""
        if isinstance(images, Spool):
            return _SpooledSource(images, decoder, *self)
        return _MemorySource(images[: len(self.kept)], decoder, *self)


def first_pass(decoder: Decoder, images: Tensor | Spool) -> FirstPass:
    """Decodes everything once, into `images`.

    Raises:
        UsageError: If an item is no image, or none is usable.
        DistillError: If a stream breaks, or the disk fills up.
    """
    items, digest = decoder.items, hashlib.sha256()
    kept = array("q")  # a list would take five times the memory
    skipped: dict[int, str] = {}
    outside: dict[int, int] = {}
    warned: dict[int, str] = {}
    sides = array("q")
    with Progress(f"Reading {items.name}", items.count, "image", delay=1) as progress:
        for decoded in decode_batches(decoder, decoder.chunks(CHUNK)):
            if decoded.fault:
                raise UsageError(decoded.fault)
            if isinstance(images, Spool):
                images.add(decoded.images)
            else:
                # through numpy: torch would wake all its threads for each small copy, at twice the time of it all
                images.numpy()[len(kept) : len(kept) + len(decoded.images)] = decoded.images.numpy()
            digest.update(decoded.images.numpy().data)
            kept.extend(decoded.kept)
            sides.extend(decoded.sides)
            skipped |= decoded.skipped
            outside |= decoded.outside
            warned |= decoded.warnings
            progress.add(len(decoded.kept) + len(decoded.skipped))
    digest.update(f"{len(kept)}x3x{decoder.image_size}x{decoder.image_size}".encode())
    whole = _value_range(decoder)
    if whole is not None:
        digest.update(f" {whole.low}..{whole.high}".encode())
        _report_outside(items, whole, outside)
    _report_warned(items, warned)
    counts = _report(items, len(kept) + len(skipped), skipped)
    return FirstPass(torch.tensor(kept), torch.tensor(sides), digest.hexdigest(), counts)


def _value_range(decoder: Decoder) -> ValueRange | None:
    return None if decoder.items.scale is None else decoder.items.scale.range


def _report_outside(items: Items, whole: ValueRange, outside: dict[int, int]) -> None:
    if outside:
        _logger.warning(
            "%d values of %d images of %s lie outside of %g to %g and were clipped (first: %s).",
            sum(outside.values()),
            len(outside),
            called(items.name),
            whole.low,
            whole.high,
            items.label(min(outside)),
        )


def _report_warned(items: Items, warned: dict[int, str]) -> None:
    if warned:
        first = min(warned)
        _logger.warning(
            "There are warnings of %d images of %s, which are kept (first: %s: %s).",
            len(warned),
            called(items.name),
            items.label(first),
            warned[first],
        )


def _report(items: Items, count: int, skipped: dict[int, str]) -> dict[str, int]:
    """Logs what was skipped and returns it by reason."""
    counts = dict(Counter(skipped.values()))
    first = {reason: items.label(index) for index, reason in reversed(skipped.items())}
    reasons = ", ".join(f"{count} {reason} (first: {first[reason]})" for reason, count in counts.items())
    if len(skipped) == count:
        raise UsageError(f"{items.name} holds no usable image: {reasons or 'it is empty'}.")
    if skipped:
        _logger.warning("Skipped %d of %d images of %s: %s.", len(skipped), count, called(items.name), reasons)
    return counts
