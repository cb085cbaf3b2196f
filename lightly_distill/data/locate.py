"""From what a user writes for a source, `SCHEME:NAME`, a path or a Hub id with `#SPLIT`, to a dataset."""

import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightly_distill import adapters
from lightly_distill.data.decode import SUFFIXES
from lightly_distill.data.shards import COMPRESSED
from lightly_distill.errors import UsageError, did_you_mean
from lightly_distill.runtime.console import tell_once

DATA_FOLDER = "LIGHTLY_DISTILL_DATA"  # environment variable

_logger = logging.getLogger(__name__)

_TABLES = (".parquet", ".arrow")
_ARCHIVES = (".tar", *COMPRESSED)
_SAVED_TO_DISK = ("dataset_dict.json", "state.json")  # what Hugging Face's save_to_disk leaves
_TEST_SPLITS = frozenset({"val", "valid", "validation", "test"})
_SPLITS = _TEST_SPLITS | {"train"}  # folders that are no classes
_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)


class ImageFiles(list[str]):
    """Paths of the images below a folder.

    Args:
        root: The folder. Its own folders are classes, whatever lies below them, as in torchvision's `ImageFolder`.
        paths: Of the images.
    """

    def __init__(self, root: Path, paths: Iterable[Path]) -> None:
        super().__init__(map(str, paths))
        self.root = root

    def classes(self) -> list[str]:
        """Returns the class of each image: the folder of the root that it is in; empty where it is in none."""
        parts = (Path(path).relative_to(self.root).parts for path in self)
        return [own[0] if len(own) > 1 else "" for own in parts]


def locate(spec: str | Path) -> tuple[Any, str]:
    """Finds a source.

    Args:
        spec: `SCHEME:NAME` for an installed adapter, an existing path, a path in the folder that the environment
            variable LIGHTLY_DISTILL_DATA names, or a dataset id on the Hugging Face Hub; with `#SPLIT` if wanted.

    Returns:
        A dataset, or a stream of items, and the source's name with its split.

    Raises:
        UsageError: If there is no such source or split.
    """
    text = str(spec)
    scheme, colon, rest = text.partition(":")
    if colon and scheme in adapters.available("sources"):
        place, split = _split_off(rest)
        return _ask(scheme, place, split, f"{scheme}:{place}")
    for place, split in ((text, None), _split_off(text)):
        path = existing(place)
        if path is not None:
            return _open_path(path, split, place)
    place, split = _split_off(text)
    if _HUB_ID.fullmatch(place) and not place.endswith((*_TABLES, *_ARCHIVES, *SUFFIXES)):
        if "/" not in place and _near_paths(place):  # a typo more likely than a Hub dataset
            raise UsageError(
                f"{missing_path(place)} For a dataset on the Hugging Face Hub, write 'huggingface:{place}'."
            )
        return _ask("huggingface", place, split, place)
    if re.fullmatch(r"\w\w+", scheme) and colon:
        raise UsageError(
            f"Unknown kind of source '{scheme}' in '{text}'.{did_you_mean(scheme, adapters.available('sources'))}"
        )
    raise UsageError(missing_path(place))


def choose_split(splits: Iterable[str], wanted: str | None, name: str) -> str:
    """Chooses one of the splits of a source: `wanted`, or else `train` or the only one.

    Raises:
        UsageError: If there is no such split, or none was asked for and there is no obvious one.
    """
    names = [str(split) for split in splits]
    if wanted is None and (len(names) == 1 or "train" in names):
        return names[0] if len(names) == 1 else "train"
    if wanted in names:
        return str(wanted)
    if not names:
        raise UsageError(f"'{name}' has no splits" + (f"; leave '#{wanted}' out." if wanted else "."))
    if wanted is None:
        raise UsageError(f"'{name}' has the splits {', '.join(names)}; choose one, such as '{name}#{names[0]}'.")
    raise UsageError(f"'{name}' has no split '{wanted}'.{did_you_mean(wanted, names)}")


def missing_path(place: str) -> str:
    """Returns the error message about a path that does not exist, with the nearest that does."""
    root = os.environ.get(DATA_FOLDER)
    where = f", nor in {DATA_FOLDER} ({root})" if root else f" ({DATA_FOLDER} is not set)"
    return f"There is no file or folder '{place}'{where}.{_near_paths(place)}"


def _near_paths(place: str) -> str:
    """Returns the hint to what lies where a path leads and has nearly its name; empty where nothing has."""
    path, root = Path(place).expanduser(), os.environ.get(DATA_FOLDER)
    folders = [path.parent, *([Path(root, place).parent] if root else [])]
    names = {entry.name for folder in folders if folder.is_dir() for entry in folder.iterdir()}
    return did_you_mean(path.name, names, list_up_to=0)


