"""What is done to a batch before a student is trained on it: crop, flip and mixup, and in pre-training colours."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightly_distill.data.pixels import crop_and_flip, draw_crops
from lightly_distill.runtime.device import send

SIDE = 32  # pixels; on images of this side a crop is as that of the paper's authors, on others as large in proportion


_LUMA = (0.299, 0.587, 0.114)  # of grey, as torchvision weighs the colours


def jitter_colors(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Changes brightness, contrast and saturation of each image, as torchvision's ColorJitter does those of one.

    Args:
        images: In units of [0, 1], shape (B, 3, S, S). What comes out may lie beyond.
        strength: By up to this fraction is each of the three raised or lowered, drawn uniformly for each image.
        generator: Of the draws, on the CPU.
    """
    factors = 1 + strength * (2 * torch.rand(3, len(images), 1, 1, 1, generator=generator) - 1)
    brightness, contrast, saturation = send(factors, images.device)
    images = images * brightness
    images = _grey(images).mean((-2, -1), keepdim=True).lerp(images, contrast)
    return _grey(images).lerp(images, saturation)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images[:, :1], images[:, 1:2], images[:, 2:]
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def vary(
    images: Tensor,
    rows: Tensor,
    mirror: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    *,
    crop: bool,
    mixup: bool,
) -> tuple[Tensor, Tensor]:
    """Crops and mirrors images, and mixes pairs of images and of their targets.

    Mixup (Zhang et al., ICLR 2018, arXiv:1710.09412) with weights drawn uniformly from 0 to 1 for each image.

    Args:
        images: Normalised, shape (B, C, S, S).
        rows: Targets, shape (B, D).
        mirror: Targets to those of mirrored images.
        generator: Of the draws, on the CPU.
        crop: Whether images are shifted by up to an eighth of their side, with reflected borders, and half of them are
            mirrored.
        mixup: Whether pairs are mixed.

    Returns:
        Images and targets of the same shapes.
    """
    if crop:
        crops = draw_crops((len(images),), generator)
        images = crop_and_flip(images, crops, images.shape[-1] / SIDE, border="reflect")
        rows = torch.where(send(crops[:, 2:], rows.device) == 1, mirror(rows), rows)
    if mixup:
        weights = send(torch.rand(len(images), generator=generator), images.device)
        partners = send(torch.randperm(len(images), generator=generator), images.device)
        images = images.lerp(images[partners], weights.view(-1, 1, 1, 1))
        rows = rows.lerp(rows[partners], weights.view(-1, 1))
    return images, rows
