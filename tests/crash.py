"""Runs of the command line in child processes, which can be stopped at a chosen moment."""

import functools
import importlib
import json
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms.functional import to_pil_image

import tiny
from lightly_distill import SyntheticSet
from lightly_distill.cli.main import main
from lightly_distill.data import shared
from lightly_distill.runs.run_folder import RunFolder
from lightly_distill.runtime import background

STEPS = 14
OPTIONS = ["--student", "convnet_4_4", "--num-images", "8", "--batch-size", "16", "--pool.size", "2"]
OPTIONS += ["--steps", str(STEPS), "--pool.max-age", "3", "--checkpoint-every", "1", "--log-every", "1"]
TARGET = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""

Prepare = Callable[[], None]

# what a run imports when it needs it: imported here, each child has it already
for name in ("lightly_distill_integrations.timm.backbones", "lightly_distill_integrations.lightly.models"):
    importlib.import_module(name)
importlib.import_module("matplotlib.figure")


def make_place(folder: Path) -> Path:
    """A working directory with a folder of images and a module that has a target."""
    (folder / "photos").mkdir()
    for number, image in enumerate(tiny.images(40)):
        to_pil_image(image).save(folder / "photos" / f"{number:02d}.png")
    (folder / "crash_target.py").write_text(TARGET)
    return folder


def command(out: str, *more: str) -> list[str]:
    return ["distill", "--data", "photos", "--target", "crash_target:make", "--out", out, *OPTIONS, *more]


def start(place: Path, out: str, *more: str, prepare: Prepare | None = None) -> Any:
    """Starts a run in a child process; `prepare` is called there first, and may replace what it likes.

    A fork, since a new interpreter takes seconds to import what this one has: kills would hit the imports.
    """
    process = multiprocessing.get_context("fork").Process(target=_child, args=(place, command(out, *more), prepare))
    process.start()
    return process


def run(place: Path, out: str, *more: str, prepare: Prepare | None = None) -> tuple[int, str]:
    """Runs to the end; returns the exit status, -N after signal N, and what was told on stderr."""
    process = start(place, out, *more, prepare=prepare)
    process.join(120)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode, (place / "stderr.txt").read_text()


def _child(place: Path, argv: list[str], prepare: Prepare | None) -> None:
    os.setsid()  # a process group of its own
    os.chdir(place)
    sys.stdout = sys.stderr = open("stderr.txt", "w", buffering=1)  # noqa: SIM115
    logging.getLogger().handlers.clear()  # pytest's
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if prepare is not None:
        prepare()
    os._exit(main(argv))


def at_step(step: int, action: Callable[[], Any]) -> None:
    """To be called in a child: does something while this step is in hand."""
    log = RunFolder.log

    def then(self: RunFolder, row: dict[str, Any]) -> None:
        log(self, row)
        if row["step"] == step:
            background.finish_all()  # the checkpoint before
            action()

    RunFolder.log = then  # type: ignore[method-assign]


def decode_in_workers() -> None:
    """To be called in a child: images are not kept in memory but decoded by two processes."""
    shared.open_source = functools.partial(shared.open_source, memory_limit=0)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def result(out: Path) -> tuple[bytes, bytes, list[tuple[Any, ...]]]:
    """What must not depend on interruptions: the set bit for bit, and the measurements."""
    synthetic = SyntheticSet.load(out)
    assert torch.isfinite(synthetic.images).all()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    told = [(row["step"], row.get("loss"), row.get("heldout_loss")) for row in rows]
    assert [row[0] for row in told] == list(range(STEPS + 1))
    return synthetic.images.numpy().tobytes(), synthetic.representations.numpy().tobytes(), told


def unfinished(out: Path) -> list[str]:
    """The temporary files in a run's folder."""
    names = [path.relative_to(out).as_posix() for path in out.rglob("*")]
    return [name for name in names if name.endswith(".partial") or name.startswith(".set.")]
