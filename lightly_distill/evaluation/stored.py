"""How many bytes images and their targets take on disk, of sets that are never written as of those that are."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lightly_distill.synthetic import artifact
from lightly_distill.synthetic.synthetic_set import SyntheticSet

MOST_WRITTEN = 2000  # images of a set that are written, at most, to see how many bytes they take
_SAMPLE = 512  # of a larger one


@dataclass(frozen=True)
class Footprint:
    """Bytes of sets of one kind, whatever the number of images.

    Attributes:
        fixed: Of any set.
        each: Of an image with its targets.
    """

    fixed: float
    each: float

    @classmethod
    def of(cls, some: SyntheticSet, own: SyntheticSet) -> "Footprint":
        """Measures a set, of at least 2 images, and a quarter of it; `own` is as for `stored_bytes`."""
        whole, few = len(some), max(1, len(some) // 4)
        large, small = (_first(some, count, own) for count in (whole, few))
        each = (large - small) / (whole - few)
        return cls(large - each * whole, each)

    def bytes(self, count: int) -> int:
        """Returns the bytes of so many images."""
        return round(self.fixed + self.each * count)

    def count(self, budget: float) -> int:
        """Returns how many images fit into so many bytes, about; 0 or below where none do."""
        return int((budget - self.fixed) / self.each)


def most_within(budget: float, bytes_of: Callable[[int], float], most: int) -> int:
    """Returns the largest number of images, from 2 to `most`, whose bytes are within the budget; 2 where none is.

    What is fixed in a small set is not: its preview has all of its images, so that bytes are looked up, not reckoned.
    """
    least = 2
    while least < most:
        middle = (least + most + 1) // 2
        if bytes_of(middle) <= budget:
            least = middle
        else:
            most = middle - 1
    return least


def stored_bytes(made: SyntheticSet, own: SyntheticSet) -> int:
    """Returns the bytes of a set, as `inspect` tells them of one in a folder.

    Args:
        made: The set. A large one that is not `own` is not written whole.
        own: The distilled set that it is compared with, whose record it is given where it has none: the same for both.
    """
    if made is own or len(made) <= MOST_WRITTEN:
        return _first(made, len(made), own)
    return Footprint.of(made.part(torch.arange(_SAMPLE)), own).bytes(len(made))


def _first(made: SyntheticSet, count: int, own: SyntheticSet) -> int:
    """Returns the bytes of the first images of a set."""
    some, recorded = made.part(torch.arange(count)), made if made.provenance else own
    some.provenance, some.metrics = recorded.provenance, recorded.metrics
    return artifact.stored_bytes(some)
