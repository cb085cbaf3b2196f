"""The labelled real images and the settings of a set, from which the baselines that need labels distil."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightly_distill.data.labels import source_labels
from lightly_distill.data.source import Source
from lightly_distill.errors import UsageError
from lightly_distill.method.config import DistillConfig, make_config
from lightly_distill.models.students import student_builder
from lightly_distill.runs.origin import RealSide, check_recorded, config_of_run, open_recorded
from lightly_distill.synthetic.synthetic_set import SyntheticSet


@dataclass(frozen=True)
class LabelledSide:
    """The real images with their labels, and how a set is distilled from them.

    Args:
        source: Real images.
        labels: Of these, int64 in 0..C-1, shape (n,).
        config: Settings of the set that is compared; the seed is each arm's own.
        own: That set; labels are made as long and as large as its representations, as one recipe is to suit both.
    """

    source: Source
    labels: Tensor
    config: DistillConfig
    own: SyntheticSet

    def distil(self, distiller: Callable[..., SyntheticSet], seed: int) -> SyntheticSet:
        """Runs a distiller that takes labels, such as `supervised_ridge`."""
        own, classes = self.own, int(self.labels.max()) + 1
        spread = own.representations.var(0, correction=0).sum().item()  # of centred one-hot labels: 1 - 1/C
        return distiller(
            self.source,
            self.labels,
            replace(self.config, seed=seed),
            mean=own.mean,
            std=own.std,
            dim=own.dim,
            scale=(spread / (1 - 1 / classes)) ** 0.5,
        )


def labelled_side(
    synthetic: Any, data: Any, own: SyntheticSet, real: RealSide | None, device: torch.device, arms: str
) -> LabelledSide:
    """Opens the real images with their labels, and finds the settings that the set was distilled with.

    Args:
        synthetic: The set, its folder, or that of the run that made it.
        data: The real images. Default: what the run's configuration says.
        own: The set.
        real: The real images and the target, if they are open already.
        device: Where to distil.
        arms: Those that need labels, for messages.

    Raises:
        UsageError: If the images, their labels or the settings are missing or are not those of the set, or a student of
            the settings does not fit.
    """
    data = data if data is not None else config_of_run(synthetic).get("data")
    if data is None:
        raise UsageError(
            f"The arms {arms} need the real images that the set was distilled from, with labels: give data, or leave "
            "these arms out."
        )
    recorded = own.provenance.get("config")
    if not isinstance(recorded, dict):
        raise UsageError(
            f"The set has no record of how it was distilled, which the arms {arms} repeat with labels: leave these "
            "arms out."
        )
    config = make_config(**{**recorded, "num_images": len(own), "device": str(device)})
    source = open_recorded(data, own) if real is None else real.source
    check_recorded("source", own, "fingerprint", source.fingerprint, source.name)
    side = LabelledSide(source, source_labels(data, source.kept), config, own)
    for name in config.students:
        student_builder(name, source.image_size)
    return side
