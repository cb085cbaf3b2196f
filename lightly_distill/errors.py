"""The two kinds of failure that a user sees, each told in one line."""


class DistillError(Exception):
    """A run could not go on. The message names the thing and the cure."""


class UsageError(DistillError, ValueError):
    """What the user gave cannot be used. Raised before any long work."""


def first_line(error: BaseException) -> str:
    """Returns the first line of the text of somebody else's error, or the name of its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
