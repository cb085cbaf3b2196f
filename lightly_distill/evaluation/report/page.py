"""The parts of a report, in HTML and in Markdown: text, tables, figures, the page around them.

Text may come from a stranger's set: it is escaped here, and the page forbids itself scripts and requests.
"""

import base64
import html
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from lightly_distill.runtime.words import one_line

CSS = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 96rem; }
h1 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h1, h2, h3, p, li, figcaption { overflow-wrap: anywhere; }
p, li { max-width: 50rem; }
.findings { display: grid; gap: .7rem; padding: 0; list-style: none; }
.findings, .figures { grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.findings li { padding: .5rem .8rem; background: var(--soft); border-radius: .5rem; }
.lead { font-size: 1.2rem; }
.box { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
td, th:first-child { white-space: nowrap; }
thead th, .numbers thead th:first-child { vertical-align: bottom; }
.numbers th:first-child { position: sticky; left: 0; background: Canvas; }
th:first-child, .facts th, .facts td { text-align: left; vertical-align: top; }
.facts th:first-child, .facts td { white-space: normal; min-width: 7rem; }
.facts td { overflow-wrap: anywhere; }
tfoot td, .numbers tfoot th:first-child { background: linear-gradient(var(--soft), var(--soft)), Canvas; }
.figures { display: grid; gap: 1rem; }
.large { grid-template-columns: repeat(auto-fill, minmax(min(100%, 34rem), 1fr)); }
figure { margin: 0; max-width: 44rem; }
img { display: block; box-sizing: border-box; width: 100%; height: auto; padding: .3rem; }
img { background: #fff; border-radius: .5rem; }  /* charts are black on white, also on a dark page */
figcaption { font-size: .9rem; }
pre { overflow: auto; max-height: 30rem; background: var(--soft); padding: .7rem; }
"""


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


def html_text(text: str) -> str:
    """Returns the text as HTML, on one line."""
    return html.escape(one_line(text))


def preformatted(text: str) -> str:
    """Returns the text as HTML that keeps its lines and their indents."""
    lines = ((line, len(line) - len(line.lstrip(" "))) for line in text.split("\n"))
    return f"<pre>{chr(10).join(' ' * indent + html_text(line) for line, indent in lines)}</pre>"


def bullets(items: Iterable[tuple[str, str]], style: str = "") -> str:
    """Returns a list of names and what is said of them."""
    lines = (f"<li><b>{html_text(name)}</b>: {html_text(text)}</li>" for name, text in items)
    return f'<ul class="{style}">{"".join(lines)}</ul>'


def html_table(table: Table) -> str:
    """Returns the table as HTML, in a box in which it scrolls where it is too wide."""

    def line(row: int, tag: str, cells: Iterable[str]) -> str:
        # a long name of a measure may be broken at its slash
        shown = [html_text(cell).replace("/", "/<wbr>") if tag == "th" else html_text(cell) for cell in cells]
        first, *rest = [f"<b>{cell}</b>" if (row, column) in table.bold else cell for column, cell in enumerate(shown)]
        return f"<tr><th>{first}</th>{''.join(f'<{tag}>{cell}</{tag}>' for cell in rest)}</tr>"

    rows = [line(number, "td", cells) for number, cells in enumerate(table.rows)]
    middle = len(rows) - table.foot
    foot = f"<tfoot>{''.join(rows[middle:])}</tfoot>" if table.foot else ""
    # The caption stands outside: as one of the table's it would be as wide, and scroll with it.
    caption = f"<p>{html_text(table.caption)}</p>" if table.caption else ""
    return (
        f'{caption}<div class="box"><table class="{"numbers" if table.numbers else "facts"}">'
        f"<thead>{line(-1, 'th', table.head)}</thead><tbody>{''.join(rows[:middle])}</tbody>{foot}</table></div>"
    )


def figure(source: str, told: str, caption: str = "") -> str:
    """Returns a figure.

    Args:
        source: Address of the image.
        told: What it shows, for those who cannot see it.
        caption: Below it, where the image does not say it itself.
    """
    below = f"<figcaption>{html_text(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="{source}" alt="{html_text(told)}">{below}</figure>'


def figures(parts: Iterable[str], style: str = "") -> str:
    """Returns figures side by side, as many as there is room for; with the style `large`, half as many."""
    return f'<div class="figures {style}">{"".join(parts)}</div>'


def data_url(kind: str, content: bytes) -> str:
    """Returns an image as an address that holds all of it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def page(title: str, body: Iterable[str]) -> str:
    """Returns the whole page."""
    newline = "\n"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{html_text(title)}</title>
<style>{CSS}</style>
</head>
<body>
<h1>{html_text(title)}</h1>
{newline.join(body)}
</body>
</html>
"""


def markdown_text(text: str) -> str:
    """Returns one line of text that ends no cell, and is neither HTML nor a link nor code."""
    text = re.sub(r"&(?=[#\w])", "&amp;", one_line(text))
    text = re.sub(r"<(?=\S)", "&lt;", text)  # "p < 0.001" stays as it is
    return re.sub(r"([\\|`*\[\]])", r"\\\1", text)


def markdown_table(table: Table) -> str:
    """Returns the table as Markdown, without its caption."""
    rows = [list(map(markdown_text, row)) for row in (table.head, *table.rows)]
    for row, column in table.bold:
        rows[row + 1][column] = f"**{rows[row + 1][column]}**"
    rows.insert(1, ["---", *["---:" if table.numbers else "---"] * (len(table.head) - 1)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
