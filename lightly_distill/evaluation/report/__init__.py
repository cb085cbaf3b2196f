"""The report of an evaluation: charts, the page around them, and what is said.

Start with `evaluation_report.py`; `templates/` is how it becomes HTML and Markdown, `charts.py` what is drawn.
"""
