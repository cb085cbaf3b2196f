"""Differentiable siamese augmentation (Zhao & Bilen, ICML 2021, arXiv:2102.08259).

One of six augmentations at a time, with one draw for all images of a batch, so that two batches can be changed in the
same way. The strengths are those of the authors' released code. Images are normalised, (B, C, H, W).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

BRIGHTNESS = 1.0  # span of what is added
SATURATION = 2.0  # largest factor of the distance to grey
CONTRAST = 0.5  # smallest factor of the distance to the image's mean; the largest is 1 more
SHIFT = 0.125  # largest, as a fraction of the side
CUTOUT = 0.5  # side of the square, as a fraction of the image's
SCALE = 1.2  # largest factor, and the inverse of the smallest
ROTATION = math.pi / 12  # largest angle


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Changes all images of a batch in the same way; gradients flow through.

    Args:
        images: Shape (B, C, H, W).
        generator: Of the draw, on the CPU. Two that are seeded alike change two batches alike.

    Returns:
        The same shape.
    """
    kind = list(KINDS.values())[int(torch.randint(len(KINDS), (1,), generator=generator))]
    return kind(images, torch.rand(3, generator=generator).tolist())


def _colour(images: Tensor, draw: Sequence[float]) -> Tensor:
    images = images + (draw[0] - 0.5) * BRIGHTNESS
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * draw[1] * SATURATION
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (draw[2] + CONTRAST)


def _crop(images: Tensor, draw: Sequence[float]) -> Tensor:
    height, width = images.shape[-2:]
    rows, columns = round(height * SHIFT), round(width * SHIFT)
    padded = F.pad(images, (columns, columns, rows, rows))
    top, left = int(draw[0] * (2 * rows + 1)), int(draw[1] * (2 * columns + 1))
    return padded[..., top : top + height, left : left + width]


def _cutout(images: Tensor, draw: Sequence[float]) -> Tensor:
    height, width = images.shape[-2:]
    mask = torch.ones(height, width, dtype=images.dtype, device=images.device)
    # the centre is anywhere, so the square may reach beyond the edge
    top, left = int(draw[0] * height - height * CUTOUT / 2), int(draw[1] * width - width * CUTOUT / 2)
    bottom, right = top + round(height * CUTOUT), left + round(width * CUTOUT)
    mask[max(top, 0) : bottom, max(left, 0) : right] = 0
    return images * mask


def _flip(images: Tensor, draw: Sequence[float]) -> Tensor:
    return images.flip(3) if draw[0] < 0.5 else images


def _scale(images: Tensor, draw: Sequence[float]) -> Tensor:
    across, down = (1 / SCALE + number * (SCALE - 1 / SCALE) for number in draw[:2])
    return _warp(images, [[across, 0, 0], [0, down, 0]])


def _rotate(images: Tensor, draw: Sequence[float]) -> Tensor:
    angle = (2 * draw[0] - 1) * ROTATION
    return _warp(images, [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])


def _warp(images: Tensor, matrix: list[list[float]]) -> Tensor:
    theta = images.new_tensor(matrix).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


# Each takes three numbers in [0, 1) that say how; the order is that of the draws.
KINDS: dict[str, Callable[[Tensor, Sequence[float]], Tensor]] = {
    "colour": _colour,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
