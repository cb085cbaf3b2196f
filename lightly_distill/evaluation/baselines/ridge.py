"""Supervised kernel ridge, a baseline: KRR-ST with labels in the place of representations."""

import time
from collections.abc import Sequence

from torch import Tensor

from lightly_distill.data.source import Source
from lightly_distill.evaluation.baselines.labelled import LabelledImages, baseline_facts, students_of
from lightly_distill.method.config import DistillConfig
from lightly_distill.method.distill import distill
from lightly_distill.method.state import DistillState
from lightly_distill.models.targets import IMAGENET_MEAN, IMAGENET_STD
from lightly_distill.runs.result import finished
from lightly_distill.runs.run_folder import RunFolder
from lightly_distill.runtime.device import resolve_device
from lightly_distill.synthetic.synthetic_set import SyntheticSet


def supervised_ridge(
    source: Source,
    labels: Tensor,
    config: DistillConfig,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    dim: int = 0,
    scale: float = 1.0,
) -> SyntheticSet:
    """Distils labelled images by kernel ridge regression of their labels.

    This is KRR-ST with labels in the place of representations, in all else the same stage: about what FRePo does (Zhou
    et al., NeurIPS 2022, arXiv:2206.00719), after KIP (Nguyen et al., NeurIPS 2021, arXiv:2107.13034), which takes the
    kernel of an infinitely wide network instead of a pool's features. Labels are learned too.

    Args:
        source: Real images.
        labels: Of these, int64 in 0..C-1, shape (n,).
        config: Settings of the stage; its `init` is not looked at, as it starts from real images of all classes.
        mean: Of each channel in units of [0, 1].
        std: As `mean`.
        dim: Numbers of a label at least; zeros are added.
        scale: Factor of the labels.

    Returns:
        The set; its representations are the learned labels, shape (m, d).

    Raises:
        UsageError: If labels, source and configuration do not fit together.
        DistillError: As `distill`.
    """
    started, device = time.perf_counter(), resolve_device(config.device)
    students = students_of(config, source.image_size)
    labelled = LabelledImages(source, labels, config, device, mean, std, dim, scale)
    state = DistillState.start(labelled.real, students, config, chosen=labelled.initial(config.num_images))
    run = RunFolder(None, {})
    distill(state, labelled.real, config, run)
    losses = {"initial": state.initial.get("heldout_loss"), "final": run.last("heldout_loss")}
    facts = {**baseline_facts("krr-labels", source, config, started), "heldout_loss": losses}
    return finished(state, mean=mean, std=std, provenance=facts, image_quality=config.image_quality)
