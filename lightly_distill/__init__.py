"""Distils a large unlabelled image set into a small synthetic one, from any Lightly SSL model.

Importing this imports no adapter and starts no download.
"""

from typing import Any

from lightly_distill import adapters
from lightly_distill.errors import DistillError, UsageError
from lightly_distill.method.config import DistillConfig, OuterConfig, PoolConfig, RidgeConfig
from lightly_distill.models.encoders import register_target
from lightly_distill.models.targets import as_target
from lightly_distill.runs.stage import DistillationStage
from lightly_distill.synthetic.address import PublishOptions
from lightly_distill.synthetic.pretrain import PretrainConfig, pretrain
from lightly_distill.synthetic.synthetic_set import SyntheticSet

__version__ = "0.1.0"

__all__ = [
    "DistillConfig",
    "DistillError",
    "DistillationCallback",
    "DistillationStage",
    "OuterConfig",
    "PoolConfig",
    "PretrainConfig",
    "PublishOptions",
    "RidgeConfig",
    "SyntheticSet",
    "TransferConfig",
    "UsageError",
    "as_target",
    "evaluate",
    "pretrain",
    "register_target",
    "sweep",
]


def __getattr__(name: str) -> Any:
    # they take seconds to import: a subclass of PyTorch Lightning's Callback, and scikit-learn's probes
    if name == "DistillationCallback":
        return adapters.get("callbacks", "pytorch_lightning").DistillationCallback
    if name == "evaluate":
        from lightly_distill.evaluation.evaluate import evaluate

        return evaluate
    if name == "TransferConfig":
        from lightly_distill.evaluation.plan import TransferConfig

        return TransferConfig
    if name == "sweep":
        from lightly_distill.evaluation.sweep.sweep import sweep

        return sweep
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
