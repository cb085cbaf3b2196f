"""The parquet file of a set of float32 (format 1), laid out as Hugging Face `datasets` itself writes the same columns.

Shapes: m images of C channels, height H and width W; d numbers of a representation.
"""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

ROWS_AT_ONCE = 1000  # a row group; the Hub's viewer reads one whole group to show a few rows


def write(path: Path, images: Tensor, representations: Tensor, source_index: Tensor, displayable: Tensor) -> None:
    """Writes the columns image, pixels, representation and source_index.

    Args:
        path: File to write.
        images: float32, shape (m, C, H, W). m * C * H * W is below 2**31.
        representations: float32, shape (m, d).
        source_index: int64, shape (m,).
        displayable: uint8, shape (m, 3, H, W), for the PNGs.
    """
    _, channels, height, width = images.shape
    pixels = pa.array(images.cpu().contiguous().numpy().reshape(-1))
    for length in (width, height, channels):
        pixels = pa.ListArray.from_arrays(np.arange(0, len(pixels) + 1, length, dtype=np.int32), pixels)
    flat = pa.array(representations.cpu().contiguous().numpy().reshape(-1))
    pngs = [{"bytes": _png(image), "path": None} for image in displayable]
    columns = [
        pa.array(pngs, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        pixels,
        pa.FixedSizeListArray.from_arrays(flat, representations.shape[1]),
        pa.array(source_index.cpu().numpy()),
    ]
    schema = _schema([column.type for column in columns], (channels, height, width), representations.shape[1])
    # No dictionary: hardly two numbers are equal.
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), path, ROWS_AT_ONCE, use_dictionary=False)


def read(path: Path, shape: tuple[int, int, int, int], dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Reads images, representations and source_index. The PNGs are neither read nor decoded.

    Args:
        path: File that `write` wrote.
        shape: (m, C, H, W) that the file must have.
        dim: d that the file must have.

    Raises:
        ValueError: If the file does not hold exactly these numbers. One that announces more takes no memory for them.
        OSError, pa.ArrowException, KeyError: If it is no such parquet file.
    """
    shapes = {"pixels": shape, "representation": (shape[0], dim), "source_index": shape[:1]}
    types = {"pixels": np.float32, "representation": np.float32, "source_index": np.int64}
    with pq.ParquetFile(path) as file:
        found = announced(file.metadata)
        for name, expected in shapes.items():
            if found.get(name) != int(np.prod(expected)):
                raise ValueError(f"{name} has {found.get(name, 0)} numbers, expected shape {expected}")
        table = file.read(columns=list(shapes))
    images, representations, source_index = (numbers(table, name, types[name], shapes[name]) for name in shapes)
    return images, representations, source_index


def _schema(types: list[pa.DataType], shape: tuple[int, int, int], dim: int) -> pa.Schema:
    """Makes the schema metadata without which `load_dataset` gives nested lists and bytes; a test compares."""
    features = {
        "image": {"_type": "Image"},
        "pixels": {"shape": shape, "dtype": "float32", "_type": "Array3D"},
        "representation": {"feature": {"dtype": "float32", "_type": "Value"}, "length": dim, "_type": "List"},
        "source_index": {"dtype": "int64", "_type": "Value"},
    }
    # The extension type by which `datasets` marks a fixed shape, declared without importing it.
    extension = {
        "ARROW:extension:name": "datasets.features.features.Array3DExtensionType",
        "ARROW:extension:metadata": json.dumps([shape, "float32"]),
    }
    fields = [
        pa.field(name, kind, metadata=extension if name == "pixels" else None)
        for name, kind in zip(features, types, strict=True)
    ]
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})


def _png(image: Tensor) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


def announced(metadata: pq.FileMetaData) -> dict[str, int]:
    """Counts the numbers of each column as the end of the file lists them."""
    counts: dict[str, int] = {}
    for group in range(metadata.num_row_groups):
        for place in range(metadata.num_columns):
            column = metadata.row_group(group).column(place)
            name = column.path_in_schema.split(".")[0]
            counts[name] = counts.get(name, 0) + column.num_values
    return counts


def numbers(table: pa.Table, name: str, dtype: type, shape: tuple[int, ...]) -> Tensor:
    """Takes the numbers out of a column of nested lists, each list of the length that it must have."""
    values = table[name].combine_chunks()
    if isinstance(values, pa.ExtensionArray):  # where `datasets` is imported, Arrow knows the type by its name
        values = values.storage
    for length in shape[1:]:
        if not pc.all(pc.equal(pc.list_value_length(values), length)).as_py():
            raise ValueError(f"{name}: a list has not {length} entries, expected shape {shape}")
        values = values.flatten()
    if values.null_count:
        raise ValueError(f"{name}: a number is missing")
    found = values.to_numpy(zero_copy_only=False)
    if found.dtype != dtype or found.size != int(np.prod(shape)):
        raise ValueError(f"{name} holds {found.size} of {found.dtype}, expected {np.dtype(dtype)} of shape {shape}")
    return torch.from_numpy(found.reshape(shape).copy())
