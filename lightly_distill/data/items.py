"""The image inside an item of any dataset, and datasets whose transform makes random views."""

import copy
import errno
import logging
import os
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightly_distill import adapters
from lightly_distill.data.decode import (
    SUFFIXES,
    Frame,
    Picture,
    UnusableImage,
    deep_values,
    is_image,
    picture,
    strict_pillow,
    why_unusable,
)
from lightly_distill.data.reading import Reading
from lightly_distill.data.shards import TarShards
from lightly_distill.data.values import Scale, find_range, seen_poorly
from lightly_distill.errors import UsageError
from lightly_distill.runtime.console import tell_once
from lightly_distill.runtime.words import called

TRANSFORMS = ("transform", "transforms", "_transform", "_transforms", "aug", "augment", "augmentation")  # attributes
_PROBED = 8  # first items that are read twice; a flip at random is missed once in 256 datasets
_VALUES = 2**16  # of an image, about, that are looked at for it
_SAMPLED = 32  # items, spread over the source, of which the range of values is found
_OF_FILE = frozenset({errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG})
_reading = threading.Lock()  # rows of tables are read by one thread at a time, and decoded by several

_logger = logging.getLogger(__name__)


class Items:
    """Reads images out of a dataset, whatever its items look like.

    Args:
        data: Sized and indexable. Its items are `img`, `(img, label)`, `(img, label, filename)`, or a mapping with
            the image under `image`, `img` or the ending of a file of images, or else with one image only.
        name: For messages.
        reading: Its column is the name under which mappings have the image, where there are several, or several names
            with commas that are tried in turn. A name of a file of tar shards may leave its ending out.

    Attributes:
        scale: Of values of more than 8 bits. None until `find_scale`, unless it is given: each image has its own.

    Raises:
        UsageError: If `data` is no such thing.
    """

    cure = "give the dataset without its transform"  # where items differ each time they are read

    def __init__(self, data: Any, name: str, reading: Reading | None = None) -> None:
        self.data, self.name, self._reading = plain_list(data), name, reading or Reading()
        given = self._reading.value_range
        self.scale: Scale | None = self._reading.scale or (None if given is None else Scale(given, given=True))
        self._check()

    def _check(self) -> None:
        data, name = self.data, self.name
        if hasattr(data, "iloc") and getattr(data, "ndim", 0) == 2:
            raise UsageError(f"{name} is a table of {', '.join(map(str, data.columns))}; give its column of paths.")
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
        """Whether the items are files, or rows that hold files: no code of the user's is run to read them."""
        if isinstance(self.data, list):
            return all(isinstance(item, (str, Path)) for item in self.data)
        return isinstance(self.data, TarShards) or _decodes_plainly(self.data)

    def find_scale(self) -> None:
        """Finds the range of values of more than 8 bits, from items that are spread over the source."""
        given, of_training = self._reading.value_range, self._reading.scale
        looked_at = list(self._spread())
        samples = [values for values in looked_at if values is not None]
        found = given or (find_range(samples) if samples and not of_training else None)
        self.scale = of_training or Scale(found, given is not None)
        whole = self.scale.range
        if whole is None or not samples:
            return
        how = "" if given else f", found from {len(samples)} of {len(looked_at)} images"
        how = ", as of the images for training" if of_training else how
        name = called(self.name)
        tell_once(_logger, logging.INFO, "Values of %s: %g is black, %g is white%s.", name, whole.low, whole.high, how)
        if seen_poorly(samples, whole):
            tell_once(
                _logger,
                logging.WARNING,
                "Most images of %s use a sliver of the values from %g to %g only, and will be seen poorly: give the "
                "range that matters with --value-range LOW,HIGH (value_range=(low, high) in Python).",
                name,
                whole.low,
                whole.high,
            )

    def _spread(self) -> Iterator[Any]:
        """Yields the values of more than 8 bits of some items, None for others."""
        count = self.count if self.in_any_order else None
        keys = islice(self.each_key(), _SAMPLED) if count is None else range(0, count, -(-count // _SAMPLED) or 1)
        for key in keys:
            try:
                values = deep_values(self._image(key))
                # of a large image, some: an odd step does not stay in one colour or column
                yield values if values is None else values.reshape(-1)[:: values.size // _VALUES | 1].copy()
            except (UnusableImage, UsageError):  # told when it is decoded
                yield None

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
            with strict_pillow():  # around both: the user's dataset may decode
                return picture(self._image(key), frame, self.scale)
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
            item = item[_find_column(item, self._reading.column)]
            if isinstance(item, (tuple, list)) and _is_hugging_face(self.data):
                raise UsageError(
                    f"expected one image, got a list of {len(item)}; give a dataset of one image a row, such as "
                    "data.map(lambda rows: {'image': sum(rows['images'], [])}, batched=True, "
                    "remove_columns=data.column_names)"
                )
        if isinstance(item, (tuple, list)) or (isinstance(item, Mapping) and not is_image(item)):
            raise UsageError(f"expected one image, got {len(item)} views; give the dataset without its transform")
        return item

    def _item(self, key: Any) -> Any:
        try:
            with ExitStack() as held:
                held.enter_context(strict_pillow())
                if _is_hugging_face(self.data):
                    held.enter_context(_reading)
                return self.data[key]
        except Exception as error:
            if _is_of_the_image(error):
                raise why_unusable(error) from error
            first_line = (str(error).strip() or "no message").splitlines()[0]
            raise UsageError(f"the dataset fails with {type(error).__name__}: {first_line}") from error


def _is_of_the_image(error: Exception) -> bool:
    """Returns whether a dataset fails for its image: a file that is not there, or what Pillow raises of its contents.

    A connection that breaks, or a disk that is full, is the fault of no image.
    """
    if isinstance(error, (UnusableImage, Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return True
    if (
        isinstance(error, OSError)
        and not isinstance(error, (ConnectionError, TimeoutError))
        and error.errno in _OF_FILE
    ):
        return True
    if not isinstance(error, (OSError, SyntaxError)):
        return False
    *_, (last, _) = traceback.walk_tb(error.__traceback__)
    return Path(last.f_code.co_filename).parent.name == "PIL"


def steady_items(data: Any, name: str, reading: Reading | None = None) -> Items:
    """Returns the images of a dataset, read without its transform where that makes views, noise or normalised pixels.

    Args:
        data: As for `Items`. Stays as it is.
        name: For messages.
        reading: As for `Items`.

    Raises:
        UsageError: If the first items are no plain images and there is no transform to leave out.
    """
    items = Items(undecoded(data) if _decodes_plainly(data) else data, name, reading)
    problem = first_problem(items)
    if problem is None:
        return items
    plain = without_transform(data)
    if plain is None:
        raise problem
    items = Items(plain, name, reading)
    second_problem = first_problem(items)
    if second_problem is not None:
        raise second_problem
    _logger.info("Reading %s without its transform (%s).", name, str(problem).rstrip("."))
    return items


def without_transform(data: Any) -> Any | None:
    """Returns a shallow copy of a dataset that applies no transform, or None if none was found.

    Looks for callable attributes of the names in `TRANSFORMS`, torchvision's first, also inside `.dataset`
    (LightlyDataset, Subset) and `.datasets` (ConcatDataset).
    """
    if _is_hugging_face(data):
        return None if _decodes_plainly(data) else undecoded(data)
    own = getattr(data, "__dict__", {})
    found = {key: own.get(key) for key in TRANSFORMS}
    changes: dict[str, Any] = {key: _same for key, value in found.items() if callable(value) and value is not _same}
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


def _find_column(row: Mapping[str, Any], wanted: str | None) -> str:
    """Returns the name under which a row has its image."""
    names = [name for name in row if isinstance(name, str)]
    if wanted is not None:
        for one in (part.strip() for part in wanted.split(",")):
            fitting = [name for name in names if name == one or (_ends(name) and name.rpartition(".")[0] == one)]
            if fitting:
                return fitting[0]
        raise UsageError(f"it has no column '{wanted}', only {', '.join(map(str, row))}")
    for name in ("image", "img"):
        if name in row:
            return name
    holding = [name for name in names if _ends(name)] or [name for name, value in row.items() if is_image(value)]
    if len(holding) == 1:
        return holding[0]
    columns = ", ".join(map(str, row))
    if not holding:
        raise UsageError(f"of its columns {columns} none holds images; name one of them 'image'")
    raise UsageError(
        f"of its columns {columns} {len(holding)} hold images; choose one with --column {holding[0]} (column in Python)"
    )


def _ends(name: str) -> bool:
    """Returns whether this is the ending of a file of images, such as `jpg` or `mask.png`."""
    return f".{name.rpartition('.')[2].lower()}" in SUFFIXES


def plain_list(data: Any) -> Any:
    """Returns a column of paths or images as a list: of pandas, whose index is by label, or an array of paths."""
    if hasattr(data, "iloc") and getattr(data, "ndim", 0) == 1:
        return list(data)
    if isinstance(data, np.ndarray) and data.ndim == 1 and data.dtype.kind in "OU":
        return [str(path) if isinstance(path, np.str_) else path for path in data]
    return data


def _is_hugging_face(data: Any) -> bool:
    kinds = {("datasets.arrow_dataset", "Dataset"), ("datasets.iterable_dataset", "IterableDataset")}
    return any((kind.__module__, kind.__name__) in kinds for kind in type(data).__mro__)


def _decodes_plainly(data: Any) -> bool:
    """Returns whether this is a Hugging Face dataset without a transform of the user's."""
    kind = getattr(data, "format", None) if _is_hugging_face(data) else None
    return kind is not None and kind["type"] != "custom"


def undecoded(data: Any) -> Any:
    """Returns a dataset of Hugging Face with the files of its images instead of pictures; another as it is."""
    if not _is_hugging_face(data):
        return data
    return adapters.get("sources", "huggingface").undecoded(data)
