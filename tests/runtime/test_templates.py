import pytest
from jinja2 import UndefinedError

from lightly_distill.runtime import templates

TABLE = {"head": ["a"], "rows": [["b"]], "bold": [], "numbers": False, "caption": "c"}
REPORT = {"lead": [], "found": [], "note": "n", "students": [], "settings": TABLE}


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("<b>x</b>", "&lt;b>x&lt;/b>"),
        ("p < 0.001", "p < 0.001"),
        ("Worth: <1 to >10", "Worth: <1 to >10"),
        ("&lt;b&gt;", "&amp;lt;b&amp;gt;"),
        ("[a](b) *c* `d` \\|", "\\[a\\](b) \\*c\\* \\`d\\` \\\\\\|"),
        ("two\nlines\x1b[0m", "two lines?\\[0m"),
    ],
)
def test_text_in_markdown_is_one_line_and_neither_html_nor_link_nor_code(given: str, shown: str) -> None:
    page = templates.fill("evaluation/report/templates/evaluation_report.md.j2", title=given, **REPORT)
    assert page.splitlines()[0] == f"# {shown}"


def test_what_a_template_names_and_nobody_gave_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'title' is undefined"):
        templates.fill("evaluation/report/templates/evaluation_report.md.j2", **REPORT)
