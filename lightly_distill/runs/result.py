"""From the state at the end of a run to the set that is kept."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightly_distill.method.rounding import fit_scales, round_targets
from lightly_distill.method.state import DistillState
from lightly_distill.models.rows import Layout
from lightly_distill.synthetic import eight_bits
from lightly_distill.synthetic.synthetic_set import SyntheticSet


def finished(
    state: DistillState,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    provenance: dict[str, Any],
    image_quality: int | None = None,
    keep_projection: bool = False,
) -> SyntheticSet:
    """Returns what was learned as a set, on the CPU: of 8 bits, where the state is rounded to them.

    Args:
        state: At the end of a run.
        mean: Of each channel in units of [0, 1].
        std: As `mean`.
        provenance: Of the set.
        image_quality: Of the WebP in which images of 8 bits are stored; None: without loss.
        keep_projection: Whether the set brings what restores the target's own spaces.
    """
    images, rows = (tensor.detach().cpu() for tensor in state.learned())
    scales = None
    if state.rounding is not None:
        images, scales = state.rounding.pixels(state.images.detach()).cpu(), state.rounding.scales.cpu()
    return as_set(
        images,
        rows,
        state.targets,
        scales,
        image_quality=image_quality,
        mean=mean,
        std=std,
        source_index=state.source_index,
        provenance=provenance,
        projection=state.projection if keep_projection else None,
        map_projection=state.target_maps.projection if keep_projection and state.target_maps else None,
    )


def as_set(
    images: Tensor,
    rows: Tensor,
    targets: Layout,
    scales: Tensor | None = None,
    *,
    image_quality: int | None = None,
    target_bits: int = 8,
    **rest: Any,
) -> SyntheticSet:
    """Makes a set of images with rows of targets.

    Args:
        images: uint8 for a set of 8 bits, whose targets are rounded if they are not yet, or normalised float32.
        rows: Targets, shape (m, D). Maps are left out of a set of floats, whose format has none.
        targets: Layout of these rows.
        scales: Of the numbers of a row, if rows are rounded already, shape (D,).
        image_quality: Of the WebP in which images of 8 bits are stored; None: without loss.
        target_bits: To which rows are rounded, if they are not.
        rest: Further arguments of `SyntheticSet`.
    """
    if images.dtype != torch.uint8:
        rest.pop("map_projection", None)
        return SyntheticSet(images, targets.split(rows)[0].contiguous(), **rest)
    if scales is None:
        scales = fit_scales(rows, targets, target_bits)
        rows = round_targets(rows, scales)
    if image_quality is not None:
        rest["files"] = eight_bits.encoded(images, image_quality)
        images = eight_bits.decoded(rest["files"], (len(images), *images.shape[2:]))
    representations, maps = targets.split(rows)
    maps = None if maps is None else maps.contiguous()
    return SyntheticSet(images, representations.contiguous(), maps=maps, scales=targets.by_channel(scales), **rest)
