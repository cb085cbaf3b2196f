"""torchvision: models as targets (`backbones.py`), its datasets as sources (`datasets.py`)."""
