"""A source decodes its images again, at another size."""

import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

import pictures
from lightly_distill.data.decode import Frame, decode, picture
from lightly_distill.data.items import Items
from lightly_distill.data.loader import Decoder
from lightly_distill.data.source import Source, find_images, open_source
from lightly_distill.errors import DistillError

N, S, T = 30, 8, 28


class Stream:
    """Yields what a function makes, and counts how often it is read."""

    def __init__(self, items: list[Any]) -> None:
        self.items, self.read, self.given = items, 0, 0

    def __iter__(self) -> Iterator[Any]:
        self.read += 1
        for item in self.items:
            self.given += 1
            yield item


def write(folder: Path, images: list[Image.Image]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        image.save(folder / f"{number:03}.png")
    return folder


def again(source: Source, indices: Tensor | None = None, frame: Frame | None = None, batch: int = 7) -> Tensor:
    wanted = torch.arange(len(source)) if indices is None else indices
    return torch.cat(list(source.again(torch.split(wanted, batch), frame or Frame(T))))


# every fifth image is unusable
MIXED = [pictures.numbered(i) if i % 5 else Image.new("RGB", (2, 2)) for i in range(N)]
GOOD = [i for i in range(N) if i % 5]


def of_kind(kind: str, folder: Path) -> Any:
    made: dict[str, Callable[[], Any]] = {
        "folder": lambda: write(folder, MIXED),
        "list": lambda: MIXED,
        "stream": lambda: Stream(MIXED),
        "tensor": lambda: [pil_to_tensor(image) for image in MIXED],
    }
    return made[kind]()


@pytest.mark.parametrize("kind", ["folder", "list", "stream", "tensor"])
@pytest.mark.parametrize("memory_limit", [None, 0])
def test_an_index_is_the_same_image_at_both_sizes_where_others_are_skipped(
    kind: str, memory_limit: int | None, tmp_path: Path
) -> None:
    source = open_source(of_kind(kind, tmp_path), image_size=S, memory_limit=memory_limit)
    small, large = source.read(torch.arange(len(source))), again(source)
    assert small.shape == (len(GOOD), 3, S, S) and large.shape == (len(GOOD), 3, T, T)
    assert pictures.number_of(small) == pictures.number_of(large) == GOOD


@pytest.mark.parametrize("kind", ["folder", "list"])
def test_what_has_an_index_is_decoded_again_in_any_order(kind: str, tmp_path: Path) -> None:
    source = open_source(of_kind(kind, tmp_path), image_size=S)
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))
    assert source.in_any_order
    assert pictures.number_of(again(source, order)) == [GOOD[i] for i in order]


def test_a_stream_is_read_once_for_indices_that_increase_and_from_the_front_for_earlier_ones() -> None:
    stream = Stream([pictures.numbered(i) for i in range(N)])
    source = open_source(stream, image_size=S)
    assert not source.in_any_order
    stream.read = stream.given = 0
    wanted = torch.tensor([3, 4, 9, 17])
    assert pictures.number_of(again(source, wanted, batch=2)) == wanted.tolist()
    assert (stream.read, stream.given) == (1, 18)
    assert pictures.number_of(again(source, torch.tensor([20]))) == [20]  # goes on
    assert (stream.read, stream.given) == (1, 21)
    assert pictures.number_of(again(source, torch.tensor([5]))) == [5]
    assert stream.read == 2


def test_a_stream_that_has_become_shorter_is_one_line() -> None:
    stream = Stream([pictures.numbered(i) for i in range(N)])
    source = open_source(stream, image_size=S)
    del stream.items[12:]
    with pytest.raises(DistillError, match="Stream ends before item 12, which was there when it was first read"):
        again(source)


def test_an_image_that_fails_at_the_second_time_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, MIXED)
    source = open_source(folder, image_size=S)
    (folder / "007.png").write_bytes((folder / "007.png").read_bytes()[:60])
    with pytest.raises(DistillError, match=r"007\.png of .* was decoded at 8 pixels and cannot be at 28: truncated"):
        again(source)


def test_the_same_region_of_the_original_is_shown_at_each_size() -> None:
    image = pictures.position(width=300, height=200)
    for crop in (1.0, 0.875, 0.5):
        small, large = (picture(image, Frame(size, crop)).pixels.float() for size in (20, 70))
        side = crop * 200
        for channel, length in ((0, 300), (1, 200)):  # from the pixels at the edges, where the region begins and ends
            for shown, size in ((small, 20), (large, 70)):
                line = shown[channel].mean(0 if channel == 0 else 1)
                step = 255 / length * side / size
                assert line[0].item() == pytest.approx(255 * (length - side) / 2 / length + step / 2, abs=2)
                assert line[-1].item() == pytest.approx(255 * (length + side) / 2 / length - step / 2, abs=2)


