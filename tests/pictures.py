"""Pictures whose pixels say where they are, for tests of sizes and crops."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def position(width: int, height: int) -> Image.Image:
    """Red rises from 0 to 255 from left to right, green from top to bottom; blue is half."""
    columns, rows = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([columns, rows, np.full_like(rows, 128)], axis=2).round().astype(np.uint8))


def numbered(number: int, side: int = 40, width: int | None = None) -> Image.Image:
    """One colour, from which `number_of` reads the number, up to 4,095."""
    return Image.new("RGB", (width or side, side), (16 * (number // 256), 16 * (number // 16 % 16), 16 * (number % 16)))


def number_of(images: Tensor) -> list[int]:
    """The numbers of uint8 images (B, 3, H, W)."""
    digits = (images.float().mean((2, 3)) / 16).round().long()
    return (digits * torch.tensor([256, 16, 1])).sum(1).tolist()


def jpeg(image: Image.Image, quality: int = 95) -> bytes:
    """The bytes of a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
