"""What a set is worth: students pre-trained on it and on what it has to beat, tried on labelled tasks.

Imports `runs` and what stands below. Start with `evaluate.py`; another probe is an entry of `probes.py`, another arm
one of `baselines/arms.py`; `report/` shows what was measured, `sweep/` compares sets of several sizes.
"""
