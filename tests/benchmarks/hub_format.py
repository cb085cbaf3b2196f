"""Bytes of a published set and how fast it loads: python tests/benchmarks/hub_format.py [--images M --size S --dim D].

What is compared holds the same numbers: our folder, read and checked by `SyntheticSet.load`; the same folder read by
`datasets.load_dataset` into torch tensors; and a file of `torch.save`, read by `torch.load`, which checks nothing.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightly_distill import SyntheticSet
from lightly_distill.runtime import seeding


def make(count: int, size: int, dim: int) -> SyntheticSet:
    """Smooth noise, of which 7% of the values lie beyond what a screen can show, as in a distilled set."""
    generator = seeding.generator(0, "benchmark")
    coarse = torch.randn(count, 3, size // 4, size // 4, generator=generator)
    images = F.interpolate(coarse, size, mode="bicubic") + 0.2 * torch.randn(count, 3, size, size, generator=generator)
    representations = torch.randn(count, dim, generator=generator)
    return SyntheticSet(images, representations, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def timed(what: Callable[[], Any], repeats: int = 7) -> tuple[Any, list[float]]:
    """Runs it a few times; returns what it returned last, and the seconds of processor time of each."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        result = what()
        seconds.append(time.process_time() - started)
    return result, seconds


def with_datasets(folder: Path, cache: Path) -> tuple[Tensor, Tensor]:
    """Reads the folder as anybody does who has no package of ours."""
    from datasets import load_dataset

    rows = load_dataset(str(folder), split="train", cache_dir=str(cache)).remove_columns("image")
    table = rows.with_format("torch")[:]
    return table["pixels"], table["representation"]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--dim", type=int, default=512)
    options = parser.parse_args()
    torch.set_num_threads(1)
    synthetic = make(options.images, options.size, options.dim)
    with tempfile.TemporaryDirectory() as name:
        folder, file = Path(name, "set"), Path(name, "set.pt")
        synthetic.save(folder)
        torch.save((synthetic.images, synthetic.representations), file)
        ours, own = timed(lambda: SyntheticSet.load(folder))
        theirs, plain = timed(lambda: torch.load(file, weights_only=True))
        table, others = timed(lambda: with_datasets(folder, Path(name, "cache")))
        same = [
            all(map(torch.equal, pair, (synthetic.images, synthetic.representations)))
            for pair in ((ours.images, ours.representations), theirs, table)
        ]
        print(f"{synthetic}\n")
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            print(f"{path.stat().st_size:>12,} bytes  {path.relative_to(folder)}")
        print(f"{file.stat().st_size:>12,} bytes  torch.save of the same tensors\n")
        rows = zip(("SyntheticSet.load", "torch.load", "load_dataset"), (own, plain, others), same, strict=True)
        for label, seconds, equal in rows:
            first, again = seconds[0], sorted(seconds[1:])[len(seconds[1:]) // 2]
            print(f"{label:<18} first {first:6.3f} s, again {again:6.3f} s of processor time, bit for bit: {equal}")


if __name__ == "__main__":
    main()
