"""The report of an evaluation: charts, the page around them, and what is said.

Start with `evaluation_report.py`; `page.py` is how text becomes HTML and Markdown, `charts.py` what is drawn.
"""
