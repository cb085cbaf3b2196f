"""What a synthetic set holds, checked: images, targets of each, and the record of where they come from.

Shapes: m images, d numbers of a representation, C channels of a map, g cells of a side.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightly_distill.data.pixels import Normalised
from lightly_distill.errors import UsageError
from lightly_distill.models.projection import Projection
from lightly_distill.models.rows import MAX_CODE, Layout

_NO_WAY_BACK = "the set keeps no way back to the target's own numbers: distil it with a number, such as target_dims=64."

PREVIEW = "preview.png"
EIGHT_BIT_PREVIEW = "preview.webp"


class Contents(Dataset[tuple[Tensor, Tensor]]):
    """The tensors of a synthetic set and its record; `SyntheticSet` adds the ways to disk and to the Hub.

    Args:
        images: Shape (m, 3, H, W): uint8 pixels, of a set of 8 bits (format 2), or float32 in normalised pixel space,
            unbounded (format 1). Pixels without `scales` are of a set of floats whose images are pixels by chance, as
            real ones are: they are kept in a quarter of the memory.
        representations: float32, shape (m, d).
        mean: Of each channel in units of [0, 1]; a model that was trained on the set expects images normalised so.
        std: As `mean`.
        maps: float32, shape (m, C, g, g); None where the set has none. Of a set of 8 bits only.
        files: Of a set of 8 bits: its images as they are stored, WebP or PNG, whose pixels `images` are, such as
            `eight_bits.encoded` returns. Default: they are stored without loss.
        scales: Of a set of 8 bits: float32, positive, shape (d + C,), for each number of a representation and each
            channel of a map; all numbers are whole multiples of theirs, of at most 127.
        source_index: Index of the real image that each started from, int64, shape (m,); -1 where it was noise.
        provenance: JSON-able: source, target, configuration, versions, losses, cost.
        metrics: JSON-able: measured results.
        projection: By which the target's representations became those of the set; None where these are its own, or the
            way back is not kept.
        map_projection: By which each cell of the target's map became one of the set; None where that is not kept.

    Attributes:
        pixels: uint8, shape (m, 3, H, W); None in a set of format 1.

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
        maps: Tensor | None = None,
        files: Sequence[bytes] | None = None,
        scales: Tensor | None = None,
        source_index: Tensor | None = None,
        provenance: dict[str, Any] | None = None,
        metrics: dict[str, Any] | None = None,
        projection: Projection | None = None,
        map_projection: Projection | None = None,
    ) -> None:
        are_pixels = isinstance(images, Tensor) and images.dtype == torch.uint8
        _check("images", images, ("m", "C", "H", "W"), torch.uint8 if are_pixels else torch.float32)
        _check("representations", representations, ("m", "d"), torch.float32)
        if source_index is None:
            source_index = torch.full((len(images),), -1)
        _check("source_index", source_index, ("m",), torch.int64)
        if maps is not None:
            _check("maps", maps, ("m", "C", "g", "g"), torch.float32)
        counts = {"images": len(images), "representations": len(representations), "source_index": len(source_index)}
        counts |= {name: len(given) for name, given in (("maps", maps), ("files", files)) if given is not None}
        if len(set(counts.values())) > 1:
            raise UsageError(f"A synthetic set has as many of each; got {counts}.")
        if images.shape[1] != 3 or len(mean) != 3 or len(std) != 3:
            raise UsageError(
                f"A synthetic set has 3 channels; got images of shape {tuple(images.shape)}, mean {list(mean)}, "
                f"std {list(std)}."
            )
        if not all(math.isfinite(value) for value in (*mean, *std)) or min(std) <= 0:
            raise UsageError(f"mean and std must be finite, and std positive; got mean {list(mean)}, std {list(std)}.")
        _check_projection("representations", projection, representations.shape[1])
        _check_projection("maps", map_projection, 0 if maps is None else maps.shape[1])
        self.mean: tuple[float, ...] = tuple(float(value) for value in mean)
        self.std: tuple[float, ...] = tuple(float(value) for value in std)
        self._kept = images.detach()
        self.pixels = self._kept if are_pixels and scales is not None else None
        self.representations = representations.detach()
        self.maps = None if maps is None else maps.detach()
        self.files = None if files is None else list(files)
        self.scales = scales
        if self.pixels is not None:
            _check_codes(scales, self.targets, self.layout)
        elif any(part is not None for part in (maps, files, scales)):
            raise UsageError(
                "Maps, files and scales are of a synthetic set of 8 bits: give its images as uint8 pixels."
            )
        self.source_index = source_index
        self.provenance = provenance or {}
        self.metrics = metrics or {}
        self.projection, self.map_projection = projection, map_projection

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.representations[index]

    @property
    def normalised(self) -> Normalised:
        """The images as students see them, a batch at a time."""
        return Normalised(self._kept, self.mean, self.std)

    @cached_property
    def images(self) -> Tensor:
        """All images as students see them: float32, normalised, shape (m, 3, H, W)."""
        return self.normalised[:]

    @property
    def dim(self) -> int:
        """Length d of a representation."""
        return self.representations.shape[1]

    @property
    def layout(self) -> Layout:
        """What a row of `targets` holds."""
        return Layout(self.dim) if self.maps is None else Layout(self.dim, *self.maps.shape[1:3])

    @property
    def targets(self) -> Tensor:
        """Representations and maps as rows, float32, shape (m, d + C g g); see `models/rows.py`."""
        return self.layout.join(self.representations, self.maps)

    def original_representations(self) -> Tensor:
        """Returns the representations in the target's own space, float32, shape (m, D): D is d without a projection.

        Raises:
            UsageError: If they are principal components of which the set does not keep the way back.
        """
        if self.projection is None and self._distilled_with("target_dims") == "auto":
            raise UsageError(f"The representations are {self.dim} principal components, of which {_NO_WAY_BACK}")
        return self.representations if self.projection is None else self.projection.restore(self.representations)

    def original_maps(self) -> Tensor | None:
        """Returns the maps in the target's own space, float32, shape (m, D, g, g); None where the set has none.

        Raises:
            UsageError: As `original_representations`.
        """
        if self.maps is None:
            return None
        if self.map_projection is None and self._distilled_with("target_map"):
            raise UsageError(f"The maps are {self.maps.shape[1]} principal components, of which {_NO_WAY_BACK}")
        if self.map_projection is None:
            return self.maps
        return self.map_projection.restore(self.maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()

    def _distilled_with(self, setting: str) -> Any:
        config = self.provenance.get("config")
        return config.get(setting) if isinstance(config, dict) else None

    def displayable(self) -> Tensor:
        """Returns the images for eyes: uint8, shape (m, 3, H, W), clipped to what a screen can show."""
        if self._kept.dtype == torch.uint8:
            return self._kept.cpu()
        mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (self.mean, self.std))
        return ((self.images.cpu() * std + mean) * 255).round().clamp(0, 255).byte()


