"""The result, and what somebody who receives it needs: its tensors, its folder, its card, and pre-training on it.

Knows nothing of how sets are made; imports `models`, `runtime`, `adapters` and `errors`. Start with `contents.py` and
`synthetic_set.py`; `artifact.py` is the format on disk, and `parquet.py` how images and numbers are stored in it.
"""
