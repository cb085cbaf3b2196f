"""What a set records of how it was made."""

import platform
from importlib.metadata import version
from typing import Any

from lightly_distill.data.source import Source
from lightly_distill.method.config import DistillConfig
from lightly_distill.models.targets import Target
from lightly_distill.runs.run_folder import RunFolder
from lightly_distill.runtime.processes import Processes
from lightly_distill.runtime.settings import to_dict


def run_facts(source: Source, target: Target, config: DistillConfig, processes: Processes) -> dict[str, Any]:
    """Returns what decides the result of a run, JSON-able: source, target, configuration."""
    return {
        # with parallel=batch the number of processes does not change the result
        "processes": processes.count if config.parallel == "pool" else 1,
        "source": {
            "name": source.name,
            "fingerprint": source.fingerprint,
            "images": len(source),
            "image_size": source.image_size,
            "skipped": dict(source.skipped),
        },
        "target": {
            "name": target.name,
            "encoder": target.encoder_name,
            "reason": target.reason,
            "sha256": target.weights_sha256(),
        },
        "config": to_dict(config),
    }


def heldout_losses(initial: dict[str, Any], run: RunFolder) -> dict[str, Any]:
    """Returns the held-out loss at the start and at the end, in a mixed pool also of each architecture."""
    first, last = initial.get("heldout_loss_by_student", {}), run.last("heldout_loss_by_student") or {}
    losses = {"initial": initial["heldout_loss"], "final": run.last("heldout_loss")}
    by_student = {name: {"initial": loss, "final": last.get(name)} for name, loss in first.items()}
    return {**losses, "by_student": by_student} if by_student else losses


def versions() -> dict[str, str]:
    """Returns the versions of what decides numbers, by name."""
    names = ("lightly-distill", "torch", "torchvision", "timm", "lightly")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
