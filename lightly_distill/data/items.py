"""The image inside an item of any dataset, and datasets whose transform makes random views."""

import copy
import logging
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightly_distill import adapters
from lightly_distill.data.decode import Frame, Picture, UnusableImage, is_image, picture, strict_pillow, why_unusable
from lightly_distill.errors import UsageError

_PROBED = 8  # first items that are read twice; a flip at random is missed once in 256 datasets

_logger = logging.getLogger(__name__)


class Items:
    """Reads images out of a dataset, whatever its items look like.

    Args:
        data: Sized and indexable. Its items are `img`, `(img, label)`, `(img, label, filename)`, or a mapping with
            the image under `image` or `img`, or else with one image only.
        name: For messages.

    Raises:
        UsageError: If `data` is no such thing.
    """

    cure = "give the dataset without its transform"  # where items differ each time they are read

    def __init__(self, data: Any, name: str) -> None:
        self.data, self.name = data, name
        self._column: str | None = None
        self._check()

    def _check(self) -> None:
        data, name = self.data, self.name
        if isinstance(data, Mapping):
            splits = ", ".join(map(str, data))
            raise UsageError(f"{name} is a mapping of splits ({splits}); give one of them.")
        if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
            cure = (
                "give its .dataset"
                if hasattr(data, "dataset")
                else "give a dataset with a length and an index, or one that can be iterated again and again"
            )
            raise UsageError(f"{name} cannot be indexed; {cure}.")
        if isinstance(data, (Tensor, np.ndarray)) and data.ndim != 4:
            raise UsageError(f"Expected images of shape (N, C, H, W), got a {name} of shape {tuple(data.shape)}.")

    @property
    def count(self) -> int | None:
        """How many items there are, None if that is not known."""
        return len(self.data)

    def each_key(self) -> Iterator[Any]:
        """Yields what `decode` takes for each item, in order: here its index."""
        return iter(range(len(self.data)))

    def number(self, key: Any) -> int:
        """Returns the index of the item that a key is for."""
        return int(key)

    @property
    def in_any_order(self) -> bool:
        """Whether one item can be read without all those before it."""
        return True

    @property
    def are_files(self) -> bool:
        """Whether the items are paths, which any thread or process may read."""
        return isinstance(self.data, list) and all(isinstance(item, (str, Path)) for item in self.data)

    def keys(self, numbers: list[int]) -> list[Any]:
        """Returns the keys of items by their index.

        Args:
            numbers: Increasing where items cannot be read in any order.

        Raises:
            DistillError: If a stream breaks, or no longer has them.
        """
        return numbers

    def decode(self, key: Any, frame: Frame | None) -> Picture:
        """Decodes the image of one item; see `decode.picture`.

        Args:
            key: One of `each_key`.
            frame: What to show of it, or None for the image's own size.

        Raises:
            UnusableImage: If the image is to be skipped.
            UsageError: If the item is no image, naming its index.
        """
        try:
            return picture(self._image(key), frame)
        except UsageError as error:
            raise UsageError(f"Item {self.number(key)} of {self.name}: {error}.") from error

    def label(self, index: int) -> str:
        """Returns how to name an item to the user."""
        if isinstance(self.data, list) and isinstance(self.data[index], (str, Path)):
            return os.fsencode(self.data[index]).decode(errors="replace")
        return f"item {index}"

    def _image(self, key: Any) -> Any:
        item = self._item(key)
        if isinstance(item, (tuple, list)):
            item = item[0] if item else None
        elif isinstance(item, Mapping) and not is_image(item):
            self._column = self._column or _find_column(item)
            if self._column not in item:
                raise UsageError(f"it has no column '{self._column}', only {', '.join(map(str, item))}")
            item = item[self._column]
        if isinstance(item, (tuple, list)) or (isinstance(item, Mapping) and not is_image(item)):
            raise UsageError(f"expected one image, got {len(item)} views; give the dataset without its transform")
        return item

    def _item(self, key: Any) -> Any:
        try:
            with strict_pillow():
                return self.data[key]
        except (OSError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise why_unusable(error) from error  # what Pillow raises inside a dataset that decodes by itself
        except Exception as error:
            first_line = (str(error).strip() or "no message").splitlines()[0]
            raise UsageError(f"the dataset fails with {type(error).__name__}: {first_line}") from error


def steady_items(data: Any, name: str) -> Items:
    """Returns the images of a dataset, read without its transform where that makes views, noise or normalised pixels.

    Args:
        data: As for `Items`. Stays as it is.
        name: For messages.

    Raises:
        UsageError: If the first items are no plain images and there is no transform to leave out.
    """
    items = Items(undecoded(data) if _decodes_plainly(data) else data, name)
    problem = first_problem(items)
    if problem is None:
        return items
    plain = without_transform(data)
    if plain is None:
        raise problem
    items = Items(plain, name)
    second_problem = first_problem(items)
    if second_problem is not None:
        raise second_problem
    _logger.info("Reading %s without its transform (%s).", name, str(problem).rstrip("."))
    return items


def without_transform(data: Any) -> Any | None:
    """Returns a shallow copy of a dataset that applies no transform, or None if none was found.

    Looks for `transform` and `transforms`, as torchvision names them, also inside `.dataset` (LightlyDataset, Subset)
    and `.datasets` (ConcatDataset).
    """
    if _is_hugging_face(data):
        return None if _decodes_plainly(data) else undecoded(data)
    own = getattr(data, "__dict__", {})
    changes: dict[str, Any] = {key: _same for key in ("transform", "transforms") if own.get(key) not in (None, _same)}
    if "dataset" in own and (inner := without_transform(own["dataset"])) is not None:
        changes["dataset"] = inner
    if isinstance(own.get("datasets"), list):
        parts = [without_transform(part) for part in own["datasets"]]
        if any(part is not None for part in parts):
            pairs = zip(parts, own["datasets"], strict=True)
            changes["datasets"] = [old if part is None else part for part, old in pairs]
    if not changes:
        return None
    plain = copy.copy(data)
    plain.__dict__.update(changes)
    return plain


def _same(*values: Any) -> Any:
    """Stands for a transform that does nothing: of an image, or of an image and its target."""
    return values[0] if len(values) == 1 else values


def first_problem(items: Items) -> UsageError | None:
    """Returns what is wrong with the first few items, which are read twice: they are no images, or differ."""
    twice = [list(islice(items.each_key(), _PROBED)) for _ in range(2)]
    for key, again in zip(*twice, strict=False):
        try:
            first, second = items.decode(key, None).pixels, items.decode(again, None).pixels
        except UnusableImage:
            continue
        except UsageError as error:
            return error
        if not torch.equal(first, second):
            return UsageError(f"Item {items.number(key)} of {items.name} differs each time it is read: {items.cure}.")
    return None


def _find_column(row: Mapping[str, Any]) -> str:
    for name in ("image", "img"):
        if name in row:
            return name
    names = [name for name, value in row.items() if is_image(value)]
    if len(names) != 1:
        found = f"{len(names)} of them hold images" if names else "none holds images"
        raise UsageError(f"of its columns {', '.join(map(str, row))} {found}; name one of them 'image'")
    return names[0]


def _is_hugging_face(data: Any) -> bool:
    kinds = {("datasets.arrow_dataset", "Dataset"), ("datasets.iterable_dataset", "IterableDataset")}
    return any((kind.__module__, kind.__name__) in kinds for kind in type(data).__mro__)


def _decodes_plainly(data: Any) -> bool:
    """Returns whether this is a Hugging Face dataset without a transform of the user's."""
    return _is_hugging_face(data) and data.format["type"] != "custom"


def undecoded(data: Any) -> Any:
    """Returns a dataset of Hugging Face with the files of its images instead of pictures; another as it is."""
    if not _is_hugging_face(data):
        return data
    return adapters.get("sources", "huggingface").undecoded(data)
