"""Seconds an outer step, ours against the plain reference, in one run.

    python tests/benchmarks/step_time.py [--setting small|paper|all] [--steps N] [--device cpu|cuda]

Both sides start from the same images, representations and students and take the same steps: target on the real batch
(the reference: in every step; ours: kept from before), ridge, gradient, AdamW, one SGD step of the student. The
reference is timed in float32, which is twice as kind to it as its float64. Losses are compared with float64 at the
first step, and side by side after it. Times are medians; peak memory is that of a child process for each side.
"""

import argparse
import copy
import json
import multiprocessing
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import reference
from lightly_distill.config import PoolConfig
from lightly_distill.pool import StudentPool
from lightly_distill.seeding import generator, global_seed
from lightly_distill.step import RealBatch, outer_gradient
from lightly_distill.students import student_builder


@dataclass(frozen=True)
class Setting:
    """Sizes of one measurement: synthetic images, real batch, side in pixels."""

    student: str
    target: str
    num_images: int
    batch_size: int
    size: int = 32


SETTINGS = {
    "small": Setting("convnet_32_64_128", "resnet10t", 100, 256),
    "paper": Setting("convnet_128_256_512", "resnet18", 1000, 1024),
}
LR = 1e-4


def target_model(setting: Setting) -> nn.Module:
    """Random weights: the time does not depend on them. ResNet-18 as in the paper, 3x3 stem and no max-pool."""
    with global_seed(0, "target"):
        model = timm.create_model(setting.target, num_classes=0)
        if setting.target == "resnet18":
            model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model.eval().requires_grad_(False)


def start(setting: Setting, device: str) -> tuple[Tensor, Tensor, Tensor, nn.Module]:
    """Synthetic images and representations, the real batch, the target."""
    g = generator(0, "benchmark")
    images, real = (
        torch.randn(n, 3, setting.size, setting.size, generator=g) for n in (setting.num_images, setting.batch_size)
    )
    target = target_model(setting)
    with torch.no_grad():
        representations = torch.cat([target(chunk) for chunk in images.split(250)])
    return images.to(device), representations.to(device), real.to(device), target.to(device)


def run(side: str, setting: Setting, steps: int, device: str) -> dict[str, Any]:
    """Takes the steps of one side and returns losses, seconds of each, peak memory."""
    images, representations, real, target = start(setting, device)
    images, representations = images.requires_grad_(), representations.requires_grad_()
    optimizer = torch.optim.AdamW([images, representations], lr=LR, weight_decay=0.0)
    config = PoolConfig(size=1, max_age=1000)
    students = [(setting.student, student_builder(setting.student, setting.size))]
    pool = StudentPool(students, config, images, representations.shape[1], seed=0)
    slot = pool.slots[0]
    for _ in range(3):  # so that batch norm knows something
        pool.advance(slot, images, representations)

    if side == "ours":
        with torch.no_grad():
            kept = torch.cat([target(chunk) for chunk in real.split(256)])

        def step() -> float:
            gradient = outer_gradient(slot.student, images, representations, RealBatch(real, kept))
            images.grad, representations.grad = gradient.images, gradient.representations
            optimizer.step()
            pool.advance(slot, images, representations)
            return float(gradient.loss)
    else:
        slot.student.to(memory_format=torch.contiguous_format)  # torch's default, as a plain script has it
        plain = [reference.Student(slot.student, slot.head, slot.optimizer, slot.age)]

        def step() -> float:
            return reference.outer_step(plain, 0, images, representations, optimizer, real, target, 1000, lambda: None)

    exact = _exact_loss(slot.student, images, representations, real, target) if side == "ours" else None
    losses, seconds = [], []
    for _ in range(steps):
        began = time.perf_counter()
        losses.append(step())
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    memory = torch.cuda.max_memory_allocated() if device == "cuda" else _peak()
    return {"losses": losses, "seconds": seconds, "memory": memory, "exact": exact}


def _exact_loss(student: nn.Module, images: Tensor, representations: Tensor, real: Tensor, target: nn.Module) -> float:
    """The first loss in float64, features included."""
    with torch.no_grad():
        twin = copy.deepcopy(student).double().eval()
        features = [torch.cat([twin(c.double()) for c in x.split(100)]).cpu() for x in (real, images)]
        truth = torch.cat([target(chunk) for chunk in real.split(256)]).double().cpu()
        prediction = reference.ridge_prediction(*features, representations.double().cpu())
    return float((prediction - truth).square().mean())


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, steps: int, device: str) -> dict[str, Any]:
    """Runs both sides of a setting, each in a process of its own, and compares them."""
    results = {}
    for side in ("reference", "ours"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
            results[side] = child.submit(run, side, SETTINGS[name], steps, device).result()
    ours, plain = results["ours"], results["reference"]
    gap = max(abs(a - b) / b for a, b in zip(ours["losses"], plain["losses"], strict=True))
    medians = {side: statistics.median(result["seconds"][1:] or result["seconds"]) for side, result in results.items()}
    return {
        "setting": name,
        "steps": steps,
        "reference_seconds": medians["reference"],
        "ours_seconds": medians["ours"],
        "ratio": medians["reference"] / medians["ours"],
        "reference_memory_gib": plain["memory"] / 2**30,
        "ours_memory_gib": ours["memory"] / 2**30,
        "loss_gap": gap,
        "float64_gap": abs(ours["losses"][0] - ours["exact"]) / ours["exact"],
    }


def main() -> None:
    """Prints a table and one JSON line a setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=[*SETTINGS, "all"], default="all")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    names = list(SETTINGS) if options.setting == "all" else [options.setting]
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads")
    print(
        f"{'setting':<8} {'reference':>12} {'ours':>12} {'ratio':>7} {'memory':>19} {'loss gap':>10} {'to float64':>11}"
    )
    for name in names:
        row = measure(name, options.steps, options.device)
        print(
            f"{name:<8} {row['reference_seconds']:>10.3f} s {row['ours_seconds']:>10.3f} s {row['ratio']:>6.2f}x "
            f"{row['reference_memory_gib']:>6.2f} to {row['ours_memory_gib']:>5.2f} GiB {row['loss_gap']:>10.1e} "
            f"{row['float64_gap']:>11.1e}"
        )
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
