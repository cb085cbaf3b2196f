import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from torchvision.transforms.functional import to_pil_image

import tiny
from lightly_distill import DistillationStage
from lightly_distill.data import source
from lightly_distill.data.reading import Reading
from lightly_distill.data.source import find_images, first_images, open_source
from lightly_distill.errors import DistillError, UsageError

N = 20


class Stream:
    """What a function yields, again and again."""

    def __init__(self, function: Callable[[], Iterator[Any]]) -> None:
        self.function = function

    def __iter__(self) -> Iterator[Any]:
        return self.function()


class TorchStream(Stream, IterableDataset[Any]):
    pass


class SizedStream(TorchStream):
    def __len__(self) -> int:
        return N


@pytest.fixture
def images() -> Tensor:
    return tiny.images(N)


@pytest.mark.parametrize("kind", [Stream, TorchStream, SizedStream])
def test_a_stream_gives_what_a_list_of_the_same_gives(kind: type[Stream], images: Tensor) -> None:
    items = [(to_pil_image(image), 0) for image in images]
    listed, streamed = open_source(items), open_source(kind(lambda: iter(items)))
    assert torch.equal(streamed.read(torch.arange(N)), images)
    assert (streamed.fingerprint, streamed.name, streamed.image_size) == (listed.fingerprint, kind.__name__, tiny.SIZE)
    batches = torch.randperm(N).split(6)
    for indices, batch in zip(batches, streamed.stream(iter(batches)), strict=True):
        assert torch.equal(batch, images[indices])


def test_a_stream_is_not_read_further_than_needed(images: Tensor) -> None:
    endless = Stream(lambda: (images[i % N] for i in count()))
    assert torch.equal(first_images(find_images(endless)), images[:4])


def test_workers_decode_what_this_process_reads(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "CHUNK", 3)
    items: list[Any] = [to_pil_image(image) for image in images]
    items[10] = to_pil_image(torch.zeros(3, 2, 2))
    opened = open_source(Stream(lambda: iter(items)), reading=Reading(num_workers=2))
    kept = [i for i in range(N) if i != 10]
    assert opened.kept.tolist() == kept
    assert torch.equal(opened.read(torch.arange(N - 1)), images[kept])


def test_skipped_items_are_counted_and_named(images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        opened = open_source(Stream(lambda: iter([*images, b"no image", b""])))
    assert opened.skipped == {"not an image": 1, "empty": 1}
    assert caplog.messages == [
        "Skipped 2 of 22 images of Stream: 1 not an image (first: item 20), 1 empty (first: item 21)."
    ]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "^Stream holds no usable image: it is empty.$"),
        ([b"", b""], r"^Stream holds no usable image: 2 empty \(first: item 0\).$"),
        ([{"text": "a"}], "^Item 0 of Stream: of its columns text none holds images; name one of them 'image'.$"),
        ([*tiny.images(9), 7], "^Item 9 of Stream: expected an image, got int.$"),
    ],
)
def test_a_stream_without_images_is_one_line(items: list[Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_source(Stream(lambda: iter(items)))


def test_a_stream_that_breaks_off_says_where(images: Tensor) -> None:
    def broken() -> Iterator[Tensor]:
        yield from images
        raise ConnectionError("The server hung up\nand more")

    with pytest.raises(
        DistillError, match=r"^Stream breaks off after 20 items with ConnectionError: The server hung up$"
    ):
        open_source(Stream(broken))
    with pytest.raises(
        DistillError, match=r"^Stream breaks off after 0 items with TypeError: 'int' object is not iterable"
    ):
        open_source(Stream(lambda: iter(3)))  # type: ignore[call-overload]


def test_a_stream_that_changes_is_refused(images: Tensor) -> None:
    order = (images[torch.randperm(N)] for _ in count())
    with pytest.raises(
        UsageError, match=r"^Item . of Stream differs each time it is read: give the stream without random"
    ):
        open_source(Stream(lambda: iter(next(order))))


def test_a_stream_is_distilled_as_a_list_is(images: Tensor, tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_images": 4, "steps": 4, "batch_size": 8, "checkpoint_every": 2}
    stage = DistillationStage(tiny.encoder(), student="convnet_4_4", pool={"size": 2, "max_age": 2}, **options)
    synthetic = stage.run(Stream(lambda: iter(images)), out=tmp_path / "run")
    assert torch.equal(synthetic.images, stage.run(list(images)).images)
    again = stage.run(Stream(lambda: iter(images)), out=tmp_path / "run", resume=True)
    assert torch.equal(again.images, synthetic.images)


MEMORY = """
import resource, sys, tarfile
from io import BytesIO
from pathlib import Path
import torch
from torch import nn
from torchvision.transforms.functional import to_pil_image
from lightly_distill import DistillationStage

SIZE, SHARD = 128, 100

def jpeg(number):
    pixels = torch.full((3, SIZE, SIZE), number % 256, dtype=torch.uint8)
    file = BytesIO()
    to_pil_image(pixels).save(file, "JPEG")
    return file.getvalue()

def shards(name, count):
    folder = Path(name)
    folder.mkdir()
    for shard in range(count):
        with tarfile.open(folder / f"{shard:03d}.tar.gz", "w:gz") as archive:  # which has no index
            for number in range(shard * SHARD, (shard + 1) * SHARD):
                content = jpeg(number)
                member = tarfile.TarInfo(f"{number:06d}.jpg")
                member.size = len(content)
                archive.addfile(member, BytesIO(content))
    return folder

encoder = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
stage = DistillationStage(
    encoder, student="convnet_4_4_4", num_images=4, steps=4, batch_size=8, image_size=SIZE, holdout=0,
    pool={"size": 2, "max_age": 2},
)
peaks = []
for name, count in (("first", 2), ("few", 16), ("many", 56)):  # libraries are loaded in the first
    data = shards(name, count)
    synthetic = stage.run(data, out=f"run-{name}")
    assert synthetic.provenance["source"]["images"] == count * SHARD
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "linux" else 1024**2))
print(*peaks)
"""


@pytest.mark.slow
def test_a_stream_of_many_shards_is_distilled_in_flat_memory(tmp_path: Path) -> None:
    """4,000 images more, which are 197 MB decoded."""
    # glibc gives freed blocks back at once: what is measured is what is held, not what malloc keeps for later
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    child = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert child.returncode == 0, child.stderr
    _, few, many = map(int, child.stdout.split())  # MB
    assert many - few < 50
