"""Numbers and names as text for people."""

import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path


def size_text(size: float) -> str:
    """Returns a number of bytes for people, with three digits: 18.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def called(name: str) -> str:
    """Returns how a source is called in a message: one that nobody has named is recorded by its type."""
    return {"Tensor": "a tensor", "ndarray": "an array", "list": "a list"}.get(name, name)


def one_line(text: str) -> str:
    """Returns the text on one line, without what steers a terminal, hides, or is no XML."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


def duration(seconds: float) -> str:
    """Returns a time for people: 3.2 s, 12 min, 2.5 h."""
    if seconds < 99.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


def mean_spread(values: Sequence[float], scale: float = 1.0) -> str:
    """Returns mean and standard deviation as text, times `scale`; a dash where there are no values."""
    if not values:
        return "-"
    mean = f"{scale * statistics.fmean(values):.1f}"
    return f"{mean} ± {scale * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def command_line() -> str:
    """Returns the command of this process, as one would type it again."""
    program = Path(sys.argv[0])
    by_module = program.name == "__main__.py" and program.parent.name == "lightly_distill"
    return shlex.join(["lightly-distill" if by_module else program.name, *sys.argv[1:]])
