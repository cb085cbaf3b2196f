"""What a synthetic set holds, checked: images, a representation of each, and the record of where they come from."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightly_distill.errors import UsageError
from lightly_distill.models.projection import Projection


class Contents(Dataset[tuple[Tensor, Tensor]]):
    """The tensors of a synthetic set and its record; `SyntheticSet` adds the ways to disk and to the Hub.

    Args:
        images: float32, shape (m, 3, H, W), in normalised pixel space: unbounded, see `mean` and `std`.
        representations: float32, shape (m, d).
        mean: Of each channel in units of [0, 1]; a model that was trained on the set expects images normalised so.
        std: As `mean`.
        source_index: Index of the real image that each started from, int64, shape (m,); -1 where it was noise.
        provenance: JSON-able: source, target, configuration, versions, losses, cost.
        metrics: JSON-able: measured results.
        projection: By which the target's representations became those of the set; None where these are its own.

    Raises:
        UsageError: If shapes or types do not fit, or a number is not finite.
    """

    def __init__(
        self,
        images: Tensor,
        representations: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        source_index: Tensor | None = None,
        provenance: dict[str, Any] | None = None,
        metrics: dict[str, Any] | None = None,
        projection: Projection | None = None,
    ) -> None:
        _check("images", images, ("m", "C", "H", "W"), torch.float32)
        _check("representations", representations, ("m", "d"), torch.float32)
        if source_index is None:
            source_index = torch.full((len(images),), -1)
        _check("source_index", source_index, ("m",), torch.int64)
        counts = {"images": len(images), "representations": len(representations), "source_index": len(source_index)}
        if len(set(counts.values())) > 1:
            raise UsageError(f"A synthetic set has as many of each; got {counts}.")
        if images.shape[1] != 3 or len(mean) != 3 or len(std) != 3:
            raise UsageError(
                f"A synthetic set has 3 channels; got images of shape {tuple(images.shape)}, mean {list(mean)}, "
                f"std {list(std)}."
            )
        if not all(math.isfinite(value) for value in (*mean, *std)) or min(std) <= 0:
            raise UsageError(f"mean and std must be finite, and std positive; got mean {list(mean)}, std {list(std)}.")
        if projection is not None and projection.basis.shape[1] != representations.shape[1]:
            raise UsageError(
                f"The projection of a synthetic set gives {projection.basis.shape[1]} numbers, its representations "
                f"have {representations.shape[1]}."
            )
        self.images = images.detach()
        self.representations = representations.detach()
        self.source_index = source_index
        self.mean: tuple[float, ...] = tuple(float(value) for value in mean)
        self.std: tuple[float, ...] = tuple(float(value) for value in std)
        self.provenance = provenance or {}
        self.metrics = metrics or {}
        self.projection = projection

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.representations[index]

    @property
    def dim(self) -> int:
        """Length d of a representation."""
        return self.representations.shape[1]

    def original_representations(self) -> Tensor:
        """Returns the representations in the target's own space, float32, shape (m, D): D is d without a projection."""
        return self.representations if self.projection is None else self.projection.restore(self.representations)

    def displayable(self) -> Tensor:
        """Returns the images for eyes: uint8, shape (m, 3, H, W), clipped to what a screen can show."""
        mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (self.mean, self.std))
        return ((self.images.cpu() * std + mean) * 255).round().clamp(0, 255).byte()


def _check(name: str, value: Tensor, shape: tuple[str, ...], dtype: torch.dtype) -> None:
    expected = f"{dtype} of shape ({', '.join(shape)}), none of them 0"
    if not isinstance(value, Tensor):
        raise UsageError(f"The {name} of a synthetic set must be a tensor, {expected}; got {type(value).__name__}.")
    if value.ndim != len(shape) or value.dtype != dtype or 0 in value.shape:
        raise UsageError(
            f"The {name} of a synthetic set must be {expected}; got {value.dtype} of shape {tuple(value.shape)}."
        )
    if not value.isfinite().all():
        raise UsageError(f"The {name} of a synthetic set must be finite; got NaN or infinity.")
