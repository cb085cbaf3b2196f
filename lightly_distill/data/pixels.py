"""Arithmetic on batches of pixels: normalisation, and the padded crops and flips of the paper's authors."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightly_distill.runtime.device import send

PAD = 4  # pixels; the authors' random crop


def no_crop(shape: tuple[int, ...]) -> Tensor:
    """Returns offsets that leave images as they are, shape (*shape, 3); see `draw_crops`."""
    return torch.tensor([PAD, PAD, 0]).expand(*shape, 3)


def draw_crops(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draws offsets and flips, shape (*shape, 3): rows, columns in 0..2 PAD, and 1 where the image is flipped."""
    corners = torch.randint(2 * PAD + 1, (*shape, 2), generator=generator)
    return torch.cat([corners, torch.randint(2, (*shape, 1), generator=generator)], dim=-1)


def crop_and_flip(images: Tensor, crops: Tensor, scale: float = 1.0, border: str = "constant") -> Tensor:
    """Pads images by PAD pixels, crops them back to their size, and mirrors some.

    Args:
        images: uint8 or floating point, shape (B, C, H, W).
        crops: int64, on the CPU, shape (B, 3): top row and left column in the padded image, and 1 to mirror. (PAD, PAD,
            0) is the image itself.
        scale: How many times larger the images are than those that PAD and crops are for. The view is of the same
            region then, as nearly as whole pixels allow.
        border: How they are padded, as `torch.nn.functional.pad` says: with zeros, or `reflect`.

    Returns:
        The views, same shape and type.
    """
    if (crops == torch.tensor([PAD, PAD, 0])).all():
        return images
    height, width = images.shape[-2:]
    pad = math.ceil(PAD * scale)
    padded, crops = F.pad(images, (pad, pad, pad, pad), mode=border), send(crops, images.device)
    corners = pad + ((crops[:, :2] - PAD) * scale).round().long()
    rows = corners[:, 0, None] + torch.arange(height, device=images.device)
    straight = torch.arange(width, device=images.device)
    columns = corners[:, 1, None] + torch.where(crops[:, 2, None] == 1, straight.flip(0), straight)
    number = torch.arange(len(images), device=images.device)[:, None, None]
    return padded[number, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def resized(images: Tensor, size: int) -> Tensor:
    """Resizes uint8 images (B, C, H, W) to (B, C, size, size), bicubic with antialias; those of that size stay."""
    if images.shape[-2:] == (size, size):
        return images
    larger = F.interpolate(images.float(), size=(size, size), mode="bicubic", antialias=True)
    return larger.round().clamp(0, 255).byte()


def normalise(images: Tensor, mean: "Sequence[float] | Tensor", std: "Sequence[float] | Tensor") -> Tensor:
    """Maps uint8 images (B, 3, H, W) to normalised float32, on their device."""
    shift, scale = (torch.as_tensor(values, device=images.device).view(1, 3, 1, 1) for values in (mean, std))
    return (images.float() / 255 - shift) / scale


class Normalised:
    """Images that are normalised a batch at a time: uint8 pixels take a quarter of the memory meanwhile.

    Args:
        images: uint8, or normalised float32, which stay as they are; shape (n, 3, H, W).
        mean: Of each channel in units of [0, 1].
        std: As `mean`.
    """

    def __init__(self, images: Tensor, mean: "Sequence[float] | Tensor", std: "Sequence[float] | Tensor") -> None:
        self._images = images
        self._mean, self._std = (torch.as_tensor(values, device=images.device) for values in (mean, std))
        self.shape, self.device, self.nbytes = images.shape, images.device, images.nbytes

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, which: "Tensor | slice") -> Tensor:
        """Returns normalised images, float32, by index, int64 of shape (B,), or by slice."""
        # whole images are copied; `[indices]` takes up to 90 times as long
        few = self._images[which] if isinstance(which, slice) else self._images.index_select(0, which.to(self.device))
        return few if few.is_floating_point() else normalise(few, self._mean, self._std)

    def in_units(self, change: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Returns normalised images (B, 3, H, W) after a change of them that is made in units of [0, 1]."""
        mean, std = (values.view(1, 3, 1, 1) for values in (self._mean, self._std))
        return (change(images * std + mean) - mean) / std

    def to(self, device: torch.device) -> "Normalised":
        """Returns the same on a device."""
        return Normalised(self._images.to(device), self._mean, self._std)
