"""Decodes items by lists of keys, here, in worker processes or in threads. What a key is, the items define.

Files are decoded by threads of ours. The user's own objects are read by the thread that asks, as they need not allow
more (an open archive has one position for all), unless worker processes are asked for.
"""

import contextlib
import logging
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightly_distill.data.decode import Frame, UnusableImage, strict_pillow
from lightly_distill.data.items import Items
from lightly_distill.errors import DistillError, UsageError, first_line

LOOKED_AT = 4  # items, for the size of the originals
_MOST_THREADS = 8  # that decode; more of them wait for each other
_AHEAD = 2  # lists of items decoded before they are asked for, beyond those that threads work on

_logger = logging.getLogger(__name__)


@dataclass
class Decoded:
    """What came of a list of items.

    Attributes:
        images: Those that could be decoded, uint8, shape (at most B, 3, S, S).
        kept: Their indices in the dataset.
        skipped: Why not, by index.
        fault: Text of the error that ended it. Not an exception: a worker's comes back as its whole traceback.
        sides: Shorter side, in pixels, of each of the images before it was resized.
        outside: How many of its values lay outside of the range of the source, by index, where any did.
        warnings: Of Pillow, by index.
    """

    images: Tensor
    kept: list[int]
    skipped: dict[int, str]
    fault: str | None = None
    sides: list[int] = field(default_factory=list)
    outside: dict[int, int] = field(default_factory=dict)
    warnings: dict[int, str] = field(default_factory=dict)


class Decoder:
    """Decodes lists of items into a frame; what a `DataLoader` takes for a dataset.

    Args:
        items: What is decoded.
        frame: What is shown of each image.
        located: Whether the name of the items finds them again; see `Source`.
        num_workers: Processes that read and decode; 0: none.
    """

    def __init__(self, items: Items, frame: Frame, *, located: bool = False, num_workers: int = 0) -> None:
        self.items, self.frame, self.located, self.num_workers = items, frame, located, num_workers

    def into(self, frame: Frame) -> "Decoder":
        """Returns a decoder of the same items into another frame."""
        return Decoder(self.items, frame, located=self.located, num_workers=self.num_workers)

    @property
    def image_size(self) -> int:
        """S, in pixels."""
        return self.frame.size

    @property
    def in_any_order(self) -> bool:
        """Whether one item can be read without all those before it."""
        return self.items.in_any_order

    @cached_property
    def original_side(self) -> int:
        """Shorter side of the largest of the first images, in pixels; 0 if none at all is usable.

        The first usable one and those among the next items: one alone may be a thumbnail.
        """
        largest, until = 0, math.inf
        for key in self.items.each_key():
            number = self.items.number(key)
            if number >= until:
                break
            with contextlib.suppress(UnusableImage):
                largest = max(largest, self.items.decode(key, None).side)
                until = min(until, number + LOOKED_AT)
        return largest

    def chunks(self, size: int) -> Iterator[list[Any]]:
        """Yields the keys of all items in lists of `size`; the last one may be shorter."""
        keys = self.items.each_key()
        return iter(lambda: list(islice(keys, size)), [])

    def __getitems__(self, keys: list[Any]) -> Decoded:
        """Decodes these items, up to the first that is a fault of the dataset."""
        images = torch.empty(len(keys), 3, self.image_size, self.image_size, dtype=torch.uint8)
        decoded = Decoded(images, [], {})
        for key in keys:
            try:
                shown = self.items.decode(key, self.frame)
                # through numpy: torch would wake all its threads for each small copy
                images.numpy()[len(decoded.kept)] = shown.pixels.numpy()
                number = self.items.number(key)
                decoded.kept.append(number)
                decoded.sides.append(shown.side)
                if shown.outside:
                    decoded.outside[number] = shown.outside
                if shown.warning:
                    decoded.warnings[number] = shown.warning
            except UnusableImage as reason:
                decoded.skipped[self.items.number(key)] = str(reason)
            except UsageError as error:
                decoded.fault = str(error)
                break
        decoded.images = images[: len(decoded.kept)]
        return decoded


def decode_batches(decoder: Decoder, batches: Iterable[list[Any]]) -> Iterator[Decoded]:
    """Yields what came of each list of keys, in order; the next ones may be decoded meanwhile.

    Args:
        decoder: What decodes.
        batches: Lists of keys; may be taken ahead of what was yielded.
    """
    if decoder.num_workers:
        return _in_workers(decoder, batches)
    return _in_threads(decoder, batches) if decoder.items.are_files else map(decoder.__getitems__, batches)


def _in_workers(decoder: Decoder, batches: Iterable[list[Any]]) -> Iterator[Decoded]:
    """Decodes in worker processes, and here what they have not given back where they fail."""
    taken: deque[list[Any]] = deque()

    def noted() -> Iterator[list[Any]]:
        for keys in batches:
            taken.append(keys)
            yield keys

    coming = noted()
    try:
        loader: DataLoader[Decoded] = DataLoader(
            decoder,  # type: ignore[arg-type]  # nothing but __getitems__ is used
            batch_sampler=coming,
            num_workers=decoder.num_workers,
            collate_fn=_as_it_is,  # type: ignore[arg-type]  # what __getitems__ returned
            generator=torch.Generator(),  # its own: else the seeds of workers come from the global one
        )
        for decoded in loader:
            taken.popleft()
            yield decoded
        return
    except DistillError:  # of the batches; a stream that breaks
        raise
    except Exception as error:  # not to be pickled, in a daemonic process, no shared memory, killed
        _logger.warning(
            "%s is read by this process: its %d worker processes fail with %s: %s",
            decoder.items.name,
            decoder.num_workers,
            type(error).__name__,
            first_line(error),
        )
    yield from map(decoder.__getitems__, chain(taken, coming))


def _in_threads(decoder: Decoder, batches: Iterable[list[Any]]) -> Iterator[Decoded]:
    threads = max(1, min(_MOST_THREADS, (os.cpu_count() or 1) - 1))
    waiting: deque[Future[Decoded]] = deque()
    # here too: what is set for the process is then set and put back by this thread, around its own warnings
    with strict_pillow(), ThreadPoolExecutor(threads, "decode") as pool:
        for keys in batches:
            waiting.append(pool.submit(decoder.__getitems__, keys))
            if len(waiting) >= threads + _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _as_it_is(decoded: Decoded) -> Decoded:
    return decoded
