"""The result, and what somebody who receives it needs: its tensors, its folder, its card, and pre-training on it.

Knows nothing of how sets are made; imports `models`, `runtime`, `adapters` and `errors`. Start with `contents.py` and
`synthetic_set.py`. On disk, `artifact.py` is the folder, its version and its checks; another way to store images or
numbers is a change of `parquet.py`, a new major version, and a branch in `artifact.read`, which reads old sets too.
`address.py` finds a set by name, in a folder or on a hub; `pictures.py` draws previews.
"""
