"""Which view of an image a step sees: the image as it is, one of a few that were drawn once, or one of its own.

Shapes: n real images, V views of each, B images of a batch.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from lightly_distill.data.pixels import draw_crops, no_crop
from lightly_distill.runtime.seeding import generator


@dataclass(frozen=True)
class Drawn:
    """The view of each image of a batch.

    Attributes:
        indices: Of the images in the source, int64, shape (B,).
        crops: As `crop_and_flip` takes them, shape (B, 3).
        numbers: Of the views among the V fixed ones, int64, shape (B,). None: these views are of one step alone.
    """

    indices: Tensor
    crops: Tensor
    numbers: Tensor | None = None

    def __getitem__(self, part: slice) -> "Drawn":
        """Returns some of the batch."""
        numbers = None if self.numbers is None else self.numbers[part]
        return Drawn(self.indices[part], self.crops[part], numbers)


class Views:
    """The views of all images.

    Args:
        kind: `DistillConfig.source_views`: 0, a number of fixed views, or `random`.
        count: n.
        seed: Root seed.

    Attributes:
        fixed: Whether the views are the same in all steps; else every step draws its own.
        plain: Whether the only view of an image is the image as it is.
        table: The crop of each fixed view of each image, shape (V, n, 3).
    """

    def __init__(self, kind: int | str, count: int, seed: int) -> None:
        self._seed, self.fixed, self.plain = seed, kind != "random", kind == 0
        number = int(kind) if self.fixed else 0
        self.table = no_crop((1, count)) if self.plain else draw_crops((number, count), generator(seed, "views"))

    @property
    def key(self) -> str:
        """Tells fixed views apart from others."""
        return "none" if self.plain else hashlib.sha256(self.table.numpy().data).hexdigest()

    def draw(self, number: int, indices: Tensor) -> Drawn:
        """Draws the view of each image, shape (B,), for the batch of this number."""
        draw = generator(self._seed, "view", number)
        if not self.fixed:
            return Drawn(indices, draw_crops((len(indices),), draw))
        numbers = torch.randint(len(self.table), (len(indices),), generator=draw)
        return Drawn(indices, self.table[numbers, indices], numbers)
