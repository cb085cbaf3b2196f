"""Under which conditions a set was made, in words: what decides its last bits besides settings, images and target."""

from collections.abc import Mapping
from typing import Any

from lightly_distill.runtime.settings import differences

RECORDED = ("chunk_size", "precision", "threads", "tf32", "sessions")  # what `conditions` says, of a provenance


def conditions(known: Mapping[str, Any], count: int) -> dict[str, str]:
    """Returns a line for each condition by its name for people; what is not recorded is left out.

    Args:
        known: Provenance of a set, also of a stranger's, whose values may be anything.
        count: Images of the set.
    """
    lines = {}
    chunk_size, threads, processes = (known.get(name) for name in ("chunk_size", "threads", "processes"))
    if isinstance(chunk_size, int):
        share = f"all {count}" if chunk_size >= count else f"{chunk_size} of {count}"
        lines["chunk size"] = f"{share} images at a time"
    if known.get("precision"):
        lines["precision"] = str(known["precision"])
    if threads is not None:
        several = isinstance(processes, int) and processes > 1
        lines["threads"] = f"{threads} in each of {processes} processes" if several else str(threads)
    if known.get("tf32"):
        lines["TF32"] = str(known["tf32"])
    changes = _changes(known.get("sessions"))
    if changes:
        lines["resumed"] = "; ".join(changes)
    return lines


def _changes(sessions: Any) -> list[str]:
    """Returns where a run went on under other conditions than before, and what they were."""
    records = [dict(each) for each in sessions if isinstance(each, Mapping)] if isinstance(sessions, list) else []
    steps = [record.pop("from_step", None) for record in records]
    changes = [f"at step {steps[0]}, before which nothing is recorded"] if steps and steps[0] else []
    for step, before, after in zip(steps[1:], records, records[1:], strict=False):
        changes.append(f"at step {step} with {', '.join(differences(before, after))}")
    return changes
