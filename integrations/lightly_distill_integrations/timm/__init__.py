"""timm: backbones as students and targets (`backbones.py`), what fits which image size (`fit.py`, `catalogue.py`)."""
