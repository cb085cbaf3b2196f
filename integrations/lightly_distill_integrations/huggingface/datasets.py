"""Hugging Face datasets as sources: parquet and Arrow files, tar shards, what `save_to_disk` left, the Hub."""

from pathlib import Path
from typing import TypeVar

import datasets
from datasets import Dataset, Image, IterableDataset, load_dataset, load_dataset_builder, load_from_disk

from lightly_distill.data.locate import choose_split, missing_path
from lightly_distill.errors import UsageError, first_line

_Rows = TypeVar("_Rows", Dataset, IterableDataset)
_SUFFIXES = {"parquet": ".parquet", "arrow": ".arrow", "webdataset": ".tar"}  # by builder
_SHARD_CURE = (
    ". Shards, the first one too, hold groups of files of one name, such as 0001.jpg and 0001.json; "
    "unpack other archives."
)


def open(spec: str, split: str | None) -> Dataset | IterableDataset:
    """Opens a dataset without decoding its images.

    Args:
        spec: A folder or file of parquet, Arrow or WebDataset's tar shards, a folder from `save_to_disk`, or a dataset
            id on the Hub.
        split: Default: `train`, or the only one.

    Returns:
        Rows, memory-mapped, whose images are mappings with `bytes` and `path`; those of tar shards are a stream.

    Raises:
        UsageError: If there is no such dataset or split, or its files are damaged.
    """
    path = Path(spec)
    if not path.exists():
        data = _from_hub(spec, split)
    elif path.is_dir() and any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        data = _from_disk(path, split)
    else:
        data = _from_files(path, split)
    return data if isinstance(data, IterableDataset) else undecoded(data)  # of a stream, a task wants the labels


def undecoded(data: _Rows) -> _Rows:
    """Returns a dataset whose rows hold the files of images, and no transform; `data` itself stays as it is.

    So one broken image is one broken row, instead of the end of reading. Of a stream other columns are left out, where
    it reports which hold images: it would end at one that is not of the type of the first rows.
    """
    data = data.with_format(None)
    images = {name: feature for name, feature in (data.features or {}).items() if isinstance(feature, Image)}
    if images and isinstance(data, IterableDataset):
        data = data.select_columns(list(images))
    for name, feature in images.items():
        if feature.decode:
            data = data.cast_column(name, Image(decode=False))
    return data


def _from_disk(path: Path, split: str | None) -> Dataset:
    try:
        data = load_from_disk(str(path))
    except Exception as error:  # damaged files fail in many ways
        raise UsageError(f"The dataset in '{path}' cannot be read: {_first_line(error)}") from error
    if isinstance(data, dict):
        return data[choose_split(data, split, str(path))]
    choose_split([str(data.split or "train")], split, str(path))
    return data


def _from_files(path: Path, split: str | None) -> Dataset | IterableDataset:
    if path.is_file():
        kind = next(kind for kind, suffix in _SUFFIXES.items() if suffix == path.suffix.lower())
        files = {"train": [str(path)]}
    else:
        kind = next(kind for kind, suffix in _SUFFIXES.items() if any(path.rglob(f"*{suffix}")))
        try:
            listed = load_dataset_builder(kind, data_dir=str(path)).config.data_files
        except Exception as error:
            raise UsageError(f"The {kind} files in '{path}' cannot be listed: {_first_line(error)}") from error
        own = {name: [file for file in listed[name] if file.endswith(_SUFFIXES[kind])] for name in listed}
        files = {name: some for name, some in own.items() if some}
    split = choose_split(files, split, str(path))
    try:
        # Only the split that was asked for: tables are copied to the cache of `datasets` once.
        streaming = kind == "webdataset"
        return load_dataset(kind, data_files={split: files[split]}, split=split, streaming=streaming)
    except Exception as error:
        cure = _SHARD_CURE if kind == "webdataset" else ""
        reason = _first_line(error).rstrip(".")
        raise UsageError(f"The {kind} files in '{path}' cannot be read: {reason}{cure}") from error


def _from_hub(spec: str, split: str | None) -> Dataset:
    try:
        builder = load_dataset_builder(spec)
    except Exception as error:  # no such dataset, no right to see it, no network, several configurations
        raise UsageError(
            f"{missing_path(spec)} As a dataset on the Hugging Face Hub it cannot be opened: {_first_line(error)}"
        ) from error
    split = choose_split(builder.info.splits or builder.config.data_files or {}, split, spec)
    try:
        return load_dataset(spec, split=split)
    except Exception as error:
        raise UsageError(f"The Hub dataset '{spec}' cannot be fetched: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    while isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__  # it only says that an error occurred
    return first_line(error)
