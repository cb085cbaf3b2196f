"""A synthetic set on disk: a folder that is also the layout of a Hugging Face dataset repository.

    README.md                         the dataset card
    data/train-00000-of-00001.parquet image (PNG, for eyes), pixels (float32), representation (float32), source_index
    lightly_distill.json              format version, shape, normalisation, provenance, metrics, hashes
    preview.png                       the grid of images

Nothing is read but JSON and parquet, and nothing before the JSON has been checked.
"""

import hashlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from lightly_distill.errors import DistillError, UsageError

if TYPE_CHECKING:
    from lightly_distill.synthetic import SyntheticSet

FORMAT_VERSION = "1.0"
FACTS = "lightly_distill.json"
DATA = "data/train-00000-of-00001.parquet"
MAX_FACTS = 16 * 2**20  # bytes of JSON
MAX_VALUES = 2**33  # floating point numbers in a set; 32 GiB


def write(synthetic: "SyntheticSet", folder: Path, *, overwrite: bool) -> Path:
    """Writes a set; an old one stays whole until the new one is.

    Args:
        synthetic: The set.
        folder: New or empty folder.
        overwrite: Replace a set that is there.

    Returns:
        The folder.

    Raises:
        UsageError: If the folder is not empty and not to be overwritten, or holds something else than a set.
        DistillError: If it cannot be written; no partial folder stays.
    """
    occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if occupied and not overwrite:
        raise UsageError(f"The folder {folder} is not empty: overwrite=True replaces the set in it; or choose another.")
    if occupied and not (folder / FACTS).is_file():
        raise UsageError(f"The folder {folder} holds something that is not a synthetic set: choose another.")
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        (partial / "data").mkdir(parents=True)
        _write_files(synthetic, partial)
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise DistillError(f"The synthetic set {folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def find(folder: Path) -> Path:
    """Returns the folder of a set, given it or the output folder of a run.

    Raises:
        UsageError: If there is no set.
    """
    for candidate in (folder, folder / "set"):
        if (candidate / FACTS).is_file():
            return candidate
    if not folder.exists():
        raise UsageError(
            f"There is no synthetic set at {folder}: no such folder. (Sets on the Hub cannot be loaded yet.)"
        )
    raise UsageError(f"{folder} holds no synthetic set: there is no {FACTS} in it, nor in its folder 'set'.")


def read(folder: Path) -> dict[str, Any]:
    """Reads and checks a set; the arguments of `SyntheticSet`.

    Raises:
        DistillError: If a file is missing, changed or damaged, or the format is newer.
    """
    facts = read_facts(folder)
    for name, expected in facts["files"].items():
        _check_file(folder, name, expected)
    if DATA not in facts["files"]:
        raise DistillError(f"{folder / FACTS} lists no {DATA}: the set is not complete.")
    count, channels, height, width = facts["shape"]
    try:
        table = pq.read_table(folder / DATA, columns=["pixels", "representation", "source_index"])
        images = _numbers(table["pixels"], np.float32, (count, channels, height, width))
        representations = _numbers(table["representation"], np.float32, (count, facts["dim"]))
        source_index = _numbers(table["source_index"], np.int64, (count,))
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise DistillError(f"{folder / DATA} cannot be read as a synthetic set: {error}") from error
    return {
        "images": images,
        "representations": representations,
        "source_index": source_index,
        "mean": facts["mean"],
        "std": facts["std"],
        "provenance": facts["provenance"],
        "metrics": facts["metrics"],
    }


def read_facts(folder: Path) -> dict[str, Any]:
    """Reads lightly_distill.json of a set and checks that its claims are bounded.

    Raises:
        DistillError: If it is damaged, too large, or of a newer format.
    """
    path = folder / FACTS
    try:
        if path.stat().st_size > MAX_FACTS:
            raise DistillError(f"{path} is larger than {MAX_FACTS >> 20} MiB: not a synthetic set.")
        facts: dict[str, Any] = json.loads(path.read_text())
        version = facts["format_version"]
        major = int(version.split(".")[0])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DistillError(f"{path} cannot be read: {error!r}") from error
    if major > int(FORMAT_VERSION.split(".")[0]):
        raise DistillError(
            f"{folder} has format {version}, this version of lightly-distill reads up to {FORMAT_VERSION}: "
            "pip install --upgrade lightly-distill"
        )
    try:
        shape = [*facts["shape"], facts["dim"]]
        known = all(isinstance(size, int) and size > 0 for size in shape) and len(shape) == 5
        count, *pixels, dim = shape
        if not known or count * (int(np.prod(pixels, dtype=object)) + dim) > MAX_VALUES:
            raise DistillError(f"{path} claims images of shape {facts['shape']} with {facts['dim']} numbers: refused.")
        if not all(isinstance(facts[key], kind) for key, kind in _KINDS.items()):
            raise TypeError(f"expected {', '.join(f'{key}: {kind.__name__}' for key, kind in _KINDS.items())}")
    except (KeyError, TypeError, ValueError) as error:
        raise DistillError(f"{path} is not complete: {error!r}") from error
    return facts


_KINDS = {"mean": list, "std": list, "provenance": dict, "metrics": dict, "files": dict}


def _check_file(folder: Path, name: str, expected: Any) -> None:
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DistillError(f"{folder / FACTS} names a file outside its folder: {name}")
    try:
        size = path.stat().st_size
        digest = _sha256(path) if size == expected["bytes"] else None
    except OSError as error:
        raise DistillError(f"The set {folder} is not complete: {error}") from error
    if digest != expected["sha256"]:
        raise DistillError(
            f"{path} is not the file that was written (sha256 or size differ): it was changed or damaged; get it again."
        )


def _write_files(synthetic: "SyntheticSet", folder: Path) -> None:
    from lightly_distill import card, pictures  # here, because they know SyntheticSet's module

    pictures.image_grid(synthetic.displayable()).save(folder / "preview.png")
    (folder / "README.md").write_text(card.text(synthetic))
    pq.write_table(_table(synthetic), folder / DATA)
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
        for name in ("README.md", DATA, "preview.png")
    }
    facts = {
        "format_version": FORMAT_VERSION,
        "shape": list(synthetic.images.shape),
        "dim": synthetic.dim,
        "mean": list(synthetic.mean),
        "std": list(synthetic.std),
        "provenance": synthetic.provenance,
        "metrics": synthetic.metrics,
        "files": files,
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
    for path in (*(folder / name for name in files), folder / FACTS):
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def _table(synthetic: "SyntheticSet") -> pa.Table:
    """Makes the table with the schema metadata by which `datasets` knows pictures and array shapes.

    Without it plain `load_dataset` would give nested lists. The layout is what `datasets` itself writes for
    the features Image, Array3D and List; a test compares.
    """
    _, channels, height, width = synthetic.images.shape
    images, representations = (
        np.ascontiguousarray(tensor.cpu().numpy()) for tensor in (synthetic.images, synthetic.representations)
    )
    rows = _lists(_lists(_lists(pa.array(images.reshape(-1)), width), height), channels)
    pictures = [{"bytes": png, "path": None} for png in _pngs(synthetic.displayable())]
    columns = {
        "image": pa.array(pictures, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        "pixels": rows,
        "representation": pa.FixedSizeListArray.from_arrays(pa.array(representations.reshape(-1)), synthetic.dim),
        "source_index": pa.array(synthetic.source_index.cpu().numpy()),
    }
    features = {
        "image": {"_type": "Image"},
        "pixels": {"shape": [channels, height, width], "dtype": "float32", "_type": "Array3D"},
        "representation": {
            "feature": {"dtype": "float32", "_type": "Value"},
            "length": synthetic.dim,
            "_type": "List",
        },
        "source_index": {"dtype": "int64", "_type": "Value"},
    }
    table = pa.table(columns)
    # the extension type by which `datasets` marks fixed shapes, declared without importing it
    extension = {
        "ARROW:extension:name": "datasets.features.features.Array3DExtensionType",
        "ARROW:extension:metadata": json.dumps([[channels, height, width], "float32"]),
    }
    place = table.schema.get_field_index("pixels")
    schema = table.schema.set(place, table.schema.field(place).with_metadata(extension))
    return table.cast(schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})}))


def _lists(values: pa.Array, length: int) -> pa.Array:
    offsets = pa.array(np.arange(0, len(values) + 1, length, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, values)


def _pngs(images: Tensor) -> list[bytes]:
    from PIL import Image

    encoded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, format="PNG")
        encoded.append(buffer.getvalue())
    return encoded


def _numbers(column: pa.ChunkedArray, dtype: type, shape: tuple[int, ...]) -> Tensor:
    """Flattens a column of nested lists and checks that it holds exactly the numbers that were claimed."""
    values = column.combine_chunks()
    while pa.types.is_nested(values.type) or isinstance(values, pa.ExtensionArray):
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        if values.null_count:
            raise ValueError("a row is missing")
        values = values.flatten()
    if values.null_count:
        raise ValueError("a number is missing")
    numbers = values.to_numpy(zero_copy_only=False)
    if numbers.dtype != dtype or numbers.size != int(np.prod(shape, dtype=object)):
        raise ValueError(f"expected {np.dtype(dtype)} of shape {shape}, found {numbers.size} of {numbers.dtype}")
    return torch.from_numpy(numbers.reshape(shape).copy())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
