"""What a step must take on a card at least: its operations, counted without running them, and the speed of the card.

    python tests/benchmarks/roofline.py    # the settings of examples/options.md and the presets, on an assumed card

An operation takes its FLOPs (as `torch.utils.flop_counter` counts them), its bytes (all that it reads and writes, as in
PyTorch without fusion), or its launch, whichever is longest. Compiled code fuses operations, and may be faster.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from step_time import Setting, target_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from lightly_distill.method.auto import auto_settings
from lightly_distill.method.config import PRESETS, DistillConfig, make_config
from lightly_distill.method.step import kernel_pass
from lightly_distill.models.recipe import make_optimizer
from lightly_distill.models.rows import Layout, RowHead, row_loss, with_rows
from lightly_distill.models.students import student_builder

Operations = list[tuple[float, float, bool]]  # FLOPs, bytes, whether in full float32


@dataclass(frozen=True)
class Card:
    """How fast a card is, as reached and not as advertised.

    Attributes:
        flops: A second, of convolutions and products: TF32 or bfloat16.
        full_flops: A second, in full float32, as the ridge is solved.
        bandwidth: Bytes a second, read and written.
        launch: Seconds that the host takes for one operation.
    """

    flops: float
    full_flops: float
    bandwidth: float
    launch: float

    def seconds(self, operations: Operations) -> float:
        """Returns the least time for operations one after the other."""
        speed = {True: self.full_flops, False: self.flops}
        return sum(max(flops / speed[full], size / self.bandwidth, self.launch) for flops, size, full in operations)


ASSUMED = Card(flops=60e12, full_flops=15e12, bandwidth=2e12, launch=10e-6)


class Counted(TorchDispatchMode):
    """Notes each operation; on the device `meta` nothing is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Operations = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        returned = [each.alias_info for each in func._schema.returns]
        if not any(alias is not None and not alias.is_write for alias in returned):  # a view is no work
            count = flop_registry.get(func.overloadpacket)
            flops = count(*args, **kwargs, out_val=out) if count else 0
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            self.operations.append((flops, sum(each.nbytes for each in tensors), False))
        return out


def counted(work: Callable[[], object]) -> Operations:
    """Returns the operations of some work."""
    with Counted() as counter:
        work()
    return counter.operations


def step_operations(config: DistillConfig, target: nn.Module, targets: Layout) -> dict[str, Operations]:
    """Returns the operations of an outer step by phase.

    Args:
        config: Settings, with the size of the images.
        target: Takes images of that size; comes back on the device `meta`.
        targets: Layout of the targets' rows.

    Returns:
        `target`, the pass of a real batch, which is in each step with `source_views="random"` only; the phases of
        `step_time.py`, with the two passes of the synthetic images together; and `set update`.
    """
    size, count, batch = config.image_size or 32, config.num_images, config.batch_size
    probe = torch.zeros(2, 3, size, size)
    student, features = with_rows(student_builder(config.students[0], size)(), probe, targets.grid)
    student, head, target = student.to("meta"), RowHead(features, targets).to("meta"), target.to("meta")
    real, syn = (torch.empty(n, 3, size, size, device="meta") for n in (batch, count))
    syn, rows = syn.requires_grad_(), torch.empty(count, targets.width, device="meta", requires_grad=True)
    optimizer, of_set = make_optimizer(student, head, config.pool), torch.optim.AdamW([syn, rows])

    def passes() -> None:
        features = student(syn)
        torch.autograd.grad(features, syn, torch.empty_like(features))

    def train() -> None:
        row_loss(head(student(syn.detach())), rows.detach(), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    found = {}
    with torch.no_grad():
        found["target"] = counted(lambda: target(real))
    with kernel_pass(student):
        with torch.no_grad():
            found["real features"] = counted(lambda: student(real))
        found["synthetic features and backward"] = counted(passes)
    found["solve"] = ridge(batch, count, features.dim, targets.dim)
    if features.grid and targets.grid:
        cells = targets.grid**2
        found["solve"] += ridge(batch * cells, count * cells, features.channels, targets.channels)
    found["pool update"] = counted(train)
    syn.grad, rows.grad = torch.empty_like(syn), torch.empty_like(rows)
    found["set update"] = counted(of_set.step)
    return found


def ridge(b: int, m: int, f: int, d: int) -> Operations:
    """Returns what `kernel_ridge` and its gradient do with B real and M synthetic rows of F features and D targets."""
    n = min(m, f + 1)
    if m <= f + 1:  # kernel; of real images too; prediction; and back
        products = [(m, f, m)] * 3 + [(b, f, m)] * 2 + [(b, m, d)] * 3
    else:
        products = [(f, m, f)] * 3 + [(f, m, d)] * 3 + [(b, f, d)] * 2
    solves = [(n, n, d)] * 5  # forward, residual, backward, each with two triangles
    made: Operations = [(2.0 * i * j * k, 4.0 * (i * j + j * k + i * k), True) for i, j, k in products + solves]
    return [*made, (n**3 / 3, 8.0 * n * n, True)]  # Cholesky


def whole_run(card: Card, config: DistillConfig, phases: dict[str, Operations], images: int) -> float:
    """Returns the least seconds of a run: the target's pass, the pool's warm-up, all steps."""
    seconds = {phase: card.seconds(operations) for phase, operations in phases.items()}
    of_target = seconds.pop("target")
    passes = config.steps if config.source_views == "random" else images / config.batch_size
    training = config.pool.size * (config.pool.max_age + 1) / 2
    return passes * of_target + training * seconds["pool update"] + config.steps * sum(seconds.values())


def measure_card(device: str, *, bf16: bool = False, small: bool = False) -> Card:
    """Measures products, a copy and launches on the device itself."""
    side, size = (512, 2**22) if small else (8192, 2**28)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        fast = _product(device, side, torch.bfloat16 if bf16 else torch.float32)
        torch.set_float32_matmul_precision("highest")
        full = _product(device, side, torch.float32)
    finally:
        torch.set_float32_matmul_precision(before)
    there = torch.zeros(size, device=device)
    copy = _seconds(device, lambda: there.clone(), 10)
    one = torch.zeros(1, device=device)
    return Card(fast, full, 2 * there.nbytes / copy, _seconds(device, lambda: one.add_(1), 1000))


def _product(device: str, side: int, dtype: torch.dtype) -> float:
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    return 2 * side**3 / _seconds(device, lambda: matrix @ matrix, 10)


def _seconds(device: str, work: Callable[[], object], times: int) -> float:
    def run(times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            work()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    run(3)
    return run(times) / times


def main(rows: Sequence[int] = (2_000, 20_000, 200_000, 1_300_000)) -> None:
    """Prints minutes of whole runs on the assumed card."""
    print(f"{ASSUMED}\n\n| setting | ms a step | minutes |\n|---|---|---|")
    for images in rows:
        config = make_config(**auto_settings(images, 32))
        _print(f"up to {images:,} images", config, Layout(64, config.map_dims, 4), images)
    for name in PRESETS:
        _print(name, make_config(name), Layout(512), 0)


def _print(name: str, config: DistillConfig, targets: Layout, images: int) -> None:
    sizes = Setting(config.student, "resnet18", config.num_images, config.batch_size, config.image_size or 32)
    phases = step_operations(config, target_model(sizes), targets)
    step = sum(ASSUMED.seconds(of) for phase, of in phases.items() if phase != "target" or not images)
    print(f"| {name} | {1e3 * step:.1f} | {whole_run(ASSUMED, config, phases, images) / 60:.1f} |")


if __name__ == "__main__":
    main()
