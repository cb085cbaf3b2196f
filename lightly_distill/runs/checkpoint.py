"""The state of a run on disk: one safetensors file with the hash of all that is in it, written aside and renamed."""

import contextlib
import hashlib
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightly_distill.errors import DistillError, UsageError, first_line
from lightly_distill.runtime.files import remove, replacing

FORMAT = "2"
KEEP = 2  # checkpoints; the older one is for the case that the newer one is damaged

_logger = logging.getLogger(__name__)


class Snapshot(NamedTuple):
    """The state of a run at one moment, which the run changes no more; made by `snapshot`.

    Attributes:
        step: Outer steps done.
        tensors: State by flat name, on the CPU.
        facts: Numbers and settings, as JSON, with the step.
    """

    step: int
    tensors: dict[str, Tensor]
    facts: str


def snapshot(step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> Snapshot:
    """Copies the state of a run, which may go on while the copy is written.

    Args:
        step: Outer steps done.
        tensors: State by flat name.
        facts: JSON-able numbers and settings.
    """
    copies = {name: _copy(value.detach()) for name, value in tensors.items()}
    for device in {value.device for value in tensors.values() if value.device.type == "cuda"}:
        torch.cuda.synchronize(device)  # once, for all copies
    return Snapshot(step, copies, json.dumps({"step": step, **facts}))


def _copy(value: Tensor) -> Tensor:
    copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.device.type == "cuda")
    return copy.copy_(value, non_blocking=True)


def save(folder: Path, state: Snapshot) -> Path:
    """Writes a checkpoint atomically and removes all but it and the `KEEP - 1` before it.

    Args:
        folder: Folder of checkpoints, made if it is not there.
        state: What is written.

    Raises:
        DistillError: If it cannot be written. Older checkpoints are intact and no partial file stays.
    """
    path = folder / f"step-{state.step:08d}.safetensors"
    with replacing(path) as partial:
        sha256 = _digest(state.facts, state.tensors)
        save_file(state.tensors, partial, metadata={"format": FORMAT, "state": state.facts, "sha256": sha256})
    paths = _all(folder)
    # later ones are damaged, since the run went on from an earlier one: they must not push that out
    kept = [other for other in paths if other <= path][-KEEP:]
    for other in set(paths) - set(kept):
        with contextlib.suppress(OSError):  # somebody else removed it, or it stays: no reason to end a run
            other.unlink()
    return path


def load_newest(folder: Path, *, strict: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the newest checkpoint of a folder that is whole; warns of newer ones that are not.

    Args:
        folder: Folder of checkpoints.
        strict: Refuse to go back behind a damaged one.

    Returns:
        The tensors (on the CPU) and the facts given to `snapshot`, with `step`.

    Raises:
        UsageError: If there is no checkpoint.
        DistillError: If none can be used, or with `strict` the newest cannot.
    """
    paths = _all(folder)
    if not paths:
        raise UsageError(f"Nothing to resume: there is no checkpoint in {folder}. Start without --resume.")
    faults = []
    for path in reversed(paths):
        try:
            return _read(path)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            fault = f"{path.name}: {first_line(error)}"
        if strict:
            raise DistillError(
                f"The newest checkpoint in {folder} cannot be used ({fault}). Without --strict an older one is."
            )
        _logger.warning("Left out a checkpoint in %s that cannot be used (%s).", folder, fault)
        faults.append(fault)
    raise DistillError(f"No checkpoint in {folder} can be used ({'; '.join(faults)}): start again with --overwrite.")


def newest_facts(folder: Path) -> dict[str, Any] | None:
    """Returns the facts of the newest checkpoint that can be opened, at once and unchecked; None if there is none."""
    for path in reversed(_all(folder)):
        try:
            with safe_open(path, framework="pt") as file:
                facts: dict[str, Any] = json.loads(file.metadata()["state"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            continue
        return facts
    return None


def exists(folder: Path) -> bool:
    """Returns whether there is a checkpoint, whole or not."""
    return bool(_all(folder))


def remove_all(folder: Path) -> None:
    """Removes the checkpoints, and the folder if nothing else is in it."""
    if folder.is_dir() and not folder.is_symlink():
        for path in folder.glob("step-*.safetensors*"):
            path.unlink(missing_ok=True)
        if any(folder.iterdir()):
            return
    remove(folder)


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    if metadata.get("format") != FORMAT:
        raise ValueError(f"its format is {metadata.get('format', 'an older one')}, this version reads {FORMAT}")
    if metadata["sha256"] != _digest(metadata["state"], tensors):
        raise ValueError("it is not what was written, its SHA-256 differs")
    facts: dict[str, Any] = json.loads(metadata["state"])
    return tensors, facts


def _digest(state: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(f"{FORMAT}\n{state}\n".encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
