"""The real images, decoded once: kept in memory where they fit, else decoded again by worker processes.

Shapes: n kept images, B images of a batch, S height and width in pixels.
"""

import hashlib
import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lightly_distill.decoder import Decoded, Decoder, decode_batches
from lightly_distill.errors import DistillError, UsageError
from lightly_distill.images import LARGEST_DEFAULT_SIZE, UnusableImage
from lightly_distill.items import Items, steady_items
from lightly_distill.locate import locate
from lightly_distill.memory import free_memory

_CHUNK = 64  # images at a time in the first pass
_WORKERS_PAY_AFTER = 20.0  # seconds of decoding; below that, starting worker processes is not worth it

_logger = logging.getLogger(__name__)


class Source(ABC):
    """Real images, decoded to uint8 RGB of one size. Made by `open_source`.

    Attributes:
        name: What the user gave, such as `cifar10#train`, or the name of a dataset's class.
        image_size: S.
        fingerprint: SHA-256, in hexadecimal, of the bytes of the kept images in order and of their shape.
        skipped: How many items were skipped, by reason.
        kept: Index of each kept image among the items of the dataset, int64, shape (n,).
        in_memory: Whether the decoded images are kept in memory.
        located: Whether its name, given to `open_source`, finds it again.
    """

    in_memory = False
    located = False

    def __init__(self, kept: Tensor, name: str, image_size: int, fingerprint: str, skipped: dict[str, int]) -> None:
        self.kept = kept
        self.name = name
        self.image_size = image_size
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
            DistillError: If an image can no longer be decoded.
        """

    @abstractmethod
    def stream(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yields `read` of each batch of indices, in order; takes batches ahead of what it has yielded."""


