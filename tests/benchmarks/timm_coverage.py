"""Runs one architecture of every timm family as a student, at its own size and at 32x32, and prints the table.

    python tests/benchmarks/timm_coverage.py [--out FILE]

The smallest member of each family that gives features `(B, p)` (timm's toys named `test_*` aside) is built by our own
`student_builder`, which runs it in training and in eval mode, and run forward and backward once more: for real, on the
CPU, on two images (the gradient above 512 pixels on one). Each run is a process of its own with bounds on its time and
memory.
"""

import argparse
import multiprocessing
import resource
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from timm.models import get_pretrained_cfg, model_entrypoint
from tqdm import tqdm

from lightly_distill.adapters import StudentFacts
from lightly_distill.models.students import student_builder
from lightly_distill_integrations.timm import backbones, fit

SMALL = 32  # pixels
SECONDS = 900  # for each run
MEMORY = 16 * 2**30  # bytes of address space


class Outcome(NamedTuple):
    features: int | None
    reason: str = ""


def main() -> None:
    """Tries all families and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    all_families = families()
    facts = backbones.list_students(SMALL, "*")

    lines, works, works_small = [], 0, 0
    for family, names in (progress := tqdm(sorted(all_families.items()), unit="family")):
        progress.set_postfix(family=family)
        name, parameters = smallest(names, facts)
        own, small = run(name, own_size(name)), run(name, SMALL)
        works, works_small = works + (own.features is not None), works_small + (small.features is not None)
        at_own = "ok" if own.features is not None else own.reason
        at_small = "ok"
        if small.features is None:
            size = fit.smallest_size(name)
            at_small = f"no; {size} fits" if size else small.reason
        features = own.features if own.features is not None else small.features
        size = own_size(name)
        lines.append(f"| {family} | {name} | {parameters / 1e6:.1f} | {size}: {at_own} | {at_small} | {features} |")

    total = len(all_families)
    some = sum(any(facts[name] for name in names) for names in all_families.values())
    text = "\n".join(
        [
            "| family | smallest architecture | M parameters | own size | 32x32 | features |",
            "|---|---|---|---|---|---|",
            *lines,
            "",
            f"{works} of {total} families work at their own size; {works_small} of {total} at {SMALL}x{SMALL}, "
            f"{some} with some member (timm {timm.__version__}, torch {torch.__version__}).",
        ]
    )
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def families() -> dict[str, list[str]]:
    """Returns the names of timm by family, without its toys."""
    found: dict[str, list[str]] = {}
    for name in fit.names():
        package, _, family = model_entrypoint(name).__module__.rpartition(".")
        if package == "timm.models" and not name.startswith("test_"):
            found.setdefault(family, []).append(name)
    return found


def own_size(name: str) -> int:
    """Returns the height and width, in pixels, of the images that a model is made for."""
    return int(get_pretrained_cfg(name).input_size[-1])


def smallest(names: list[str], facts: dict[str, StudentFacts | None]) -> tuple[str, int]:
    """Returns the name with the fewest parameters that gives features, by shapes, and their number."""
    found = []
    for name in names:
        known: StudentFacts | fit.Fit | None = facts[name]
        with suppress(fit.UnfitError):
            known = known or fit.fit(name, own_size(name), shapes_only=True)
        if known is not None:
            found.append((known.parameters, name))
    return min(found)[1], min(found)[0]


def run(name: str, size: int) -> Outcome:
    """Runs a student in a process of its own."""
    # forked from a process that has imported everything and run nothing: threads of torch do not survive a fork
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightly_distill.models.students", "lightly_distill_integrations.timm.backbones"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(name, size, theirs))
    process.start()
    theirs.close()
    outcome = Outcome(None, f"no answer in {SECONDS} s")
    try:
        if ours.poll(SECONDS):
            outcome = ours.recv()
    except EOFError:
        outcome = Outcome(None, "died, perhaps for want of memory")
    process.kill()
    process.join()
    return outcome


def child(name: str, size: int, connection: Connection) -> None:
    """Builds a student as a run does, takes its gradient, and sends the outcome."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        model = student_builder(name, size)()
        images = torch.rand(2 if size <= 512 else 1, 3, size, size)  # of 768 pixels, two took gemma4_vit 16 GB
        features = model.train()(images)
        features.square().mean().backward()
        learned = ((key, value.grad) for key, value in model.named_parameters() if value.requires_grad)
        bad = [key for key, gradient in learned if gradient is None or not gradient.isfinite().all()]
        connection.send(Outcome(None, f"no finite gradient of {bad[0]}") if bad else Outcome(features.shape[1]))
    except Exception as error:
        connection.send(Outcome(None, str(error) or type(error).__name__))


if __name__ == "__main__":
    main()
