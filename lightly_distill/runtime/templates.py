"""Fills templates of pages and cards. Text may come from a stranger's set: it is escaped, in Markdown as in HTML.

Templates lie in folders `templates` beside the modules that fill them. jinja2 is imported where it is needed: cards are
imported with the package.
"""

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from lightly_distill.runtime.words import one_line

if TYPE_CHECKING:
    from jinja2 import Environment


def fill(template: str, **values: Any) -> str:
    """Fills a template.

    Args:
        template: Its path in this package. It ends in `.html.j2` or in `.md.j2`, which decides how values are escaped.
        values: What it names. Each becomes one line of text; a `markupsafe.Markup` stays as it is.

    Raises:
        jinja2.UndefinedError: If the template names what is not given.
    """
    return _environment(template.split(".")[-2]).get_template(template).render(values)


@cache
def _environment(language: str) -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    escape = {"html": one_line, "md": _markdown}[language]

    def finalize(value: Any) -> Any:
        if hasattr(value, "__html__"):  # from a macro, or marked as safe
            return value
        return Markup(escape(str(value))) if language == "md" else escape(str(value))

    return Environment(
        loader=PackageLoader("lightly_distill", ""),
        autoescape=True,  # of Markdown too, so that what a macro returns is not escaped once more
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _markdown(text: str) -> str:
    """Returns one line of text that ends no cell, and is neither HTML nor a link nor code."""
    text = re.sub(r"&(?=[#\w])", "&amp;", one_line(text))
    text = re.sub(r"<(?=[^\s\d])", "&lt;", text)  # "p < 0.001" and "<1" begin no tag, and stay as they are
    return re.sub(r"([\\|`*\[\]])", r"\\\1", text)
