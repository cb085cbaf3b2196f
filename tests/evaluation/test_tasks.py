from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset as HuggingFaceDataset
from PIL import Image
from torch.utils.data import TensorDataset
from torchvision.transforms.functional import to_pil_image

import tiny
from lightly_distill.data.labels import rank_in_class, source_labels
from lightly_distill.data.reading import Reading
from lightly_distill.data.source import find_images, open_source
from lightly_distill.data.values import ValueRange
from lightly_distill.errors import UsageError
from lightly_distill.evaluation.tasks import count_among_real, open_task

LABELS = [number % 3 for number in range(30)]


def pair(labels: list[Any] = LABELS, test_labels: list[Any] = LABELS[:12]) -> tuple[Any, Any]:
    return (
        TensorDataset(tiny.images(len(labels)), torch.tensor(labels)),
        TensorDataset(tiny.images(len(test_labels)), torch.tensor(test_labels)),
    )


def write_folder(root: Path, splits: dict[str, int]) -> None:
    for split, count in splits.items():
        for number, image in enumerate(tiny.images(count)):
            folder = root / split / ("cat", "dog")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            to_pil_image(image).save(folder / f"{number:02d}.png")


def test_a_pair_of_datasets_is_a_task() -> None:
    task = open_task(pair(), image_size=8)
    assert torch.equal(task.images, tiny.images(30)) and task.labels.tolist() == LABELS
    assert torch.equal(task.test_images, tiny.images(12)) and task.test_labels.tolist() == LABELS[:12]
    assert task.classes == ("0", "1", "2")


@pytest.mark.parametrize("test", ["test", "validation", "val"])
def test_a_folder_with_splits_is_a_task_whose_class_folders_are_labels(test: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "animals", {"train": 10, test: 6})
    task = open_task(tmp_path / "animals", image_size=8)
    assert task.classes == ("cat", "dog")
    assert len(task.images) == 10 and len(task.test_images) == 6
    assert task.test_labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_labels_follow_their_images_where_some_are_skipped() -> None:
    pictures: list[Any] = [{"bytes": b"broken", "path": None}, *map(to_pil_image, tiny.images(5))]
    train = [(picture, number) for number, picture in enumerate(pictures)]
    task = open_task((train, train), image_size=8)
    assert task.classes == ("1", "2", "3", "4", "5") and torch.equal(task.images, tiny.images(5))


def test_a_hugging_face_dataset_is_read_by_its_label_column() -> None:
    rows = {"image": [to_pil_image(image) for image in tiny.images(6)], "label": [5, 7, 5, 7, 5, 7]}
    data = HuggingFaceDataset.from_dict(rows)
    task = open_task((data, data), image_size=8)
    assert task.labels.tolist() == [0, 1, 0, 1, 0, 1] and task.classes == ("5", "7")
    with pytest.raises(UsageError, match="has no labels: of its columns image none is 'label'"):
        open_task((data.remove_columns("label"), data), image_size=8)


@pytest.mark.slow
def test_real_tasks_are_opened_by_name(real_data: Path) -> None:
    task = open_task("cifar10", image_size=32)
    assert task.images.shape == (50_000, 3, 32, 32) and task.test_images.shape == (10_000, 3, 32, 32)
    assert len(task.classes) == 10 and set(Counter(task.test_labels.tolist()).values()) == {1000}


@pytest.mark.parametrize(("labels", "count"), [(None, 30), (6, 6), (7, 7), (0.5, 15)])
def test_few_labels_are_drawn_evenly_over_the_classes(labels: Any, count: int) -> None:
    task = open_task(pair(), image_size=8)
    chosen = task.few(labels, seed=1)
    counts = Counter(task.labels[chosen].tolist())
    assert len(chosen) == len(set(chosen.tolist())) == count
    assert max(counts.values()) - min(counts.values()) <= 1
    assert torch.equal(chosen, task.few(labels, seed=1))


def test_another_seed_draws_other_labels() -> None:
    task = open_task(pair(), image_size=8)
    assert not torch.equal(task.few(6, seed=1), task.few(6, seed=2))


