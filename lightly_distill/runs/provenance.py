"""What a set records of how it was made."""

import importlib.metadata
import platform
from typing import Any

import torch

from lightly_distill.data.source import Source
from lightly_distill.errors import DistillError
from lightly_distill.method.brought import Brought
from lightly_distill.method.config import DistillConfig
from lightly_distill.method.sight import target_frame
from lightly_distill.method.state import DistillState
from lightly_distill.models.targets import Target
from lightly_distill.runs.run_folder import RunFolder
from lightly_distill.runtime.device import device_name, tf32
from lightly_distill.runtime.processes import Processes
from lightly_distill.runtime.settings import to_dict
from lightly_distill.runtime.usage import peak_memory


def run_facts(
    source: Source, target: Target, config: DistillConfig, processes: Processes, brought: Brought | None = None
) -> dict[str, Any]:
    """Returns what decides the result of a run, JSON-able: source, target, configuration, representations brought."""
    frame = target_frame(source, target, config.target_size)
    apart = {"crop": frame.crop, "interpolation": frame.interpolation} if frame.size != source.image_size else {}
    own = {} if brought is None else {"representations": {"name": brought.name, "sha256": brought.sha256()}}
    return {
        # with parallel=batch the number of processes does not change the result
        "processes": processes.count if config.parallel == "pool" else 1,
        "source": {
            "name": source.name,
            "fingerprint": source.fingerprint,
            "images": len(source),
            "image_size": source.image_size,
            "skipped": dict(source.skipped),
            **({} if source.value_range is None else {"value_range": list(source.value_range)}),
        },
        "target": {
            "name": target.name,
            "encoder": target.encoder_name,
            "reason": target.reason,
            "sha256": target.weights_sha256(),
            "image_size": frame.size,
            **apart,
        },
        **own,
        "config": to_dict(config),
    }


def session_facts(device: torch.device, processes: Processes) -> dict[str, Any]:
    """Returns what decides the last bits of a result besides `run_facts`, JSON-able; it may change at a resume.

    Raises:
        DistillError: If the version of a package cannot be found.
    """
    return {
        "device": device_name(device),
        "tf32": tf32(device),
        "threads": torch.get_num_threads(),
        "processes": processes.count,
        "versions": versions(),
    }


def provenance(
    facts: dict[str, Any], state: DistillState, run: RunFolder, held: int, device: torch.device, seconds: float
) -> dict[str, Any]:
    """Returns all that a set records, JSON-able.

    Args:
        facts: What `run_facts` returned.
        state: At the end of the run.
        run: Its folder, which knows the sessions.
        held: How many real images were held out.
        device: Of this session.
        seconds: Of all sessions.
    """
    last = run.sessions[-1]
    changed = len(run.sessions) > 1 or last["from_step"] > 0
    return {
        **facts,
        # "auto" as it was resolved: in other chunks, batch norm is trained otherwise
        "chunk_size": min(state.pool.chunk_size or len(state.images), len(state.images)),
        "precision": state.precision,
        **{name: value for name, value in last.items() if name != "from_step"},
        **({"sessions": run.sessions} if changed else {}),
        "steps": state.step,
        "heldout_loss": heldout_losses(state.initial, run),
        "heldout_images": held,
        "ridge_jitters": state.jitters,
        "seconds": round(seconds, 1),
        "peak_memory_bytes": peak_memory(device),
    }


def heldout_losses(initial: dict[str, Any], run: RunFolder) -> dict[str, Any]:
    """Returns the held-out loss at the start and at the end, in a mixed pool also of each architecture."""
    first, last = initial.get("heldout_loss_by_student", {}), run.last("heldout_loss_by_student") or {}
    losses = {"initial": initial.get("heldout_loss"), "final": run.last("heldout_loss")}
    by_student = {name: {"initial": loss, "final": last.get(name)} for name, loss in first.items()}
    return {**losses, "by_student": by_student} if by_student else losses


def versions() -> dict[str, str]:
    """Returns the versions of what decides numbers, by name.

    Raises:
        DistillError: If one cannot be found.
    """
    found = {"python": platform.python_version()}
    for name in ("lightly-distill", "torch", "torchvision", "timm", "lightly"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise DistillError(
                f"The version of {name}, which a set records, cannot be found: install {name} with pip."
            ) from error
    return found
