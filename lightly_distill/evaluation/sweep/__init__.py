"""How small may a set be? Sets of several sizes, distilled, evaluated and compared, after a search of settings.

Start with `sweep.py`; `record.py` is what it goes on from, `tradeoff.py` the recommendation and the cost.
"""
