import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from lightly_distill.data.decode import UnusableImage, decode
from lightly_distill.errors import UsageError

ORIENTATION = 0x0112


def picture(width: int = 12, height: int = 8) -> np.ndarray:
    """A smooth colour picture without any symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + 2 * y) * 255 // (width + 2 * height)], -1).astype(
        "uint8"
    )


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def noise(size: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def test_an_rgb_image_of_the_asked_size_keeps_its_pixels_whatever_holds_it(tmp_path: Path) -> None:
    array = picture(8, 8)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    image = Image.fromarray(array)
    file = tmp_path / "a.png"
    image.save(file)
    content = file.read_bytes()
    held = [image, array, array.transpose(2, 0, 1), tensor, tensor / 255, tensor.double() / 255, array / 255.0]
    held += [file, str(file), content, {"bytes": content, "path": "gone.png"}, {"bytes": None, "path": str(file)}]
    for value in held:
        torch.testing.assert_close(decode(value, 8), tensor, rtol=0, atol=0)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_each_of_the_256_values_comes_back_from_floats(kind: torch.dtype) -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, 16, 16)
    assert (
        torch.equal(decode((values / 255).to(kind), 16), values) or kind == torch.bfloat16
    )  # which has 8 bits for 256
    assert decode(torch.full((3, 4, 4), 0.999, dtype=kind)).unique().tolist() == [255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_an_opaque_image_of_any_mode_shows_what_pillow_shows(mode: str) -> None:
    image = Image.fromarray(picture(8, 8)).convert(mode)
    assert torch.equal(decode(image, 8), pixels(image))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped_to_white(kind: str) -> None:
    grey = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    shown = decode(encoded(Image.fromarray(grey), kind), 8)
    assert torch.equal(shown, torch.from_numpy((grey / 257).round().astype(np.uint8)).expand(3, 8, 8))


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        (np.linspace(0, 1, 64, dtype=np.float32), 0, 255),
        (np.linspace(0, 200, 64, dtype=np.float32), 0, 200),
        (np.linspace(-3, 5, 64, dtype=np.float32), 0, 255),
        (np.linspace(0, 200, 64).astype(np.int32), 0, 200),
        (np.linspace(0, 65535, 64).astype(np.int32), 0, 255),
        (np.linspace(0, 10**6, 64).astype(np.int32), 0, 255),
    ],
)
def test_wide_grey_keeps_its_gradient(values: np.ndarray, low: int, high: int) -> None:
    shown = decode(Image.fromarray(values.reshape(8, 8)), 8)[0].flatten().int()
    assert (shown.diff() >= 0).all()
    assert (shown[0], shown[-1]) == (low, high)
    assert len(shown.unique()) > 50


def test_transparency_is_put_over_white() -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 4, 8))
    image.paste((0, 0, 0, 128), (4, 0, 8, 4))
    left, half, clear = decode(image, 8)[:, 7, 0], decode(image, 8)[:, 0, 7], decode(image, 8)[:, 7, 7]
    assert [left.tolist(), half.tolist(), clear.tolist()] == [[255, 0, 0], [127, 127, 127], [255, 255, 255]]


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_a_transparent_colour_of_a_png_or_gif_is_put_over_white(mode: str) -> None:
    image = Image.new("RGB", (8, 8), (9, 9, 9))
    image.paste((200, 200, 200), (0, 0, 4, 8))
    image = image.convert("L").convert(mode)
    colour = image.getpixel((7, 7))
    shown = decode(encoded(image, "PNG", transparency=colour), 8)
    assert shown[:, 0, 0].tolist() == [200] * 3
    assert shown[:, 7, 7].tolist() == [255] * 3


@pytest.mark.parametrize("colour", [(10, 20, 30, 0), (255, 255, 255, 100)])
def test_an_image_that_would_be_blank_over_white_is_refused(colour: tuple[int, ...]) -> None:
    with pytest.raises(UnusableImage, match=r"^transparent$"):
        decode(Image.new("RGBA", (8, 8), colour), 8)


def test_an_opaque_white_image_is_kept() -> None:
    assert decode(Image.new("RGBA", (8, 8), "white"), 8).min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_applies_it(orientation: int) -> None:
    image = Image.fromarray(picture(9, 8))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = encoded(image, "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(BytesIO(content)))
    assert torch.equal(decode(content, 8), decode(Image.fromarray(np.array(upright)), 8))


def png_of_16_bits(values: np.ndarray, *chunks: tuple[bytes, bytes], behind: bool = False) -> bytes:
    """A PNG of values (H, W, channels), with more chunks before or behind its pixels, as Pillow cannot write it."""

    def packed(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = packed(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2}[channels], 0, 0, 0))
    data, more = packed(b"IDAT", zlib.compress(rows)), b"".join(packed(*chunk) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + head + (data + more if behind else more + data) + packed(b"IEND", b"")


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_16_bits(orientation: int, channels: int, behind: bool) -> None:
    values = picture(9, 8)[..., :channels].astype(np.uint16) * 257
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = png_of_16_bits(values, (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")), behind=behind)
    of_8_bits = encoded(Image.fromarray((values // 257).astype(np.uint8).squeeze()), "PNG", exif=exif)
    assert torch.equal(decode(content, 8), decode(of_8_bits, 8))


def test_damaged_exif_of_16_bits_loses_no_image() -> None:
    values = picture(8, 8).astype(np.uint16) * 257
    content = png_of_16_bits(values, (b"eXIf", b"no TIFF header at all"))
    assert torch.equal(decode(content, 8), decode(png_of_16_bits(values), 8))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_of_16_bits_is_put_over_white_and_no_near_one_is(channels: int) -> None:
    values = np.full((8, 8, channels), 20000, np.uint16)
    values[:, :4], values[7, :4] = 20001, 65535
    clear = (b"tRNS", struct.pack(f">{channels}H", *[20000] * channels))
    exif = (b"eXIf", damaged_exif((ORIENTATION, 3, 1, struct.pack("<L", 3))).removeprefix(b"Exif\0\0"))
    shown = decode(png_of_16_bits(values, clear), 8)
    assert shown[:, 0, 0].tolist() == [78] * 3 and shown[:, 0, 7].tolist() == [255] * 3
    assert decode(png_of_16_bits(values, clear, exif), 8)[:, 0, 0].tolist() == [255] * 3
    with pytest.raises(UnusableImage, match="transparent"):
        decode(png_of_16_bits(np.full((8, 8, channels), 20000, np.uint16), clear), 8)


def damaged_exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block of these entries: tag, type, count, and four bytes of value or of where it lies."""
    packed = b"".join(struct.pack("<HHL", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<LH", 8, len(entries)) + packed + bytes(4)


UPRIGHT_FROM_6 = (ORIENTATION, 3, 1, struct.pack("<L", 6))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of an image that the user opens
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (b"Exif\0\0no TIFF header at all", False),
        (b"Exif\0\0II*\0", False),
        (damaged_exif(UPRIGHT_FROM_6)[:-8], False),  # cut
        (damaged_exif((ORIENTATION, 2, 4, b"abc\0")), False),
        (damaged_exif((ORIENTATION, 3, 1, struct.pack("<L", 9))), False),
        (damaged_exif((ORIENTATION, 3, 2, struct.pack("<HH", 6, 8))), True),  # one too many
        (damaged_exif(UPRIGHT_FROM_6, (0x011A, 5, 1, struct.pack("<L", 10**6))), True),  # a value outside of the file
        (damaged_exif(UPRIGHT_FROM_6, (0x0100, 2, 4, b"abc\0")), True),  # can be read, and not written back
    ],
    ids=["not a TIFF", "short", "cut", "text", "9", "two", "value outside", "cannot be written back"],
)
def test_damaged_exif_loses_no_image_and_no_orientation_that_can_be_read(kind: str, exif: bytes, turned: bool) -> None:
    image = Image.fromarray(picture(12, 8))
    stored = np.array(Image.open(BytesIO(encoded(image, kind, lossless=True))))
    content = encoded(image, kind, lossless=True, exif=exif)
    expected = decode(np.ascontiguousarray(np.rot90(stored, -1)) if turned else stored, 8)
    assert torch.equal(decode(Image.open(BytesIO(content)), 8), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as with `python -W error`
        assert torch.equal(decode(content, 8), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("careless", [False, True])
def test_a_truncated_file_is_refused_whatever_pillows_global_says(
    kind: str, careless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", careless)
    content = encoded(noise(), kind)
    assert decode(content, 64).float().std() > 10
    for part in (0.3, 0.6, 0.9):
        with pytest.raises(UnusableImage, match=r"^(truncated|damaged|not an image)$"):
            decode(content[: int(len(content) * part)], 64)
    assert careless == ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_file_opened_by_the_user_and_truncated_is_refused() -> None:
    image = Image.open(BytesIO(encoded(noise(), "PNG")[:2000]))
    for _ in range(2):
        with pytest.raises(UnusableImage, match="truncated"):
            decode(image, 64)


def test_text_named_jpg_an_empty_file_a_missing_one_and_none_are_refused(tmp_path: Path) -> None:
    for name, content, reason in [("text.jpg", b"hello", "not an image"), ("empty.jpg", b"", "empty")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnusableImage, match=f"^{reason}$"):
            decode(tmp_path / name, 8)
    with pytest.raises(UnusableImage, match=r"^not there$"):
        decode(tmp_path / "missing.jpg", 8)
    with pytest.raises(UnusableImage, match=r"^missing$"):
        decode({"bytes": None, "path": None}, 8)


def test_a_file_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", forbidden)  # root may read anything
    with pytest.raises(UnusableImage, match=r"^cannot be read$"):
        decode(tmp_path / "a.jpg", 8)


def test_too_many_open_files_are_not_the_fault_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(self: Path) -> bytes:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "read_bytes", exhausted)
    with pytest.raises(OSError, match="Too many open files"):
        decode(tmp_path / "a.jpg", 8)


@pytest.mark.parametrize("limit", [2000, 3000])  # 64 x 64 is more than twice the first: an error; the second: a warning
def test_a_decompression_bomb_is_refused_warning_or_error(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(noise(), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UnusableImage, match=r"^too many pixels$"):
            decode(content, 8)


def test_a_postscript_file_never_reaches_ghostscript(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(noise(8), "EPS")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("called Ghostscript"))
    with pytest.raises(UnusableImage, match=r"^not an image$"):
        decode(content, 8)


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (50, 3)])
def test_a_side_under_four_pixels_is_refused(size: tuple[int, int]) -> None:
    for value in (Image.new("RGB", size), encoded(Image.new("RGB", size), "JPEG"), torch.zeros(3, *size)):
        with pytest.raises(UnusableImage, match=r"^smaller than 4 pixels$"):
            decode(value, 8)


def test_resizing_takes_the_centre_and_averages_rather_than_samples() -> None:
    board = np.zeros((64, 192, 3), np.uint8)
    board[:, 64:128] = 255 * (np.indices((64, 64)).sum(0) % 2)[..., None]
    shown = decode(board, 8).float()
    torch.testing.assert_close(shown[:, 1:-1, 1:-1], torch.full((3, 6, 6), 127.5), rtol=0, atol=3)


@pytest.mark.parametrize("size", [(9, 8), (8, 13), (33, 20), (16, 16)])
def test_a_mirrored_image_becomes_the_mirror_image(size: tuple[int, int]) -> None:
    array = np.array(noise().resize(size))
    mirrored = decode(np.ascontiguousarray(array[::-1, ::-1]), 8).flip(1, 2)
    torch.testing.assert_close(decode(array, 8).int(), mirrored.int(), rtol=0, atol=1)


def test_a_long_strip_takes_no_more_memory_than_its_square() -> None:
    strip = Image.new("L", (400_000, 4), 7)  # resized before the crop, it would be 64 x 6,400,000
    assert decode(strip, 64).unique().tolist() == [7]


def test_the_default_size_is_the_shorter_side_up_to_64() -> None:
    assert decode(Image.new("RGB", (40, 30))).shape == (3, 30, 30)
    assert decode(Image.new("RGB", (400, 300))).shape == (3, 64, 64)


def test_a_large_jpeg_decoded_in_part_looks_like_one_decoded_whole() -> None:
    image = Image.fromarray(picture(1200, 800))
    content = encoded(image, "JPEG", quality=95)
    whole = decode(Image.open(BytesIO(content)), 32).float()
    torch.testing.assert_close(decode(content, 32).float(), whole, rtol=0, atol=4)


def test_the_users_image_stays_as_it_is() -> None:
    image = Image.open(BytesIO(encoded(noise(), "JPEG")))
    decode(image, 8)
    assert (image.size, image.mode) == ((64, 64), "RGB")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(8, 8), r"\(3, H, W\) or \(1, H, W\), got a Tensor of shape \(8, 8\) and type float32"),
        (torch.zeros(2, 3, 8, 8), r"got a Tensor of shape \(2, 3, 8, 8\)"),
        (torch.zeros(5, 8, 8), r"got a Tensor of shape \(5, 8, 8\)"),
        (torch.zeros(8, 8, 3), r"got a Tensor of shape \(8, 8, 3\)"),
        (torch.zeros(3, 0, 8), r"got a Tensor of shape \(3, 0, 8\)"),
        (np.zeros((8, 8, 4), np.uint8), r"got a ndarray of shape \(8, 8, 4\)"),
        (torch.zeros(3, 8, 8, dtype=torch.bool), r"expected whole numbers, or floating point in \[0, 1\], got .* bool"),
        (torch.full((3, 8, 8), float("nan")), "NaN or infinite pixels"),
        (torch.full((3, 8, 8), float("inf")), "NaN or infinite pixels"),
        (torch.full((3, 8, 8), -2.0), r"pixels from -2 to -2, .* looks already normalised: give .* without Normalize"),
        (torch.full((3, 8, 8), 255.0), r"pixels from 255 to 255, expected \[0, 1\]; give uint8"),
        (7, "expected an image, got int"),
    ],
)
def test_what_no_file_can_be_is_an_error_of_the_caller(value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        decode(value, 8)
