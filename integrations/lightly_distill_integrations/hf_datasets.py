"""Hugging Face datasets as sources: parquet and Arrow files, what `save_to_disk` left, the Hub."""

from pathlib import Path

import datasets
from datasets import Dataset, Image, load_dataset, load_dataset_builder, load_from_disk

from lightly_distill.errors import UsageError, first_line
from lightly_distill.locate import choose_split, missing_path


def open(spec: str, split: str | None) -> Dataset:
    """Opens a dataset without decoding its images.

    Args:
        spec: A folder or file of parquet or Arrow, a folder from `save_to_disk`, or a dataset id on the Hub.
        split: Default: `train`, or the only one.

    Returns:
        Rows whose images are mappings with `bytes` and `path`.

    Raises:
        UsageError: If there is no such dataset or split, or its files are damaged.
    """
    path = Path(spec)
    if not path.exists():
        data = _from_hub(spec, split)
    elif path.is_dir() and any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        data = _from_disk(path, split)
    else:
        data = _from_tables(path, split)
    return undecoded(data)


def undecoded(data: Dataset) -> Dataset:
    """Returns a dataset whose rows hold the files of images, and no transform; `data` itself stays as it is.

    So one broken image is one broken row, instead of the end of reading.
    """
    data = data.with_format(None)
    for name, feature in data.features.items():
        if isinstance(feature, Image) and feature.decode:
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


def _from_tables(path: Path, split: str | None) -> Dataset:
    if path.is_file():
        kind, files = path.suffix.lower()[1:], {"train": [str(path)]}
    else:
        kind = "parquet" if any(path.rglob("*.parquet")) else "arrow"
        try:
            files = load_dataset_builder(kind, data_dir=str(path)).config.data_files
        except Exception as error:
            raise UsageError(f"The {kind} files in '{path}' cannot be listed: {_first_line(error)}") from error
    split = choose_split(files, split, str(path))
    try:
        # Only the split that was asked for: each is copied to the cache of `datasets` once.
        return load_dataset(kind, data_files={split: list(files[split])}, split=split)
    except Exception as error:
        raise UsageError(f"The {kind} files in '{path}' cannot be read: {_first_line(error)}") from error


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
