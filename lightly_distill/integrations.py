"""Finds adapters by entry point and imports none before it is asked for.

A third party adds its own by declaring an entry point in one of the groups `lightly_distill.targets`,
`lightly_distill.students`, `lightly_distill.sources`. What each must offer is in `protocols.py`.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from lightly_distill.errors import DistillError

Group = Literal["targets", "students", "sources", "callbacks"]


def available(group: Group) -> dict[str, EntryPoint]:
    """Returns the declared adapters of a group by name, without importing them."""
    return {entry.name: entry for entry in entry_points(group=f"lightly_distill.{group}")}


def get(group: Group, name: str) -> Any:
    """Imports one adapter.

    Args:
        group: `targets`, `students`, `sources` or `callbacks`.
        name: Name of the entry point, such as `timm`.

    Raises:
        DistillError: If no such adapter is declared, or its library cannot be imported.
    """
    entries = available(group)
    if name not in entries:
        raise DistillError(f"No adapter '{name}' for {group}. Installed: {', '.join(sorted(entries)) or 'none'}.")
    try:
        return entries[name].load()
    except ImportError as error:
        raise DistillError(f"The adapter '{name}' for {group} cannot be imported: {error}") from error
