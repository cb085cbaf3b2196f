"""From the state at the end of a run to the set that is kept."""

from collections.abc import Sequence
from typing import Any

from lightly_distill.method.state import DistillState
from lightly_distill.synthetic.synthetic_set import SyntheticSet


def finished(
    state: DistillState,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    provenance: dict[str, Any],
    keep_projection: bool = False,
) -> SyntheticSet:
    """Returns what was learned as a set, on the CPU: of 8 bits, where the state is rounded to them.

    Args:
        state: At the end of a run.
        mean: Of each channel in units of [0, 1].
        std: As `mean`.
        provenance: Of the set.
        keep_projection: Whether the set brings what restores the target's own space.
    """
    images, rows = (tensor.detach().cpu() for tensor in state.learned())
    scales = None
    if state.rounding is not None:
        images = state.rounding.pixels(state.images.detach()).cpu()
        scales = state.targets.by_channel(state.rounding.scales).cpu()
    representations, maps = state.targets.split(rows)
    return SyntheticSet(
        images,
        representations.contiguous(),
        maps=maps if maps is None else maps.contiguous(),
        scales=scales,
        mean=mean,
        std=std,
        source_index=state.source_index,
        provenance=provenance,
        projection=state.projection if keep_projection else None,
    )
