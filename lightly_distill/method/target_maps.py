"""The target's map as a truth: its last map averaged to a few cells, of which each has a few principal components.

The mean representation of an image says what is in it, its map also where. Both come from one pass of the target.

Shapes: B images, d numbers of a representation, C channels of the target's map, K of the kept one, g cells of a side.
"""

import hashlib
import logging
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightly_distill.errors import UsageError
from lightly_distill.method.krr import full_precision
from lightly_distill.method.projection import fit_projection
from lightly_distill.method.representation_cache import Keeper, RepresentationCache
from lightly_distill.method.sight import Sight
from lightly_distill.models.projection import Projection
from lightly_distill.models.targets import Target
from lightly_distill.runtime import seeding
from lightly_distill.runtime.console import tell_once
from lightly_distill.runtime.processes import ALONE, Processes

GRID = 2  # if the user does not say: the bytes of a finer map teach more as further images
SAMPLE = 2048  # images in whose maps the principal components are found, evenly spread over the source

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TargetMaps:
    """Which map is kept.

    Attributes:
        grid: g.
        projection: Of the C channels of a cell to K, on the CPU.
    """

    grid: int
    projection: Projection

    @property
    def channels(self) -> int:
        """K."""
        return self.projection.basis.shape[1]

    @property
    def key(self) -> str:
        """Tells these maps apart from others of the same target."""
        digest = hashlib.sha256()
        for tensor in self.projection.tensors().values():
            digest.update(tensor.contiguous().numpy().data)
        return f" map {self.grid}, {digest.hexdigest()[:16]}"

    def rows(self, target: Target, images: Tensor) -> Tensor:
        """Asks the target.

        Args:
            target: On the device of the images.
            images: Floating point in [0, 1], shape (B, 3, T, T).

        Returns:
            Representations and maps, shape (B, d + K g g); see `models/rows.py`.
        """
        representations, last_maps = target.maps(images, self.grid)
        with full_precision(images.device):
            kept = self.projection.to(images.device).apply(last_maps.permute(0, 2, 3, 1).float())
        return torch.cat([representations, kept.permute(0, 3, 1, 2).flatten(1)], dim=1)


def find_grid(target: Target, size: int, wanted: int | Literal["auto"], device: torch.device) -> int:
    """Returns g, trying the target on images of the size that it will see.

    Args:
        target: On the device.
        size: T.
        wanted: `DistillConfig.target_map`.
        device: Where the target computes.

    Returns:
        g; 0 where no map is wanted, or the target has none of so many cells and that was left to us.

    Raises:
        UsageError: If the map that is wanted is not there.
    """
    grid = GRID if wanted == "auto" else wanted
    images = torch.rand(1, 3, size, size, generator=seeding.generator(0, "grid")).to(device)
    try:
        if grid:
            target.maps(images, grid)
    except UsageError as error:
        if wanted != "auto":
            raise
        tell_once(_logger, logging.INFO, "Representations alone are predicted, no map. %s", error)
        return 0
    return grid


def fit_maps(sight: Sight, target: Target, count: int, device: torch.device, grid: int, dims: int) -> TargetMaps:
    """Finds the directions in which the cells of the target's maps vary most.

    Args:
        sight: Shows the target the images.
        target: On the device.
        count: Images of the source.
        device: Where the target computes.
        grid: g.
        dims: K; less where there are not so many directions.

    Raises:
        UsageError: If the target has no map of so many cells.
    """
    sample = torch.arange(count)[:: max(1, -(-count // SAMPLE))]
    channels = 0

    def cells(indices: Tensor) -> Tensor:
        nonlocal channels
        images = sight.images(sight.chunks(indices))
        parts = [target.maps(chunk.to(device).float() / 255, grid)[1].cpu() for chunk in images]
        channels = parts[0].shape[1]
        return torch.cat(parts).permute(0, 2, 3, 1).reshape(-1, channels)

    cells(sample[:1])
    dims = min(dims, channels, len(sample) * grid**2 - 1)
    return TargetMaps(grid, fit_projection(cells, sample, dims, rows=grid**2))


def kept_maps(
    sight: Sight,
    target: Target,
    count: int,
    device: torch.device,
    grid: int,
    dims: int,
    cache: Keeper | None = None,
    processes: Processes = ALONE,
) -> TargetMaps:
    """As `fit_maps`, unless a cache has kept them beside the representations already; in the main process only."""

    def fit() -> dict[str, Tensor]:
        return fit_maps(sight, target, count, device, grid, dims).projection.tensors()

    def kept() -> dict[str, Tensor]:
        name = f"map {grid} {dims}{sight.key}"
        return cache.beside(name, fit) if isinstance(cache, RepresentationCache) else fit()

    found = TargetMaps(grid, Projection(**processes.in_main(kept)))
    if found.channels < dims:
        tell_once(
            _logger,
            logging.INFO,
            "Each cell of the target's map has %d principal components, fewer than map_dims=%d (--map-dims).",
            found.channels,
            dims,
        )
    return found
