"""Where the world plugs in: a folder of adapters for each ecosystem, found by entry point, never imported by the core.

What each group (`lightly_distill.targets`, `.students`, `.sources`, `.hubs`) asks of an adapter is in the core's
`adapters.py`; the groups are declared in `pyproject.toml`.

Beside them, what several adapters share: `checkpoints.py` reads the weights of other people's models, `convnets.py` and
`small_stems.py` are networks under timm names (cards of published sets name these two paths), `demo.py` is the demo.
"""