def test_a_whole_frame_is_what_decode_makes_and_bilinear_is_another() -> None:
    image = pictures.position(50, 40)
    assert torch.equal(picture(image, Frame(16)).pixels, decode(image, 16))
    expected = pil_to_tensor(ImageOps.fit(image, (16, 16), Image.Resampling.BILINEAR))
    assert torch.equal(picture(image, Frame(16, interpolation="bilinear")).pixels, expected)


@pytest.mark.parametrize("size", [32, 112, 200])
def test_a_jpeg_is_decoded_in_part_but_at_twice_the_size_at_least(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pictures.position(1000, 800)
    fitted: list[int] = []
    fit = ImageOps.fit
    monkeypatch.setattr(
        ImageOps, "fit", lambda image, *rest, **more: fitted.append(min(image.size)) or fit(image, *rest, **more)
    )
    shown = picture(pictures.jpeg(image), Frame(size, 0.8))
    assert shown.side == 800 and 2 * size <= 0.8 * fitted[0] <= 800
    assert (fitted[0] < 800) == (size < 200)
    torch.testing.assert_close(shown.pixels.float(), picture(image, Frame(size, 0.8)).pixels.float(), rtol=0, atol=6)


@pytest.mark.parametrize("kind", ["folder", "stream"])
def test_a_part_of_a_source_has_its_originals_too(kind: str, tmp_path: Path) -> None:
    source, chosen = open_source(of_kind(kind, tmp_path), image_size=S), torch.tensor([1, 4, 20])
    part = source.part(chosen)
    assert torch.equal(part.read(torch.arange(3)), source.read(chosen)) and part.fingerprint != source.fingerprint
    assert torch.equal(again(part), again(source, chosen)) and part.sides.tolist() == source.sides[chosen].tolist()


def test_images_smaller_than_asked_for_are_counted_without_reading_them_again() -> None:
    source = open_source([pictures.numbered(i, side=20 + 4 * (i % 3)) for i in range(N)], image_size=S)
    for frame, small in ((Frame(20), 0), (Frame(T), 20), (Frame(20, 0.9), 10)):
        assert source.smaller_than(frame) == small


@pytest.mark.parametrize(("sides", "side"), [((3, 50, 20), 50), ((20, 3, 50, 60, 90), 60), ((20, 3, 3, 3, 90), 20)])
def test_the_side_of_the_first_originals_is_known_before_and_after_opening(sides: tuple[int, ...], side: int) -> None:
    images = [pictures.numbered(number, side=each, width=each + 20) for number, each in enumerate(sides)]
    found = find_images(images, image_size=S)
    assert isinstance(found, Decoder)
    assert found.original_side == open_source(found).original_side == side


def test_the_next_images_are_decoded_while_the_caller_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = threading.Semaphore(0)
    decode = Items.decode

    def counted(self: Items, *given: Any) -> Any:
        decoded.release()
        return decode(self, *given)

    monkeypatch.setattr(Items, "decode", counted)
    for number in range(N):
        pictures.numbered(number).save(tmp_path / f"{number:03d}.png")
    source = open_source(tmp_path, image_size=S)
    while decoded.acquire(blocking=False):
        pass
    batches = source.again(torch.arange(N).split(5), Frame(T))
    assert len(next(batches)) == 5
    assert all(decoded.acquire(timeout=10) for _ in range(10))  # of this batch and the next
    batches.close()
    assert not any(thread.name.startswith("decode") for thread in threading.enumerate())


def test_a_users_dataset_is_read_by_the_thread_that_asks() -> None:
    readers = set()

    class Own(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            readers.add(threading.get_ident())
            return super().__getitem__(index)

    source = open_source(Own(pictures.numbered(i) for i in range(N)), image_size=S)
    readers.clear()
    again(source, batch=2)
    assert readers == {threading.get_ident()}


def test_what_pillow_and_python_were_set_to_is_so_again_after_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    folder = write(tmp_path, [pictures.numbered(i) for i in range(N)])
    source, before = open_source(folder, image_size=S), list(warnings.filters)
    (folder / "029.png").write_bytes((folder / "029.png").read_bytes()[:60])
    with pytest.raises(DistillError, match="truncated"):
        again(source, batch=1)
    assert ImageFile.LOAD_TRUNCATED_IMAGES and list(warnings.filters) == before


def test_several_threads_give_files_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    source = open_source(write(tmp_path, [pictures.numbered(i) for i in range(N)]), image_size=S)
    assert pictures.number_of(again(source, batch=2)) == list(range(N))
