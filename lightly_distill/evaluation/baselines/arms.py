"""What a student is pre-trained on, to be compared: the synthetic set and what it has to beat.

Shapes: m images of a set, n real images, d numbers of a representation.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightly_distill.data.labels import source_labels
from lightly_distill.data.source import Source, find_images, open_source
from lightly_distill.errors import UsageError
from lightly_distill.evaluation.baselines.labelled import check_classes
from lightly_distill.evaluation.baselines.matching import distribution_matching
from lightly_distill.evaluation.baselines.ridge import supervised_ridge
from lightly_distill.method.config import DistillConfig, make_config
from lightly_distill.method.kmeans import nearest_to_centroids
from lightly_distill.models.students import student_builder
from lightly_distill.runs.origin import RealSide, check_recorded
from lightly_distill.runs.run_folder import run_config
from lightly_distill.runtime import seeding
from lightly_distill.synthetic.synthetic_set import SyntheticSet


def random_images(real: RealSide, count: int, seed: int) -> SyntheticSet:
    """Draws real images: the baseline to beat."""
    order = torch.randperm(len(real.source), generator=seeding.generator(seed, "arm", "random"))
    return real.chosen(order[:count])


def kmeans_images(real: RealSide, count: int, seed: int) -> SyntheticSet:
    """Takes the real image nearest to each of `count` centroids of the representations, each image once."""
    return real.chosen(nearest_to_centroids(real.representations, count, seed))


# Arms that need the real images and the target; each gets them, m and a seed.
REAL_ARMS: dict[str, Callable[[RealSide, int, int], SyntheticSet]] = {
    "random": random_images,
    "kmeans": kmeans_images,
    "noise": lambda real, count, seed: real.noise(count, seed),
    "full": lambda real, _count, _seed: real.chosen(torch.arange(len(real.source))),
}


# Arms that need labels of the real images: other distillers, with the settings of the set that they are compared with.
LABELLED_ARMS: dict[str, Callable[..., SyntheticSet]] = {"krr-labels": supervised_ridge, "dm": distribution_matching}


@dataclass
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

    def check(self, arms: Collection[str]) -> None:
        """Refuses arms that these labels and settings do not allow.

        Raises:
            UsageError: If there are fewer images than classes for distribution matching, or a student does not fit.
        """
        if "dm" in arms:
            check_classes(self.config.num_images, self.labels)
        for name in self.config.students:
            student_builder(name, self.source.image_size)

    def distil(self, arm: str, seed: int) -> SyntheticSet:
        """Runs another distiller of `LABELLED_ARMS`."""
        own, classes = self.own, int(self.labels.max()) + 1
        spread = own.representations.var(0, correction=0).sum().item()  # of centred one-hot labels: 1 - 1/C
        return LABELLED_ARMS[arm](
            self.source,
            self.labels,
            replace(self.config, seed=seed),
            mean=own.mean,
            std=own.std,
            dim=own.dim,
            scale=(spread / (1 - 1 / classes)) ** 0.5,
        )


CEILINGS = ("full", "target")  # never in bold: what they need is what a synthetic set saves


_ARMS = {
    "scratch": "not pre-trained: random weights",
    "random": "pre-trained on as many real images, drawn at random, with the target model's representations",
    "kmeans": "as random, but the real images nearest to the centres of as many clusters",
    "noise": "as random, but images of noise",
    "krr-labels": "pre-trained on as many images that the same stage distilled from the real images with their labels "
    "instead of the target model's representations, to predict the learned labels by mean squared error: supervised "
    "kernel ridge, after KIP (Nguyen et al., 2021) and FRePo (Zhou et al., 2022). Labels are one-hot minus 1/C, made "
    "as long, with zeros, and as large as the representations of the set, as one recipe is to suit all arms",
    "dm": "pre-trained on as many images that distribution matching (Zhao & Bilen, WACV 2023) distilled from the real "
    "images and their labels in as many steps, to predict their labels, those of krr-labels, by mean squared error",
    "distilled": "pre-trained on the synthetic set",
    "full": "pre-trained on all real images, a ceiling",
    "target": "the target model itself, a ceiling",
}


def labelled_side(
    synthetic: Any, data: Any, own: SyntheticSet, real: RealSide | None, device: torch.device
) -> LabelledSide:
    """Opens the real images with their labels, and finds the settings that the set was distilled with."""
    named = {} if isinstance(synthetic, SyntheticSet) else run_config(Path(synthetic))
    data = data if data is not None else named.get("data")
    if data is None:
        raise UsageError(
            "The arms krr-labels and dm need the real images that the set was distilled from, with labels: give data, "
            "or leave these arms out."
        )
    recorded = own.provenance.get("config")
    if not isinstance(recorded, dict):
        raise UsageError(
            "The set has no record of how it was distilled, which the arms krr-labels and dm repeat with labels: leave "
            "these arms out."
        )
    config = make_config(**{**recorded, "num_images": len(own), "device": str(device)})
    source = open_source(find_images(data, image_size=own.images.shape[-1])) if real is None else real.source
    check_recorded("source", own, "fingerprint", source.fingerprint, source.name)
    return LabelledSide(source, source_labels(data, source.kept), config, own)


ARMS = ("scratch", "random", "kmeans", "noise", "krr-labels", "dm", "distilled", "full", "target")


def set_of(
    name: str,
    own: SyntheticSet,
    given: Mapping[str, SyntheticSet],
    real: RealSide | None,
    labelled: LabelledSide | None,
    seed: int,
) -> SyntheticSet | None:
    """Returns what an arm is pre-trained on, None for one that is not."""
    if name == "distilled":
        return own
    if name in given:
        return given[name]
    if name in REAL_ARMS:
        assert real is not None
        return REAL_ARMS[name](real, len(own), seed)
    if name in LABELLED_ARMS:
        assert labelled is not None
        return labelled.distil(name, seed)
    return None


ANY_SIZE = ("scratch", "full", "target")  # arms that no size changes: measured once


BASELINES = {
    "scratch": "no pre-training",
    "random": "as many real images, drawn at random, with the target's representations",
    "kmeans": "the real images nearest to as many centroids",
    "noise": "as many images of noise",
    "krr-labels": "supervised kernel ridge, the same stage with labels, of a labelled source",
    "dm": "distribution matching, of a labelled source",
    "full": "all real images, the ceiling",
    "target": "the target model itself",
}
