"""Where a set comes from: its real images and its target model, given by the user or named by the run that made it."""

from pathlib import Path
from typing import Any

import torch

from lightly_distill.arms import LabelledSide, RealSide
from lightly_distill.config import make_config
from lightly_distill.encoders import CHECKPOINTS
from lightly_distill.errors import UsageError
from lightly_distill.run_folder import run_config
from lightly_distill.source import find_images, open_source
from lightly_distill.synthetic import SyntheticSet
from lightly_distill.targets import as_target, load_target
from lightly_distill.tasks import source_labels


def real_side(synthetic: Any, data: Any, target: Any, size: int, device: torch.device) -> RealSide:
    """Opens the real images and the target, which the configuration of a run names where the user does not."""
    named = {} if isinstance(synthetic, SyntheticSet) else run_config(Path(synthetic))
    data = data if data is not None else named.get("data")
    if target is None and is_only_weights(named.get("target")) and "target_class" not in named:
        target = load_target(named["target"], named.get("target_encoder"))
    if data is None or target is None:
        missing = " and ".join(name for name, value in (("data", data), ("target", target)) if value is None)
        raise UsageError(
            "The arms random, kmeans, noise, full and target need the real images and the target model: give "
            f"{missing}, or leave these arms out."
        )
    model = load_target(target) if isinstance(target, str) else as_target(target)
    return RealSide(open_source(find_images(data, image_size=size)), model.to(device), device)


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
    _check_recorded("source", own, "fingerprint", source.fingerprint, source.name)
    return LabelledSide(source, source_labels(data, source.kept), config, own)


def is_only_weights(spec: Any) -> bool:
    """Returns whether loading this target runs no code that a file names: a set may come from a stranger."""
    return isinstance(spec, str) and (spec.startswith(("timm:", "torchvision:")) or spec.endswith(CHECKPOINTS))


def check_origin(own: SyntheticSet, real: RealSide) -> None:
    """Refuses real images and a target that the set was not distilled from, as far as the set knows."""
    if (own.mean, own.std) != (real.target.mean, real.target.std):
        raise UsageError(
            f"The set is normalised with mean {own.mean} and std {own.std}, the target with {real.target.mean} and "
            f"{real.target.std}: it was distilled from another target."
        )
    _check_recorded("target", own, "sha256", real.target.weights_sha256(), real.target.name)
    _check_recorded("source", own, "fingerprint", real.source.fingerprint, real.source.name)


def _check_recorded(part: str, own: SyntheticSet, key: str, value: str, name: str) -> None:
    recorded = own.provenance.get(part)
    if isinstance(recorded, dict) and recorded.get(key) not in (None, value):
        raise UsageError(
            f"The set was distilled from another {part} than {name}: its record says {recorded.get('name')}, "
            f"{key} {str(recorded[key])[:12]}."
        )
