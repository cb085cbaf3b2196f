"""Every kind of image and of dataset that is supported, and what each becomes.

`python tests/data/test_kinds.py` prints the table, which is made of the parameters of the tests.
"""

import io
import logging
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from lightly.data import LightlyDataset
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.datasets import ImageFolder

from lightly_distill import DistillationStage
from lightly_distill.data.decode import decode
from lightly_distill.data.reading import Reading
from lightly_distill.data.source import Source, first_items, open_source
from lightly_distill.errors import UsageError
from lightly_distill.evaluation.tasks import open_task
from lightly_distill.runtime import seeding

N, S = 12, 8
# uint8 (n, 3, S, S), of all values from 0 to 255
PIXELS = torch.randint(256, (N, 3, S, S), generator=seeding.generator(0, "kinds"), dtype=torch.uint8)
GREY = PIXELS[:, :1]


def rows(image: Tensor) -> NDArray[np.uint8]:
    return image.permute(1, 2, 0).numpy()


def pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(rows(image))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def deep_png(values: NDArray[np.uint16]) -> bytes:
    """Writes 16 bits a channel in colour, which Pillow cannot."""
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)

    def part(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(lines)) + part(b"IEND", b"")


def twelve(values: NDArray[np.uint8]) -> NDArray[np.uint16]:
    return (values.astype(np.int32) * 4095 // 255).astype(np.uint16)


# --- kinds of image: how one of PIXELS (or GREY) is given, and how far from it the result may be

COLOUR: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "PIL RGB": (pillow, 0),
    "PNG file": (lambda x: encoded(pillow(x)), 0),
    "WebP without loss": (lambda x: encoded(pillow(x), "WEBP", lossless=True), 0),
    "BMP": (lambda x: encoded(pillow(x), "BMP"), 0),
    "TIFF": (lambda x: encoded(pillow(x), "TIFF"), 0),
    "PNG with alpha": (lambda x: encoded(pillow(x).convert("RGBA")), 0),
    "PNG with 2 MB of text": (lambda x: encoded(pillow(x), pnginfo=_text()), 0),
    "PNG of 16 bits in colour": (lambda x: deep_png(rows(x).astype(np.uint16) * 257), 0),
    "PNG of 12 bits in 16, in colour": (lambda x: deep_png(twelve(rows(x))), 1),
    "bytes": (lambda x: {"bytes": encoded(pillow(x)), "path": None}, 0),
    "uint8 tensor": (lambda x: x, 0),
    "uint8 array, channels last": (rows, 0),
    "float32 tensor in [0, 1]": (lambda x: x / 255, 0),
    "float64 array, channels last": (lambda x: rows(x) / 255, 0),
    "int64 tensor, 0 to 255": (lambda x: x.long(), 0),
    "int32 array, 0 to 255": (lambda x: rows(x).astype(np.int32), 0),
    "uint16 array of 12 bits": (lambda x: twelve(rows(x)), 1),
    "uint16 array, 0 to 10,000": (lambda x: (rows(x).astype(np.int32) * 10_000 // 255).astype(np.uint16), 1),
    "uint16 array of 16 bits": (lambda x: rows(x).astype(np.uint16) * 257, 0),
}
GREYS: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "PIL L": (lambda x: Image.fromarray(x[0].numpy()), 0),
    "PNG of 8 bits": (lambda x: encoded(Image.fromarray(x[0].numpy())), 0),
    "PNG of 12 bits in 16": (lambda x: encoded(Image.fromarray(twelve(x[0].numpy()))), 1),
    "PNG of 16 bits": (lambda x: encoded(Image.fromarray(x[0].numpy().astype(np.uint16) * 257)), 0),
    "TIFF of floats in [0, 1]": (lambda x: encoded(Image.fromarray(x[0].numpy() / np.float32(255)), "TIFF"), 0),
    "TIFF of floats, 0 to 255": (lambda x: encoded(Image.fromarray(x[0].numpy().astype(np.float32)), "TIFF"), 0),
    "TIFF of floats, -1 to 1": (
        lambda x: encoded(Image.fromarray(x[0].numpy() / np.float32(127.5) - np.float32(1)), "TIFF"),
        1,
    ),
    "PIL I, 0 to 10,000": (lambda x: Image.fromarray(x[0].numpy().astype(np.int32) * 10_000 // 255), 1),
    "uint8 array (H, W)": (lambda x: x[0].numpy(), 0),
    "uint8 tensor (1, H, W)": (lambda x: x, 0),
}


def _text() -> Any:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("notes", "x" * 2_000_000, zip=True)
    return info


def opened(data: Any, **options: Any) -> Tensor:
    source = open_source(data, image_size=S, **options)
    return source.read(torch.arange(len(source)))


@pytest.mark.parametrize(("kind", "images"), [(k, PIXELS) for k in COLOUR] + [(k, GREY) for k in GREYS])
def test_a_kind_of_image_becomes_its_8_bits(kind: str, images: Tensor) -> None:
    make, tolerance = (COLOUR | GREYS)[kind]
    found = opened([make(image) for image in images])
    assert (found.int() - images.expand(N, 3, S, S).int()).abs().max() <= tolerance


# --- kinds of dataset: how they hold PIXELS


def _folder(path: Path) -> str:
    for number, image in enumerate(PIXELS):
        (path / f"{number % 2}").mkdir(exist_ok=True)
        pillow(image).save(path / f"{number % 2}" / f"{number:02d}.png")
    return str(path)


def _by_folder(images: Tensor) -> Tensor:
    return torch.cat([images[::2], images[1::2]])


def _table(images: Any, **features: Any) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"image": images}, datasets.Features(image=features.get("of", datasets.Image())))


def _tar(path: Path, endings: str = "png", compressed: bool = False) -> Path:
    kinds = {"png": "PNG", "webp": "WEBP", "bmp": "BMP"}
    file = path / ("shard.tar.gz" if compressed else "shard.tar")
    with tarfile.open(file, "w:gz" if compressed else "w") as archive:
        for number, image in enumerate(PIXELS):
            ending = endings.split(",")[number % len(endings.split(","))]
            content = encoded(pillow(image), kinds[ending.lower()], lossless=True)
            for name, data in ((ending, content), ("json", b"{}"), ("cls", str(number % 3).encode())):
                member = tarfile.TarInfo(f"a/{number:04d}.{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return file


class Stream:
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Any:
        return iter(self.items)


ARRAY = datasets.Array3D((S, S, 3), "uint8")
DATASETS: dict[str, Callable[[Path], Any]] = {
    "tensor": lambda _: PIXELS,
    "array, channels last": lambda _: PIXELS.permute(0, 2, 3, 1).numpy(),
    "list of PIL images": lambda _: [pillow(image) for image in PIXELS],
    "list of (image, label)": lambda _: [(pillow(image), 0) for image in PIXELS],
    "list of mappings": lambda _: [{"img": pillow(image), "label": 0} for image in PIXELS],
    "folder": lambda path: Path(_folder(path)),
    "list of paths": lambda path: sorted(map(str, Path(_folder(path)).rglob("*.png"))),
    "array of paths": lambda path: np.array(sorted(map(str, Path(_folder(path)).rglob("*.png")))),
    "filtered Series of pandas": lambda path: _series(path),
    "ImageFolder": lambda path: ImageFolder(_folder(path)),
    "LightlyDataset": lambda path: LightlyDataset(_folder(path)),
    "TensorDataset": lambda _: TensorDataset(PIXELS),
    "datasets, images": lambda _: _table([pillow(image) for image in PIXELS]),
    "datasets, images, as torch": lambda _: _table([pillow(image) for image in PIXELS]).with_format("torch"),
    "datasets, Array3D": lambda _: _table([rows(image) for image in PIXELS], of=ARRAY),
    "datasets, Array3D, as torch": lambda _: _table([rows(i) for i in PIXELS], of=ARRAY).with_format("torch"),
    "datasets, Array3D, as numpy": lambda _: _table([rows(i) for i in PIXELS], of=ARRAY).with_format("numpy"),
    "datasets, nested lists": lambda _: datasets.Dataset.from_dict({"image": [rows(i).tolist() for i in PIXELS]}),
    "datasets, a stream": lambda _: _table([pillow(image) for image in PIXELS]).to_iterable_dataset(),
    "datasets, a stream of Array3D": lambda _: _table([rows(i) for i in PIXELS], of=ARRAY).to_iterable_dataset(),
    "tar shard": _tar,
    "tar shard of .png, .webp and .bmp": lambda path: _tar(path, "png,webp,bmp"),
    "tar shard, compressed": lambda path: _tar(path, "png,webp", compressed=True),
    "any iterable": lambda _: Stream([pillow(image) for image in PIXELS]),
    "raw samples of WebDataset": lambda _: Stream(
        [
            {"__key__": f"{i}", ("png" if i % 2 else "webp"): encoded(pillow(image)), "cls": b"1", "json": b"{}"}
            for i, image in enumerate(PIXELS)
        ]
    ),
}
BY_FOLDER = ("folder", "list of paths", "array of paths", "filtered Series of pandas", "ImageFolder", "LightlyDataset")


def _series(path: Path) -> Any:
    import pandas

    paths = sorted(map(str, Path(_folder(path)).rglob("*.png")))
    series = pandas.Series(["gone.png", *paths, "lost.png"])
    return series[series.str.contains(str(path))]  # its index begins at 1


@pytest.mark.parametrize("kind", DATASETS)
def test_a_kind_of_dataset_gives_its_images(kind: str, tmp_path: Path) -> None:
    data = DATASETS[kind](tmp_path)
    expected = _by_folder(PIXELS) if kind in BY_FOLDER else PIXELS
    assert torch.equal(opened(data), expected)
    assert torch.equal(opened(first_items(data, 2)), expected[:2])


# --- one range of values for all images of a source


def scene(brightest: float, kind: type = np.float32) -> NDArray[Any]:
    values = np.linspace(0, 0.9, S * S).reshape(S, S)
    values[0, 0] = 1
    return (values * brightest).astype(kind)


@pytest.mark.parametrize(("one", "another"), [(1.0, 1.1), (255, 256), (4095, 4096), (10_000, 10_001)])
def test_a_little_more_light_changes_a_picture_little(one: float, another: float) -> None:
    first, second = (opened([Image.fromarray(scene(value))] * N).float() for value in (one, another))
    assert (first - second).abs().max() <= 26  # a tenth; it was all


def test_one_pixel_does_not_change_the_picture() -> None:
    values = [scene(1) for _ in range(N)]
    plain = opened([Image.fromarray(value) for value in values])
    values[3][4, 4] = -1
    spoilt = opened([Image.fromarray(value) for value in values])
    assert int((plain != spoilt).sum()) <= 3  # that pixel, in three channels


def test_all_images_of_a_source_have_one_scale() -> None:
    """A dark and a bright photograph of one camera stay dark and bright."""
    dark, bright = scene(200, np.uint16), scene(4000, np.uint16)
    images = opened([Image.fromarray(dark), *[Image.fromarray(bright)] * 5]).float()
    assert images[0].mean() * 15 < images[1].mean()
    assert images[1].max() == round(4000 / 4095 * 255)


def test_a_range_that_is_given_is_used_recorded_and_part_of_the_fingerprint(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    images = [Image.fromarray(scene(5000, np.uint16)) for _ in range(N)]

    def source(low: float, high: float) -> Source:
        whole = Reading(value_range=DistillationStage(lambda x: x, value_range=(low, high)).config.reading.value_range)
        return open_source(images, reading=whole)

    with caplog.at_level(logging.WARNING):
        given = source(0, 10_000)
    assert not caplog.messages
    assert given.read(torch.tensor([0])).max() == round(255 / 2)
    assert given.value_range == (0, 10_000)
    assert given.fingerprint != source(0, 9_999).fingerprint
    with caplog.at_level(logging.WARNING):
        clipped = source(0, 4_000)
    assert clipped.read(torch.tensor([0])).max() == 255
    assert f"values of {N} images of a list lie outside of 0 to 4000 and were clipped (first: item 0)." in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        source(0, 1_000_000)
    assert "use a sliver of the values from 0 to 1e+06 only" in caplog.text and "--value-range LOW,HIGH" in caplog.text


@pytest.mark.parametrize("given", ["", "1", "4,3", "a,b", (1,), (0, float("inf")), 7])
def test_what_is_no_range_is_refused(given: Any) -> None:
    with pytest.raises(UsageError, match="value_range is LOW,HIGH, two increasing numbers such as 0,4095; got"):
        DistillationStage(lambda x: x, value_range=given)


def test_floating_point_arrays_take_a_given_range() -> None:
    reflectances = PIXELS.float() / 255 * 10_000
    with pytest.raises(UsageError, match=r"pixels from .* expected \[0, 1\]; give uint8, or .* with --value-range"):
        opened(reflectances)
    whole = Reading(value_range=DistillationStage(lambda x: x, value_range="0,10000").config.reading.value_range)
    assert torch.equal(opened(reflectances, reading=whole), PIXELS)


# --- labels


def _class_folders(root: Path, split: str, inner: str) -> None:
    for number, image in enumerate(PIXELS):
        folder = root / split / ("cat", "dog")[number % 2] / inner.format(number=2023 + number % 3)
        folder.mkdir(parents=True, exist_ok=True)
        pillow(image).save(folder / f"{number}.png")


@pytest.mark.parametrize("inner", [".", "{number}", "images"])
def test_labels_are_those_of_an_image_folder(inner: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        _class_folders(tmp_path, split, inner)
    task = open_task(tmp_path, image_size=S)
    theirs = ImageFolder(str(tmp_path / "train"))
    assert list(task.classes) == theirs.classes == ["cat", "dog"]
    assert sorted(task.labels.tolist()) == sorted(theirs.targets)


def test_images_in_no_class_folder_are_told(tmp_path: Path) -> None:
    for split in ("train", "val"):
        _class_folders(tmp_path, split, ".")
    pillow(PIXELS[0]).save(tmp_path / "train" / "lost.png")
    with pytest.raises(UsageError, match=r"images in no class folder, such as .*lost\.png: put the images of each"):
        open_task(tmp_path, image_size=S)


def test_labels_of_shards_are_their_cls_files(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        _tar(tmp_path / split)
    assert open_task(tmp_path, image_size=S).labels.tolist() == [number % 3 for number in range(N)]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "Item 1 of the task mine has no label: leave such items out"),
        ([0, 1, 1], r"has 3 labels, expected one: a whole number or a name\. Of one-hot labels give the position"),
        (torch.tensor([0, 1]), "has 2 labels, expected one"),
        (0.5, "has the label 0.5, expected a whole number or a name"),
        ("dog", "has whole numbers and names as labels"),
    ],
)
def test_a_label_that_is_none_is_one_line(label: Any, message: str) -> None:
    data = [(image, label if number == 1 else number % 2) for number, image in enumerate(PIXELS)]
    with pytest.raises(UsageError, match=message):
        open_task(("mine", data, data), image_size=S)


def test_names_of_classes_are_labels() -> None:
    data = [(image, ("dog", "cat")[number % 2]) for number, image in enumerate(PIXELS)]
    task = open_task((data, data), image_size=S)
    assert task.classes == ("cat", "dog") and task.labels.tolist() == [1, 0] * 6


# --- several images in an item


def _with_masks(path: Path) -> Path:
    with tarfile.open(path / "shard.tar", "w") as archive:
        for number, image in enumerate(PIXELS):
            mask = encoded(pillow(255 - image))
            for name, data in ((("png", "webp")[number % 2], encoded(pillow(image))), ("mask.png", mask)):
                member = tarfile.TarInfo(f"{number:04d}.{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path / "shard.tar"


@pytest.mark.parametrize(
    ("column", "expected"), [("png,webp", PIXELS), ("mask", 255 - PIXELS), ("mask.png", 255 - PIXELS)]
)
def test_the_column_is_chosen_where_there_are_several(column: str, expected: Tensor, tmp_path: Path) -> None:
    shard = _with_masks(tmp_path)
    with pytest.raises(UsageError, match=r"columns png, mask\.png 2 hold images; choose one with --column png"):
        opened(shard)
    assert torch.equal(opened(shard, reading=Reading(column=column)), expected)
    with pytest.raises(UsageError, match=r"it has no column 'depth', only png, mask\.png"):
        opened(shard, reading=Reading(column="depth"))


def test_a_list_of_images_an_item_says_how_to_flatten_it() -> None:
    pair = [[pillow(PIXELS[i]), pillow(PIXELS[i + 1])] for i in range(4)]
    data = datasets.Dataset.from_dict({"images": pair}, datasets.Features(images=datasets.List(datasets.Image())))
    with pytest.raises(UsageError, match=r"list of 2; give a dataset of one image a row, such as data\.map\("):
        opened(data.rename_column("images", "image"))


# --- warnings and misleading reasons


def _damaged_exif(path: Path) -> Path:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x0e\x01\x02\0\xff\0\0\0\xff\xff\0\0"
    for number, image in enumerate(PIXELS):
        (path / f"{number:02d}.jpg").write_bytes(encoded(pillow(image), "JPEG", exif=exif))
    return path


def test_damaged_exif_costs_no_image_and_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = _damaged_exif(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert len(opened(folder)) == N
    (line,) = [text for text in caplog.messages if "warnings" in text]
    assert line.startswith(f"There are warnings of {N} images of {folder}, which are kept (first: {folder}/00.jpg: ")
    script = "import sys; from lightly_distill.data.source import open_source; print(len(open_source(sys.argv[1])))"
    command = [sys.executable, "-W", "error::UserWarning", "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(N), done.stderr


def test_heic_is_called_by_its_name_where_it_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    items = [*(pillow(image) for image in PIXELS), b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)]
    with caplog.at_level(logging.WARNING):
        opened(items)
    assert "1 HEIC, which is read where pillow-heif is installed (first: item 12)" in caplog.text


def test_a_table_of_pandas_says_what_to_give(tmp_path: Path) -> None:
    import pandas

    with pytest.raises(UsageError, match="DataFrame is a table of path, label; give its column of paths"):
        opened(pandas.DataFrame({"path": ["a.png"], "label": [1]}))


def test_a_decoded_image_alone_has_its_own_range() -> None:
    assert decode(Image.fromarray(scene(5, np.float32)), S).max() == 255


if __name__ == "__main__":
    print("| an image given as | becomes |\n|---|---|")
    for kind, (_, off) in (COLOUR | GREYS).items():
        print(f"| {kind} | its pixels in 8 bits{f', up to {off} off by rounding' if off else ''} |")
    print("\n| a dataset given as | becomes |\n|---|---|")
    for kind in DATASETS:
        print(f"| {kind} | its images{', in the order of their paths' if kind in BY_FOLDER else ''} |")
