"""Which real images the outer steps see, and which are held out to measure the loss on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightly_distill.data.source import Source
from lightly_distill.errors import UsageError
from lightly_distill.method.config import DistillConfig
from lightly_distill.runtime import seeding
from lightly_distill.runtime.words import called


@dataclass(frozen=True)
class Split:
    """The two parts of a source, as increasing indices, int64.

    Attributes:
        train: Of the outer steps and of the start, shape (n - h,).
        held_out: Of no step, shape (h,).
    """

    train: Tensor
    held_out: Tensor

    @classmethod
    def of(cls, source: Source, config: DistillConfig) -> "Split":
        """Draws the held-out images.

        Raises:
            UsageError: If the source has too few images for the synthetic set.
        """
        held = require_enough(source, config)
        order = torch.randperm(len(source), generator=seeding.generator(config.seed, "holdout"))
        return cls(train=order[held:].sort().values, held_out=order[:held].sort().values)


def require_enough(source: Source, config: DistillConfig) -> int:
    """Returns how many images are held out; see `require_count`."""
    return require_count(len(source), source.name, config)


def held_out_of(count: int, config: DistillConfig) -> int:
    """Returns how many of `count` images are held out."""
    return min(config.holdout, count // 10)


def require_count(count: int, name: str, config: DistillConfig) -> int:
    """Returns how many of `count` images are held out.

    Args:
        count: Usable images of a source; before they are read, its items, which are at least as many.
        name: Of the source.
        config: The settings.

    Raises:
        UsageError: If the source has too few images for the synthetic set.
    """
    held = held_out_of(count, config)
    if count - held < config.num_images:
        usable = "image" if count == 1 else "images"
        aside = "" if count < config.num_images else ", keep none aside with holdout=0 (--holdout 0),"
        raise UsageError(
            f"{called(name)} has {count} usable {usable} ({held} of them held out to measure the loss), fewer than "
            f"num_images={config.num_images}: ask for at most {count - held}{aside} or give a larger source."
        )
    return held
