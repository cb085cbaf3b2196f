"""Any image to 8-bit RGB of one size; what cannot be shown faithfully is refused with a short reason."""

import errno
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from lightly_distill.data.values import Scale, find_range, range_of_type, to_bytes
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
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")  # brands of the container, as phones write
_MORE_BITS = ("F", "I")  # begin the modes of more than 8 bits


# from as it lies in the file to upright, by the orientation in its EXIF
_TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: np.fliplr,
    3: lambda values: np.rot90(values, 2),
    4: np.flipud,
    5: lambda values: values.swapaxes(0, 1),
    6: lambda values: np.rot90(values, -1),
    7: lambda values: np.rot90(values, 2).swapaxes(0, 1),
    8: np.rot90,
}

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
        outside: How many of its values lay outside of the range of the source.
        warning: Of Pillow, if it had one.
    """

    pixels: Tensor
    side: int
    outside: int = 0
    warning: str = ""


def decode(value: Any, size: int | None = None) -> Tensor:
    """Decodes one image: the shorter side is resized to `size`, then the centre is cropped.

    Grey is repeated, more than 8 bits are scaled to 8, transparency is put over white, EXIF orientation is applied.

    Args:
        value: A PIL image; the path or the bytes of a file, or a mapping with one of them under `path` or `bytes`; a
            tensor (3, H, W) or (1, H, W), or an array of such a shape or with channels last or without: whole numbers,
            or floating point in [0, 1].
        size: S, in pixels. Default: the image's shorter side, at most 64.

    Returns:
        uint8, shape (3, S, S). The very pixels of the image where it is S x S and RGB.

    Raises:
        UnusableImage: If the image is damaged, too large, too small, or invisible.
        UsageError: If `value` is no image, or a tensor or array whose shape, type or range is wrong.
    """
    return picture(value, None if size is None else Frame(size)).pixels


def picture(value: Any, frame: Frame | None = None, scale: Scale | None = None) -> Picture:
    """Decodes one image as `decode` does, into a frame.

    Args:
        value: As for `decode`.
        frame: What to show of it. Default: as `decode` without a size.
        scale: Of the values of the source that it is of. Default: one of the image's own.

    Raises:
        UnusableImage: As `decode`.
        UsageError: As `decode`.
    """
    with strict_pillow() as warned:
        outside = 0
        if isinstance(value, (Tensor, np.ndarray)):
            image, outside = _from_array(value, scale)
            side = min(image.size)
        else:
            loaded, side = _load(value, LARGEST_DEFAULT_SIZE if frame is None else math.ceil(frame.size / frame.crop))
            image, outside = _eight_bits(loaded, scale) if isinstance(loaded, _Deep) else (loaded, 0)
        if min(image.size) < SMALLEST_SIDE:
            raise UnusableImage(f"smaller than {SMALLEST_SIDE} pixels")
        frame = frame or Frame(min(side, LARGEST_DEFAULT_SIZE))
        shown = (frame.size, frame.size)
        image = ImageOps.fit(_rgb(image), shown, _METHODS[frame.interpolation], bleed=(1 - frame.crop) / 2)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return Picture(pixels, side, outside, warned[0] if warned else "")


def deep_values(value: Any) -> NDArray[Any] | None:
    """Returns the values of an image of more than 8 bits, None of any other, which is not decoded.

    Floating-point arrays count as 8 bits: they are in [0, 1], unless the user gives another range.
    """
    if isinstance(value, (Tensor, np.ndarray)):
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_sparse):
            return None
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        return array if np.issubdtype(array.dtype, np.integer) and array.dtype != np.uint8 else None
    try:
        with strict_pillow():
            file = _content(value)
            if isinstance(file, Image.Image) and not file.mode.startswith(_MORE_BITS):
                return None
            image = file if isinstance(file, Image.Image) else _open(file)
            deep = _deep(image)
            return None if deep is None else deep.values
    except Exception:  # whatever is wrong with it is told when it is decoded
        return None


def is_image(value: Any) -> bool:
    """Returns whether `value` is of a kind that `decode` takes, without looking into it; names of files excepted."""
    if isinstance(value, Mapping):
        return {"bytes", "path"} >= set(value) != set()
    return isinstance(value, (Image.Image, bytes, Tensor, np.ndarray)) and getattr(value, "ndim", 3) in (2, 3)


@contextmanager
def strict_pillow() -> Iterator[list[str]]:
    """Makes Pillow raise on truncated files and on decompression bombs, whatever its global settings say.

    Its other warnings, such as of damaged EXIF, are collected and not shown: with `python -W error` they would raise.

    Yields:
        The warnings of this thread so far, also of blocks around this one.
    """
    with _strict as warned:
        yield warned


class _Strict:
    """The settings are the process's: the first thread that comes sets them, the last one puts them back."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._own = threading.local()
        self._before = ExitStack()

    def __enter__(self) -> list[str]:
        self._own.depth = getattr(self._own, "depth", 0) + 1
        if self._own.depth == 1:
            self._own.warned = []
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._set(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
                # a text of up to 64 MB is read, as it is where several make so many
                self._set(PngImagePlugin, "MAX_TEXT_CHUNK", PngImagePlugin.MAX_TEXT_MEMORY)
                self._before.enter_context(warnings.catch_warnings())
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                warnings.filterwarnings("always", category=UserWarning, module=r"PIL\.")
                warnings.showwarning = partial(self._collect, warnings.showwarning)
        warned: list[str] = self._own.warned
        return warned

    def __exit__(self, *_: object) -> None:
        self._own.depth -= 1
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before.close()

    def say(self, warning: str) -> None:
        """Adds a warning of our own to those of Pillow."""
        self._own.warned.append(warning)

    def _set(self, holder: Any, name: str, value: Any) -> None:
        self._before.callback(setattr, holder, name, getattr(holder, name))
        setattr(holder, name, value)

    def _collect(self, show: Any, message: Any, category: Any, filename: str, *rest: Any, **others: Any) -> None:
        if getattr(self._own, "depth", 0) and Path(filename).parent.name == "PIL":
            self._own.warned.append(str(message).strip())
        else:
            show(message, category, filename, *rest, **others)


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
    if "MAX_TEXT" in str(error):
        return UnusableImage("a PNG with more than 64 MB of text")
    if isinstance(error, FileNotFoundError):
        return UnusableImage("not there")
    if isinstance(error, OSError) and error.errno is not None:
        return UnusableImage("cannot be read")
    if "closed" in str(error) and isinstance(error, ValueError):
        raise UsageError("the image was closed; give it open, or its file") from error
    return UnusableImage("truncated" if "truncated" in str(error).lower() else "damaged")


class _Deep(NamedTuple):
    """An upright image of more than 8 bits.

    Attributes:
        values: Grey ones (H, W), those of a colour PNG (H, W, 3).
        clear: Which pixels are transparent, (H, W); None where none can be.
    """

    values: NDArray[Any]
    clear: NDArray[Any] | None


def _load(value: Any, size: int) -> tuple[Image.Image | _Deep, int]:
    """Returns the decoded image, upright, or its values if it has more than 8 bits; and its shorter side in full."""
    value = _content(value)
    try:
        image = value.copy() if isinstance(value, Image.Image) else _open(value)  # the user's stays as it is
        side = min(image.size)
        if not isinstance(value, Image.Image) and side >= SMALLEST_SIDE:
            image.draft(None, (2 * size, 2 * size))  # a JPEG far larger than we need: decode less
        deep = _deep(image)
        if deep is not None:
            return deep, side
        image.load()
        _turn_upright(image)
        return image, side
    except Exception as error:  # each format is broken in its own way
        raise why_unusable(error) from error


def _deep(image: Image.Image) -> _Deep | None:
    """Returns an image of more than 8 bits, None of any other.

    Of those in colour that Pillow reads by their upper 8 bits, it says so.
    """
    if image.mode.startswith(_MORE_BITS):
        image = image.copy()
        _turn_upright(image)
        return _with_clear(np.asarray(image), image)
    tile = next(iter(getattr(image, "tile", None) or ()), None)
    deep = tile is not None and ";16" in str(tile[3])
    if deep and (image.format != "PNG" or image.mode != "RGB"):
        _strict.say(f"{image.format} {image.mode} of 16 bits a channel, of which the upper 8 are read")
    elif deep:
        from torchvision.io import decode_png  # Pillow drops the lower 8 bits

        file: Any = getattr(image, "fp", None)
        file.seek(0)
        content = file.read()
        packed = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
        values: NDArray[Any] = decode_png(packed).permute(1, 2, 0).numpy()
        turn = _TURNS.get(_orientation(content, image))
        return _with_clear(values if turn is None else turn(values), image)
    return None


def _orientation(content: bytes, image: Image.Image) -> Any:
    try:
        # EXIF may stand behind the pixels, where Pillow decodes them to reach it
        exif = Image.open(BytesIO(content)).getexif() if b"eXIf" in content else Image.Image.getexif(image)
        return exif.get(ExifTags.Base.Orientation)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF: no reason to lose the image
        return None


def _with_clear(values: NDArray[Any], image: Image.Image) -> _Deep:
    """Finds the pixels of the one value that a PNG calls transparent."""
    clear = image.info.get("transparency")
    return _Deep(values, None if clear is None else (np.atleast_3d(values) == clear).all(-1))


def _content(value: Any) -> str | Path | bytes | Image.Image:
    """Returns the image or the file, or what is in it."""
    if isinstance(value, Mapping):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise UnusableImage("missing")
    if isinstance(value, BytesIO):
        return value.getvalue()
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if not isinstance(value, (str, Path, bytes, Image.Image)):
        raise UsageError(f"expected an image, got {type(value).__name__}")
    return value


def _open(file: str | Path | bytes) -> Image.Image:
    content = file if isinstance(file, bytes) else _read(file)
    if not content:
        raise UnusableImage("empty")
    try:
        image = Image.open(BytesIO(content))
    except UnidentifiedImageError:
        if content[4:8] != b"ftyp" or content[8:12] not in _HEIF:
            raise
        _learn_heif()
        image = Image.open(BytesIO(content))
    if image.format == "EPS":  # a program, which Pillow would hand to Ghostscript
        raise UnusableImage("not an image")
    return image


def _read(file: str | Path) -> bytes:
    if str(file).startswith(("http://", "https://", "s3://", "gs://")):
        raise UnusableImage("a URL, which is not fetched")
    if Path(file).is_fifo():  # it would be waited for
        raise UnusableImage("a pipe")
    return Path(file).read_bytes()


def _learn_heif() -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise UnusableImage("HEIC, which is read where pillow-heif is installed") from error
    pillow_heif.register_heif_opener()


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF: no reason to lose the image
        # Where EXIF could be read and cannot be written back, the pixels were turned before.
        return


def _from_array(value: Tensor | NDArray[Any], scale: Scale | None) -> tuple[Image.Image, int]:
    """Returns an array as an image, and how many of its values lay outside of the range."""
    if isinstance(value, Tensor):
        if value.is_sparse or value.layout is not torch.strided:
            raise UsageError("expected an image, got a sparse tensor")
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
    outside = 0
    if array.dtype != np.uint8:
        array, outside = _scaled(array, kind, scale)
    array = np.ascontiguousarray(array.transpose(1, 2, 0)) if array.shape[0] == 3 else array[0]
    return Image.fromarray(array), outside


def _scaled(array: NDArray[Any], kind: str, scale: Scale | None) -> tuple[NDArray[np.uint8], int]:
    if not np.issubdtype(array.dtype, np.floating):
        if not np.issubdtype(array.dtype, np.integer):
            raise UsageError(f"expected whole numbers, or floating point in [0, 1], got a {kind}")
        return _to_bytes(array, scale)
    low, high = array.min(), array.max()
    if not np.isfinite(low) or not np.isfinite(high):
        raise UsageError(f"NaN or infinite pixels in a {kind}")
    if scale is not None and scale.given:
        return _to_bytes(array, scale)
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        cure = (
            "give uint8, or the range of the values with --value-range (value_range=(low, high) in Python)"
            if low >= 0 and high > 16
            else "looks already normalised: give the dataset without Normalize, or the range of the values with "
            "--value-range (value_range=(low, high) in Python)"
        )
        raise UsageError(f"pixels from {low:.3g} to {high:.3g}, expected [0, 1]; {cure}")
    return np.asarray((array.clip(0, 1) * 255).round().astype(np.uint8)), 0


def _to_bytes(values: NDArray[Any], scale: Scale | None) -> tuple[NDArray[np.uint8], int]:
    if scale is None:
        return to_bytes(values, find_range([values]))
    return to_bytes(values, scale.range or range_of_type(values.dtype))


def _rgb(image: Image.Image) -> Image.Image:
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


def _eight_bits(deep: _Deep, scale: Scale | None) -> tuple[Image.Image, int]:
    if not np.isfinite(deep.values.min()) or not np.isfinite(deep.values.max()):
        raise UnusableImage("NaN pixels")
    array, outside = _to_bytes(deep.values, scale)
    if deep.clear is not None and deep.clear.any():
        array[deep.clear] = 255
        if array.min() == 255:
            raise UnusableImage("transparent")  # as of 8 bits
    return Image.fromarray(array).convert("RGB"), outside
