"""Lightly: the encoder inside a model of any of its methods, and models from checkpoints (`models.py`)."""
