"""Small networks and images for the tests of the method."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightly_distill.method.config import DistillConfig, make_config
from lightly_distill.runtime.seeding import generator
from lightly_distill.runtime.settings import update

SIZE = 8
# the method of the paper, without what came later: each of these has tests of its own
PLAIN: dict[str, Any] = {
    "precision": "fp32",  # whatever the processor
    "target_dims": None,
    "target_map": 0,
    "eight_bits": False,
    "image_quality": None,
    "target_bits": 8,
    "outer": {"grain": 1},
}
QUICK: dict[str, Any] = {
    "student": "convnet_4_4",
    "num_images": 8,
    "steps": 3,
    "batch_size": 16,
    "pool": {"size": 2, "max_age": 3},
    "device": "cpu",
}
PLAIN_POOL: dict[str, Any] = {"mixup": False, "crop_and_flip": False}


def student(dropout: float = 0.0) -> nn.Module:
    """Batch norm, as in the paper's ConvNet; 32 features of an 8x8 image."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(4),
        nn.Dropout(dropout),
        nn.Flatten(),
    )


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten())


def images(count: int = 60) -> Tensor:
    """uint8 (count, 3, 8, 8), smooth enough that a network can say something about them."""
    coarse = torch.rand(count, 3, 3, 3, generator=generator(0, "images"))
    return (nn.functional.interpolate(coarse, SIZE, mode="bilinear") * 255).byte()


def config(**options: object) -> DistillConfig:
    tiny = {"num_images": 10, "steps": 12, "batch_size": 16, "log_every": 1, "checkpoint_every": 4, "student": "tiny"}
    own = make_config(**{**tiny, **PLAIN, "pool": {"size": 3, "max_age": 4, **PLAIN_POOL}})
    return update(own, options)


class EachRow:
    """A log that gives each row of measurements to a function."""

    def __init__(self, function: Callable[[dict[str, Any]], None]) -> None:
        self._function = function

    def start(self) -> None:
        pass

    def log(self, row: dict[str, Any]) -> None:
        self._function(row)
