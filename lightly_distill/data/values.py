"""From pixels of more than 8 bits to 8, by one range of values for all images of a source.

A range for each image would make the same scene bright or dark by its brightest pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Largest values that sensors and files have: fractions; 8, 10, 12, 14 and 16 bits; reflectances of satellites.
_LIMITS = (1.0, 255.0, 1023.0, 4095.0, 10_000.0, 16_383.0, 65_535.0)
_RARE = 1e-3  # share of the values at either end that may lie outside of a range: hot and dead pixels
_SLIVER = 1 / 16  # of a range; what an image has of it at least, to be seen well


class ValueRange(NamedTuple):
    """What becomes black and what becomes white; values outside become one of them."""

    low: float
    high: float


@dataclass(frozen=True)
class Scale:
    """How the values of a source are read.

    Attributes:
        range: Of all images; None: no image that was looked at has more than 8 bits, and one that has after all is read
            by the range of its type.
        given: Whether the user gave it, so that it is that of floating-point arrays too.
    """

    range: ValueRange | None = None
    given: bool = False


def find_range(samples: Sequence[NDArray[Any]]) -> ValueRange:
    """Finds the range of values from some images of a source.

    It is that of a common kind of file, such as 0 to 4095, where the values fill most of it; else it goes from 0, or
    the least value, to the largest. Single values far from all others are left outside.

    Args:
        samples: Values of each image, of any shape and type.
    """
    values = np.concatenate([sample.astype(np.float64).reshape(-1) for sample in samples])
    values = values[np.isfinite(values)]
    if not values.size:
        return ValueRange(0.0, 1.0)
    least, most = values.min(), values.max()
    low = np.quantile(values, _RARE, method="higher")
    high = np.quantile(values, 1 - _RARE, method="lower")
    for limit in _LIMITS:
        if low >= 0 and 0.75 * limit < high <= 1.02 * limit and high - low > limit * _SLIVER:
            return ValueRange(0.0, limit)
    slack = (high - low) / 10
    low, high = (least if low - least <= slack else low), (most if most - high <= slack else high)
    if low >= 0 and high - low > high * _SLIVER:
        low = 0.0
    if low == high:  # images of one value
        return ValueRange(*sorted((0.0, float(high) or 1.0)))
    return ValueRange(float(low), float(high))


def range_of_type(kind: np.dtype[Any]) -> ValueRange:
    """Returns the range of values of an image that nothing else is known of."""
    if np.issubdtype(kind, np.floating):
        return ValueRange(0.0, 1.0)
    return ValueRange(0.0, 255.0 if kind.itemsize == 8 else 65_535.0)  # 8 bytes: what torch makes of bytes


def seen_poorly(samples: Sequence[NDArray[Any]], whole: ValueRange) -> bool:
    """Returns whether most images use no more than a sliver of the range."""
    spans = [np.subtract(*np.nanquantile(sample.astype(np.float64), (1 - _RARE, _RARE))) for sample in samples]
    return bool(np.median(spans) < (whole.high - whole.low) * _SLIVER)


def to_bytes(values: NDArray[Any], whole: ValueRange) -> tuple[NDArray[np.uint8], int]:
    """Returns values as 8 bits, and how many of them lie outside of the range."""
    scaled = (values.astype(np.float64) - whole.low) / (whole.high - whole.low)
    outside = int(np.count_nonzero((scaled < -_RARE / 10) | (scaled > 1 + _RARE / 10)))
    return (scaled.clip(0, 1) * 255).round().astype(np.uint8), outside
