"""PyTorch Lightning: the callback that distils after, or while, a model is trained (`callback.py`)."""
