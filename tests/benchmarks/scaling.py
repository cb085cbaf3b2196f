"""How a step grows: with processes, with synthetic images (m), with features (p); in chunks and not.

    python tests/benchmarks/scaling.py [--part processes|size|large|all]

processes: one process against two on the CPU, a thread each, the same run. batch: they divide a step. pool: each takes
    a step of its own, so twice as many students count.
size: seconds and peak memory of an outer step against m and p, ridge in the dual form where m <= p + 1, else primal.
large: m = 10,000 at 3x64x64 with resnet18, in the chunks that `auto` takes for 3 GiB.

Each line is measured in processes of its own, on one thread each; machines are noisy: ratios in one run count.
"""

import argparse
import json
import multiprocessing
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from lightly_distill import DistillationStage
from lightly_distill.method.config import PoolConfig
from lightly_distill.method.memory import estimate
from lightly_distill.method.pool import StudentPool
from lightly_distill.method.step import RealBatch, outer_gradient
from lightly_distill.models.rows import Layout
from lightly_distill.models.students import student_builder
from lightly_distill.runs.run_folder import run_metrics
from lightly_distill.runtime.seeding import generator

STAGE: dict[str, Any] = {
    "student": "convnet_32_64_128",
    "num_images": 100,
    "batch_size": 256,
    "steps": 30,
    "log_every": 10,
    "image_size": 32,
    "device": "cpu",
    "pool": {"size": 4, "max_age": 10},
}
DIM = 512  # of the representations


def encoder() -> nn.Module:
    """A target that costs little: what is measured comes after it."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 8, stride=8), nn.ReLU(), nn.Flatten())


def child(out: str, parallel: str) -> None:
    """One process of a run."""
    torch.set_num_threads(1)
    images = torch.randint(256, (3000, 3, 32, 32), generator=generator(0, "scaling")).byte()
    DistillationStage(encoder(), parallel=parallel, **STAGE).run(images, out=out)


def seconds_per_step(count: int, parallel: str) -> float:
    """Runs the same stage in `count` processes; the median of what it tells, without the first."""
    with TemporaryDirectory() as out, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
        free.close()
        command = [sys.executable, __file__, "--child", str(Path(out, "run")), parallel]
        ranks = [
            {**os.environ, **rendezvous, "RANK": str(r), "LOCAL_RANK": str(r), "OMP_NUM_THREADS": "1"}
            for r in range(count)
        ]
        children = [subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) for env in ranks]
        if any([each.wait() for each in children]):
            raise RuntimeError(f"{count} processes, {parallel}: one failed")
        rows = run_metrics(Path(out, "run"))
    return statistics.median([row["seconds_per_step"] for row in rows if "seconds_per_step" in row][1:])


def processes() -> None:
    """Prints one process against two."""
    print("\n| processes | parallel | seconds a step | students a second | ratio to one |\n|---|---|---|---|---|")
    alone = seconds_per_step(1, "batch")
    print(f"| 1 | - | {alone:.3f} | {1 / alone:.2f} | 1.00 |", flush=True)
    for parallel, students in (("batch", 1), ("pool", 2)):
        two = seconds_per_step(2, parallel)
        print(f"| 2 | {parallel} | {two:.3f} | {students / two:.2f} | {students * alone / two:.2f} |", flush=True)


def one_step(student: str, count: int, size: int, batch: int, chunk_size: "int | None", steps: int) -> dict[str, Any]:
    """An outer step and a step of the student, in a process of its own."""
    torch.set_num_threads(1)
    g = generator(0, "scaling")
    images = torch.randn(count, 3, size, size, generator=g).requires_grad_()
    representations = torch.randn(count, DIM, generator=g).requires_grad_()
    real = RealBatch(torch.randn(batch, 3, size, size, generator=g), torch.randn(batch, DIM, generator=g))
    optimizer = torch.optim.AdamW([images, representations], lr=1e-3)
    pool = StudentPool([(student, student_builder(student, size))], PoolConfig(size=1), images, Layout(DIM), seed=0)
    pool.chunk_size = chunk_size
    slot = pool.slots[0]
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        gradient = outer_gradient(slot.student, images, representations, real, chunk_size=chunk_size)
        images.grad, representations.grad = gradient.images, gradient.representations
        del gradient
        optimizer.step()
        pool.advance(slot, images, representations)
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": min(seconds), "gib": peak / 2**30, "features": slot.features.width}


def measured(*arguments: Any) -> dict[str, Any]:
    """Runs `one_step` in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(one_step, *arguments).result()


def sizes() -> None:
    """Prints the curves against m and p."""
    print("\n| student | p | m | form | chunk | seconds | peak GiB |\n|---|---|---|---|---|---|---|")
    for student, counts in (
        ("convnet_32_64_128", (100, 300, 1000, 3000, 10_000)),
        ("convnet_16_32_32", (1000,)),
        ("convnet_32_64_512", (1000,)),
    ):
        for count in counts:
            for chunk_size in (None, 250) if count > 250 else (None,):
                found = measured(student, count, 32, 256, chunk_size, 2)
                form = "dual" if count <= found["features"] + 1 else "primal"
                cells = [student, found["features"], count, form, chunk_size or "-", f"{found['seconds']:.2f}"]
                print("| " + " | ".join(map(str, cells)) + f" | {found['gib']:.2f} |", flush=True)


def large() -> None:
    """Prints the largest case."""
    network = student_builder("resnet18", 64)()
    plan = estimate([network], torch.zeros(10_000, 3, 64, 64), 1024, "auto", free=3 * 2**30)
    found = measured("resnet18", 10_000, 64, 1024, plan.chunk_size, 1)
    told = {"m": 10_000, "student": "resnet18", "chunk_size": plan.chunk_size, "estimate_gib": plan.bytes / 2**30}
    print("\n" + json.dumps({**told, **found}), flush=True)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["processes", "size", "large", "all"], default="all")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    print(f"torch {torch.__version__}, one thread a process")
    for name, part in (("processes", processes), ("size", sizes), ("large", large)):
        if options.part in (name, "all"):
            part()


if __name__ == "__main__":
    main()
