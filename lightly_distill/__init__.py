"""Distils a large unlabelled image set into a small synthetic one, from any Lightly SSL model.

Importing this imports no adapter and starts no download.
"""

from lightly_distill.config import DistillConfig, OuterConfig, PoolConfig, RidgeConfig
from lightly_distill.errors import DistillError, UsageError
from lightly_distill.pretrain import pretrain
from lightly_distill.stage import DistillationStage
from lightly_distill.synthetic import SyntheticSet
from lightly_distill.targets import as_target

__version__ = "0.1.0"

__all__ = [
    "DistillConfig",
    "DistillError",
    "DistillationStage",
    "OuterConfig",
    "PoolConfig",
    "RidgeConfig",
    "SyntheticSet",
    "UsageError",
    "as_target",
    "pretrain",
]
