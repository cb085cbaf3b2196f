"""A labelled task: what a pre-trained student is tried on."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightly_distill import seeding
from lightly_distill.decoder import Decoder
from lightly_distill.errors import UsageError
from lightly_distill.locate import locate
from lightly_distill.source import Source, find_images, open_source

TRAIN = "train"
TEST = ("test", "validation", "valid", "val")  # tried in turn
_LABELS = ("label", "labels", "target", "targets", "class", "fine_label")  # columns and attributes


@dataclass(frozen=True)
class Task:
    """Labelled images of two splits; the second is only ever measured on.

    Attributes:
        name: What the user gave.
        images: For training, uint8, shape (n, 3, S, S).
        labels: Of these, int64 in 0..C-1, shape (n,).
        test_images: uint8, shape (k, 3, S, S).
        test_labels: int64, shape (k,).
        classes: Names of the C classes.
    """

    name: str
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]

    def fingerprint(self) -> str:
        """Returns a hash of all images and labels."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels, self.test_images, self.test_labels):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def few(self, labels: "int | float | None", seed: int) -> Tensor:
        """Draws training images, as many of each class as can be.

        Args:
            labels: How many images; a fraction of all, if below 1; None takes all.
            seed: Of the draw.

        Returns:
            Their indices, int64, sorted.

        Raises:
            UsageError: If there are fewer than classes, or more than images.
        """
        count = len(self.labels) if labels is None else round(labels * len(self.labels)) if labels < 1 else int(labels)
        if not len(self.classes) <= count <= len(self.labels):
            raise UsageError(
                f"The task {self.name} has {len(self.classes)} classes and {len(self.labels)} labelled images; "
                f"labels={labels:g} would be {count} of them: give one a class at least."
            )
        order = torch.randperm(len(self.labels), generator=seeding.generator(seed, "labels", self.name))
        rank = rank_in_class(self.labels[order])
        return order[torch.argsort(rank, stable=True)][:count].sort().values


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


def open_task(data: Any, *, image_size: int) -> Task:
    """Opens a labelled task.

    Args:
        data: A source as `locate` takes it, without `#SPLIT`: its split `train` is for training, and the first there is
            of `test`, `validation`, `valid`, `val` for testing. Class folders are labels. Or a pair of datasets,
            for training and testing, with a name before them where two pairs are of one class. An open task is
            returned as it is.
        image_size: S, in pixels.

    Raises:
        UsageError: If there is no such source, a split or the labels are missing, there is one class only, or the test
            images have a class that the training images do not.
    """
    if isinstance(data, Task):
        return data
    name, train, test = find_task(data)
    images, labels = _labelled(train, image_size, name)
    test_images, test_labels = _labelled(test, image_size, name)
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise UsageError(f"The task {name} has one class only ({classes[0]}): there is nothing to tell apart.")
    unknown = sorted(set(test_labels) - set(classes))
    if unknown:
        raise UsageError(f"The test images of {name} have classes that its training images lack: {unknown[:5]}.")
    number = {label: index for index, label in enumerate(classes)}
    return Task(
        name,
        images,
        torch.tensor([number[label] for label in labels]),
        test_images,
        torch.tensor([number[label] for label in test_labels]),
        tuple(map(str, classes)),
    )


def find_task(data: Any) -> tuple[str, Any, Any]:
    """Finds a task and reads none of its images and labels.

    Args:
        data: As for `open_task`.

    Returns:
        Its name, and its splits for training and testing.

    Raises:
        UsageError: If there is no such source, or a split is missing.
    """
    if isinstance(data, (str, Path)):
        return str(data), *_splits(str(data))
    if isinstance(data, Sequence) and len(data) in (2, 3):
        *named, train, test = data
        return str(named[0]) if named else type(train).__name__, train, test
    raise UsageError(f"A task is a source or a pair of datasets, for training and testing; got {data!r}.")


def _splits(spec: str) -> tuple[Any, Any]:
    if "#" in spec and not Path(spec).exists():
        raise UsageError(f"A task takes its own splits for training and testing: leave '#...' out of '{spec}'.")
    train = _Split(f"{spec}#{TRAIN}")
    for name in TEST:
        try:
            return train, _Split(f"{spec}#{name}")
        except UsageError as error:
            reason = error
    raise UsageError(f"The task {spec} has no split to test on, none of {', '.join(TEST)}: {reason}")


class _Split:
    """One split of a source, opened."""

    def __init__(self, spec: str) -> None:
        self.data, self.name = locate(spec)


def _labelled(split: Any, image_size: int, name: str) -> tuple[Tensor, list[Any]]:
    data = split.data if isinstance(split, _Split) else split
    decoder = find_images(data, image_size=image_size)
    assert isinstance(decoder, Decoder)
    source = open_source(decoder)
    labels = _labels(data, f"task {name}")
    return source.read(torch.arange(len(source))), [labels[index] for index in source.kept.tolist()]


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
        labels = _labels(data, f"source {name}")
    except UsageError as error:
        raise UsageError(f"{error} {cure}") from error
    usable = [labels[index] for index in kept.tolist()]
    classes = sorted(set(usable))
    if len(classes) < 2:
        raise UsageError(f"The images of {name} are all of one class ({classes[0]}). {cure}")
    number = {label: index for index, label in enumerate(classes)}
    return torch.tensor([number[label] for label in usable])


def _labels(data: Any, what: str) -> list[Any]:
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