class _MemorySource(Source):
    in_memory = True

    def __init__(self, images: Tensor, *facts: Any) -> None:
        super().__init__(*facts)
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: Tensor) -> Tensor:
        return self._images[indices]

    def stream(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        return map(self.read, batches)


class _LazySource(Source):
    """Decodes again each time.

    Args:
        decoder: Over all items.
        num_workers: Processes that decode for `stream`.
        facts: As for `Source`.
    """

    def __init__(self, decoder: Decoder, num_workers: int, *facts: Any) -> None:
        super().__init__(*facts)
        self._decoder, self._num_workers = decoder, num_workers

    def __len__(self) -> int:
        return len(self.kept)

    def read(self, indices: Tensor) -> Tensor:
        return self._all(self._decoder.__getitems__(self.kept[indices].tolist()))

    def stream(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        wanted = (self.kept[indices].tolist() for indices in batches)
        for decoded in decode_batches(self._decoder, wanted, self._num_workers):
            yield self._all(decoded)

    def _all(self, decoded: Decoded) -> Tensor:
        fault = decoded.fault or next((f"item {i}: {why}" for i, why in decoded.skipped.items()), None)
        if fault:
            raise DistillError(f"{self.name} has changed since it was opened: {fault}.")
        return decoded.images


def find_images(data: Any, *, image_size: int | None = None) -> Source | Decoder:
    """Finds real images and their size; looks at no more than the first few.

    Args:
        data: `SCHEME:NAME`, a path or a Hub dataset id, each with `#SPLIT` if wanted; see `locate`. Or a dataset whose
            items are images, tuples that begin with one, or mappings that hold one; a list of images; a tensor
            (N, C, H, W), or an array of that shape or with channels last: uint8, or floating point in [0, 1]. An open
            source is returned as it is.
        image_size: S, in pixels. Default: the shorter side of the first usable image, at most 64.

    Returns:
        What `open_source` takes; its `image_size` is S.

    Raises:
        UsageError: If there is no such source, or one of the first items is no image.
    """
    if isinstance(data, Source):
        if image_size not in (None, data.image_size):
            raise UsageError(
                f"{data.name} was opened with image_size={data.image_size}, now {image_size} is asked for."
            )
        return data
    if image_size is not None and image_size < 1:
        raise UsageError(f"image_size is a number of pixels above 0; got {image_size}.")
    data, name = locate(data) if isinstance(data, (str, Path)) else (data, type(data).__name__)
    items = steady_items(data, name)
    return Decoder(items, image_size or _own_size(items))


def first_images(images: Source | Decoder, count: int = 4) -> Tensor:
    """Returns the usable ones of the first few images, uint8, shape (at most count, 3, S, S).

    Raises:
        UsageError: If one of the items is no image.
    """
    indices = list(range(min(count, len(images))))
    if isinstance(images, Source):
        return images.read(torch.tensor(indices))
    decoded = images.__getitems__(indices)
    if decoded.fault:
        raise UsageError(decoded.fault)
    return decoded.images


def open_source(
    data: Any, *, image_size: int | None = None, memory_limit: int | None = None, num_workers: int = 2
) -> Source:
    """Opens and decodes real images.

    Args:
        data: As for `find_images`, or what that returned.
        image_size: As for `find_images`.
        memory_limit: Bytes that decoded images may take; beyond, they are decoded again when asked for. Default: half
            of the memory that is free.
        num_workers: Processes that decode, where that takes long.

    Raises:
        UsageError: If there is no such source, no usable image in it, or an item that is no image.
    """
    decoder = data if isinstance(data, Decoder) else find_images(data, image_size=image_size)
    if isinstance(decoder, Source):
        return decoder
    if memory_limit is None:
        memory_limit = free_memory(torch.device("cpu")) // 2
    shape = (len(decoder), 3, decoder.image_size, decoder.image_size)
    fits = torch.Size(shape).numel() <= memory_limit
    memory = torch.empty(shape, dtype=torch.uint8) if fits else None
    source = _first_pass(decoder, memory, num_workers)
    source.located = isinstance(data, str | Path)
    return source


def _own_size(items: Items) -> int:
    for index in range(len(items)):
        try:
            size = items.decode(index, None).shape[-1]
        except UnusableImage:
            continue
        _logger.info("Image size: %d, as %s of %s.", size, items.label(index), items.name)
        return size
    return LARGEST_DEFAULT_SIZE  # no usable image; the first pass says why


def _first_pass(decoder: Decoder, memory: Tensor | None, num_workers: int) -> Source:
    """Decodes everything once: into `memory` if given, and for the fingerprint."""
    items, digest = decoder.items, hashlib.sha256()
    kept: list[int] = []
    skipped: dict[int, str] = {}
    with tqdm(total=len(items), desc=f"Reading {items.name}", unit="image", delay=1, disable=None) as progress:
        for decoded in _decode_all(decoder, num_workers):
            if decoded.fault:
                raise UsageError(decoded.fault)
            if memory is not None:
                # through numpy: torch would wake all its threads for each small copy, at twice the time of it all
                memory.numpy()[len(kept) : len(kept) + len(decoded.images)] = decoded.images.numpy()
            digest.update(decoded.images.numpy().data)
            kept += decoded.kept
            skipped |= decoded.skipped
            progress.update(len(decoded.kept) + len(decoded.skipped))
    digest.update(f"{len(kept)}x3x{decoder.image_size}x{decoder.image_size}".encode())
    counts = _report(items, skipped)
    facts = (torch.tensor(kept), items.name, decoder.image_size, digest.hexdigest(), counts)
    if memory is not None:
        return _MemorySource(memory[: len(kept)], *facts)
    return _LazySource(decoder, num_workers, *facts)


def _decode_all(decoder: Decoder, num_workers: int) -> Iterator[Decoded]:
    chunks = [list(range(start, min(start + _CHUNK, len(decoder)))) for start in range(0, len(decoder), _CHUNK)]
    started = time.perf_counter()
    yield from map(decoder.__getitems__, chunks[:1])
    long = (time.perf_counter() - started) * len(chunks) > _WORKERS_PAY_AFTER
    yield from decode_batches(decoder, chunks[1:], num_workers if long else 0)


def _report(items: Items, skipped: dict[int, str]) -> dict[str, int]:
    """Logs what was skipped and returns it by reason."""
    counts = dict(Counter(skipped.values()))
    first = {reason: items.label(index) for index, reason in reversed(skipped.items())}
    told = ", ".join(f"{count} {reason} (first: {first[reason]})" for reason, count in counts.items())
    if len(skipped) == len(items):
        raise UsageError(f"{items.name} holds no usable image: {told or 'it is empty'}.")
    if skipped:
        _logger.warning("Skipped %d of %d images of %s: %s.", len(skipped), len(items), items.name, told)
    return counts
