"""The target's representations of all real images, computed once: kept in memory, or in shards on disk.

A shard is the file `FIRST-SHA256.npy` of SHARD images: float32, shape (V, N, D), written aside, renamed, memory-mapped.
Its name holds the first image and the hash of its numbers, so that one that is not whole is noticed and computed again.
A run that goes on computes the missing ones only.

Shapes: n real images, V views of each, N images of a shard, B images of a batch, D numbers of a representation.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lightly_distill.runtime.files import PARTIAL, remove, replacing
from lightly_distill.runtime.processes import ALONE, Processes

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
        facts: JSON-able; by it real images and target differ from others.
        processes: That share the work and the folder.
    """

    def __init__(
        self,
        folder: Path | None = None,
        facts: Mapping[str, Any] | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self._folder, self._facts, self._processes = folder, dict(facts or {}), processes
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
            if self._processes.main:
                for partial in self._used.glob(f"*{PARTIAL}"):
                    partial.unlink()
        self._processes.wait()
        parts = torch.split(torch.arange(count), SHARD)
        mine = range(self._processes.index, len(parts), self._processes.count)
        own: dict[int, Tensor] = {}
        quiet = True if not self._processes.main else None  # None: quiet without a terminal
        with tqdm(total=sum(len(parts[i]) for i in mine), unit="image", desc="Representations", disable=quiet) as bar:
            for number in mine:
                own[number] = _shard(self._used, parts[number], compute)
                bar.update(len(parts[number]))
        if self._used is not None:  # what the others wrote is read from the folder
            self._processes.wait()
            return Representations(
                [own[i] if i in own else _shard(self._used, part, compute) for i, part in enumerate(parts)]
            )
        everyone = {number: shard for each in self._processes.gather(own) for number, shard in each.items()}
        return Representations([everyone[number] for number in range(len(parts))])

    def forget_others(self) -> None:
        """Removes the shards of all keys but the one in use, and what else is in the folder."""
        for path in self._folder.glob("*") if self._folder is not None else ():
            if path != self._used:
                remove(path)


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
