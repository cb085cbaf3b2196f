"""The command line: one module a command, with what it does (`ABOUT`), its options, and how it is run.

May import everything. Start with `main.py`; `options.py` holds what several commands share.
"""
