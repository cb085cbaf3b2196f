"""Representations that the user has already: a file or a dataset, one row for each item of the source.

Shapes: N items of the dataset, n images of the source (those that could be used), D numbers of a representation.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from lightly_distill.data.locate import locate
from lightly_distill.data.source import Source
from lightly_distill.errors import UsageError, sentence
from lightly_distill.method.representation_cache import SHARD, Compute, Representations

COLUMN = "embedding"
_NAMES = (COLUMN, "representations")  # of the tensor, where a safetensors file has several
_CURE = "Give one row for each item of the source, in its order, or leave --representations out to compute them."
_ROWS = 8192  # at a time


@dataclass(frozen=True)
class Brought:
    """Representations of all items of a dataset, checked.

    Attributes:
        name: What the user gave.
        numbers: float32, finite, shape (N, D).
    """

    name: str
    numbers: Tensor

    def sha256(self) -> str:
        """Returns the hash of the numbers, whatever the kind of file."""
        digest = hashlib.sha256(str(tuple(self.numbers.shape)).encode())
        for rows in torch.split(self.numbers, _ROWS):
            digest.update(rows.contiguous().numpy().data)
        return digest.hexdigest()

    def check(self, *, views: Any, items: int | None, dim: int | None) -> None:
        """Refuses what the source, the views or the target do not fit.

        Args:
            views: `DistillConfig.source_views`.
            items: N of the source, None where it is not known yet.
            dim: D of the target, None where it is not known.

        Raises:
            UsageError: If something does not fit.
        """
        if views != 0:
            raise UsageError(
                f"{self.name} has representations of the images as they are, and source_views={views} asks for views "
                "of them: give --source-views 0, or leave --representations out."
            )
        if items is not None and len(self.numbers) != items:
            raise UsageError(f"{self.name} has {len(self.numbers):,} rows, the source {items:,} items. {_CURE}")
        if dim is not None and self.numbers.shape[1] != dim:
            raise UsageError(
                f"{self.name} has rows of {self.numbers.shape[1]} numbers, the target gives {dim}: they are of "
                "another model. Give that model as the target, or leave --representations out."
            )

    def of(self, source: Source) -> "BroughtOf":
        """Returns the representations of the images of a source.

        Raises:
            UsageError: If the source has another number of items.
        """
        self.check(views=0, items=len(source) + sum(source.skipped.values()), dim=None)
        return BroughtOf(self, source.kept)


@dataclass(frozen=True)
class BroughtOf:
    """A `Keeper` of representations that the user brought.

    Attributes:
        brought: Of all items.
        kept: Which items the images of the source are, int64, shape (n,).
    """

    brought: Brought
    kept: Tensor

    def keep(self, views: str, count: int, compute: Compute, *, bf16: bool = False) -> Representations:
        """Returns the rows of the images; nothing is computed."""
        every = len(self.kept) == len(self.brought.numbers)  # a file that is mapped into memory stays so
        numbers = self.brought.numbers if every else self.brought.numbers[self.kept]
        return Representations([shard[None] for shard in torch.split(numbers, SHARD)])


def read_file(path: Path) -> Brought:
    """Reads a file of tensors: `.pt`, `.pth`, `.npy` or `.safetensors`. No code in it is run.

    Raises:
        UsageError: If it does not hold one float table of finite numbers.
    """
    try:
        numbers = _READERS[path.suffix.lower()](path)
    except Exception as error:  # a damaged file fails in many ways
        raise UsageError(f"{path} cannot be read as representations: {sentence(error)} {_CURE}") from error
    return _checked(str(path), numbers)


def read_dataset(data: Any) -> Brought:
    """Reads the column `embedding` of a Hugging Face dataset.

    Args:
        data: A dataset, or a specification of one as `locate` takes it.

    Raises:
        UsageError: If there is no such dataset or column, or it is not of rows of finite floats.
    """
    data, name = locate(data) if isinstance(data, str | Path) else (data, type(data).__name__)
    columns = getattr(data, "column_names", None)
    if not isinstance(columns, list) or not hasattr(data, "__len__"):
        raise UsageError(f"{name} is no table with a column '{COLUMN}' of representations. {_CURE}")
    if COLUMN not in columns:
        raise UsageError(f"{name} has no column '{COLUMN}', but {', '.join(columns)}: rename that of representations.")
    rows = data.select_columns([COLUMN]).with_format("numpy")
    parts: list[Tensor] = []
    for start in range(0, len(data), _ROWS):
        part = np.asarray(rows[start : start + _ROWS][COLUMN])
        if part.dtype == object or (parts and part.shape[1:] != parts[0].shape[1:]):
            raise UsageError(f"The column '{COLUMN}' of {name} has rows of several lengths, or none. {_CURE}")
        parts.append(torch.from_numpy(part.copy()))
    return _checked(f"The column '{COLUMN}' of {name}", torch.cat(parts) if parts else torch.empty(0, 0))


def _from_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _from_numpy(path: Path) -> Any:
    loaded = np.load(path, mmap_mode="c", allow_pickle=False)  # copy on write: torch wants memory that it may write to
    return torch.from_numpy(loaded)


def _from_safetensors(path: Path) -> Any:
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        chosen = next((name for name in _NAMES if name in names), names[0] if len(names) == 1 else None)
        if chosen is None:
            raise ValueError(f"it has the tensors {', '.join(names) or 'none'}; name that of representations {COLUMN}")
        return file.get_tensor(chosen)


_READERS: dict[str, Callable[[Path], Any]] = {
    ".pt": _from_torch,
    ".pth": _from_torch,
    ".npy": _from_numpy,
    ".safetensors": _from_safetensors,
}
SUFFIXES = tuple(_READERS)


def _checked(name: str, numbers: Any) -> Brought:
    if not isinstance(numbers, Tensor):
        raise UsageError(f"{name} holds a {type(numbers).__name__}, expected one tensor (n, d). {_CURE}")
    if not numbers.is_floating_point() or numbers.ndim != 2 or 0 in numbers.shape:
        raise UsageError(
            f"{name} holds {numbers.dtype} of shape {tuple(numbers.shape)}, expected floating point of shape (n, d). "
            f"{_CURE}"
        )
    numbers = numbers.detach().float()  # a float32 one stays as it is
    for start in range(0, len(numbers), _ROWS):
        finite = numbers[start : start + _ROWS].isfinite().all(1)
        if not finite.all():
            row = start + int((~finite).nonzero()[0])
            raise UsageError(f"{name} has NaN or infinity in float32, first in row {row}. {_CURE}")
    return Brought(name, numbers)
