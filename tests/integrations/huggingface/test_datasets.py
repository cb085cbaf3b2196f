import gzip
import json
import logging
import socket
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import (
    Array2D,
    Array3D,
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    IterableDatasetDict,
    List,
    Value,
    concatenate_datasets,
    load_dataset,
)
from datasets import Image as ImageFeature
from PIL import Image
from torch import Tensor

from lightly_distill.data.locate import locate
from lightly_distill.data.reading import Reading
from lightly_distill.data.source import open_source
from lightly_distill.errors import DistillError, UsageError
from lightly_distill.runtime import seeding
from lightly_distill_integrations.huggingface import datasets as hf_datasets

N, S = 6, 8


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def images() -> Tensor:
    return torch.randint(256, (N, 3, S, S), generator=seeding.generator(0, "test"), dtype=torch.uint8)


def pillow(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


def made(images: Tensor, column: str = "image") -> Dataset:
    features = Features({column: ImageFeature(), "label": ClassLabel(num_classes=N)})
    return Dataset.from_dict({column: pillow(images), "label": list(range(len(images)))}, features=features)


def png(image: Tensor) -> bytes:
    buffer = BytesIO()
    pillow(image[None])[0].save(buffer, "PNG")
    return buffer.getvalue()


def everything(data: Any) -> Tensor:
    opened = open_source(data)
    return opened.read(torch.arange(len(opened)))


def write_parquet(folder: Path, images: Tensor) -> Path:
    (folder / "data").mkdir(parents=True)
    made(images[:4]).to_parquet(folder / "data" / "train-00000-of-00002.parquet")
    made(images[4:5]).to_parquet(folder / "data" / "train-00001-of-00002.parquet")
    made(images[5:]).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    (folder / "preview.png").write_bytes(png(images[0]))
    return folder


def test_a_dataset_object_is_read_whatever_its_format_and_stays_as_it_is(images: Tensor) -> None:
    data = made(images, "scan")
    for kind in (None, "torch", "numpy"):
        formatted = data.with_format(kind)
        assert torch.equal(everything(formatted), images), kind
        assert formatted.format["type"] == kind
        assert formatted.features["scan"].decode


def test_a_broken_a_missing_and_an_empty_image_are_skipped_and_the_rest_is_read(images: Tensor) -> None:
    files: list[Any] = [{"bytes": png(image), "path": None} for image in images]
    files[1] = {"bytes": files[1]["bytes"][:60], "path": None}
    files[2] = None
    files[4] = {"bytes": b"", "path": None}
    data = Dataset.from_dict({"image": files}, features=Features({"image": ImageFeature()}))
    opened = open_source(data)
    assert opened.skipped == {"truncated": 1, "missing": 1, "empty": 1}
    assert torch.equal(opened.read(torch.arange(3)), images[[0, 3, 5]])


def test_a_random_transform_is_left_out_and_a_steady_one_stays(
    images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    def noise(rows: dict[str, Any]) -> dict[str, Any]:
        return {"image": [[torch.rand(3, S, S)] * 2 for _ in rows["image"]]}

    def mirrored(rows: dict[str, Any]) -> dict[str, Any]:
        return {"image": [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in rows["image"]]}

    with caplog.at_level(logging.INFO):
        assert torch.equal(everything(made(images).with_transform(mirrored)), images.flip(-1))
        assert "without its transform" not in caplog.text
        assert torch.equal(everything(made(images).with_transform(noise)), images)
        assert "Reading Dataset without its transform" in caplog.text


def test_a_dict_of_splits_is_an_error_that_says_what_to_give(images: Tensor) -> None:
    data = made(images)
    with pytest.raises(UsageError, match=r"DatasetDict is a mapping of splits \(train, extra\); give one of them"):
        open_source(DatasetDict(train=data, extra=data))
    with pytest.raises(UsageError, match=r"IterableDatasetDict is a mapping of splits \(train, extra\); give one"):
        open_source(IterableDatasetDict(train=data.to_iterable_dataset(), extra=data.to_iterable_dataset()))
    assert torch.equal(everything(IterableDatasetDict(train=data.to_iterable_dataset())), images)  # the only one


def test_columns_without_an_image_are_named() -> None:
    with pytest.raises(UsageError, match="of its columns text, label none holds images; name one of them 'image'"):
        open_source(Dataset.from_dict({"text": ["a"], "label": [1]}))


def test_a_parquet_folder_gives_its_splits_and_only_reads_the_one_asked_for(tmp_path: Path, images: Tensor) -> None:
    folder = write_parquet(tmp_path / "set", images)
    opened = open_source(folder)
    assert (opened.name, len(opened)) == (f"{folder}#train", 5)
    assert torch.equal(opened.read(torch.arange(5)), images[:5])
    (folder / "data" / "train-00000-of-00002.parquet").write_bytes(b"broken")
    assert torch.equal(everything(f"{folder}#test"), images[5:])
    with pytest.raises(UsageError, match=r"has no split 'tset'\. Did you mean 'test'\?"):
        open_source(f"{folder}#tset")
    with pytest.raises(UsageError, match=f"parquet files in '{folder}' cannot be read: Parquet file size is 6 bytes"):
        open_source(folder)


def test_a_broken_second_file_is_told_by_its_cause(tmp_path: Path, images: Tensor) -> None:
    folder = write_parquet(tmp_path / "set", images)
    (folder / "data" / "train-00001-of-00002.parquet").write_bytes(b"broken")
    with pytest.raises(UsageError, match=r"set.* cannot be read: .*Parquet file size is 6 bytes"):
        open_source(folder)


def test_a_parquet_file_is_a_source_with_or_without_the_metadata_of_hugging_face(
    tmp_path: Path, images: Tensor
) -> None:
    file = tmp_path / "some.parquet"
    made(images).to_parquet(file)
    assert torch.equal(everything(file), images)
    column = [{"bytes": png(image), "path": "a.png"} for image in images]
    for name, rows in {"structs": column, "bytes": [row["bytes"] for row in column]}.items():
        pq.write_table(pa.table({"picture": rows, "label": list(range(N))}), tmp_path / f"{name}.parquet")
        assert torch.equal(everything(tmp_path / f"{name}.parquet"), images), name
    with pytest.raises(UsageError, match="has no split 'test'"):
        open_source(f"{file}#test")


def test_an_arrow_file_and_a_folder_of_them_are_sources(tmp_path: Path, images: Tensor) -> None:
    data = made(images).with_format("arrow")[:]
    with pa.ipc.new_stream(tmp_path / "a.arrow", data.schema) as writer:
        writer.write_table(data)
    assert torch.equal(everything(tmp_path / "a.arrow"), images)
    assert torch.equal(everything(tmp_path), images)


def test_many_small_parquet_files_are_one_source_mapped_or_streamed(tmp_path: Path, images: Tensor) -> None:
    for number in range(N):
        made(images[number : number + 1]).to_parquet(tmp_path / f"part-{number:03d}.parquet")
    (tmp_path / "notes.txt").write_text("no table")
    assert torch.equal(everything(tmp_path), images)
    assert locate(tmp_path)[0].cache_files  # Arrow on disk, of which rows are mapped
    files = [str(file) for file in sorted(tmp_path.glob("*.parquet"))]
    assert torch.equal(everything(load_dataset("parquet", data_files=files, split="train", streaming=True)), images)


@pytest.mark.parametrize("streamed", [False, True])
def test_arrays_of_8_bits_are_taken_as_they_are_however_dark(images: Tensor, streamed: bool) -> None:
    dark = images // 2
    arrays = {"x": dark.numpy(), "lists": dark.tolist(), "floats": [image[0].tolist() for image in images / 255]}
    of = {
        "x": Array3D((3, S, S), "uint8"),
        "lists": List(List(List(Value("uint8")))),
        "floats": Array2D((S, S), "float32"),
    }
    for column in ("x", "lists"):
        data = Dataset.from_dict(arrays, features=Features(of))
        opened = open_source(data.to_iterable_dataset() if streamed else data, reading=Reading(column=column))
        assert opened.value_range is None and torch.equal(opened.read(torch.arange(N)), dark), column
    some = Dataset.from_dict({"x": [arrays["x"][0], None]}, features=Features(x=of["x"]))
    with pytest.raises(UsageError, match=r"Item 1 of .*: NaN or infinite pixels"):  # no black image
        open_source(some.to_iterable_dataset() if streamed else some)


def test_a_stream_is_read_whatever_was_done_to_it(images: Tensor) -> None:
    data = made(images, "scan").to_iterable_dataset(num_shards=3)
    kinds = {
        "plain": data,
        "torch": data.with_format("torch"),
        "filtered": data.filter(lambda row: row["label"] < N),
        "of unknown columns": data.map(lambda row: row),
        "of rows": data.remove_columns("label"),
    }
    for kind, stream in kinds.items():
        assert torch.equal(everything(stream), images), kind
    order = [row["label"] for row in data.shuffle(seed=1, buffer_size=N)]
    assert torch.equal(everything(data.shuffle(seed=1, buffer_size=N)), images[order])
    with pytest.raises(UsageError, match=r"Item 0 of IterableDataset: .* columns text none holds images"):
        open_source(Dataset.from_dict({"text": ["a"]}).to_iterable_dataset())


def test_a_broken_image_in_a_stream_is_skipped(images: Tensor) -> None:
    files = [{"bytes": png(image), "path": None} for image in images]
    files[1] = {"bytes": png(images[1])[:60], "path": None}
    data = Dataset.from_dict({"image": files}, features=Features({"image": ImageFeature()})).to_iterable_dataset()
    opened = open_source(data)
    assert (opened.skipped, len(opened)) == ({"truncated": 1}, N - 1)
    assert opened.kept.tolist() == [0, 2, 3, 4, 5]


# --- tar shards


def write_tar(file: Path, members: dict[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
    return file


def samples(images: Tensor, first: int = 0) -> dict[str, bytes]:
    """Groups of files as WebDataset has them; a field of the JSON changes its type on the way."""
    members = {}
    for number, image in enumerate(images, first):
        members |= {f"a/{number:04d}.png": png(image), f"a/{number:04d}.cls": str(number).encode()}
        members |= {f"a/{number:04d}.json": json.dumps({"id": number if number < 5 else "five"}).encode()}
    return members


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_tar_shards_are_a_source_without_a_copy_of_them(tmp_path: Path, images: Tensor) -> None:
    for number in range(3):
        write_tar(tmp_path / "shards" / f"{number:03d}.tar", samples(images[2 * number :][:2], 2 * number))
    (tmp_path / "shards" / "index.txt").write_text("no shard")
    opened = open_source(tmp_path / "shards")
    assert torch.equal(opened.read(torch.arange(N)), images)
    assert (opened.name, opened.skipped) == (f"{tmp_path / 'shards'}#train", {})
    assert torch.equal(everything(tmp_path / "shards" / "001.tar"), images[2:4])
    assert not [
        file for file in Path(datasets.config.HF_DATASETS_CACHE).rglob("*") if file.is_file() and file.stat().st_size
    ]


def test_folders_of_any_name_links_and_upper_case_are_read(tmp_path: Path, images: Tensor) -> None:
    folder = write_parquet(tmp_path / "my sets [v2]" / "a*", images)
    assert torch.equal(everything(folder), images[:5])
    assert torch.equal(everything(f"{folder}#test"), images[5:])
    file = folder / "data" / "test-00000-of-00001.parquet"
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "here").symlink_to(folder / "data")
    assert torch.equal(everything(tmp_path / "linked"), images[:5])
    assert torch.equal(everything(f"{tmp_path / 'linked'}#test"), images[5:])
    (tmp_path / "upper").mkdir()
    file.rename(tmp_path / "upper" / "A.PARQUET")
    assert torch.equal(everything(tmp_path / "upper"), images[5:])
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match=r"'.*none' holds no tables or shards \(such as \.parquet"):
        open_source(f"huggingface:{tmp_path / 'none'}")


def test_a_table_that_describes_images_or_shards_is_not_read_for_them(
    tmp_path: Path, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    described = Dataset.from_dict({"url": ["a"] * N, "caption": ["b"] * N, "key": list(range(N))})
    write_tar(tmp_path / "i2d" / "00000.tar", samples(images))
    described.to_parquet(tmp_path / "i2d" / "00000.parquet")
    (tmp_path / "i2d" / ".cache").mkdir()
    made(images[:1]).to_parquet(tmp_path / "i2d" / ".cache" / "q.parquet")
    assert torch.equal(everything(tmp_path / "i2d"), images)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(png(images[0]))
    described.to_parquet(tmp_path / "images" / "labels.parquet")
    assert torch.equal(everything(tmp_path / "images"), images[:1])
    assert "labels.parquet" in caplog.text and "00000.parquet" in caplog.text


def test_shards_have_splits_and_images_beside_an_archive_come_first(tmp_path: Path, images: Tensor) -> None:
    for split, part in (("train", images[:4]), ("test", images[4:])):
        write_tar(tmp_path / "shards" / f"{split}-000.tar", samples(part))
    assert torch.equal(everything(tmp_path / "shards"), images[:4])
    assert torch.equal(everything(f"{tmp_path / 'shards'}#test"), images[4:])
    with pytest.raises(UsageError, match=r"has no split 'tset'\. Did you mean 'test'\?"):
        open_source(f"{tmp_path / 'shards'}#tset")
    (tmp_path / "shards" / "0.png").write_bytes(png(images[5]))
    assert torch.equal(everything(tmp_path / "shards"), images[5:])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {},
            r"The shard '.*x\.tar' holds no files with endings, such as 0001\.jpg and 0001\.json\.",
        ),
        ({"a/readme": b"x"}, r"holds no files with endings, such as 0001\.jpg and 0001\.json\.$"),
        ({"a/0.txt": b"x", "a/0.md": b"y"}, r"Item 0 of .*x\.tar#train: of its columns txt, md 2 hold images; choose"),
        ({"a/0.bin": b"x", "a/1.bin": b"y"}, r"x\.tar#train holds no usable image: 2 not an image \(first: item 0\)"),
    ],
)
def test_a_tar_without_images_is_one_line(members: dict[str, bytes], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_source(write_tar(tmp_path / "x.tar", members))
    assert "\n" not in str(caught.value)


def test_a_shard_that_is_cut_off_is_refused(tmp_path: Path, images: Tensor) -> None:
    write_tar(tmp_path / "0.tar", samples(images))
    whole = write_tar(tmp_path / "1.tar", samples(images)).read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[:5000])
    with pytest.raises(UsageError, match=rf"The shard '{tmp_path}/1\.tar' cannot be read: unexpected end of data"):
        open_source(tmp_path)
    damaged = bytearray(whole)
    place = whole.index(b"a/0003.png")
    damaged[place : place + 100] = b"\x07" * 100
    (tmp_path / "1.tar").write_bytes(damaged)
    with pytest.raises(UsageError, match=r"The shard '.*/1\.tar' cannot be read: its header at byte .* is damaged"):
        open_source(tmp_path)
    cut = gzip.compress(whole)[:-100]
    (tmp_path / "2.tar.gz").write_bytes(cut)
    with pytest.raises(DistillError, match=r"breaks off after \d items with DistillError: The shard '.*2\.tar\.gz'"):
        open_source(tmp_path / "2.tar.gz")


