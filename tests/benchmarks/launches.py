"""How often a step of the default settings waits for a GPU, copies to it and launches: counted on the pretended device.

python tests/benchmarks/launches.py [--student NAME ...] [--views random]
"""

import argparse
import sys
from pathlib import Path

import timm
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import pretended
from lightly_distill.data.source import open_source
from lightly_distill.method.config import make_config
from lightly_distill.method.distill import distill
from lightly_distill.method.real_images import RealImages
from lightly_distill.method.state import DistillState
from lightly_distill.models.students import student_builder
from lightly_distill.models.targets import as_target
from lightly_distill.runs.run_folder import RunFolder

FIRST, LAST = 22, 41  # steps that are counted: the rows are those of steps 21 and 42
SIZE = 32


class _Counted(Exception):
    """The steps are counted."""


def count(student: str, views: str, seen: pretended.Seen) -> dict[str, float]:
    """Returns waits, uploads and launches of a step, the mean of twenty without a row of measurements."""
    config = make_config(
        student=student,
        num_images=20,
        batch_size=32,
        steps=210,
        log_every=1000,
        source_views=views if views == "random" else int(views),
        pool={"size": 2},
        device="cuda",
    )
    device = torch.device("cuda")
    target = as_target(timm.create_model("resnet10t", num_classes=0)).to(device)
    images = torch.randint(256, (200, 3, SIZE, SIZE), dtype=torch.uint8)
    real = RealImages.of_target(open_source(images), target, config, device)
    state = DistillState.start(real, [(student, student_builder(student, SIZE, batch_size=2))], config)
    state.initial = {"heldout_loss": None}  # without the warm-up
    draw, found = state.pool.draw, {}

    def drawn(step: int) -> object:
        if step == FIRST - 1:
            seen.clear()
        if step == LAST:
            steps = LAST - FIRST + 1
            found.update({what: getattr(seen, what).total() / steps for what in ("waits", "uploads", "launches")})
            raise _Counted
        return draw(step)

    state.pool.draw = drawn  # type: ignore[method-assign, assignment]
    try:
        distill(state, real, config, RunFolder(None, {}))
    except _Counted:
        return found
    raise AssertionError("the run ended before its steps were counted")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", nargs="+", default=["convnet_32_64_128", "resnet10t:stem=small"])
    parser.add_argument("--views", default="random", help="source_views: random, or a number of fixed views")
    options = parser.parse_args()
    for name in options.student:
        with pretended.cuda() as seen:
            print(name, count(name, options.views, seen), flush=True)
