"""Students under torch.compile: how many graphs they may take, and what is told of one that takes more."""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from lightly_distill.errors import DistillError, first_line

# Of one architecture, at most. Six are usual: training or not, with a gradient or not, of a first number of images and
# of any. torch counts those of all networks of a class together, and its own limit is 8.
GRAPHS = 16

_logger = logging.getLogger(__name__)


class Compiler:
    """Compiles the students of a pool; those of one architecture share the compiled code.

    Past its limit torch goes on uncompiled, which takes all that was gained; here one warning names the student.

    Args:
        architectures: Of the pool.
    """

    def __init__(self, architectures: int) -> None:
        from torch._dynamo import config, exc  # takes a second to import

        most = max(config.cache_size_limit, GRAPHS * architectures)
        # names that torch 2.6 has, and those after it take
        self._limits: dict[str, Any] = {
            "cache_size_limit": most,
            "accumulated_cache_size_limit": max(config.accumulated_cache_size_limit, most),
            "fail_on_cache_limit_hit": True,
            "suppress_errors": False,  # which would hide it
        }
        self._patch = config.patch(**self._limits)
        name = "FailOnRecompileLimitHit" if hasattr(exc, "FailOnRecompileLimitHit") else "FailOnCacheLimitHit"
        self._too_many: type[Exception] = getattr(exc, name)
        self._told: set[str] = set()

    def compile(self, name: str, student: nn.Module, probe: Tensor) -> None:
        """Compiles a student in place, and tries it in eval mode.

        Args:
            name: Of its architecture.
            student: Comes back in eval mode.
            probe: A few images, shape (B, C, H, W).

        Raises:
            DistillError: If it cannot be compiled.
        """
        student.compile()
        compiled: Any = student._compiled_call_impl

        def call(*args: Any) -> Any:
            try:
                with self._patch:
                    return compiled(*args)
            except self._too_many:
                self._tell(name)
            student._compiled_call_impl = None
            return student(*args)

        student._compiled_call_impl = call
        try:
            with torch.no_grad():
                student.eval()(probe)
        except Exception as error:  # a missing compiler, or what it does not understand
            raise DistillError(
                f"Student '{name}' cannot be compiled, leave --compile out: {first_line(error)}"
            ) from error

    def _tell(self, name: str) -> None:
        if name not in self._told:
            self._told.add(name)
            most = self._limits["cache_size_limit"]
            _logger.warning("Student '%s' goes on uncompiled: torch would compile it more than %d times.", name, most)