def has_one_scale(contents: Contents) -> bool:
    """Returns whether all numbers of a representation have one scale, and all channels of a map."""
    assert contents.scales is not None
    parts = (contents.scales[: contents.dim], contents.scales[contents.dim :])
    return all(bool((part == part[:1]).all()) for part in parts)


def _check(name: str, value: Tensor, shape: tuple[str, ...], dtype: torch.dtype) -> None:
    expected = f"{dtype} of shape ({', '.join(shape)}), none of them 0"
    if not isinstance(value, Tensor):
        raise UsageError(f"The {name} of a synthetic set must be a tensor, {expected}; got {type(value).__name__}.")
    if value.ndim != len(shape) or value.dtype != dtype or 0 in value.shape:
        raise UsageError(
            f"The {name} of a synthetic set must be {expected}; got {value.dtype} of shape {tuple(value.shape)}."
        )
    if value.is_floating_point() and not value.isfinite().all():
        raise UsageError(f"The {name} of a synthetic set must be finite; got NaN or infinity.")


def _check_projection(part: str, projection: Projection | None, count: int) -> None:
    """Refuses a projection to other numbers than a part of the set has."""
    if projection is not None and projection.basis.shape[1] != count:
        raise UsageError(
            f"The projection of the {part} of a synthetic set gives {projection.basis.shape[1]} numbers, and they have "
            f"{count}."
        )


def _check_codes(scales: Tensor | None, targets: Tensor, layout: Layout) -> None:
    """Refuses targets of a set of 8 bits that are no whole multiples of their scales."""
    count = layout.dim + layout.channels
    if not isinstance(scales, Tensor) or scales.dtype != torch.float32 or tuple(scales.shape) != (count,):
        raise UsageError(f"A synthetic set of 8 bits has float32 scales of shape ({count},) for its targets.")
    if not (scales.isfinite().all() and (scales > 0).all()):
        raise UsageError("The scales of a synthetic set must be finite and positive.")
    steps = layout.by_number(scales)
    codes = (targets / steps).round()
    if codes.abs().max() > MAX_CODE or not torch.equal(codes * steps, targets):
        raise UsageError(
            f"Targets of a synthetic set of 8 bits are whole multiples of their scales, of at most {MAX_CODE}: round "
            "them first, or give its images as float32."
        )
