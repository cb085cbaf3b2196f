"""The result, and what somebody who receives it needs: its tensors, its folder, its card, and pre-training on it.

Knows nothing of how sets are made; imports `models`, `runtime`, `adapters` and `errors`. Start with `contents.py` and
`synthetic_set.py`. On disk, `artifact.py` is the folder, `set_facts.py` its record, version and checks; images and
numbers are in `eight_bits.py` (format 2) or `parquet.py` (format 1). Another way to store them is another such
module, a new major version, and a branch in `artifact.read`, which reads old sets too. `address.py` finds a set by
name, in a folder or on a hub; `pictures.py` draws previews.
"""
