"""What the templates of reports show besides plain text: tables, figures, text that keeps its lines."""

import base64
from dataclasses import dataclass, field

from markupsafe import Markup

from lightly_distill.runtime.words import one_line


@dataclass
class Table:
    """Cells of plain text; the last `foot` rows follow from those above, and then the cells are `numbers`."""

    caption: str
    head: list[str]
    rows: list[list[str]]
    foot: int = 0
    bold: set[tuple[int, int]] = field(default_factory=set)  # row, column
    numbers: bool = False

    def __post_init__(self) -> None:
        self.numbers = self.numbers or self.foot > 0


@dataclass
class Figure:
    """An image in a page.

    Attributes:
        source: Its address; see `data_url`.
        alt: What it shows, for those who cannot see it.
        caption: Below it, where the image does not say it itself.
    """

    source: Markup
    alt: str
    caption: str = ""


def data_url(kind: str, content: bytes) -> Markup:
    """Returns an image as an address that holds all of it."""
    return Markup(f"data:image/{kind};base64,{base64.b64encode(content).decode()}")  # nothing in it to escape


def preformatted(text: str) -> Markup:
    """Returns the text as HTML for a `pre`, with its lines and their indents."""
    lines = ((line, len(line) - len(line.lstrip(" "))) for line in text.split("\n"))
    return Markup("\n").join(" " * indent + one_line(line) for line, indent in lines)
