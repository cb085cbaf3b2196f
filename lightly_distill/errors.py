"""The two kinds of failure that a user sees, each told in one line."""


class DistillError(Exception):
    """A run could not go on. The message names the thing and the cure."""


class UsageError(DistillError, ValueError):
    """What the user gave cannot be used. Raised before any long work."""
