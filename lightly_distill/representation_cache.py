"""The target's representations of all real images, computed once: kept in memory, or in shards on disk.

A shard is the file `FIRST-SHA256.npy` of SHARD images: float32, shape (V, N, D), written aside, renamed, memory-mapped.
Its name tells the first image and the hash of its numbers, so that one that is not whole is noticed and computed again.
A run that goes on computes the missing ones only.

Shapes: n real images, V views of each, N images of a shard, B images of a batch, D numbers of a representation.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lightly_distill.files import PARTIAL, replacing

SHARD = 8192  # images
_FORMAT = 1

_logger = logging.getLogger(__name__)


class Representations:
    """Representations of V views of each image.

    Args:
        shards: float32, shape (V, N, D), in the order of the images; all but the last of SHARD images.
    """

    def __init__(self, shards: Sequence[Tensor]) -> None:
        self._shards = shards

    def gather(self, views: Tensor, indices: Tensor) -> Tensor:
        """Returns the representations of these views of these images.

        Args:
            views: int64, shape (B,), in 0..V-1.
            indices: int64, shape (B,), in 0..n-1.

        Returns:
            float32, shape (B, D).
        """
        shards, places = indices // SHARD, indices % SHARD
        gathered = torch.empty(len(indices), self._shards[0].shape[-1])
        for shard in torch.unique(shards).tolist():
            here = shards == shard
            gathered[here] = self._shards[shard][views[here], places[here]]
        return gathered


class RepresentationCache:
    """Keeps representations from one session of a run to the next.

    Args:
        folder: Holds a folder for each key; None keeps representations in memory only.
        facts: JSON-able; tells real images and target apart from others.
    """

    def __init__(self, folder: Path | None = None, facts: Mapping[str, Any] | None = None) -> None:
        self._folder, self._facts = folder, dict(facts or {})
        self._used: Path | None = None

    def keep(self, views: str, count: int, compute: Callable[[Tensor], Tensor]) -> Representations:
        """Returns the representations of all images, computing what is not there.

        Args:
            views: Tells these views apart from others.
            count: n.
            compute: Indices of images, shape (N,), to float32 of shape (V, N, D).

        Raises:
            DistillError: If a shard cannot be written, or `compute` fails. The shards before it stay.
        """
        if self._folder is not None:
            key = json.dumps({**self._facts, "views": views, "dtype": "float32", "format": _FORMAT}, sort_keys=True)
            self._used = self._folder / hashlib.sha256(key.encode()).hexdigest()[:16]
            for partial in self._used.glob(f"*{PARTIAL}"):
                partial.unlink()
        shards = []
        with tqdm(total=count, unit="image", desc="Representations", disable=None) as bar:
            for indices in torch.split(torch.arange(count), SHARD):
                shards.append(_shard(self._used, indices, compute))
                bar.update(len(indices))
        return Representations(shards)

    def forget_others(self) -> None:
        """Removes the shards of all keys but the one in use."""
        for folder in self._folder.glob("*") if self._folder is not None else ():
            if folder != self._used:
                shutil.rmtree(folder)


def _shard(folder: Path | None, indices: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    if folder is None:
        return compute(indices)
    first = int(indices[0])
    for path in sorted(folder.glob(f"{first:09d}-*.npy")):
        shard = _load(path, len(indices))
        if shard is not None:
            return shard
        _logger.warning("The kept representations in %s are not whole: computing them again.", path)
        path.unlink()
    numbers = compute(indices).numpy()
    path = folder / f"{first:09d}-{_sha256(numbers)}.npy"
    with replacing(path) as partial, open(partial, "wb") as file:
        np.save(file, numbers)
    del numbers  # from here on the file is mapped instead
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _load(path: Path, images: int) -> Tensor | None:
    """Maps a shard into memory, or returns None if it is not what was written."""
    try:
        numbers = np.load(path, mmap_mode="c")  # copy on write: torch wants memory that it may write to
    except (OSError, ValueError, EOFError):
        return None
    whole = numbers.dtype == np.float32 and numbers.ndim == 3 and numbers.shape[1] == images
    return torch.from_numpy(numbers) if whole and path.stem.endswith(_sha256(numbers)) else None


def _sha256(numbers: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(numbers).data).hexdigest()
