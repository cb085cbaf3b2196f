"""Every random draw as a function of the root seed, a name and a count.

No generator lives longer than one draw, so there is no random state to lose: a resumed run repeats the draws of the
uninterrupted one, and a new consumer is a new name that disturbs nobody.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator


def derive(seed: int, *path: str | int) -> int:
    """Derives the seed of one draw from the root seed.

    Args:
        seed: Root seed of the run.
        path: Name of the consumer and its counts, such as `("batches", epoch)`.

    Returns:
        A 63-bit seed, the same on every platform.
    """
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *path: str | int) -> Generator:
    """Returns a fresh CPU generator for one draw; see `derive`."""
    return Generator().manual_seed(derive(seed, *path))


@contextmanager
def global_seed(seed: int, *path: str | int, device: torch.device | None = None) -> Iterator[None]:
    """Seeds torch's global generators inside the block and restores them after it.

    For layers that draw from the global generator: initialisation, dropout, drop path.

    Args:
        seed: Root seed of the run.
        path: As in `derive`.
        device: CUDA device whose generator is seeded too.
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # not torch.manual_seed: it would seed the other CUDA devices too, which nobody restores
        torch.default_generator.manual_seed(derive(seed, *path))
        for cuda in devices:
            with torch.cuda.device(cuda):
                torch.cuda.manual_seed(derive(seed, *path))
        yield