@pytest.mark.parametrize(("labels", "cure"), [(2, "one a class at least"), (31, "no more"), (0.01, "one a class")])
def test_too_few_or_too_many_labels_are_refused(labels: Any, cure: str) -> None:
    task = open_task(pair(), image_size=8)
    with pytest.raises(UsageError, match=rf"has 3 classes and 30 labelled images; labels=.* give {cure}"):
        task.few(labels, seed=0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pair(labels=[1] * 5), r"has one class only \(1\): there is nothing to tell apart"),
        (
            pair(test_labels=[0, 9]),
            r"The test images of TensorDataset have classes that its training images lack: \[9\]",
        ),
        (([tiny.images(1)[0]] * 4, [tiny.images(1)[0]] * 4), "Item 0 of the task list has no label"),
        (3, "A task is a source or a pair of datasets"),
    ],
)
def test_what_is_no_task_is_told_in_one_line(data: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_task(data, image_size=8)
    assert "\n" not in str(caught.value)


def test_items_are_ranked_within_their_class() -> None:
    assert rank_in_class(torch.tensor([2, 0, 2, 2, 1, 0])).tolist() == [0, 0, 1, 2, 0, 1]


def test_the_labels_of_a_source_are_those_of_its_usable_images(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": 6})
    (tmp_path / "train" / "cat" / "00.png").write_bytes(b"broken")
    source = open_source(tmp_path / "train")
    labels = source_labels(tmp_path / "train", source.kept)
    assert len(source) == 5 and labels.tolist() == [0, 0, 1, 1, 1]
    bare = HuggingFaceDataset.from_dict({"image": [to_pil_image(image) for image in tiny.images(2)]})
    with pytest.raises(
        UsageError, match=r"The source Dataset has no labels: of its columns image none is 'label'\. Give"
    ):
        source_labels(bare, torch.arange(2))


def test_a_missing_split_is_told(tmp_path: Path) -> None:
    write_folder(tmp_path / "animals", {"train": 4})
    with pytest.raises(UsageError, match=r"animals has no split to test on, none of test, validation, valid, val"):
        open_task(tmp_path / "animals", image_size=8)
    with pytest.raises(UsageError, match=r"leave '#\.\.\.' out of 'cifar10#test'"):
        open_task("cifar10#test", image_size=8)


def test_a_folder_of_class_folders_without_splits_holds_a_fifth_of_each_class_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path, {"animals": 40})
    with caplog.at_level("INFO"):
        task = open_task(tmp_path / "animals", image_size=8)
    assert "8 of 40 of its images are for testing" in caplog.text
    assert task.classes == ("cat", "dog")
    assert Counter(task.test_labels.tolist()) == {0: 4, 1: 4} and Counter(task.labels.tolist()) == {0: 16, 1: 16}
    again = open_task(tmp_path / "animals", image_size=8)
    assert torch.equal(task.test_images, again.test_images)


@pytest.mark.parametrize(
    ("count", "message"), [(1, "has one class folder only, 'cat': put the images of each class"), (4, "too few")]
)
def test_a_folder_that_cannot_be_divided_says_why(count: int, message: str, tmp_path: Path) -> None:
    write_folder(tmp_path, {"animals": count})
    with pytest.raises(UsageError, match=message):
        open_task(tmp_path / "animals", image_size=8)


def test_files_that_are_no_images_are_told_from_no_class_folders(tmp_path: Path) -> None:
    (tmp_path / "bad" / "x").mkdir(parents=True)
    (tmp_path / "bad" / "x" / "0.png").write_text("no image")
    with pytest.raises(UsageError, match=r"bad holds no usable image: 1 not an image \(first: .*0\.png\)"):
        open_task(tmp_path / "bad", image_size=8)
    write_folder(tmp_path, {"flat": 2})
    for path in (tmp_path / "flat").glob("*/*.png"):
        path.rename(tmp_path / "flat" / f"{path.parent.name}.png")
    with pytest.raises(UsageError, match="flat has no class folders: put"):
        open_task(tmp_path / "flat", image_size=8)


def write_deep_folder(root: Path, splits: dict[str, int]) -> None:
    """Writes images of 16 bits, of values up to so much in each split."""
    for split, most in splits.items():
        for number in range(8):
            folder = root / split / ("cat", "dog")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.linspace(0, most, 64).astype(np.uint16).reshape(8, 8)).save(folder / f"{number}.png")


def test_images_for_testing_are_read_by_the_range_of_those_for_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_deep_folder(tmp_path / "scans", {"train": 4095, "test": 1000})
    with caplog.at_level("INFO"):
        task = open_task(tmp_path / "scans", image_size=8)
    assert task.images.max() == 255 and task.test_images.max() == round(1000 / 4095 * 255)
    train, test = (message for message in caplog.messages if message.startswith("Values of"))
    assert train.endswith("scans#train: 0 is black, 4095 is white, found from 8 of 8 images.")
    assert test.endswith("scans#test: 0 is black, 4095 is white, as of the images for training.")


@pytest.mark.parametrize("train", [tiny.images(12), tiny.images(12).int() * 4095 // 255])
def test_images_for_testing_are_read_as_those_for_training_whatever_their_type(train: torch.Tensor) -> None:
    floats, whole = tiny.images(12).float() / 255, tiny.images(12).int() * 65_535 // 255 // 4
    labels = torch.arange(12) % 3
    task = open_task((TensorDataset(train, labels), TensorDataset(floats, labels)), image_size=8)
    assert torch.equal(task.images, tiny.images(12)) and torch.equal(task.test_images, tiny.images(12))
    task = open_task((TensorDataset(train, labels), TensorDataset(whole, labels)), image_size=8)
    most = 4095 if train.dtype == torch.int32 else 65_535  # of bytes nothing is known beyond their type
    assert torch.equal(task.test_images, (whole / most * 255).round().clamp(max=255).byte())


def test_a_task_is_read_by_the_column_and_range_that_are_given() -> None:
    deep = [Image.fromarray((image[0].numpy().astype(np.int32) * 16).astype(np.uint16)) for image in tiny.images(6)]
    masks = [Image.new("L", (8, 8)) for _ in deep]
    data = HuggingFaceDataset.from_dict({"photo": deep, "mask": masks, "label": [0, 1] * 3})
    with pytest.raises(UsageError, match="choose one with --column photo"):
        open_task((data, data), image_size=8)
    reading = Reading(column="scan,photo", value_range=ValueRange(0, 255 * 32))
    task = open_task((data, data), image_size=8, reading=reading)
    for images in (task.images, task.test_images):
        assert torch.equal(images[:, 0], (tiny.images(6)[:, 0] / 2).round().byte())


def test_test_images_among_the_real_ones_are_counted_as_the_source_shows_them(tmp_path: Path) -> None:
    write_folder(tmp_path / "animals", {"train": 10, "test": 6})
    task = open_task(tmp_path / "animals", image_size=8)
    others = 255 - tiny.images(30)
    assert count_among_real(task, open_source(others)) == 0
    assert count_among_real(task, open_source(torch.cat([others, tiny.images(4)]))) == 4
    assert count_among_real(open_task(pair(), image_size=8), open_source(tiny.images(60))) == 12
    # a source of which the target's region is shown, as of most timm models
    whole = find_images(tmp_path / "animals" / "test", image_size=8, crop=0.75)
    assert count_among_real(task, open_source(whole)) == 6
