"""One row of numbers for each image: a vector and, where there is one, a small map beside it.

Targets and features are both such rows, so that whatever handles numbers of images (gradients, chunks, processes,
checkpoints, the cache) need not know of maps. Shapes: B images, p numbers of the vector, C channels of a map, g cells
of a side.
"""

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightly_distill.errors import UsageError
from lightly_distill.models.maps import at_grid, maps, reader_of

MAX_CODE = 127  # of a number that is kept in 8 bits; int8 without -128


@dataclass(frozen=True)
class Layout:
    """What a row holds: the vector first, then the map, channel by channel.

    Attributes:
        dim: p.
        channels: C; 0 without a map.
        grid: g; 0 without a map.
    """

    dim: int
    channels: int = 0
    grid: int = 0

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return self.dim + self.channels * self.grid**2

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns vectors (B, p) and maps (B, C, g, g); None without a map."""
        if not self.grid:
            return rows, None
        return rows[:, : self.dim], rows[:, self.dim :].reshape(len(rows), self.channels, self.grid, self.grid)

    def join(self, vectors: Tensor, last_maps: Tensor | None) -> Tensor:
        """Returns rows of vectors (B, p) and maps (B, C, g, g)."""
        return vectors if last_maps is None else torch.cat([vectors, last_maps.flatten(1)], dim=1)

    def mirrored(self, rows: Tensor) -> Tensor:
        """Returns rows whose maps are mirrored."""
        vectors, last_maps = self.split(rows)
        return self.join(vectors, None if last_maps is None else last_maps.flip(3))

    def by_channel(self, numbers: Tensor) -> Tensor:
        """Returns one number for each of the vector and for each channel of the map, of a row with equal cells."""
        return torch.cat([numbers[: self.dim], numbers[self.dim :: self.grid**2] if self.grid else numbers[:0]])

    def by_number(self, numbers: Tensor) -> Tensor:
        """Takes back `by_channel`: one number for each of a row."""
        return torch.cat([numbers[: self.dim], numbers[self.dim :].repeat_interleave(self.grid**2)])


class FeatureRows(nn.Module):
    """A student whose output is rows: its features, and its last map averaged or enlarged to a grid.

    Args:
        backbone: Images (B, 3, S, S) to features (B, p).
        grid: g.
    """

    def __init__(self, backbone: nn.Module, grid: int) -> None:
        super().__init__()
        self.backbone, self.grid = backbone, grid
        # found here: a look-up by the model would have torch.compile make code for each model
        self._read = reader_of(backbone)

    def forward(self, images: Tensor) -> Tensor:
        """Returns rows (B, p + C g g)."""
        features, last_map = self._read(self.backbone, images)
        return torch.cat([features, at_grid(last_map, self.grid).flatten(1)], dim=1)


class RowHead(nn.Module):
    """Linear layers from rows of features to rows of targets: one for the vector, a 1x1 convolution for the map.

    Args:
        features: Layout of the features. Without a map, only the target's vector is predicted.
        targets: Layout of the targets.
    """

    def __init__(self, features: Layout, targets: Layout) -> None:
        super().__init__()
        self.features, self.targets = features, targets
        self.vector = nn.Linear(features.dim, targets.dim)
        self.map = nn.Conv2d(features.channels, targets.channels, 1) if features.grid and targets.grid else None

    def forward(self, rows: Tensor) -> Tensor:
        """Maps rows (B, .) of features to rows of targets, whose map is left out where the features have none."""
        vectors, last_maps = self.features.split(rows)
        if self.map is None or last_maps is None:
            return self.vector(vectors)  # type: ignore[no-any-return]
        return self.targets.join(self.vector(vectors), self.map(last_maps))


def row_loss(predicted: Tensor, truth: Tensor, targets: Layout) -> Tensor:
    """Returns the mean squared error of the vectors plus that of the maps, a scalar.

    Args:
        predicted: From `RowHead`, shape (B, p + C g g), or (B, p) of features without a map.
        truth: Shape (B, p + C g g).
        targets: Layout of the truth.
    """
    loss = F.mse_loss(predicted[:, : targets.dim], truth[:, : targets.dim])
    if predicted.shape[1] == targets.dim:
        return loss
    return loss + F.mse_loss(predicted[:, targets.dim :], truth[:, targets.dim :])


def with_rows(backbone: nn.Module, images: Tensor, grid: int) -> tuple[nn.Module, Layout]:
    """Returns a student whose output is rows, and their layout, found on a few images in eval mode.

    Args:
        backbone: Images to features.
        images: Normalised, shape (B, 3, S, S).
        grid: g of the targets' map; 0 without one. A student that has no map is returned as it is, and learns from the
            vectors alone.
    """
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            if grid:
                with contextlib.suppress(UsageError):
                    features, last_maps = maps(backbone, images, grid)
                    return FeatureRows(backbone, grid), Layout(features.shape[1], last_maps.shape[1], grid)
            return backbone, Layout(int(backbone(images).shape[1]))
    finally:
        backbone.train(training)
