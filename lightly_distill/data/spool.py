"""Decoded images in a temporary file: a source that does not fit in memory, or whose length nobody knows.

Shapes: n images so far, B images of a batch, S height and width in pixels.
"""

import os
import shutil
import tempfile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightly_distill.errors import DistillError, UsageError, first_line

_CURE = "Set TMPDIR to a folder with more room, or ask for a smaller image_size."


class Spool:
    """Images on disk, added at the end and read by index.

    They lie in the system's temporary folder, which the environment variable TMPDIR names. The file has no name there,
    so that it goes with the program, however that ends. It is read and not memory-mapped: pages of a map that were
    touched count as memory of the process.

    Args:
        name: Of the source, for messages.
        image_size: S.
        count: How many images will come, at most. None if that is not known.
        path: Of a file in the temporary folder that several processes open; its name may go when all have it open.

    Raises:
        UsageError: If the disk has no room for so many.
        DistillError: If there is no folder to write to.
    """

    def __init__(self, name: str, image_size: int, count: int | None = None, *, path: str | None = None) -> None:
        self._name, self._shape, self._length = name, (3, image_size, image_size), 0
        try:
            self._folder = tempfile.gettempdir()
            needed, free = (count or 0) * 3 * image_size**2, shutil.disk_usage(self._folder).free
            # open as long as this
            self._file: Any = (
                tempfile.TemporaryFile(buffering=0, dir=self._folder)  # noqa: SIM115
                if path is None
                else open(path, "r+b", buffering=0)  # noqa: SIM115
            )
        except OSError as error:
            raise DistillError(f"The decoded images of {name} cannot be kept on disk: {first_line(error)}") from error
        if needed > free:
            raise UsageError(
                f"The decoded images of {name} need {needed / 2**30:.3g} GiB of disk, and {self._folder} has "
                f"{free / 2**30:.3g} GiB free. {_CURE}"
            )

    def __len__(self) -> int:
        """Returns n."""
        return self._length

    def add(self, images: Tensor) -> None:
        """Writes images behind those that are there.

        Args:
            images: uint8, shape (B, 3, S, S).

        Raises:
            DistillError: If the disk is full.
        """
        rest = images.contiguous().view(-1).numpy().data
        try:
            self._file.seek(0, os.SEEK_END)
            while rest:  # a disk that fills up takes a part, and then refuses
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise DistillError(
                f"The decoded images of {self._name} do not fit into {self._folder}, after {self._length} of them: "
                f"{first_line(error)}. {_CURE}"
            ) from error
        self._length += len(images)

    def grown(self, length: int) -> None:
        """Takes note of how many images another process has added to the same file."""
        self._length = length

    def mapped(self) -> Tensor:
        """Returns all images, uint8, shape (n, 3, S, S), in memory that all processes of the machine share."""
        # copy on write: torch wants memory that it may write to
        return torch.from_numpy(np.memmap(self._file, np.uint8, "c", shape=(self._length, *self._shape)))

    def read(self, indices: Tensor) -> Tensor:
        """Returns images by index.

        Args:
            indices: int64, shape (B,), in 0..n-1.

        Returns:
            uint8, shape (B, 3, S, S).

        Raises:
            DistillError: If the disk does not give them back.
        """
        images = torch.empty(len(indices), *self._shape, dtype=torch.uint8)
        for image, index in zip(images.numpy(), indices.tolist(), strict=True):
            self._file.seek(index * image.nbytes)
            if self._file.readinto(image) != image.nbytes:
                raise DistillError(f"Decoded image {index} of {self._name} in {self._folder} can no longer be read.")
        return images
