"""What matters? The CPU setting with one thing changed at a time.

    python tests/benchmarks/transfer/ablations.py --out DIR --target TARGET [--seeds 0 1 2] [--only NAME ...]

TARGET is the target.pt that cpu.py made. Each variant is distilled once, with seed 0, and its set is tried with each
seed, which draws weights and labels, by the linear probe and the kNN of cifar10. What is in DIR already is not made
again; `DIR/ablations.json` and `DIR/ablations.md` hold all that there is.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from cpu import CPU
from settings import distil, train_target, try_out
from torch import Tensor, nn

from lightly_distill.evaluation.results import Evaluation
from lightly_distill.method.pool import Slot, StudentPool
from lightly_distill.runs.run_folder import run_metrics

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "T=150": {"pool": {"max_age": 150}},
    "ridge 1e-4": {"ridge": {"strength": 1e-4}},
    "pool of 5": {"pool": {"size": 5}},
    "lr of X_s 5e-3": {"outer": {"lr_images": 5e-3}},
    "views random": {"source_views": "random"},
    "lr of X_s 5e-2": {"outer": {"lr_images": 5e-2}},
    "T=50": {"pool": {"max_age": 50}},
    "init k-means": {"init": "kmeans"},
    "ridge 1e-3": {"ridge": {"strength": 1e-3}},
    "views 1": {"source_views": 1},
    "lr of Y_s 2e-3": {"outer": {"lr_representations": 2e-3}},
    "pool of 40": {"pool": {"size": 40}},
    "views 4": {"source_views": 4},
    "pool of 5, T=20": {"pool": {"size": 5, "max_age": 20}},
    "pool of 5, T=20, released": {"pool": {"size": 5, "max_age": 20}},
    "1,500 steps, a fifth of both rates": {
        "steps": 1500,
        "outer": {"lr_images": 4e-3, "lr_representations": 4e-3},
    },
    "3,000 steps": {"steps": 3000},
}
MEASURES = ("cifar10/linear@2000", "cifar10/linear@200", "cifar10/knn@2000")


@contextmanager
def released_pool() -> Iterator[None]:
    """The behaviour of the authors' released code: the step count stays at T, so each draw replaces the student."""
    own = StudentPool.advance

    def advance(pool: StudentPool, slot: Slot, images: Tensor, representations: Tensor) -> None:
        if slot.births and slot.age == 0:
            pool.slots[slot.index] = pool._born(slot.index, slot.births + 1)
        else:
            own(pool, slot, images, representations)

    StudentPool.advance = advance  # type: ignore[method-assign]
    try:
        yield
    finally:
        StudentPool.advance = own  # type: ignore[method-assign]


def run_variant(name: str, model: nn.Module, out: Path, seeds: Sequence[int]) -> Evaluation:
    """Distils and tries one variant."""
    run = folder_of(out, name)
    with released_pool() if name.endswith("released") else nullcontext():
        distil(CPU, model, run, 0, **VARIANTS[name])
    arms = ("scratch", "random", "kmeans") if name == "base" else ()
    return try_out(CPU, model, run, seeds, arms, tasks=("cifar10",), probes=("knn", "linear"))[0]


def folder_of(out: Path, name: str) -> Path:
    """Returns the folder of one run."""
    return out / "".join(c if c.isalnum() or c in "-=" else "_" for c in name)


def table(found: dict[str, dict[str, list[float]]], losses: dict[str, float]) -> str:
    """Returns a Markdown table: each variant, its probes, and the held-out loss at its end."""
    lines = [
        "| variant | " + " | ".join(MEASURES) + " | held-out loss of its own pool |",
        "|---|" + "---|" * (len(MEASURES) + 1),
    ]
    for name, measured in found.items():
        cells = [_cell(measured[measure]) for measure in MEASURES]
        loss = f"{losses[name]:.4f}" if name in losses else "-"
        lines.append(f"| {name} | {' | '.join(cells)} | {loss} |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}"


def main() -> None:
    """Makes what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    options = parser.parse_args()
    model = train_target(CPU, options.target)
    found: dict[str, dict[str, list[float]]] = {}
    losses: dict[str, float] = {}
    for name in options.only:
        result = run_variant(name, model, options.out, options.seeds)
        for arm, measured in result.arms.items():
            found[name if arm == "distilled" else arm] = measured.values
        rows = run_metrics(folder_of(options.out, name))
        losses[name] = [row["heldout_loss"] for row in rows if "heldout_loss" in row][-1]
        told = {"seeds": options.seeds, "variants": found, "heldout_loss": losses}
        (options.out / "ablations.json").write_text(json.dumps(told, indent=2) + "\n")
        (options.out / "ablations.md").write_text(table(found, losses))
        print(f"{name}: done", flush=True)
    print(table(found, losses))


if __name__ == "__main__":
    main()
