"""How many bytes images and their targets take on disk, of sets that are never written as of those that are."""

from dataclasses import dataclass

import torch

from lightly_distill.synthetic import artifact
from lightly_distill.synthetic.synthetic_set import SyntheticSet

_WRITTEN = 2000  # images of a set that are written, at most, to see how many bytes they take
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
    def of(cls, some: SyntheticSet) -> "Footprint":
        """Measures a set, of at least 2 images, and a quarter of it."""
        whole, few = len(some), max(1, len(some) // 4)
        large, small = (artifact.stored_bytes(some.part(torch.arange(count))) for count in (whole, few))
        each = (large - small) / (whole - few)
        return cls(large - each * whole, each)

    def bytes(self, count: int) -> int:
        """Returns the bytes of so many images."""
        return round(self.fixed + self.each * count)

    def count(self, budget: float) -> int:
        """Returns how many images fit into so many bytes, about; 0 or below where none do."""
        return int((budget - self.fixed) / self.each)

    def corrected(self, made: SyntheticSet, budget: float) -> int:
        """Returns how many images fit, given what a set of about as many takes."""
        return len(made) + round((budget - stored_bytes(made)) / self.each)


def stored_bytes(made: SyntheticSet) -> int:
    """Returns the bytes of the files of a set, without the record of how it was made, which not every set has."""
    if len(made) <= _WRITTEN:
        return artifact.stored_bytes(made.part(torch.arange(len(made))))
    return Footprint.of(made.part(torch.arange(_SAMPLE))).bytes(len(made))
