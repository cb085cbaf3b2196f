import copy
import hashlib
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from lightly.data import LightlyDataset
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from torchvision import transforms as T
from torchvision.datasets import FakeData, ImageFolder

from lightly_distill.data import locate
from lightly_distill.data.items import TRANSFORMS
from lightly_distill.data.reading import Reading
from lightly_distill.data.source import open_source
from lightly_distill.errors import UsageError
from lightly_distill.runtime import seeding

N, S = 12, 8


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTLY_DISTILL_DATA", raising=False)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(256, (N, 3, S, S), generator=seeding.generator(0, "test"), dtype=torch.uint8)


def pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def everything(data: Any, **options: Any) -> Tensor:
    opened = open_source(data, **options)
    return opened.read(torch.arange(len(opened)))


def write(folder: Path, images: Tensor, names: list[str]) -> Path:
    for name, image in zip(names, images, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pillow(image).save(folder / name)
    return folder


class Made(Dataset[Any]):
    """A dataset whose items are made by a function of the index."""

    def __init__(self, item: Callable[[int], Any], length: int = N) -> None:
        self.item, self.length = item, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


# --- what items look like


def test_every_kind_of_dataset_gives_the_same_images(images: Tensor) -> None:
    kinds = {
        "uint8": images,
        "float": images / 255,
        "array": images.numpy(),
        "channels last": images.permute(0, 2, 3, 1).numpy(),
        "list of tensors": list(images),
        "list of arrays": [image.permute(1, 2, 0).numpy() for image in images],
        "list of PIL": [pillow(image) for image in images],
        "bare": Made(lambda i: pillow(images[i])),
        "with label": Made(lambda i: (images[i] / 255, i)),
        "with filename": Made(lambda i: (pillow(images[i]), i, f"{i}.png")),
        "row": Made(lambda i: {"label": i, "img": pillow(images[i])}),
        "row with a mask": Made(lambda i: {"mask": torch.zeros(1, 8, 8), "image": pillow(images[i])}),
        "row, other name": Made(lambda i: {"label": torch.tensor(i), "scan": pillow(images[i]), "text": "a"}),
        "tensor dataset": torch.utils.data.TensorDataset(images),
        "subset": Subset(Made(lambda i: (images[i % N], 0), 3 * N), list(range(N, 2 * N))),
    }
    fingerprints = set()
    for kind, data in kinds.items():
        opened = open_source(data)
        assert torch.equal(opened.read(torch.arange(N)), images), kind
        assert torch.equal(opened.kept, torch.arange(N))
        assert (opened.image_size, opened.skipped, opened.name) == (S, {}, type(data).__name__), kind
        fingerprints.add(opened.fingerprint)
    digest = hashlib.sha256(images.numpy().tobytes())
    digest.update(f"{N}x3x{S}x{S}".encode())
    assert fingerprints == {digest.hexdigest()}


def test_one_pixel_an_order_and_a_size_change_the_fingerprint(images: Tensor) -> None:
    changed = images.clone()
    changed[3, 0, 0, 0] ^= 1
    prints = {open_source(data).fingerprint for data in (images, changed, images.flip(0))}
    assert len(prints | {open_source(images, image_size=4).fingerprint}) == 4


def test_an_open_source_is_returned_as_it_is(images: Tensor) -> None:
    opened = open_source(images)
    assert open_source(opened) is opened
    with pytest.raises(UsageError, match="Tensor was opened with image_size=8, now 16 is asked for"):
        open_source(opened, image_size=16)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": [1], "test": [2]}, r"dict is a mapping of splits \(train, test\); give one of them"),
        (
            iter([1]),
            "list_iterator cannot be indexed; give a dataset with .* or one that can be iterated again and again",
        ),
        (DataLoader([1]), r"DataLoader cannot be indexed; give its \.dataset"),
        (torch.zeros(3, 8, 8), r"Expected images of shape \(N, C, H, W\), got a Tensor of shape \(3, 8, 8\)"),
        ([], "list holds no usable image: it is empty"),
        (["gone.png", 3], "Item 1 of list: expected an image, got int"),
        (
            Made(lambda i: {"a": 1, "b": 2}),
            "Item 0 of Made: of its columns a, b none holds images; name one .* 'image'",
        ),
        (
            Made(lambda i: dict.fromkeys("ab", torch.zeros(3, 8, 8))),
            r"columns a, b 2 hold images; choose one with --column a \(column in Python\)",
        ),
        (Made(lambda i: [][i]), "Item 0 of Made: the dataset fails with IndexError: list index out of range"),
    ],
)
def test_what_is_no_dataset_of_images_is_an_error(data: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_source(data)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(8, 8), r"got a Tensor of shape \(8, 8\)"),
        (torch.zeros(3, 8, 0), r"got a Tensor of shape \(3, 8, 0\)"),
        (torch.zeros(3, 8, 8, dtype=torch.complex64), "complex64"),
        (torch.full((3, 8, 8), float("nan")), "NaN"),
        (torch.full((3, 8, 8), 1.5), "looks already normalised: give the dataset without Normalize"),
    ],
)
def test_a_fault_of_the_dataset_names_the_index(bad: Tensor, message: str, images: Tensor) -> None:
    with pytest.raises(UsageError, match=f"^Item 70 of Made: .*{message}"):
        open_source(Made(lambda i: bad if i == 70 else images[0], 130))


