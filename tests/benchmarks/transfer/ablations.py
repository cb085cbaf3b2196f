"""What matters? The CPU setting with one thing changed at a time.

    python tests/benchmarks/transfer/ablations.py --out DIR --target TARGET [--seeds 0 1 2] [--only NAME ...]

TARGET is the target.pt that cpu.py made. Each variant is distilled anew with each seed, with fewer steps than in
cpu.py, and its set is tried with the linear probe and the kNN of cifar10 with 2,000 labels. What is in DIR already is
not made again; `DIR/ablations.json` and `DIR/ablations.md` hold all that there is.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cpu import CPU
from settings import distil, train_target, try_out
from torch import Tensor, nn

from lightly_distill.pool import Slot, StudentPool
from lightly_distill.results import Evaluation
from lightly_distill.run_folder import run_metrics

STEPS = 300
BASE: dict[str, Any] = {"steps": STEPS}
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "lr of Y_s 2e-3": {"outer": {"lr_representations": 2e-3}},
    "init k-means": {"init": "kmeans"},
    "views 4": {"source_views": 4},
    "pool of 5, T=20": {"pool": {"size": 5, "max_age": 20}},
    "pool of 5, T=20, released": {"pool": {"size": 5, "max_age": 20}},
    "pool of 5": {"pool": {"size": 5}},
    "lr of X_s 5e-3": {"outer": {"lr_images": 5e-3}},
    "ridge 1e-3": {"ridge": {"strength": 1e-3}},
    "views random": {"source_views": "random"},
    "T=50": {"pool": {"max_age": 50}},
    "T=500": {"pool": {"max_age": 500}},
    "lr of X_s 5e-2": {"outer": {"lr_images": 5e-2}},
    "pool of 40": {"pool": {"size": 40}},
    "views 1": {"source_views": 1},
    "released": {},
}
LENGTHS = (50, 150, 500)  # epochs of pre-training on the base set, tried besides
MEASURES = ("cifar10/linear@2000", "cifar10/knn@2000")


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


def run_variant(name: str, model: nn.Module, out: Path, seed: int, epochs: int) -> Evaluation:
    """Distils and tries one variant with one seed."""
    run = folder_of(out, name, seed)
    options = {**BASE, **VARIANTS[name]}
    if name.endswith("released"):
        with released_pool():
            distil(CPU, model, run, seed, **options)
    else:
        distil(CPU, model, run, seed, **options)
    arms = ("scratch", "random", "kmeans") if name == "base" else ()
    probes = {"tasks": ("cifar10",), "probes": ("knn", "linear"), "labels": (2000,), "epochs": epochs}
    return try_out(CPU, model, run, seed, arms, f"results-{epochs}.json", **probes)[0]


def folder_of(out: Path, name: str, seed: int) -> Path:
    """Returns the folder of one run."""
    return out / "".join(c if c.isalnum() or c in "-=" else "_" for c in name) / f"seed{seed}"


def table(found: dict[str, dict[str, dict[str, list[float]]]], losses: dict[str, list[float]]) -> str:
    """Returns a Markdown table: each variant, its probes, and the held-out loss at its end."""
    lines = [
        "| variant | " + " | ".join(MEASURES) + " | held-out loss | seeds |",
        "|---|" + "---|" * (len(MEASURES) + 2),
    ]
    for name, measured in found.items():
        cells = [_cell(measured.get(measure, []), 100, 1) for measure in MEASURES]
        seeds = len(measured.get(MEASURES[0], []))
        lines.append(f"| {name} | {' | '.join(cells)} | {_cell(losses.get(name, []), 1, 4)} | {seeds} |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float], scale: float, digits: int) -> str:
    if not values:
        return "-"
    spread = f" ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * statistics.fmean(values):.{digits}f}{spread}"


def main() -> None:
    """Makes what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    options = parser.parse_args()
    model = train_target(CPU, options.target, workers=2)
    found: dict[str, Any] = {}
    losses: dict[str, list[float]] = {}
    for name in options.only:
        for seed in options.seeds:
            for epochs in LENGTHS if name == "base" else (150,):
                result = run_variant(name, model, options.out, seed, epochs)
                told = "" if epochs == 150 else f", pre-trained {epochs} epochs"
                for arm, measured in result.arms.items():
                    row = found.setdefault(f"{name if arm == 'distilled' else arm}{told}", {})
                    for measure, values in measured.values.items():
                        row.setdefault(measure, []).extend(values)
            rows = run_metrics(folder_of(options.out, name, seed))
            losses.setdefault(name, []).append([row["heldout_loss"] for row in rows if "heldout_loss" in row][-1])
            told_all = {"steps": STEPS, "variants": found, "heldout_loss": losses}
            (options.out / "ablations.json").write_text(json.dumps(told_all, indent=2) + "\n")
            (options.out / "ablations.md").write_text(table(found, losses))
            print(f"{name}, seed {seed}: done", flush=True)
    print(table(found, losses))


if __name__ == "__main__":
    main()
