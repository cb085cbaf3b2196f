"""The two kinds of failure that a user sees, each in one line."""

import difflib
from collections.abc import Iterable


class DistillError(Exception):
    """A run could not go on. The message names the thing and the cure."""


class UsageError(DistillError, ValueError):
    """What the user gave cannot be used. Raised before any long work."""


def first_line(error: BaseException) -> str:
    """Returns the first line of the text of somebody else's error, or the name of its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def sentence(error: BaseException) -> str:
    """Returns `first_line` with a full stop, where a message goes on after it."""
    return f"{first_line(error).removesuffix('.')}."


def did_you_mean(name: str, known: Iterable[str], *, form: str = "{}", most: int = 1, list_up_to: int = 40) -> str:
    """Returns the end of a message about an unknown name: the nearest known names, or else all of them.

    A known name that ends in the one that was written is near: `--pretrain-steps` is, to `--steps`.

    Args:
        name: What the user wrote.
        known: What it could have been.
        form: How a name is to be written, such as `{}:resnet18`.
        most: So many near names are given.
        list_up_to: Where no name is near, all are listed if they are at most so many.

    Returns:
        Such as ` Did you mean 'train'?`, with a space in front; empty where there is nothing to say.
    """
    names = sorted(known)
    spelling = {each.lower(): each for each in names}  # of names that differ in case only, one is enough
    wanted = name.lower()
    ends = tuple(f"{mark}{wanted.lstrip('-')}" for mark in "-._")
    longer = [each for each in spelling if each.endswith(ends)] if ends[0] != "-" else []
    matches = difflib.get_close_matches
    near = [spelling[each] for each in matches(wanted, longer, n=3, cutoff=0) or matches(wanted, spelling, n=most)]
    if near:
        *others, last = (f"'{form.format(each)}'" for each in near)
        first = f"{', '.join(others)} or " if others else ""
        return f" Did you mean {first}{last}?"
    return f" Known: {', '.join(names)}." if 0 < len(names) <= list_up_to else ""
