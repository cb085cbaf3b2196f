"""Decodes items by lists of keys, here or in worker processes. What a key is, the items define."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightly_distill.data.decode import UnusableImage
from lightly_distill.data.items import Items
from lightly_distill.errors import UsageError


@dataclass
class Decoded:
    """What came of a list of items.

    Attributes:
        images: Those that could be decoded, uint8, shape (at most B, 3, S, S).
        kept: Their indices in the dataset.
        skipped: Why not, by index.
        fault: Text of the error that ended it. Not an exception: a worker's comes back as its whole traceback.
    """

    images: Tensor
    kept: list[int]
    skipped: dict[int, str]
    fault: str | None = None


class Decoder:
    """Decodes lists of items to images of `image_size` pixels a side; what a `DataLoader` takes for a dataset."""

    def __init__(self, items: Items, image_size: int) -> None:
        self.items, self.image_size = items, image_size

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
                images[len(decoded.kept)] = self.items.decode(key, self.image_size)
                decoded.kept.append(self.items.number(key))
            except UnusableImage as reason:
                decoded.skipped[self.items.number(key)] = str(reason)
            except UsageError as error:
                decoded.fault = str(error)
                break
        decoded.images = images[: len(decoded.kept)]
        return decoded


def decode_batches(decoder: Decoder, batches: Iterable[list[Any]], num_workers: int) -> Iterator[Decoded]:
    """Yields what came of each list of keys, in order.

    Args:
        decoder: What decodes.
        batches: Lists of keys; taken ahead of what was yielded.
        num_workers: Processes that decode; with 0, this one does when the next is asked for.
    """
    return iter(
        DataLoader(
            decoder,  # type: ignore[arg-type]  # nothing but __getitems__ is used
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=_as_it_is,  # type: ignore[arg-type]  # what __getitems__ returned
            generator=torch.Generator(),  # its own: else the seeds of workers come from the global one
        )
    )


def _as_it_is(decoded: Decoded) -> Decoded:
    return decoded
