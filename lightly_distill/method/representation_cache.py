"""The target's representations of all real images, computed once: kept in memory, or in shards on disk.

A shard is the file `FIRST-SHA256.npy` of some images: float32, shape (V, N, D), written aside, renamed, memory-mapped.
Its name holds the first image and the hash of its numbers, so that one that is not whole is noticed and computed again.
A run that goes on computes the missing ones only, and so does another run on the same images with the same target.

Shapes: n real images, V views of each, N images of a shard, B images of a batch, D numbers of a representation.
"""

import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightly_distill.errors import DistillError
from lightly_distill.runtime.files import PARTIAL, remove, replacing, writing
from lightly_distill.runtime.processes import ALONE, Processes
from lightly_distill.runtime.progress import Progress

SHARD = 8192  # images at most, ...
PARTS = 16  # ... and of a smaller source so many shards: processes divide them, and an interruption costs one
LEAST = 128  # images of a shard, but for the last
ABANDONED = 3600.0  # seconds in which a file that another run is writing changes at least once
_FORMAT = 1

_logger = logging.getLogger(__name__)

Compute = Callable[[Tensor], Iterator[Tensor]]


class Representations:
    """Representations of V views of each image.

    Args:
        shards: float32, shape (V, N, D), in the order of the images; all but the last of the same N.
    """

    def __init__(self, shards: Sequence[Tensor]) -> None:
        self._shards = shards
        self._size = shards[0].shape[1]

    @property
    def width(self) -> int:
        """D."""
        return self._shards[0].shape[-1]

    def gather(self, views: Tensor, indices: Tensor) -> Tensor:
        """Returns the representations of these views of these images.

        Args:
            views: int64, shape (B,), in 0..V-1.
            indices: int64, shape (B,), in 0..n-1.

        Returns:
            float32, shape (B, D).
        """
        shards, places = indices // self._size, indices % self._size
        gathered = torch.empty(len(indices), self._shards[0].shape[-1])
        for shard in torch.unique(shards).tolist():
            here = shards == shard
            gathered[here] = self._shards[shard][views[here], places[here]]
        return gathered


class Keeper(Protocol):
    """What has representations, or keeps them."""

    def keep(self, views: str, count: int, compute: Compute, *, bf16: bool = False) -> Representations:
        """Returns the representations of all images; see `RepresentationCache.keep`."""
        ...


class _Shard(NamedTuple):
    path: Path | None  # None: in memory only
    numbers: Tensor


