"""Datasets without an index, which are read from the front: streams of Hugging Face, tar shards, any iterable."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from torch.utils.data import IterableDataset

from lightly_distill.data.decode import strict_pillow
from lightly_distill.data.items import Items, first_problem, undecoded
from lightly_distill.data.reading import Reading
from lightly_distill.errors import DistillError, first_line

_END = object()


class StreamedItems(Items):
    """The images of a stream; a key is an index together with the item.

    Args:
        data: Can be iterated again and again, each time with the same items.
        name: For messages.
        reading: As for `Items`.
    """

    cure = "give the stream without random transforms, and not shuffled anew"
    in_any_order = False
    are_files = False

    def __init__(self, data: Any, name: str, reading: Reading | None = None) -> None:
        super().__init__(data, name, reading)
        self._going: Iterator[tuple[int, Any]] = iter(())
        self._next = 0  # index of what `_going` yields next

    @property
    def count(self) -> None:
        """None: the length of a stream is known only at its end."""
        return None

    def each_key(self) -> Iterator[tuple[int, Any]]:
        """Reads the stream from the front.

        Raises:
            DistillError: If it breaks.
        """
        items = chain.from_iterable([self.data])  # opened by the first `next`
        index = 0
        while True:
            try:
                with strict_pillow():
                    item = next(items, _END)
            except Exception as error:  # network, archives, the user's own code
                raise DistillError(
                    f"{self.name} breaks off after {index} items with {type(error).__name__}: {first_line(error)}"
                ) from error
            if item is _END:
                return
            yield index, item
            index += 1

    def keys(self, numbers: list[int]) -> list[Any]:
        """Reads the items of these increasing indices: on from the last ones, or again from the front."""
        if numbers and (numbers[0] < self._next or not self._next):
            self._going, self._next = self.each_key(), 0
        wanted = set(numbers)
        found: list[tuple[int, Any]] = []
        while len(found) < len(numbers):
            key = next(self._going, None)
            if key is None:
                self._next = 0
                raise DistillError(
                    f"{self.name} ends before item {numbers[len(found)]}, which was there when it was first read: "
                    f"{self.cure}."
                )
            self._next = key[0] + 1
            if key[0] in wanted:
                found.append(key)
        return found

    def number(self, key: Any) -> int:
        """Returns the index in a key."""
        return int(key[0])

    def label(self, index: int) -> str:
        """Returns how to name an item to the user."""
        return f"item {index}"

    def _check(self) -> None:
        pass

    def _item(self, key: Any) -> Any:
        return key[1]


def is_stream(data: Any) -> bool:
    """Returns whether this is a dataset without an index that can be read from the front again and again."""
    if isinstance(data, IterableDataset):
        return True
    return isinstance(data, Iterable) and not isinstance(data, Iterator) and not hasattr(data, "__len__")


def steady_stream(data: Any, name: str, reading: Reading | None = None) -> StreamedItems:
    """Returns the images of a stream.

    Args:
        data: As for `StreamedItems`.
        name: For messages.
        reading: As for `Items`.

    Raises:
        UsageError: If the first items are no images, or others when they are read again.
    """
    items = StreamedItems(undecoded(data), name, reading)
    problem = first_problem(items)
    if problem is not None:
        raise problem
    return items
