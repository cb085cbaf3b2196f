"""How the user wants a source to be read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightly_distill.data.values import Scale, ValueRange
from lightly_distill.errors import UsageError


@dataclass(frozen=True)
class Reading:
    """The same settings for Python, callback and command line.

    Attributes:
        num_workers: Processes that read and decode; 0: this one, in which files are decoded by threads.
        column: Of rows with several images, see `items.Items`.
        value_range: Of pixels of more than 8 bits; None: it is found from some images.
        scale: That of the images for training, where these are for testing: both are read alike.
    """

    num_workers: int = 0
    column: str | None = None
    value_range: ValueRange | None = None
    scale: Scale | None = None


def check_column(column: Any) -> None:
    """Refuses what is no name of a column, nor several."""
    if column is not None and not (isinstance(column, str) and column.strip(" ,")):
        raise UsageError(f"column is the name of a column, or several, comma separated; got {column!r}.")


def as_range(given: Any) -> ValueRange:
    """Returns a range of values, from two numbers or the text `LOW,HIGH`.

    Raises:
        UsageError: If it is none.
    """
    numbers = given.split(",") if isinstance(given, str) else given
    try:
        if not isinstance(numbers, Sequence):
            raise TypeError
        low, high = map(float, numbers)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(f"value_range is LOW,HIGH, two increasing numbers such as 0,4095; got {given!r}.")
    return ValueRange(low, high)
