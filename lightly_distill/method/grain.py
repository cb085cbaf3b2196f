"""How fine the changes of the synthetic images are.

Images that are changed pixel by pixel become noisy, and noise is what no compression makes smaller. Changes that are as
smooth as an enlarged image of half the size teach students as much, and take about as many bytes as real images do.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def smoothed(changes: Tensor, grain: int) -> Tensor:
    """Returns changes of images as they are at a fraction of the resolution, enlarged again.

    Args:
        changes: Shape (M, C, H, W).
        grain: Pixels of a side that become one, at least 1.
    """
    height, width = changes.shape[-2:]
    small = F.interpolate(changes, size=(-(-height // grain), -(-width // grain)), mode="area")
    return F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)


@torch.no_grad()
def smooth_step_(images: Tensor, before: Tensor, grain: int) -> None:
    """Makes the step from `before` to `images` a smooth one, in place."""
    images.copy_(before + smoothed(images - before, grain))