def test_what_save_to_disk_left_is_a_source(tmp_path: Path, images: Tensor) -> None:
    made(images).save_to_disk(tmp_path / "one")
    assert torch.equal(everything(tmp_path / "one"), images)
    with pytest.raises(UsageError, match=r"one' has no split 'test'\. Known: train\."):
        open_source(f"{tmp_path / 'one'}#test")
    DatasetDict(a=made(images[:2]), b=made(images[2:])).save_to_disk(tmp_path / "two")
    assert torch.equal(everything(f"{tmp_path / 'two'}#b"), images[2:])
    with pytest.raises(UsageError, match=r"has the splits a, b; choose one, such as '.*two#a'"):
        open_source(tmp_path / "two")
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"broken")
    with pytest.raises(UsageError, match=f"The dataset in '{tmp_path / 'one'}' cannot be read: "):
        open_source(tmp_path / "one")


def test_a_hub_id_goes_to_the_hub_with_its_splits(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = {"train": made(images[:4]), "test": made(images[4:])}

    class Builder:
        info = datasets.DatasetInfo()
        config = SimpleNamespace(data_files=hub)

    monkeypatch.setattr(hf_datasets, "_reachable", lambda: True)
    monkeypatch.setattr(hf_datasets, "load_dataset_builder", lambda spec: Builder)
    monkeypatch.setattr(hf_datasets, "load_dataset", lambda spec, split: hub[split])
    assert torch.equal(everything("me/birds"), images[:4])
    assert torch.equal(everything("huggingface:me/birds#test"), images[4:])
    assert open_source("birds#test").name == "birds#test"
    with pytest.raises(UsageError, match=r"'me/birds' has no split 'val'\. Known: test, train\."):
        open_source("me/birds#val")


def test_a_hub_that_cannot_be_reached_is_one_line_that_also_names_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(spec: str) -> None:
        raise ConnectionError("Couldn't reach the Hub\nand more")

    monkeypatch.setattr(hf_datasets, "load_dataset_builder", unreachable)
    monkeypatch.setattr(hf_datasets, "_reachable", lambda: True)
    with pytest.raises(UsageError, match=r"no file or folder 'me/birds'.* cannot be opened: Couldn't reach the Hub$"):
        open_source("me/birds")


def test_a_wrong_path_does_not_wait_for_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound and not listening: a connection is refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setattr(hf_datasets, "getproxies", dict)
        monkeypatch.setattr(hf_datasets, "load_dataset_builder", lambda spec: pytest.fail("asked the Hub"))
        with pytest.raises(UsageError, match=r"no file or folder 'me/birds'.* Hub, where .*, cannot be reached\.$"):
            open_source("me/birds")


def test_a_cache_that_cannot_be_written_names_its_variable(
    images: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", "/root/.cache/huggingface")

    made(images).to_parquet(tmp_path / "x.parquet")
    monkeypatch.setattr(hf_datasets, "load_dataset", refused)
    with pytest.raises(UsageError, match=r"Permission denied: .* Set HF_HOME to a folder that can be written to"):
        open_source(tmp_path / "x.parquet")


@pytest.mark.parametrize("name", ["cifar10", "tinyimagenet100-32"])
def test_real_images_are_read_from_the_data_folder(name: str, real_data: Path) -> None:
    part = hf_datasets.open(str(real_data / name), "test")
    opened = open_source(concatenate_datasets([part.select(range(64))]))
    shown = opened.read(torch.arange(64))
    assert (opened.image_size, opened.skipped, shown.shape) == (32, {}, (64, 3, 32, 32))
    assert (shown.float().std((1, 2, 3)) > 5).all()  # no blank one
    raw = Image.open(BytesIO(part[5]["image"]["bytes"])).convert("RGB")
    assert Image.fromarray(shown[5].permute(1, 2, 0).numpy()).tobytes() == raw.tobytes()
