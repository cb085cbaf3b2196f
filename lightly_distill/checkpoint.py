"""The state of a run on disk: one safetensors file, written aside and renamed."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightly_distill.errors import DistillError, UsageError

KEEP = 2  # checkpoints; the older one is for the case that the newer one is damaged


def save(folder: Path, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> Path:
    """Writes a checkpoint atomically and removes all but the newest `KEEP`.

    Args:
        folder: Folder of checkpoints, made if it is not there.
        step: Outer steps done.
        tensors: State by flat name.
        facts: JSON-able numbers and settings.

    Raises:
        DistillError: If it cannot be written. Older checkpoints are intact and no partial file stays.
    """
    path = folder / f"step-{step:08d}.safetensors"
    partial = path.with_suffix(".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        save_file(copies, partial, metadata={"state": json.dumps({"step": step, **facts})})
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise DistillError(f"The checkpoint {path} cannot be written: {error}") from error
    for old in _all(folder)[:-KEEP]:
        old.unlink()
    return path


def load_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the newest checkpoint of a folder.

    Returns:
        The tensors (on the CPU) and the facts given to `save`, with `step`.

    Raises:
        UsageError: If there is no checkpoint.
        DistillError: If it cannot be read.
    """
    paths = _all(folder)
    if not paths:
        raise UsageError(f"Nothing to resume: there is no checkpoint in {folder}. Start without --resume.")
    try:
        with safe_open(paths[-1], framework="pt") as file:
            facts = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DistillError(
            f"The checkpoint {paths[-1]} is damaged ({error}): delete it to go on from the one before it."
        ) from error
    return tensors, facts


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"))
