"""What a piece of work costs: its seconds, and the memory that it takes beyond what was held before it."""

import ctypes
import gc
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil
import torch

INTERVAL = 0.005  # seconds between two looks at the process


@dataclass
class Cost:
    """What was measured; complete when the block is left.

    Attributes:
        seconds: That the block took.
        bytes: The most memory that was held at a time, less what was held at the start.
    """

    seconds: float = 0.0
    bytes: int = 0


@contextmanager
def measured(device: torch.device) -> Iterator[Cost]:
    """Measures the time and the peak memory of a block.

    On a GPU memory is what PyTorch's allocator counts: tensors, exactly. A CPU has no such count, so a thread looks at
    the resident memory of the whole process every `INTERVAL`; a shorter peak is not seen, nor is memory that the
    process kept from earlier work and uses again, which is why the C library is asked to return it first.

    Args:
        device: Where the work is done.
    """
    cost = Cost()
    with _gpu_memory(device, cost) if device.type == "cuda" else _process_memory(cost):
        started = time.perf_counter()
        yield cost
        cost.seconds = time.perf_counter() - started


@contextmanager
def _gpu_memory(device: torch.device, cost: Cost) -> Iterator[None]:
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    yield
    cost.bytes = torch.cuda.max_memory_allocated(device) - before


@contextmanager
def _process_memory(cost: Cost) -> Iterator[None]:
    _return_free_memory()
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(INTERVAL):
            cost.bytes = max(cost.bytes, process.memory_info().rss - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _return_free_memory() -> None:
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):  # only glibc can
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory(device: torch.device) -> int:
    """Returns the most bytes held so far: on the device if it is a GPU, else by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