def test_a_fault_met_by_a_worker_is_still_one_line(images: Tensor) -> None:
    with pytest.raises(UsageError, match=r"^Item 70 of Made: expected an image, got int\.$"):
        open_source(Made(lambda i: 7 if i == 70 else images[0], 130), reading=Reading(num_workers=2))


def test_unusable_images_are_skipped_counted_and_logged(
    images: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = [pillow(image) for image in images]
    items[0] = Image.new("RGB", (1, 1))
    items[4] = items[7] = Image.new("RGBA", (S, S))
    with caplog.at_level(logging.WARNING):
        opened = open_source(items)
    assert opened.skipped == {"smaller than 4 pixels": 1, "transparent": 2}
    assert torch.equal(opened.read(torch.arange(N - 3)), images[[1, 2, 3, 5, 6, 8, 9, 10, 11]])
    assert caplog.messages == [
        "Skipped 3 of 12 images of a list: 1 smaller than 4 pixels (first: item 0), 2 transparent (first: item 4)."
    ]
    with pytest.raises(UsageError, match="list holds no usable image: 2 transparent"):
        open_source([items[4], items[7]])


def test_the_size_is_that_of_the_first_good_image_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    data = [Image.new("RGB", (1, 1)), Image.new("RGB", (30, 20)), Image.new("RGB", (50, 50))]
    with caplog.at_level(logging.INFO):
        assert open_source(data).image_size == 20
    assert "Image size: 20, as item 1 of a list." in caplog.messages
    assert open_source(data, image_size=16).read(torch.tensor([1])).shape == (1, 3, 16, 16)
    with pytest.raises(UsageError, match="image_size is a number of pixels above 0; got 0"):
        open_source(data, image_size=0)


# --- in memory and on disk


def test_a_source_that_does_not_fit_in_memory_gives_the_same_images(images: Tensor) -> None:
    items = [pillow(image) for image in images]
    items[2] = Image.new("RGB", (2, 2))
    kept = open_source(items, memory_limit=N * 3 * S * S)
    spooled = open_source(items, memory_limit=N * 3 * S * S - 1)
    assert type(kept) is not type(spooled)
    assert (kept.fingerprint, kept.skipped, len(kept)) == (spooled.fingerprint, spooled.skipped, len(spooled))
    batches = [torch.tensor(batch) for batch in ([10, 0, 0], [5], [1, 2, 3, 4])]
    for opened in (kept, spooled):
        for batch, streamed in zip(batches, opened.stream(iter(batches)), strict=True):
            assert torch.equal(streamed, images[kept.kept][batch])
            assert torch.equal(streamed, opened.read(batch))


def test_a_source_on_disk_decodes_each_image_once_and_needs_its_files_no_more(tmp_path: Path, images: Tensor) -> None:
    folder = write(tmp_path, images, [f"{i:02}.png" for i in range(N)])
    spooled = open_source(folder, memory_limit=0)
    for file in folder.iterdir():
        file.unlink()
    assert torch.equal(spooled.read(torch.arange(N)), images)


def test_a_first_pass_in_workers_finds_the_same(images: Tensor) -> None:
    items = [pillow(images[i % N]) if i % 50 else Image.new("RGB", (2, 2)) for i in range(200)]
    here = open_source(items)
    state = torch.get_rng_state()
    there = open_source(items, reading=Reading(num_workers=2))
    assert torch.equal(state, torch.get_rng_state())
    assert not multiprocessing.active_children()
    assert (here.fingerprint, here.skipped) == (there.fingerprint, there.skipped)
    assert here.skipped == {"smaller than 4 pixels": 4}


class Archive(Dataset[Any]):
    """Images in one open archive, whose position all its readers share."""

    def __init__(self, file: Path) -> None:
        self.archive = ZipFile(file)

    def __len__(self) -> int:
        return len(self.archive.namelist())

    def __getitem__(self, index: int) -> Image.Image:
        with self.archive.open(f"{index}.png") as file:
            return Image.open(file).copy()


@pytest.fixture
def archive(images: Tensor, tmp_path: Path) -> Archive:
    with ZipFile(tmp_path / "images.zip", "w") as written:
        for number in range(200):
            pillow(images[number % N]).save(tmp_path / "one.png")
            written.write(tmp_path / "one.png", f"{number}.png")
    return Archive(tmp_path / "images.zip")


def test_a_users_dataset_is_read_by_this_thread_alone(archive: Archive, images: Tensor) -> None:
    readers = set()

    def item(index: int) -> Image.Image:
        readers.add((os.getpid(), threading.get_ident()))
        return archive[index]

    opened = open_source(Made(item, 200))
    assert torch.equal(opened.read(torch.arange(200)), images[torch.arange(200) % N])
    assert readers == {(os.getpid(), threading.get_ident())}


def test_workers_read_where_the_user_asks_for_them(images: Tensor) -> None:
    home = os.getpid()

    def item(index: int) -> Tensor:
        if index > 100:  # what is looked at first is read here
            assert os.getpid() != home or index % 6 == 0
        return images[index % N]

    assert len(open_source(Made(item, 199), reading=Reading(num_workers=2))) == 199


class Unpicklable(Made):
    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle an open file")


def test_where_workers_cannot_start_none_are_used_and_one_line_says_so(
    images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        opened = open_source(Unpicklable(lambda i: images[i % N], 130), reading=Reading(num_workers=2))
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert torch.equal(opened.read(torch.arange(130)), images[torch.arange(130) % N])
    (line,) = [text for text in caplog.messages if "worker" in text]
    assert line.startswith("Unpicklable is read by this process: its 2 worker processes fail with TypeError: cannot")


def test_a_worker_that_dies_loses_no_image(images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    home = os.getpid()

    def item(index: int) -> Tensor:
        if index == 101 and os.getpid() != home:
            os._exit(1)
        return images[index % N]

    opened = open_source(Made(item, 200), reading=Reading(num_workers=1))
    assert torch.equal(opened.read(torch.arange(200)), images[torch.arange(200) % N])
    assert any("Made is read by this process: its 1 worker processes fail with" in text for text in caplog.messages)


def _open_in_a_daemon(images: Tensor, result: Any) -> None:
    opened = open_source(list(images), reading=Reading(num_workers=1))
    result.put(len(opened))


def test_a_daemonic_process_reads_by_itself(images: Tensor) -> None:
    context = multiprocessing.get_context("fork")
    result: Any = context.Queue()
    process = context.Process(target=_open_in_a_daemon, args=(images, result), daemon=True)
    process.start()
    assert result.get(timeout=60) == N
    process.join()


# --- transforms


TWO_VIEWS = SimCLRTransform(input_size=S)
NOISE = T.Compose([T.ToTensor(), T.RandomErasing(p=1.0)])
NORMALISED = T.Compose([T.ToTensor(), T.Normalize(mean=[0.5] * 3, std=[0.2] * 3)])


@pytest.mark.parametrize("transform", [TWO_VIEWS, NOISE, NORMALISED], ids=["views", "random", "normalised"])
@pytest.mark.parametrize("kind", ["ImageFolder", "LightlyDataset", "from_torch_dataset", "Subset", "ConcatDataset"])
def test_a_training_transform_is_left_out_of_a_copy(
    kind: str, transform: Any, tmp_path: Path, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path, images, [f"class/{i:02}.png" for i in range(N)])
    data: Any = LightlyDataset(str(folder), transform=transform)
    if kind != "LightlyDataset":
        data = ImageFolder(folder, transform=None if kind == "from_torch_dataset" else transform)
    if kind == "from_torch_dataset":
        data = LightlyDataset.from_torch_dataset(data, transform=transform)
    if kind == "Subset":
        data = Subset(data, range(N))
    if kind == "ConcatDataset":
        data = ConcatDataset([Subset(data, range(5)), Subset(data, range(5, N))])
    before = [copy.copy(vars(data)), *(copy.copy(vars(part)) for part in vars(data).get("datasets", [data]))]
    with caplog.at_level(logging.INFO):
        assert torch.equal(everything(data), images)
    assert before == [vars(data), *(vars(part) for part in vars(data).get("datasets", [data]))]
    assert any(
        f"Reading {kind.replace('from_torch_dataset', 'LightlyDataset')} without its transform" in m
        for m in caplog.messages
    )


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_of_any_usual_name_is_left_out(name: str, images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    class Own(Dataset[Any]):
        def __init__(self) -> None:
            setattr(self, name, lambda image: image.float() / 255 + 0.1 * torch.randn(3, S, S))

        def __len__(self) -> int:
            return N

        def __getitem__(self, index: int) -> Any:
            change = getattr(self, name)
            return images[index] if change is None else change(images[index])

    with caplog.at_level(logging.INFO):
        assert torch.equal(everything(Own()), images)
    assert "Reading Own without its transform" in caplog.text


def test_a_steady_transform_stays(tmp_path: Path, images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path, images, [f"class/{i:02}.png" for i in range(N)])
    data = ImageFolder(folder, transform=T.Compose([T.functional.hflip, T.ToTensor()]))
    assert torch.equal(everything(data), images.flip(-1))
    assert "without its transform" not in caplog.text


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            lambda i: ([torch.zeros(3, 8, 8)] * 2, 0),
            "Item 0 of Made: expected one image, got 2 views; give the dataset",
        ),
        (lambda i: torch.rand(3, 8, 8), "Item 0 of Made differs each time it is read: give the dataset without its"),
        (lambda i: torch.rand(3, 8, 8) * 4 - 2, "Item 0 of Made: .* looks already normalised"),
    ],
)
def test_random_items_without_a_transform_to_leave_out_are_an_error(item: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_source(Made(item))


def test_a_flip_now_and_then_is_noticed(images: Tensor) -> None:
    draws = iter([1, 1, 1, 1, 1, 1, 1, -1] * 100)
    data = Made(lambda i: images[i].flip(-1) if next(draws) < 0 else images[i])
    with pytest.raises(UsageError, match="Item 3 of Made differs each time it is read"):
        open_source(data)


# --- folders


def test_a_folder_is_read_nested_sorted_through_links_and_without_loops(tmp_path: Path, images: Tensor) -> None:
    names = ["z.PNG", "b/c/ü 图.png", "b/a.jpeg.png", "a/1.png", "#5/x.bmp"]
    folder = write(tmp_path / "in", images, names)
    write(tmp_path / "elsewhere", images[5:], ["link.png"])
    (folder / "b" / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "b" / "loop").symlink_to(folder)
    (folder / "again.png").symlink_to(folder / "z.PNG")
    (folder / "notes.txt").write_text("no image")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.png").write_text("hidden")
    order = [4, 3, 0, 2, 1, 5, 0]  # '#5/x' 'a/1' 'again' 'b/a' 'b/c/ü' 'b/linked/link' 'z'
    opened = open_source(folder)
    assert torch.equal(opened.read(torch.arange(len(opened))), images[order])
    assert (opened.name, opened.skipped) == (str(folder), {})


def test_bad_files_in_a_folder_are_skipped_and_the_first_is_named(
    tmp_path: Path, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, images, ["a.png", "b.png"])
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "text2.jpg").write_text("not an image")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:100])
    opened = open_source(tmp_path)
    assert opened.skipped == {"truncated": 1, "empty": 1, "not there": 1, "not an image": 2}
    assert f"2 not an image (first: {tmp_path / 'text.jpg'})" in caplog.text
    assert len(opened) == 2


