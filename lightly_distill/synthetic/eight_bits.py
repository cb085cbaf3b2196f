"""The parquet file of a synthetic set of 8 bits (format 2), whose columns Hugging Face `datasets` reads as its own.

    image           WebP, lossy or not (PNG where Pillow has no WebP): what is decoded are the very pixels
    representation  int8, d numbers; times its scale each is the float32 that students learn
    map             int8, C g g numbers, channel by channel, where the set has maps
    source_index    int64, -1 where an image started from noise

The scales are in lightly_distill.json. Of 100 random images of 32x32 pixels a lossless WebP takes 1,791 bytes, a PNG
2,520, a WebP of quality 40 takes 289.

Shapes: m images of height H and width W; d numbers of a representation; C channels of a map, g cells of a side.
"""

import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from lightly_distill.models.rows import Layout
from lightly_distill.synthetic.parquet import ROWS_AT_ONCE, announced, numbers

_FORMATS = ("WEBP", "PNG")
_BESIDE = 4096  # bytes of an encoded image that no compression helped, besides its pixels


def write(path: Path, files: Sequence[bytes], codes: Tensor, layout: Layout, source_index: Tensor) -> None:
    """Writes the columns.

    Args:
        path: File to write.
        files: The m images, as `encoded` returns them.
        codes: Of the targets, int8, rows of shape (m, d + C g g).
        layout: Of these rows.
        source_index: int64, shape (m,).
    """
    images = [{"bytes": content, "path": None} for content in files]
    columns = {
        "image": pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        "representation": _lists(codes[:, : layout.dim]),
        **({"map": _lists(codes[:, layout.dim :])} if layout.grid else {}),
        "source_index": pa.array(source_index.cpu().numpy()),
    }
    features: dict[str, Any] = {
        name: {"feature": {"dtype": "int8", "_type": "Value"}, "length": column.type.list_size, "_type": "List"}
        for name, column in columns.items()
        if pa.types.is_fixed_size_list(column.type)
    }
    features |= {"image": {"_type": "Image"}, "source_index": {"dtype": "int64", "_type": "Value"}}
    described = {"info": {"features": {name: features[name] for name in columns}}}
    schema = pa.schema(
        [pa.field(name, column.type) for name, column in columns.items()], {"huggingface": json.dumps(described)}
    )
    table = pa.Table.from_arrays(list(columns.values()), schema=schema)
    pq.write_table(
        table,
        path,
        ROWS_AT_ONCE,
        use_dictionary=False,
        compression="zstd",
        compression_level=19,
        write_statistics=False,
    )


def read(path: Path, shape: tuple[int, int, int, int], layout: Layout) -> tuple[list[bytes], Tensor, Tensor, Tensor]:
    """Reads images, as files and as pixels, codes and source_index.

    Args:
        path: File that `write` wrote.
        shape: (m, 3, H, W) that the images must have.
        layout: Of the targets.

    Returns:
        m files, uint8 (m, 3, H, W), int8 (m, d + C g g) and int64 (m,).

    Raises:
        ValueError: If the file does not hold exactly these. One that announces more takes no memory for them.
        OSError, pa.ArrowException, KeyError: If it is no such parquet file.
    """
    count, _, height, width = shape
    cells = layout.channels * layout.grid**2
    shapes = {"representation": (count, layout.dim), **({"map": (count, cells)} if cells else {})}
    with pq.ParquetFile(path) as file:
        found = announced(file.metadata)
        expected = {"source_index": count, **{name: each[0] * each[1] for name, each in shapes.items()}}
        for name, number in expected.items():
            if found.get(name) != number:
                raise ValueError(f"{name} has {found.get(name, 0)} numbers, expected {number}")
        if _unpacked(file.metadata, "image") > count * (4 * height * width + _BESIDE):
            raise ValueError("the images take more bytes than images of their size can")
        table = file.read(columns=["image", *shapes, "source_index"])
    files = [content or b"" for content in table["image"].combine_chunks().field("bytes").to_pylist()]
    pixels = decoded(files, (count, height, width))
    codes = [numbers(table, name, np.int8, each) for name, each in shapes.items()]
    return files, pixels, torch.cat(codes, dim=1), numbers(table, "source_index", np.int64, (count,))


def _lists(codes: Tensor) -> pa.Array:
    values = pa.array(codes.cpu().contiguous().numpy().reshape(-1))
    return pa.FixedSizeListArray.from_arrays(values, codes.shape[1])


def encoded(pixels: Tensor, quality: int | None = None) -> list[bytes]:
    """Returns images as files.

    Args:
        pixels: uint8, shape (m, 3, H, W).
        quality: Of a lossy WebP, 0 to 100. None: without loss.
    """
    from PIL import Image, features

    options: dict[str, Any] = {"format": "PNG", "optimize": True}
    if features.check("webp"):
        how = {"lossless": True, "quality": 100} if quality is None else {"quality": quality}
        options = {"format": "WEBP", "method": 6, **how}

    def one(image: Tensor) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, **options)
        return buffer.getvalue()

    with ThreadPoolExecutor() as threads:  # Pillow lets other threads run while it encodes
        return list(threads.map(one, pixels.cpu()))


def decoded(files: Sequence[bytes], shape: tuple[int, int, int]) -> Tensor:
    """Returns the pixels of files.

    Args:
        files: As `encoded` returns them.
        shape: (m, H, W) that they must have.

    Returns:
        uint8, shape (m, 3, H, W).

    Raises:
        ValueError, OSError, SyntaxError: If they are not such images.
    """
    from PIL import Image

    count, height, width = shape
    if len(files) != count:
        raise ValueError(f"{len(files)} images, expected {count}")
    pixels = torch.empty(count, 3, height, width, dtype=torch.uint8)
    for number, content in enumerate(files):
        with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:  # reads the header only
            if picture.size != (width, height) or picture.mode != "RGB":
                raise ValueError(f"image {number} is {picture.mode} of {picture.size}, expected RGB of {width, height}")
            pixels[number] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return pixels


def _unpacked(metadata: pq.FileMetaData, name: str) -> int:
    """Returns how many bytes a column takes in memory, as the end of the file says."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    columns = (group.column(place) for group in groups for place in range(metadata.num_columns))
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema.split(".")[0] == name)
