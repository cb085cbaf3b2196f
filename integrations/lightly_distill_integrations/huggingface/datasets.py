"""Hugging Face datasets as sources: parquet and Arrow files, tar shards, what `save_to_disk` left, the Hub."""

import errno
import glob
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import datasets
import numpy as np
from datasets import (
    Array2D,
    Array3D,
    Dataset,
    Image,
    IterableDataset,
    Value,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)

from lightly_distill.data.locate import choose_split, images_or_files, missing_path
from lightly_distill.data.shards import COMPRESSED, TarShards, TarStream, open_shards
from lightly_distill.errors import UsageError, first_line

_Rows = TypeVar("_Rows", Dataset, IterableDataset)
_PATIENCE = 3  # seconds
_SUFFIXES = {"parquet": (".parquet",), "arrow": (".arrow",), "webdataset": (".tar", *COMPRESSED)}  # by builder


def open(spec: str, split: str | None) -> Dataset | IterableDataset | TarShards | TarStream:
    """Opens a dataset without decoding its images.

    Args:
        spec: A folder or file of parquet, Arrow or WebDataset's tar shards, a folder from `save_to_disk`, or a dataset
            id on the Hub.
        split: Default: `train`, or the only one.

    Returns:
        Rows, memory-mapped, whose images are mappings with `bytes` and `path`; the samples of tar shards.

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
    return undecoded(data) if isinstance(data, Dataset) else data  # of a stream, a task wants the labels


def undecoded(data: _Rows) -> "_Rows | _OwnTypes":
    """Returns a dataset whose rows hold the files of images, and no transform; `data` itself stays as it is.

    So one broken image is one broken row, instead of the end of reading. Of a stream other columns are left out, where
    it reports which hold images: it would end at one that is not of the type of the first rows. Arrays of numbers come
    as NumPy's, of their own type, whatever format the user has set.
    """
    data = data.with_format(None)
    features = data.features or {}
    images = {name: feature for name, feature in features.items() if isinstance(feature, Image)}
    if images and isinstance(data, IterableDataset):
        data = data.select_columns(list(images))
    for name, feature in images.items():
        if feature.decode:
            data = data.cast_column(name, Image(decode=False))
    arrays = {name: kind for name, feature in features.items() if (kind := _array_type(feature))}
    if arrays and isinstance(data, Dataset):  # without `dtype`, all whole numbers come as int64
        return data.with_format("numpy", columns=list(arrays), output_all_columns=True, dtype=None)
    return _OwnTypes(data.with_format("numpy"), arrays) if arrays and not images else data


class _OwnTypes:
    """A stream of rows whose arrays have the types of their columns; `datasets` makes int64 of all whole numbers."""

    def __init__(self, data: IterableDataset, arrays: Mapping[str, str]) -> None:
        self._data, self._arrays = data, arrays

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self._data:
            # a missing one is NaN and stays so, for who decodes it to tell
            whole = {name: row[name] for name in self._arrays if getattr(row[name], "dtype", None) == np.int64}
            yield {**row, **{name: value.astype(self._arrays[name]) for name, value in whole.items()}}


def _array_type(feature: Any) -> str | None:
    """Returns the type of the numbers of a column of arrays of at least two dimensions; None of another column."""
    if isinstance(feature, (Array2D, Array3D)):
        return str(feature.dtype)
    depth = 0
    while hasattr(feature, "feature"):
        feature, depth = feature.feature, depth + 1
    return str(feature.dtype) if depth > 1 and isinstance(feature, Value) and feature.dtype != "string" else None


def _from_disk(path: Path, split: str | None) -> Dataset:
    try:
        data = load_from_disk(str(path))
    except Exception as error:  # damaged files fail in many ways
        raise UsageError(f"The dataset in '{path}' cannot be read: {_first_line(error)}") from error
    if isinstance(data, dict):
        return data[choose_split(data, split, str(path))]
    choose_split([str(data.split or "train")], split, str(path))
    return data


def _from_files(path: Path, split: str | None) -> Dataset | TarShards | TarStream:
    found = [path] if path.is_file() else images_or_files(path)[1]
    of_kind = {
        kind: [str(file) for file in found if file.name.lower().endswith(ends)] for kind, ends in _SUFFIXES.items()
    }
    kind = next((kind for kind in of_kind if of_kind[kind]), None)
    if kind is None:
        raise UsageError(f"'{path}' holds no tables or shards (such as .parquet, .arrow, .tar).")
    files = {"train": of_kind[kind]} if path.is_file() else _by_split(kind, path, of_kind[kind])
    split = choose_split(files, split, str(path))
    if kind == "webdataset":  # whose columns `datasets` infers from the first five samples, losing others
        return open_shards(files[split], split)
    try:
        # Only the split that was asked for: tables are copied to the cache of `datasets` once.
        return load_dataset(kind, data_files={split: [glob.escape(file) for file in files[split]]}, split=split)
    except Exception as error:
        raise UsageError(f"The {kind} files in '{path}' cannot be read: {_first_line(error)}") from error


def _by_split(kind: str, folder: Path, files: Sequence[str]) -> dict[str, list[str]]:
    """Divides the files below a folder into splits, as `datasets` reads them from their names."""
    splits: dict[str, list[str]] = {}
    left = {os.path.realpath(file): file for file in files}
    place, tried = str(folder), set[str]()
    while left and place not in tried:
        for name, some in _listed(kind, place).items():
            own = [left.pop(real) for file in some if (real := os.path.realpath(file)) in left]
            splits[name] = [*splits.get(name, []), *own]
        tried.add(place)
        place = os.path.dirname(next(iter(left), place))  # where a link leads, which it does not follow
    return {name: some for name, some in splits.items() if some}


def _listed(kind: str, folder: str) -> dict[str, list[str]]:
    try:
        return dict(load_dataset_builder(kind, data_dir=glob.escape(folder)).config.data_files or {})
    except FileNotFoundError:  # none that it sees
        return {}
    except Exception as error:
        raise UsageError(f"The {kind} files in '{folder}' cannot be listed: {_first_line(error)}") from error


def _from_hub(spec: str, split: str | None) -> Dataset:
    if not _reachable() and not _cached(spec):
        raise UsageError(f"{missing_path(spec)} The Hugging Face Hub, where it could be a dataset, cannot be reached.")
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


def _reachable() -> bool:
    """Returns whether the Hub answers within a few seconds; its client would try for half a minute."""
    address = urlsplit(datasets.config.HF_ENDPOINT)
    if datasets.config.HF_HUB_OFFLINE or getproxies():  # who is asked then is not for us to say
        return True
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname or "", port), timeout=_PATIENCE).close()
    except OSError:
        return False
    return True


def _cached(spec: str) -> bool:
    """Returns whether `datasets` has this dataset of the Hub in its cache."""
    return Path(datasets.config.HF_DATASETS_CACHE, spec.replace("/", "___").lower()).is_dir()


def _first_line(error: BaseException) -> str:
    while isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__  # it only says that an error occurred
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{first_line(error)}. Set HF_HOME to a folder that can be written to, for the cache of `datasets`."
    return first_line(error)