def test_a_subfolder_that_cannot_be_listed_is_counted(
    tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, images, ["a/1.png", "b/1.png"])
    scandir = os.scandir

    def guarded(path: Any) -> Any:
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))  # root may list anything
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert open_source(tmp_path).skipped == {"cannot be read": 1}


def test_folders_and_files_beside_train_and_test_make_no_classes_of_them(tmp_path: Path, images: Tensor) -> None:
    files = ["train/cat/1.png", "test/cat/1.png", "unlabeled/1.png", "overview.png"]
    splits = write(tmp_path / "splits", images, files)
    assert open_source(splits).name == f"{splits}#train"
    for split, expected in (("train", images[:1]), ("test", images[1:2]), ("unlabeled", images[2:3])):
        assert torch.equal(everything(f"{splits}#{split}"), expected)
    classes = write(tmp_path / "vehicles", images, ["train/1.png", "plane/1.png"])  # `train` is one of them
    assert open_source(classes).name == str(classes) and len(open_source(classes)) == 2


def test_a_folder_that_must_not_be_read_is_told(
    tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "private", images, ["cat/1.png"])
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder)
    with pytest.raises(UsageError, match=r"'.*private' cannot be read: no permission\."):
        open_source(folder)


def test_split_folders_are_splits_and_class_folders_are_not(tmp_path: Path, images: Tensor) -> None:
    splits = write(tmp_path / "splits", images, ["train/cat/1.png", "val/cat/1.png", "val/dog/2.png"])
    classes = write(tmp_path / "classes", images, ["train/1.png", "car/1.png"])
    assert open_source(splits).name == f"{splits}#train"
    assert torch.equal(everything(splits), images[:1])
    assert torch.equal(everything(f"{splits}#val"), images[1:3])
    assert len(open_source(classes)) == 2
    with pytest.raises(UsageError, match=r"has no split 'vla'\. Did you mean 'val'\?"):
        open_source(f"{splits}#vla")
    with pytest.raises(UsageError, match="has no splits; leave '#train' out"):
        open_source(f"{classes}#train")
    none = write(tmp_path / "none", images, ["val/1.png", "test/1.png"])
    with pytest.raises(UsageError, match=r"has the splits test, val; choose one, such as '.*none#test'"):
        open_source(none)


