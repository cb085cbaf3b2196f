"""Few bits in the loop: the images that students see have whole pixels, and targets are whole numbers with a scale.

What is learned stays continuous and is rounded each time it is used; the gradient of the rounded goes straight through
to it. So targets lose nothing when they are stored, and images only what a lossy WebP takes from them.

Shapes: M synthetic images, D numbers of a row of targets.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightly_distill.models.rows import MAX_CODE, Layout

TARGET_BITS = 6
_ROOM = 1.25  # learned targets may become larger than those of real images


@dataclass(frozen=True)
class Rounding:
    """How images and targets are rounded.

    Attributes:
        mean: Of each channel in units of [0, 1], shape (1, 3, 1, 1).
        std: As `mean`.
        scales: Of each number of a row of targets, float32, positive, shape (D,).
    """

    mean: Tensor
    std: Tensor
    scales: Tensor

    def pixels(self, images: Tensor) -> Tensor:
        """Returns normalised images as uint8, shape (M, 3, H, W)."""
        return self._of_255(images).byte()

    def images(self, images: Tensor) -> Tensor:
        """Returns normalised images as they are after `pixels`."""
        return (self._of_255(images) / 255 - self.mean) / self.std

    def targets(self, rows: Tensor) -> Tensor:
        """Returns rows whose numbers are whole multiples of their scales, shape (M, D)."""
        return round_targets(rows, self.scales)

    def clamp_(self, images: Tensor, rows: Tensor) -> None:
        """Keeps what is learned where rounding does not hold it, in place: beyond, no gradient would bring it back."""
        black, white = (0 - self.mean) / self.std, (1 - self.mean) / self.std
        images.clamp_(black, white)
        rows.clamp_(-MAX_CODE * self.scales, MAX_CODE * self.scales)

    def _of_255(self, images: Tensor) -> Tensor:
        return ((images * self.std + self.mean) * 255).round().clamp(0, 255)


def round_targets(rows: Tensor, scales: Tensor) -> Tensor:
    """Returns rows (M, D) whose numbers are the nearest whole multiples of their scales (D,)."""
    return (rows / scales).round().clamp(-MAX_CODE, MAX_CODE) * scales


def fit_scales(rows: Tensor, targets: Layout, bits: int = TARGET_BITS) -> Tensor:
    """Finds the scales of targets: one for all numbers of the vector and one for all of the map.

    Equal steps for all numbers lose the least squared error a bit, and numbers that hardly vary then take few bytes.

    Args:
        rows: Of real images, shape (B, D).
        targets: Their layout.
        bits: Of the largest number, with its sign; at most 8.

    Returns:
        float32, shape (D,).
    """
    scales = torch.empty(targets.width, device=rows.device)
    for part in (slice(0, targets.dim), slice(targets.dim, None)):
        if scales[part].numel():
            scales[part] = rows[:, part].abs().max().clamp(min=1e-12) * _ROOM / (2 ** (bits - 1) - 1)
    return scales