class RepresentationCache:
    """Keeps representations from one session of a run to the next, and for other runs.

    Args:
        folder: Holds a folder for each key; None keeps representations in memory only.
        facts: JSON-able; by it real images and target differ from others.
        processes: That share the work and the folder.
        also: More such folders, from which shards are read. Nothing is changed there.
        shared: Whether other runs may write to the folder at the same time.
    """

    def __init__(
        self,
        folder: Path | None = None,
        facts: Mapping[str, Any] | None = None,
        processes: Processes = ALONE,
        *,
        also: Sequence[Path] = (),
        shared: bool = False,
    ) -> None:
        self._folder, self._facts, self._processes = folder, dict(facts or {}), processes
        self._also, self._shared = tuple(also), shared
        self._used: Path | None = None
        self._in_use: set[Path] = set()

    def keep(self, views: str, count: int, compute: Compute, *, bf16: bool = False) -> Representations:
        """Returns the representations of all images, computing what is not there.

        Args:
            views: Tells these views apart from others.
            count: n.
            compute: Increasing indices of images to float32 of shape (V, B, D), some images at a time, in order. Called
                once at most, with those of all missing shards of this process.
            bf16: Whether they are computed in bfloat16; these are others than those in float32.

        Raises:
            DistillError: If a shard cannot be written, or `compute` fails. The shards before it stay.
        """
        name = self._key(views, bf16)
        self._used = None if self._folder is None else self._folder / name
        if self._used is not None:
            self._in_use.add(self._used)
            if self._processes.main:
                _remove_partial(self._used, ABANDONED if self._shared else 0)
        self._processes.wait()
        size = SHARD if self._has_large_shards(name, min(SHARD, count)) else shard_size(count)
        parts = torch.split(torch.arange(count), size)
        mine = range(self._processes.index, len(parts), self._processes.count)
        own = {number: self._find(name, parts[number]) for number in mine}
        missing = [number for number, shard in own.items() if shard is None]
        if missing:
            own |= self._computed({number: parts[number] for number in missing}, compute)
        # what others wrote is read from the folder, the very file: another run may have written another
        held = {number: shard.path or shard.numbers.shape for number, shard in own.items() if shard is not None}
        everyone = {number: place for each in self._processes.gather(held) for number, place in each.items()}
        return Representations([self._given(n, own.get(n), everyone[n], len(part)) for n, part in enumerate(parts)])

    def beside(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Returns tensors that what is kept depends on, such as a basis, making and keeping them if they are not there.

        Args:
            name: Tells them apart from others of the same images and target.
            make: Called if no folder has them.
        """
        file = f"{self._key(name, bf16=False)}.safetensors"
        if self._folder is not None:
            self._in_use.add(self._folder / file)
        for folder in (self._folder, *self._also):
            if folder is not None and (folder / file).is_file():
                try:
                    return load_file(folder / file)
                except (OSError, SafetensorError):
                    _logger.warning("%s is not whole: making it again.", folder / file)
        tensors = make()
        if self._folder is not None:
            with replacing(self._folder / file, f".{os.getpid()}-{secrets.token_hex(4)}") as partial:
                save_file(tensors, partial)
        return tensors

    def forget_others(self) -> None:
        """Removes the shards of all keys but those in use, and what else is in the folder, unless others use it."""
        for path in self._folder.glob("*") if self._folder is not None and not self._shared else ():
            if path not in self._in_use:
                remove(path)

    def _key(self, views: str, bf16: bool) -> str:
        precision = {"precision": "bf16"} if bf16 else {}
        facts = {**self._facts, **precision, "views": views, "dtype": "float32", "format": _FORMAT}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def _has_large_shards(self, name: str, images: int) -> bool:
        """Returns whether the first shard is of SHARD images, or of all: older versions made no smaller ones."""
        for folder in (self._folder, *self._also):
            for path in (folder / name).glob(f"{0:09d}-*.npy") if folder is not None else ():
                if _load(path, images) is not None:
                    return True
        return False

    def _find(self, name: str, indices: Tensor) -> _Shard | None:
        """Returns a shard that is there and whole."""
        for folder in (self._folder, *self._also):
            for path in sorted((folder / name).glob(f"{int(indices[0]):09d}-*.npy")) if folder is not None else ():
                numbers = _load(path, len(indices))
                if numbers is not None:
                    return _Shard(path, numbers)
                _logger.warning("The kept representations in %s are not whole: computing them again.", path)
                if folder == self._folder:
                    path.unlink(missing_ok=True)  # another run may have seen it too
        return None

    def _computed(self, parts: Mapping[int, Tensor], compute: Compute) -> dict[int, _Shard | None]:
        """Computes and writes shards, given the indices of each by its number."""
        if self._used is not None:
            with writing(self._used):  # a folder that cannot be written to is refused before the work
                self._used.mkdir(parents=True, exist_ok=True)
        total = sum(map(len, parts.values()))
        shards: dict[int, _Shard | None] = {}
        with Progress("Representations", total, "image", shown=self._processes.main) as progress:
            computed = _counted(compute(torch.cat(list(parts.values()))), progress)
            grouped = _regrouped(computed, [len(part) for part in parts.values()])
            for number, part in parts.items():
                shards[number] = self._kept(int(part[0]), next(grouped))
        return shards

    def _kept(self, first: int, numbers: Tensor) -> _Shard:
        if self._used is None:
            return _Shard(None, numbers)
        path = self._used / f"{first:09d}-{_sha256(numbers.numpy())}.npy"
        with replacing(path, f".{os.getpid()}-{secrets.token_hex(4)}") as partial, open(partial, "wb") as file:
            np.save(file, numbers.numpy())
        del numbers  # from here on the file is mapped instead
        return _Shard(path, torch.from_numpy(np.load(path, mmap_mode="c")))

    def _given(self, number: int, own: _Shard | None, place: Path | torch.Size, images: int) -> Tensor:
        """Returns a shard in all processes: of a file, or sent by the one process that has it."""
        if not isinstance(place, Path):
            numbers = torch.empty(place) if own is None else own.numbers
            self._processes.copy_from(number % self._processes.count, *numbers)  # a view at a time, on a GPU
            return numbers
        found = _load(place, images) if own is None else own.numbers
        if found is None:
            raise DistillError(f"{place} cannot be read in each process: representations need a folder that all share.")
        return found


def shard_size(count: int) -> int:
    """Returns N of so many images; the number of processes has no part in it, as others may read what these keep."""
    return min(SHARD, max(LEAST, -(-count // PARTS)))


def _remove_partial(folder: Path, older_than: float) -> None:
    """Removes what killed runs left; a younger file may be one that another run is writing."""
    for partial in folder.glob(f"*{PARTIAL}"):
        try:
            if time.time() - partial.stat().st_mtime >= older_than:
                partial.unlink()
        except FileNotFoundError:  # the other run is done with it
            continue


def _counted(computed: Iterator[Tensor], progress: Progress) -> Iterator[Tensor]:
    for part in computed:
        progress.add(part.shape[1])
        yield part


def _regrouped(parts: Iterator[Tensor], sizes: Sequence[int]) -> Iterator[Tensor]:
    """Yields what comes in parts (V, B, D), in groups of these sizes."""
    waiting: list[Tensor] = []
    for size in sizes:
        while sum(part.shape[1] for part in waiting) < size:
            waiting.append(next(parts))
        rows = torch.cat(waiting, dim=1)
        waiting = [rows[:, size:].clone()] if rows.shape[1] > size else []
        yield rows[:, :size].contiguous()


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