def test_a_folder_named_with_a_hash_is_a_folder(tmp_path: Path, images: Tensor) -> None:
    assert len(open_source(write(tmp_path / "c#", images, ["a.png"]))) == 1


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").touch()
    with pytest.raises(UsageError, match=f"'{tmp_path}' holds no images, tables or shards"):
        open_source(tmp_path)
    (tmp_path / "a.jpg").touch()
    with pytest.raises(UsageError, match=f"{tmp_path} holds no usable image: 1 empty"):
        open_source(tmp_path)


# --- specifications


def test_a_relative_name_is_looked_up_in_the_data_folder(
    tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "birds", images, ["train/1.png", "test/2.png"])
    monkeypatch.setenv("LIGHTLY_DISTILL_DATA", str(tmp_path))
    opened = open_source("birds#test")
    assert (opened.name, len(opened)) == ("birds#test", 1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "brids",
            r"no file or folder 'brids', nor in LIGHTLY_DISTILL_DATA .* Did you mean 'birds'\? .*'huggingface:brids'",
        ),
        ("./brids", r"There is no file or folder './brids'.*Did you mean 'birds'\?"),
        ("/no/such/folder#train", "There is no file or folder '/no/such/folder', nor in"),
        ("birds/x.parquet", "There is no file or folder 'birds/x.parquet'"),
        (
            "birds/1.png",
            "'birds/1.png' is a file; expected a folder of images, or a file ending in .parquet or .arrow or .tar",
        ),
        ("torchvison:CIFAR10", r"Unknown kind of source 'torchvison' .* Did you mean 'torchvision'\?"),
        ("", "There is no file or folder ''"),
    ],
)
def test_a_wrong_specification_says_what_there_is(
    spec: str, message: str, tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "birds", images, ["1.png"])
    monkeypatch.setenv("LIGHTLY_DISTILL_DATA", str(tmp_path))
    with pytest.raises(UsageError, match=message) as caught:
        open_source(spec)
    assert "\n" not in str(caught.value)


def test_a_third_partys_scheme_is_asked(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    class Adapter:
        @staticmethod
        def open(spec: str, split: str | None) -> Any:
            return None if spec == "nothing" else images[: int(split or 3)]

    monkeypatch.setattr(locate.adapters, "available", lambda group: {"mine": None})
    monkeypatch.setattr(locate.adapters, "get", lambda group, name: Adapter)
    assert (open_source("mine:any:thing#5").name, len(open_source("mine:any:thing#5"))) == ("mine:any:thing#5", 5)
    assert open_source("mine:x").name == "mine:x"
    with pytest.raises(UsageError, match="The adapter 'mine' finds no images in 'nothing'"):
        open_source("mine:nothing")


def test_a_quick_source_shows_no_progress_bar(images: Tensor, capfd: pytest.CaptureFixture[str]) -> None:
    open_source(images)
    assert capfd.readouterr() == ("", "")


def test_a_torchvision_object_is_read_as_it_is() -> None:
    data = FakeData(size=3, image_size=(3, S, S))
    expected = torch.stack([torch.from_numpy(np.array(data[i][0])).permute(2, 0, 1) for i in range(3)])
    assert torch.equal(everything(data), expected)
