"""The two kinds of failure that a user sees, each told in one line."""

import difflib
from collections.abc import Iterable
from typing import Any


class DistillError(Exception):
    """A run could not go on. The message names the thing and the cure."""


class UsageError(DistillError, ValueError):
    """What the user gave cannot be used. Raised before any long work."""


def first_line(error: BaseException) -> str:
    """Returns the first line of the text of somebody else's error, or the name of its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def did_you_mean(name: str, known: Any) -> str:
    """Returns ` Did you mean 'x'?` for the nearest known name, else the list of known names."""
    names = sorted(str(k) for k in known)
    near = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean '{near[0]}'?" if near else f" Known: {', '.join(names)}."


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns the end of an error message about an unknown name: the nearest known ones, and all if they are few."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name.lower(), {n.lower(): n for n in names}, n=1)
    hint = "".join(f" Did you mean '{n}'?" for n in names if nearest and n.lower() == nearest[0])
    return hint + (f" There is: {', '.join(names)}." if 0 < len(names) <= 12 else "")
