"""One distillation from a dataset to a set, which may be stopped at any moment: the stage, its folder, its checkpoints.

Imports `method`, `synthetic` and what stands below them. Start with `stage.py`. `run_folder.py` knows the files of a
run, and refuses to go on from a checkpoint of other settings; `checkpoint.py` only writes and reads one.
`provenance.py` is what a set records of how it was made, `origin.py` finds its images and target again, and
`representations.py` the target's representations, where a run, a folder or the user has them.
"""
