"""A labelled task: what a pre-trained student is tried on."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightly_distill.data.labels import item_labels, rank_in_class
from lightly_distill.data.loader import Decoder
from lightly_distill.data.locate import ImageFiles, existing, locate
from lightly_distill.data.reading import Reading
from lightly_distill.data.source import CHUNK, Source, find_images, open_source
from lightly_distill.errors import UsageError
from lightly_distill.runtime import seeding

_HELD = 5  # one of so many images of a class is for testing, where a task has no splits
_logger = logging.getLogger(__name__)

TRAIN = "train"
TEST = ("test", "validation", "valid", "val")  # tried in turn


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
        sources: What the images for training and for testing were decoded from, so that they can be seen at another
            size; None where a task was made of tensors.
    """

    name: str
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    sources: tuple[Source, Source] | None = None

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
            cure = "give no more than there are" if count > len(self.labels) else "give one a class at least"
            raise UsageError(
                f"The task {self.name} has {len(self.classes)} classes and {len(self.labels)} labelled images; "
                f"labels={labels:g} would be {count} of them: {cure}."
            )
        order = torch.randperm(len(self.labels), generator=seeding.generator(seed, "labels", self.name))
        rank = rank_in_class(self.labels[order])
        return order[torch.argsort(rank, stable=True)][:count].sort().values


def open_task(data: Any, *, image_size: int, reading: Reading | None = None) -> Task:
    """Opens a labelled task.

    Args:
        data: A source as `locate` takes it, without `#SPLIT`: its split `train` is for training, and the first there is
            of `test`, `validation`, `valid`, `val` for testing; of a folder of class folders without splits, a fifth
            of each class. Class folders are labels. Or a pair of datasets,
            for training and testing, with a name before them where two pairs are of one class. An open task is
            returned as it is.
        image_size: S, in pixels.
        reading: How the images are read. A range of values that is not given is found of those for training, and is
            that of those for testing too.

    Raises:
        UsageError: If there is no such source, a split or the labels are missing, there is one class only, or the test
            images have a class that the training images do not.
    """
    if isinstance(data, Task):
        return data
    name, train, test = find_task(data)
    reading = reading or Reading()
    source, labels = _labelled(train, image_size, name, reading)
    test_source, test_labels = _labelled(test, image_size, name, replace(reading, scale=source.scale))
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise UsageError(f"The task {name} has one class only ({classes[0]}): there is nothing to tell apart.")
    unknown = sorted(set(test_labels) - set(classes))
    if unknown:
        raise UsageError(f"The test images of {name} have classes that its training images lack: {unknown[:5]}.")
    number = {label: index for index, label in enumerate(classes)}
    return Task(
        name,
        source.read(torch.arange(len(source))),
        torch.tensor([number[label] for label in labels]),
        test_source.read(torch.arange(len(test_source))),
        torch.tensor([number[label] for label in test_labels]),
        tuple(map(str, classes)),
        (source, test_source),
    )


def count_among_real(task: Task, source: Source) -> int:
    """Returns how many test images of a task are among real images, pixel for pixel as these were decoded."""
    shown = task.test_images
    if task.sources is not None and task.sources[1].frame != source.frame:
        test = task.sources[1]
        shown = torch.cat(list(test.again(torch.split(torch.arange(len(test)), CHUNK), source.frame)))
    tests = _hashes(shown)
    wanted = set(tests)
    real = source.stream(torch.split(torch.arange(len(source)), CHUNK))
    found = {each for images in real for each in _hashes(images) if each in wanted}
    return sum(each in found for each in tests)


def _hashes(images: Tensor) -> list[bytes]:
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images.numpy()]


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
    raise UsageError(f"A task is a source or a pair of datasets, for training and testing; got {type(data).__name__}.")


def _splits(spec: str) -> tuple[Any, Any]:
    if "#" in spec and not Path(spec).exists():
        raise UsageError(f"A task takes its own splits for training and testing: leave '#...' out of '{spec}'.")
    whole = _whole_folder(spec)
    if whole is not None:
        return _divided(whole, spec)
    train = _Split(f"{spec}#{TRAIN}")
    for name in TEST:
        try:
            return train, _Split(f"{spec}#{name}")
        except UsageError as error:
            reason = error
    raise UsageError(f"The task {spec} has no split to test on, none of {', '.join(TEST)}: {reason}")


def _whole_folder(spec: str) -> ImageFiles | None:
    """Returns the images of a folder of class folders without splits, None for anything else."""
    folder = existing(spec)
    if folder is None or not folder.is_dir():
        return None
    try:
        data, name = locate(spec)
    except UsageError:  # it has splits, of which none was chosen
        return None
    return data if isinstance(data, ImageFiles) and "#" not in name else None


def _divided(images: ImageFiles, spec: str) -> tuple[ImageFiles, ImageFiles]:
    """Splits the images of a folder, a fifth of each class for testing, always the same."""
    classes = images.classes()
    if len(set(classes)) < 2:
        decoder = find_images(images, image_size=1)
        assert isinstance(decoder, Decoder)
        if not decoder.original_side:
            raise UsageError(f"The task {spec} holds no usable image: {len(images)} not an image (first: {images[0]}).")
        has = f"one class folder only, '{classes[0]}'" if classes[0] else "no class folders"
        raise UsageError(
            f"The task {spec} has {has}: put the images of each class in a folder of their own, or in such "
            "folders below train and test."
        )
    known = {name: number for number, name in enumerate(sorted(set(classes)))}
    labels = torch.tensor([known[name] for name in classes])
    order = torch.randperm(len(images), generator=seeding.generator(0, "split"))
    rank = torch.empty_like(order)
    rank[order] = rank_in_class(labels[order])
    held = rank < (torch.bincount(labels)[labels] / _HELD).round()
    divided = ((~held).nonzero().flatten().tolist(), held.nonzero().flatten().tolist())
    train, test = (ImageFiles(images.root, [Path(images[number]) for number in numbers]) for numbers in divided)
    if not len(test):
        raise UsageError(f"The task {spec} has no splits, and too few images to hold a fifth of each class back.")
    _logger.info(
        "The task %s has no splits: %s of its images are for testing.", spec, f"{len(test):,} of {len(images):,}"
    )
    return train, test


class _Split:
    """One split of a source, opened."""

    def __init__(self, spec: str) -> None:
        self.data, self.name = locate(spec)


def _labelled(split: Any, image_size: int, name: str, reading: Reading) -> tuple[Source, list[Any]]:
    data, own_name = (split.data, split.name) if isinstance(split, _Split) else (split, name)
    decoder = find_images(data, image_size=image_size, reading=reading, name=own_name)
    assert isinstance(decoder, Decoder)
    source = open_source(decoder)
    labels = item_labels(data, f"task {name}")
    return source, [labels[index] for index in source.kept.tolist()]
