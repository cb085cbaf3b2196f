"""Hugging Face: datasets as sources (`datasets.py`), the Hub as a place for sets and students (`hub.py`)."""
