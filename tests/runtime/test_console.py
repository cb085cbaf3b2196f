"""What a script prints that has not set up logging."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightly_distill.runtime.console import tell_once

SCRIPT = """
import logging, sys
sys.path.insert(0, {tests!r})
import tiny
from torch import nn
from lightly_distill import DistillationStage, pretrain

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1))
        self.projection_head = nn.Linear(6, 3)

{setup}
verbose = {verbose}
pool = {{"size": 2, "max_age": 3}}
options = dict(student="convnet_4_4", num_images=8, steps=3, batch_size=16, pool=pool, device="cpu")
stage = DistillationStage(Model(), verbose=verbose, **options)
synthetic = stage.run(tiny.images(40), out="run")
pretrain("convnet_4_4", synthetic, steps=2, device="cpu", verbose=verbose)
ours = logging.getLogger("lightly_distill")
assert not ours.handlers and ours.level == logging.NOTSET, "logging was seized"
"""


def run(folder: Path, *, verbose: bool = True, setup: str = "", **environment: str) -> str:
    text = SCRIPT.format(tests=str(Path(__file__).parents[1]), verbose=verbose, setup=setup)
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_script_is_told_what_was_taken_how_far_it_is_and_where_it_was_written(tmp_path: Path) -> None:
    told = run(tmp_path)
    assert "Target: Model.backbone (its 'backbone', as Lightly evaluates it)." in told
    assert "Distilling 40 images of a tensor into 8" in told
    assert "training steps of the pool, then about" in told and "for 3 outer steps and their measurements." in told
    assert "Wrote run" in told and "Pre-trained convnet_4_4 for 2 steps: loss" in told


def test_a_script_that_wants_quiet_has_it(tmp_path: Path) -> None:
    assert run(tmp_path, verbose=False) == ""


@pytest.mark.slow
def test_other_processes_do_not_speak(tmp_path: Path) -> None:
    assert "Distilling" not in run(tmp_path, RANK="1")


@pytest.mark.slow
def test_a_script_with_logging_of_its_own_gets_each_line_once(tmp_path: Path) -> None:
    told = run(tmp_path, setup="logging.basicConfig(level=logging.INFO, format='own %(message)s')")
    assert told.count("Distilling 40 images") == 1 and "own Distilling 40 images" in told


def test_what_all_processes_would_tell_is_told_by_the_first_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        tell_once(logging.getLogger("lightly_distill"), logging.WARNING, "of %s", rank)
    assert caplog.messages == ["of 0"]
