"""Distils a large unlabelled image set into a small synthetic one, from any Lightly SSL model.

Importing this imports no adapter, nothing that is slow to import besides torch, and starts no download.

The folders stand on floors, and each imports only from those below its own: cli > sharing > evaluation > runs >
method | synthetic > data | models > runtime | adapters > errors. What lives in each is said in its `__init__.py`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightly_distill import adapters
from lightly_distill.errors import DistillError, UsageError
from lightly_distill.method.config import DistillConfig, OuterConfig, PoolConfig, RidgeConfig
from lightly_distill.models.encoders import register_target
from lightly_distill.models.targets import as_target
from lightly_distill.runs.stage import DistillationStage
from lightly_distill.synthetic.address import PublishOptions
from lightly_distill.synthetic.pretrain import PretrainConfig, pretrain
from lightly_distill.synthetic.synthetic_set import SyntheticSet

if TYPE_CHECKING:  # what `__getattr__` brings, for type checkers and editors; the one place that names an adapter
    from lightly_distill.evaluation.evaluate import evaluate
    from lightly_distill.evaluation.plan import TransferConfig
    from lightly_distill.evaluation.sweep.sweep import sweep
    from lightly_distill.sharing.publish import publish
    from lightly_distill_integrations.pytorch_lightning.callback import DistillationCallback

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
    "publish",
    "register_target",
    "sweep",
]

# Imported when asked for, since they take seconds: they need scikit-learn, matplotlib and scipy.
_LAZY = {
    "TransferConfig": "lightly_distill.evaluation.plan",
    "evaluate": "lightly_distill.evaluation.evaluate",
    "publish": "lightly_distill.sharing.publish",
    "sweep": "lightly_distill.evaluation.sweep.sweep",
}

if not TYPE_CHECKING:  # a type checker would take every name for one that there is

    def __getattr__(name: str) -> Any:
        if name in _LAZY:
            return getattr(import_module(_LAZY[name]), name)
        if name == "DistillationCallback":  # of an adapter, and a subclass of PyTorch Lightning's Callback
            return adapters.get("callbacks", "pytorch_lightning").DistillationCallback
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
