"""The preset that looks at the images: what suits their number and size."""

import logging
import math
from typing import Any

from lightly_distill.data.reading import Reading
from lightly_distill.data.source import count_and_size
from lightly_distill.runtime.settings import flat

_logger = logging.getLogger(__name__)

AUTO = "auto"  # the preset that looks at the images
# Images of a source, at most, and what suits so many; the last row is for any number. See examples/options.md.
_BY_COUNT: tuple[tuple[float, dict[str, Any]], ...] = (
    (2_000, {"num_images": 50, "steps": 300, "batch_size": 256, "pool": {"size": 8}}),
    (20_000, {"num_images": 300, "steps": 600, "batch_size": 256, "pool": {"size": 8}}),
    (200_000, {"num_images": 300, "steps": 1000, "batch_size": 512, "pool": {"size": 12}}),
    (math.inf, {"num_images": 1000, "steps": 2000, "batch_size": 1024, "pool": {"size": 20}}),
)


def auto_settings(count: int | None, image_size: int) -> dict[str, Any]:
    """Returns the settings of the preset `auto`.

    Args:
        count: Images of the source; None, of a stream, is many.
        image_size: S, in pixels.
    """
    own = next(own for most, own in _BY_COUNT if (count or math.inf) <= most)
    images = min(own["num_images"], max(2, count // 4)) if count else own["num_images"]  # of a handful, a few
    blocks = 3 if image_size < 48 else 4  # down to maps of 4 cells a side
    widths = (32, 64, 128, 256)[:blocks]
    return {
        **own,
        "num_images": images,
        "student": "_".join(["convnet", *map(str, widths)]),
        "image_size": image_size,
    }


def suited_settings(dataset: Any, image_size: int | None, reading: Reading) -> dict[str, Any]:
    """Returns what the preset `auto` takes for these images, as `auto_settings` does, and tells it."""
    count, size = count_and_size(dataset, image_size, reading)
    suits = auto_settings(count, size)
    how_many = "a stream" if count is None else f"{count:,} images"
    told = ", ".join(f"{name}={value}" for name, value in flat(suits).items())
    _logger.info(
        "For %s at %d pixels the preset auto takes %s; other options have the last word.", how_many, size, told
    )
    return suits