def _split_off(text: str) -> tuple[str, str | None]:
    place, mark, split = text.rpartition("#")
    return (place, split) if mark else (text, None)


def existing(place: str) -> Path | None:
    """Returns the path of this name, as it is or in the data folder; None where there is none.

    Raises:
        UsageError: If nobody may look there.
    """
    candidates = [Path(place).expanduser()]
    if os.environ.get(DATA_FOLDER):
        candidates.append(Path(os.environ[DATA_FOLDER], place))
    try:
        return next((path for path in candidates if place and path.exists()), None)
    except PermissionError as error:  # of a folder above
        raise UsageError(f"'{place}' cannot be read: no permission.") from error


def _ask(scheme: str, place: str, split: str | None, name: str) -> tuple[Any, str]:
    data = adapters.get("sources", scheme).open(place, split)
    if data is None:
        raise UsageError(f"The adapter '{scheme}' finds no images in '{place}'.")
    own = getattr(data, "split", None)  # of a tensor, a method
    split = split or (None if callable(own) or own is None else str(own))
    return data, f"{name}#{split}" if split else name


def _open_path(path: Path, split: str | None, place: str) -> tuple[Any, str]:
    known = (*_TABLES, *_ARCHIVES)
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        raise UsageError(f"'{place}' cannot be read: no permission.")
    if path.is_file() and not path.name.lower().endswith(known):
        raise UsageError(f"'{place}' is a file; expected a folder of images, or a file ending in {' or '.join(known)}.")
    if path.is_file() or any((path / name).is_file() for name in _SAVED_TO_DISK):
        return _ask("huggingface", str(path), split, place)
    images, files = images_or_files(path)
    if files:
        return _ask("huggingface", str(path), split, place)
    if not images:
        raise UsageError(f"'{place}' holds no images, tables or shards (such as .jpg, .png, .parquet, .tar).")
    splits = _splits({(image.relative_to(path).parts[0], image.parent != path) for image in images})
    if split is None and not splits:
        return ImageFiles(path, images), place
    split = choose_split(splits, split, place)
    own = (image for image in images if image.relative_to(path).parts[0] == split)
    return ImageFiles(path / split, own), f"{place}#{split}"


def _splits(tops: set[tuple[str, bool]]) -> list[str]:
    """Returns the folders that are splits: all, or none where they are classes.

    Args:
        tops: What lies at the top, and whether it is a folder.
    """
    folders = {top for top, is_folder in tops if is_folder}
    lower = {folder.lower() for folder in folders}
    # beside train and test others are splits too, such as `unlabeled`; a picture beside them is in none
    only_splits = lower <= _SPLITS and len(folders) == len(tops)
    return sorted(folders) if only_splits or ("train" in lower and lower & _TEST_SPLITS) else []


def images_or_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Lists the images below a folder, or else the tables or shards that are read instead of them."""
    images, tables, archives = _walk(folder)
    if images or archives:  # a table beside them may describe them, as that of img2dataset does
        holding = [table for table in tables if _may_hold_images(table)]
        if len(holding) < len(tables):
            text = "Tables without images are left out: %d in %s, such as %s."
            first = next(table for table in tables if table not in holding)
            tell_once(_logger, logging.INFO, text, len(tables) - len(holding), folder, first.name)
        tables = holding
    if tables:
        return [], tables
    return (images, []) if images else ([], archives)  # images may lie beside the archive that they came in


def _may_hold_images(table: Path) -> bool:
    """Returns whether a column of a table may hold images: bytes, mappings or lists."""
    if table.suffix.lower() != ".parquet":
        return True
    import pyarrow as pa  # here: most folders hold images
    import pyarrow.parquet as pq

    try:
        kinds = pq.read_schema(table).types
    except (OSError, ValueError):  # damaged: who opens it says so
        return True
    return any(
        pa.types.is_nested(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or isinstance(kind, pa.BaseExtensionType)  # an array of `datasets`
        for kind in kinds
    )


def _walk(root: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Lists images, tables and archives below a folder, each sorted. Hidden files are left out.

    A folder that cannot be listed is among the images, where it will be counted as one that cannot be read.
    """
    images: list[Path] = []
    tables: list[Path] = []
    archives: list[Path] = []
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=lambda e: images.append(Path(e.filename))):
        real = os.path.realpath(folder)
        if real in seen:  # a link back, or a second way to the same images
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if suffix in SUFFIXES:
                images.append(Path(folder, name))
            elif suffix in _TABLES and name != "metadata.parquet":  # which describes images that lie beside it
                tables.append(Path(folder, name))
            elif name.lower().endswith(_ARCHIVES):
                archives.append(Path(folder, name))
    return sorted(images), sorted(tables), sorted(archives)
