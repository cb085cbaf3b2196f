"""One distillation from a dataset to a set, which may be stopped at any moment: the stage, its folder, its checkpoints.

Imports `method`, `synthetic` and what stands below them. Start with `stage.py`; `run_folder.py` knows the files of a
run, `checkpoint.py` writes its state, `provenance.py` is what a set records of how it was made, `representations.py`
finds the target's representations where a run, a folder or the user has them.
"""
