"""Any image to 8-bit RGB of one size; what cannot be shown faithfully is refused with a short reason."""

import errno
import math
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from lightly_distill.errors import UsageError

LARGEST_DEFAULT_SIZE = 64  # pixels; distillation at more than that is a decision for the user
SMALLEST_SIDE = 4  # pixels; what is smaller has nothing to learn from
SUFFIXES = frozenset(
    {".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm"}
    | {".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)

_ROUNDING = 1e-4  # how far a float pixel may leave [0, 1]
_OUR_OWN_FAULT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # not the file's: skipping would lose good images
_WITH_ALPHA = ("LA", "La", "P", "PA", "RGBA", "RGBa")  # P: its palette may have alpha


Interpolation = Literal["bicubic", "bilinear"]
_METHODS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class UnusableImage(Exception):
    """An image that is skipped and counted. Its text is the reason, in a few words."""


@dataclass(frozen=True)
class Frame:
    """How an image of any shape becomes a square one.

    Attributes:
        size: Height and width, in pixels.
        crop: Side of the region in the middle that is shown, as a fraction of the image's shorter side.
        interpolation: How the region is resized; what makes it smaller is antialiased.
    """

    size: int
    crop: float = 1.0
    interpolation: Interpolation = "bicubic"


class Picture(NamedTuple):
    """One decoded image.

    Attributes:
        pixels: uint8, shape (3, S, S).
        side: Shorter side of the image before it was resized, in pixels.
    """

    pixels: Tensor
    side: int


def decode(value: Any, size: int | None = None) -> Tensor:
    """Decodes one image: the shorter side is resized to `size`, then the centre is cropped.

    Grey is repeated, 16 bits are scaled to 8, transparency is put over white, EXIF orientation is applied.

    Args:
        value: A PIL image; the path or the bytes of a file, or a mapping with one of them under `path` or `bytes`; a
            tensor (3, H, W) or (1, H, W), or an array of such a shape or with channels last or without: uint8, or
            floating point in [0, 1].
        size: S, in pixels. Default: the image's shorter side, at most 64.

    Returns:
        uint8, shape (3, S, S). The very pixels of the image where it is S x S and RGB.

    Raises:
        UnusableImage: If the image is damaged, too large, too small, or invisible.
        UsageError: If `value` is no image, or a tensor or array whose shape, type or range is wrong.
    """
    return picture(value, None if size is None else Frame(size)).pixels


def picture(value: Any, frame: Frame | None = None) -> Picture:
    """Decodes one image as `decode` does, into a frame.

    Args:
        value: As for `decode`.
        frame: What to show of it. Default: as `decode` without a size.

    Raises:
        UnusableImage: As `decode`.
        UsageError: As `decode`.
    """
    with strict_pillow():
        if isinstance(value, (Tensor, np.ndarray)):
            image = _from_array(value)
            side = min(image.size)
        else:
            image, side = _load(value, LARGEST_DEFAULT_SIZE if frame is None else math.ceil(frame.size / frame.crop))
        if min(image.size) < SMALLEST_SIDE:
            raise UnusableImage(f"smaller than {SMALLEST_SIDE} pixels")
        frame = frame or Frame(min(side, LARGEST_DEFAULT_SIZE))
        shown = (frame.size, frame.size)
        image = ImageOps.fit(_rgb(image), shown, _METHODS[frame.interpolation], bleed=(1 - frame.crop) / 2)
    return Picture(torch.from_numpy(np.array(image)).permute(2, 0, 1), side)


def is_image(value: Any) -> bool:
    """Returns whether `value` is of a kind that `decode` takes, without looking into it; names of files excepted."""
    if isinstance(value, Mapping):
        return {"bytes", "path"} >= set(value) != set()
    return isinstance(value, (Image.Image, bytes, Tensor, np.ndarray)) and getattr(value, "ndim", 3) in (2, 3)


@contextmanager
def strict_pillow() -> Iterator[None]:
    """Makes Pillow raise on truncated files and on decompression bombs, whatever its global settings say.

    Its warnings of damaged EXIF, which it reads as a TIFF file, are silenced: with `python -W error` they would raise.
    """
    _strict.enter()
    try:
        yield
    finally:
        _strict.leave()


class _Strict:
    """Both settings are the process's: the first thread that comes sets them, the last one puts them back."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._before = ExitStack()

    def enter(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before.callback(setattr, ImageFile, "LOAD_TRUNCATED_IMAGES", ImageFile.LOAD_TRUNCATED_IMAGES)
                ImageFile.LOAD_TRUNCATED_IMAGES = False
                self._before.enter_context(warnings.catch_warnings())
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before.close()


_strict = _Strict()


def why_unusable(error: Exception) -> UnusableImage:
    """Returns the reason to skip an image whose file could not be read or decoded.

    Raises:
        Exception: `error` itself, where it is not the file's fault.
    """
    if isinstance(error, UnusableImage):
        return error
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in _OUR_OWN_FAULT:
        raise error
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return UnusableImage("too many pixels")
    if isinstance(error, UnidentifiedImageError):
        return UnusableImage("not an image")
    if isinstance(error, OSError) and error.errno is not None:
        return UnusableImage("cannot be read")
    return UnusableImage("truncated" if "truncated" in str(error).lower() else "damaged")


def _load(value: Any, size: int) -> tuple[Image.Image, int]:
    """Returns the decoded image, upright, and the shorter side that it has in full."""
    if isinstance(value, Mapping):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise UnusableImage("missing")
    if not isinstance(value, (str, Path, bytes, Image.Image)):
        raise UsageError(f"expected an image, got {type(value).__name__}")
    try:
        image = value.copy() if isinstance(value, Image.Image) else _open(value)  # the user's stays as it is
        side = min(image.size)
        if not isinstance(value, Image.Image) and side >= SMALLEST_SIDE:
            image.draft(None, (2 * size, 2 * size))  # a JPEG far larger than we need: decode less
        image.load()
        _turn_upright(image)
        return image, side
    except Exception as error:  # each format is broken in its own way
        raise why_unusable(error) from error


def _open(file: str | Path | bytes) -> Image.Image:
    content = file if isinstance(file, bytes) else Path(file).read_bytes()
    if not content:
        raise UnusableImage("empty")
    image = Image.open(BytesIO(content))
    if image.format == "EPS":  # a program, which Pillow would hand to Ghostscript
        raise UnusableImage("not an image")
    return image


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF: no reason to lose the image
        # Where EXIF could be read and cannot be written back, the pixels were turned before.
        return


def _from_array(value: Tensor | NDArray[Any]) -> Image.Image:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        array = (value.float() if value.is_floating_point() else value).numpy()
        channels_last = False
    else:
        array = value[None] if value.ndim == 2 else value
        channels_last = array.ndim == 3 and array.shape[0] not in (1, 3) and array.shape[2] in (1, 3)
    if channels_last:
        array = array.transpose(2, 0, 1)
    kind = f"{type(value).__name__} of shape {tuple(value.shape)} and type {str(value.dtype).removeprefix('torch.')}"
    if array.ndim != 3 or array.shape[0] not in (1, 3) or 0 in array.shape:
        raise UsageError(f"expected an image of shape (3, H, W) or (1, H, W), got a {kind}")
    if array.dtype != np.uint8:
        array = _scaled(array, kind)
    return Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)) if array.shape[0] == 3 else array[0])


def _scaled(array: NDArray[Any], kind: str) -> NDArray[Any]:
    if not np.issubdtype(array.dtype, np.floating):
        raise UsageError(f"expected uint8, or floating point in [0, 1], got a {kind}")
    low, high = array.min(), array.max()
    if not np.isfinite(low) or not np.isfinite(high):
        raise UsageError(f"NaN or infinite pixels in a {kind}")
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        cure = (
            "give uint8" if low >= 0 and high > 16 else "looks already normalised: give the dataset without Normalize"
        )
        raise UsageError(f"pixels from {low:.3g} to {high:.3g}, expected [0, 1]; {cure}")
    return np.asarray((array.clip(0, 1) * 255).round().astype(np.uint8))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return _eight_bits(image).convert("RGB")
    try:
        if image.mode in _WITH_ALPHA or "transparency" in image.info:
            return _over_white(image.convert("RGBA"))
        return image.convert("RGB")
    except ValueError as error:  # such as LAB
        raise UnusableImage(f"colour mode {image.mode}") from error


def _over_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    result = Image.alpha_composite(white, image).convert("RGB")
    if image.getchannel("A").getextrema() != (255, 255) and result.getextrema() == ((255, 255),) * 3:
        raise UnusableImage("transparent")  # wholly, or white on transparent ground
    return result


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scales grey values of more than 8 bits: 16 bits as such, others from the first common range that holds them."""
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    if not np.isfinite(low) or not np.isfinite(high):
        raise UnusableImage("NaN pixels")
    limits = {"F": (1, 255, 65535), "I": (255, 65535)}.get(image.mode, (65535,))
    full = next((float(limit) for limit in limits if low >= 0 and high <= limit), 0.0)
    if not full:  # of no common range: from its own darkest to its brightest
        values, full = values - low, float(high - low) or 1.0
    return Image.fromarray((values * (255 / full)).round().astype(np.uint8))
