"""Small synthetic sets for tests."""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from lightly_distill import SyntheticSet
from lightly_distill.runtime.seeding import generator

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_set(count: int = 6, size: int = 8, dim: int = 5) -> SyntheticSet:
    g = generator(0, "synthetic")
    images, reps = torch.randn(count, 3, size, size, generator=g) * 2, torch.randn(count, dim, generator=g)
    images[0, 0, 0, :3] = torch.tensor([-0.0, 1e-42, 3.4e38])  # sign of zero, subnormal, near the largest
    reps[0, :2] = torch.tensor([-0.0, -1e-45])
    return SyntheticSet(
        images,
        reps,
        mean=MEAN,
        std=STD,
        source_index=torch.arange(count) * 3 - 3,
        provenance={"steps": 7, "source": {"name": "Café#train", "images": 60, "fingerprint": "ab" * 32}},
        metrics={"linear": {"distilled": [0.5, 0.25]}},
    )


def sign(facts: dict[str, Any]) -> dict[str, Any]:
    """Returns the facts of a set with the hash that format 1 asks for, as somebody would who knows how it is made."""
    plain = {name: value for name, value in facts.items() if name != "sha256"}
    return {**plain, "sha256": hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Tells -0.0 from 0.0, which `torch.equal` does not."""
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))
