"""What a set is worth: students pre-trained on it and on what it has to beat, tried on labelled tasks.

Imports `runs` and what stands below. Start with `evaluate.py`. Another probe is an entry of the table in `probes.py`
(`finetune.py` and `data_free.py` are two of them), another arm one of that in `baselines/arms.py`; `plan.py` has the
settings, `report/` shows what was measured, `sweep/` compares sets of several sizes.
"""
