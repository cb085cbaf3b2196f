"""The labels of a dataset, whatever it looks like."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightly_distill.data.locate import locate
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
    """Returns the label of each item, as int or str; `what` is named where there is none."""
    columns = getattr(data, "column_names", None)
    if isinstance(columns, list):  # Hugging Face
        column = next((column for column in _LABELS if column in columns), None)
        if column is not None:
            return list(data[column])
        raise UsageError(f"The {what} has no labels: of its columns {', '.join(columns)} none is 'label'.")
    if isinstance(data, list) and data and isinstance(data[0], str):  # image files
        return [os.path.basename(os.path.dirname(path)) for path in data]
    for attribute in _LABELS:  # torchvision; reading them item by item would decode each image
        known = getattr(data, attribute, None)
        if isinstance(known, (list, Tensor, np.ndarray)) and len(known) == len(data):
            return [int(label) if not isinstance(label, str) else label for label in known]
    return [_label(data[index], index, what) for index in range(len(data))]


def _label(item: Any, index: int, what: str) -> Any:
    label = None
    if isinstance(item, Mapping):
        label = next((item[key] for key in _LABELS if key in item), None)
    elif isinstance(item, (tuple, list)) and len(item) > 1:
        label = item[1]
    if isinstance(label, str):
        return label
    try:
        return int(label)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise UsageError(f"Item {index} of the {what} has no label.") from error
