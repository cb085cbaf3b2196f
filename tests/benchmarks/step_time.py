"""Seconds an outer step, ours against the plain reference, in one run.

    python tests/benchmarks/step_time.py [--setting small|paper|all] [--steps N] [--device cpu|cuda] [--sides SIDE ...]

Both sides start from the same images, representations and students and take the same steps: target on the real batch
(the reference: in every step; ours: kept from before), ridge, gradient, AdamW, one SGD step of the student. The
reference is timed in float32, which is twice as kind to it as its float64. Losses are compared with float64 at the
first step, and side by side after it. Times are medians; peak memory is that of a child process for each side.

Sides: `plain` is the method of the paper as a run does it, without maps and mixup, which the reference lacks;
`compiled` with --compile, `bf16` with --precision bf16, `fast` with both.
The phases of a step are timed one by one, after the steps.
"""

import argparse
import copy
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import reference
from lightly_distill.method.config import PoolConfig
from lightly_distill.method.krr import full_precision, kernel_ridge
from lightly_distill.method.pool import Slot, StudentPool
from lightly_distill.method.step import RealBatch, features, kernel_pass, outer_gradient
from lightly_distill.models.rows import Layout
from lightly_distill.models.students import student_builder
from lightly_distill.runtime.seeding import generator, global_seed


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
PHASES = ("real features", "synthetic features", "solve", "backward", "pool update")
SIDES = ("plain", "compiled", "bf16", "fast")


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
    images, real, target = images.to(device), real.to(device), target_model(setting).to(device)
    with torch.no_grad():
        representations = torch.cat([target(chunk) for chunk in images.split(250)])
    return images, representations, real, target


def run(side: str, setting: Setting, steps: int, device: str) -> dict[str, Any]:
    """Takes the steps of one side and returns losses, seconds of each and of its phases, peak memory."""
    images, representations, real, target = start(setting, device)
    images, representations = images.requires_grad_(), representations.requires_grad_()
    optimizer = torch.optim.AdamW([images, representations], lr=LR, weight_decay=0.0)
    config = PoolConfig(size=1, max_age=1000, mixup=False, crop_and_flip=False)  # as the plain reference trains
    students = [(setting.student, student_builder(setting.student, setting.size))]
    targets = Layout(representations.shape[1])
    pool = StudentPool(students, config, images, targets, seed=0, compile=side in ("compiled", "fast"))
    slot = pool.slots[0]
    precision = torch.autocast(device, torch.bfloat16, enabled=side in ("bf16", "fast"), cache_enabled=False)
    with precision:
        for _ in range(3):  # so that batch norm knows something
            pool.advance(slot, images, representations)

    phases: dict[str, float] = {}
    if side == "reference":
        slot.student.to(memory_format=torch.contiguous_format)  # torch's default, as a plain script has it
        plain = [reference.Student(slot.student, slot.head, slot.optimizer, slot.age)]

        def step() -> float:
            return reference.outer_step(plain, 0, images, representations, optimizer, real, target, 1000, lambda: None)
    else:
        with torch.no_grad():
            kept = torch.cat([target(chunk) for chunk in real.split(256)])

        def step() -> float:
            with precision:
                gradient = outer_gradient(slot.student, images, representations, RealBatch(real, kept))
                images.grad, representations.grad = gradient.images, gradient.representations
                optimizer.step()
                pool.advance(slot, images, representations)
                return float(gradient.loss)

    exact = _exact_loss(slot.student, images, representations, real, target) if side == "plain" else None
    losses, seconds = [], []
    for _ in range(steps):
        began = now(device)
        losses.append(step())
        seconds.append(now(device) - began)
    memory = torch.cuda.max_memory_allocated() if device == "cuda" else _peak()
    if side != "reference":
        with precision:
            phases = _phases(slot, pool, images, representations, RealBatch(real, kept), device)
    return {"losses": losses, "seconds": seconds, "phases": phases, "memory": memory, "exact": exact}


def _phases(
    slot: Slot, pool: StudentPool, images: Tensor, representations: Tensor, real: RealBatch, device: str
) -> dict[str, float]:
    """Seconds of each part of a step, the median of three."""
    found: dict[str, list[float]] = {}
    for _ in range(3):
        times = [now(device)]
        with kernel_pass(slot.student):
            real_BF = features(slot.student, real.images, None)
            times.append(now(device))
            syn_MF = slot.student(images)
            times.append(now(device))
            loss = F.mse_loss(kernel_ridge(real_BF, syn_MF, representations).values, real.representations)
            with full_precision(images.device):
                grad_MF, _ = torch.autograd.grad(loss, [syn_MF, representations], retain_graph=True)
            times.append(now(device))
            torch.autograd.grad(syn_MF, images, grad_MF)
            times.append(now(device))
        pool.advance(slot, images, representations)
        times.append(now(device))
        for name, began, ended in zip(PHASES, times, times[1:], strict=False):
            found.setdefault(name, []).append(ended - began)
    return {name: statistics.median(each) for name, each in found.items()}


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


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


def measure(name: str, steps: int, device: str, sides: Sequence[str]) -> dict[str, Any]:
    """Runs the reference and all sides of a setting, each in a process of its own, and compares them."""
    results = {}
    for side in ("reference", *sides):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
            results[side] = child.submit(run, side, SETTINGS[name], steps, device).result()
        print(_line(name, side, results), flush=True)
    found: dict[str, Any] = {"setting": name, "steps": steps, "device": device, "threads": torch.get_num_threads()}
    for side, result in results.items():
        found[side] = {
            "seconds": median(result),
            "ratio": median(results["reference"]) / median(result),
            "phases": result["phases"],
            "memory_gib": result["memory"] / 2**30,
            "loss_gap": _gap(result, results["reference"]),
        }
        if result["exact"]:
            found[side]["float64_gap"] = abs(result["losses"][0] - result["exact"]) / result["exact"]
    return found


def median(result: dict[str, Any]) -> float:
    return statistics.median(result["seconds"][1:] or result["seconds"])


def _gap(ours: dict[str, Any], plain: dict[str, Any]) -> float:
    return max(abs(a - b) / b for a, b in zip(ours["losses"], plain["losses"], strict=True))


def _line(name: str, side: str, results: dict[str, Any]) -> str:
    result, plain = results[side], results["reference"]
    phases = [f"{result['phases'][phase]:.3f}" if result["phases"] else "-" for phase in PHASES]
    cells = [name, side, *phases, f"{median(result):.3f}", f"{median(plain) / median(result):.2f}"]
    return "| " + " | ".join([*cells, f"{result['memory'] / 2**30:.2f}", f"{_gap(result, plain):.0e}"]) + " |"


def main() -> None:
    """Prints a table and one JSON line a setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=[*SETTINGS, "all"], default="all")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--sides", choices=SIDES, nargs="+", default=SIDES)
    options = parser.parse_args()
    names = list(SETTINGS) if options.setting == "all" else [options.setting]
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads; seconds of each phase\n")
    columns = ["setting", "side", *PHASES, "step", "ratio", "peak GiB", "loss gap"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    rows = [measure(name, options.steps, options.device, options.sides) for name in names]
    print("\n" + "\n".join(map(json.dumps, rows)))


if __name__ == "__main__":
    main()
