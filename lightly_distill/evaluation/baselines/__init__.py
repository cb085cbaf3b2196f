"""What a set is compared with: the table of arms, and the distillers that need labels.

Imports `method`, `runs` and what stands below. Start with `arms.py`; `ridge.py` and `matching.py` are the two
distillers, `labelled.py` what they share.
"""
