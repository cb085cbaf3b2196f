"""The labels of a dataset, whatever it looks like."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightly_distill.data.locate import ImageFiles, locate
from lightly_distill.data.source import Source
from lightly_distill.errors import UsageError

_LABELS = ("label", "labels", "target", "targets", "class", "fine_label")  # columns and attributes


def rank_in_class(labels: Tensor) -> Tensor:
    """Returns how many of its class come before each item, int64: sorted by it, items are spread over the classes.

    Args:
        labels: int64, shape (n,).
    """
    rank = torch.empty_like(labels)
    for label in range(int(labels.max()) + 1):
        mine = labels == label
        rank[mine] = torch.arange(int(mine.sum()))
    return rank


def source_labels(data: Any, kept: Tensor) -> Tensor:
    """Returns the labels of the usable images of a source that is distilled.

    Args:
        data: The source, as `locate` takes it, or a dataset.
        kept: Which of its items are usable, as `Source.kept`.

    Returns:
        int64 in 0..C-1, shape (n,).

    Raises:
        UsageError: If there are no labels, or all are the same.
    """
    data, name = locate(data) if isinstance(data, (str, Path)) else (data, type(data).__name__)
    cure = "Give the labelled images that the set was distilled from as data, or leave the arms that need labels out."
    if isinstance(data, Source):
        raise UsageError(f"The source {data.name} is opened already, and no longer knows its labels. {cure}")
    try:
        labels = item_labels(data, f"source {name}")
    except UsageError as error:
        raise UsageError(f"{error} {cure}") from error
    usable = [labels[index] for index in kept.tolist()]
    classes = sorted(set(usable))
    if len(classes) < 2:
        raise UsageError(f"The images of {name} are all of one class ({classes[0]}). {cure}")
    number = {label: index for index, label in enumerate(classes)}
    return torch.tensor([number[label] for label in usable])


def item_labels(data: Any, what: str) -> list[Any]:
    """Returns the label of each item: all are int, or all are str.

    Args:
        data: Any dataset. Of the images of a folder, its own folders are the classes.
        what: Named where there is no label.

    Raises:
        UsageError: If an item has none, or has several, or some are numbers and some are names.
    """
    labels = _labels(data, what)
    if len(set(map(type, labels))) > 1:
        raise UsageError(f"The {what} has whole numbers and names as labels: give the one or the other.")
    return labels


def _labels(data: Any, what: str) -> list[int | str]:
    columns = getattr(data, "column_names", None)
    if isinstance(columns, list):  # Hugging Face
        column = next((column for column in _LABELS if column in columns), None)
        if column is None:
            raise UsageError(f"The {what} has no labels: of its columns {', '.join(columns)} none is 'label'.")
        return [_plain(label, index, what) for index, label in enumerate(data[column])]
    if isinstance(data, ImageFiles):
        classes = data.classes()
        if "" in classes:
            raise UsageError(
                f"The {what} has images in no class folder, such as {data[classes.index('')]}: put the images of each "
                f"class in a folder of {data.root}."
            )
        return list(classes)
    if isinstance(data, list) and data and isinstance(data[0], (str, Path)):
        return [Path(path).parent.name for path in data]
    for attribute in _LABELS:  # torchvision; reading them item by item would decode each image
        known = getattr(data, attribute, None)
        if isinstance(known, (list, Tensor, np.ndarray)) and len(known) == len(data):
            return [_plain(label, index, what) for index, label in enumerate(known)]
    count = len(data) if hasattr(data, "__len__") else None
    items = iter(data) if count is None else (data[index] for index in range(count))
    return [_plain(_found(item), index, what) for index, item in enumerate(items)]


def _found(item: Any) -> Any:
    if isinstance(item, Mapping):
        return next((item[key] for key in _LABELS if key in item), None)
    return item[1] if isinstance(item, (tuple, list)) and len(item) > 1 else None


def _plain(label: Any, index: int, what: str) -> int | str:
    """Returns a label as int or str."""
    if isinstance(label, str):
        return label
    if label is None:
        raise UsageError(f"Item {index} of the {what} has no label: leave such items out.")
    values = np.asarray(label)
    if values.size > 1:
        raise UsageError(
            f"Item {index} of the {what} has {values.size} labels, expected one: a whole number or a name. Of one-hot "
            "labels give the position of the 1; images of several classes at once are no task here."
        )
    number = values.reshape(-1)[0] if values.size else None
    if number is None or values.dtype.kind not in "biuf" or not np.isfinite(number) or number != int(number):
        raise UsageError(f"Item {index} of the {what} has the label {label!r}, expected a whole number or a name.")
    return int(number)
