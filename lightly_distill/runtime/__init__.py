"""The machine under a run: devices and free memory, processes, seeds, signals, whole files, usage, words, templates.

Knows no image and no model; imports `errors` only. Start with `files.py` for what is written, with
`processes.py` and `together.py` for several GPUs, with `seeding.py` for every random draw.
"""
