"""What a run tells of the memory and the time that it will take."""

import logging
from dataclasses import dataclass

from lightly_distill.method.memory import Estimate
from lightly_distill.runtime.words import duration

_LONG = 10.0  # seconds of waiting that a user wonders about

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Forecast:
    """Memory and time of the steps to come.

    Attributes:
        plan: What a step needs, by a few passes of its students.
        steps: Outer steps.
        looks: Images through a student in all measurements.
    """

    plan: Estimate
    steps: int
    looks: int

    def tell_memory(self, chunk_size: int | None) -> None:
        """Logs the memory, and how many synthetic images a student is given at a time."""
        chunks = "" if chunk_size is None else f", in chunks of {chunk_size} synthetic images"
        _logger.info("Estimated: %.2g GiB for activations and features%s.", self.plan.bytes / 2**30, chunks)

    def tell_time(self, training: int = 0, warming: float = 0.0) -> None:
        """Logs the time.

        Args:
            training: Training steps of the warm-up, 0 where the pool is warm.
            warming: Seconds of them all, by the first ones.
        """
        # besides the passes, a training step draws, mixes images and steps an optimizer: of small students most of it
        each = warming / training if training else self.plan.training_seconds
        step = self.plan.seconds - self.plan.training_seconds + each
        stepping = self.steps * step + self.looks * self.plan.image_seconds
        before = f"{duration(warming)} for {training:,} training steps of the pool, then " if training else ""
        _logger.info(
            "Estimated: %sabout %s for %s outer steps and their measurements.",
            before,
            duration(stepping),
            f"{self.steps:,}",
        )
        if warming > max(stepping, _LONG):
            _logger.info(
                "Fewer or younger students start sooner: pool.size (--pool.size), pool.max_age (--pool.max-age)."
            )
