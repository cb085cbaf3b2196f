"""Checkpoints are written by a thread: the run goes on meanwhile, and does not end before it is done."""

import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from lightly_distill import DistillationStage, DistillError, SyntheticSet
from lightly_distill.method import distill
from lightly_distill.runs import checkpoint

OPTIONS: dict[str, Any] = {
    "student": "convnet_4_4",
    "num_images": 8,
    "steps": 6,
    "batch_size": 16,
    "checkpoint_every": 2,
    "log_every": 1,
    "pool": {"size": 2, "max_age": 3},
}
SAVE, OUTER_STEP = checkpoint.save, distill._outer_step


def run(out: Path, row: Any = lambda row: None, **flags: Any) -> SyntheticSet:
    return DistillationStage(tiny.encoder(), **OPTIONS).run(tiny.images(40), out=out, log=tiny.EachRow(row), **flags)


def steps(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def test_the_run_goes_on_while_a_checkpoint_is_written_which_is_of_its_own_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, later = run(tmp_path / "straight"), threading.Event()

    def late(folder: Path, state: checkpoint.Snapshot) -> Path:
        # the run is a whole step further before anything is written
        assert state.step != 4 or later.wait(60), "the run waits"
        return SAVE(folder, state)

    monkeypatch.setattr(checkpoint, "save", late)
    run(tmp_path / "run", lambda row: later.set() if row["step"] == 6 else None)
    monkeypatch.undo()
    newest = tmp_path / "run" / "checkpoints" / "step-00000006.safetensors"
    newest.unlink()  # as if it had been killed before
    resumed = run(tmp_path / "run", resume=True)
    assert torch.equal(resumed.images, straight.images)
    assert torch.equal(resumed.representations, straight.representations)


@pytest.mark.parametrize("failing", [2, 6])
def test_a_checkpoint_that_cannot_be_written_ends_the_run(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith(f"step-{failing:08d}.safetensors"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DistillError, match=rf"step-{failing:08d}.safetensors cannot be written: .*No space left"):
        run(tmp_path / "run")
    before = {2: ["step-00000000.safetensors"], 6: [f"step-{step:08d}.safetensors" for step in (2, 4)]}
    assert steps(tmp_path / "run") == before[failing]
    assert not (tmp_path / "run" / "set").exists()


def slow(folder: Path, state: checkpoint.Snapshot) -> Path:
    time.sleep(0.3)
    return SAVE(folder, state)


def test_an_error_of_the_run_is_told_when_the_checkpoint_before_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_after_two(state: Any, *rest: Any) -> Any:
        return 1 / 0 if state.step == 2 else OUTER_STEP(state, *rest)

    monkeypatch.setattr(checkpoint, "save", slow)
    monkeypatch.setattr(distill, "_outer_step", fail_after_two)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "run")
    assert steps(tmp_path / "run") == [f"step-{step:08d}.safetensors" for step in (0, 2)]


def test_a_signal_leaves_when_its_checkpoint_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoint, "save", slow)
    there: list[str] = []

    class At(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "Stopped by SIGINT" in record.getMessage():
                there.extend(steps(tmp_path / "run"))

    logging.getLogger("lightly_distill").addHandler(handler := At())
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", lambda row: signal.raise_signal(signal.SIGINT) if row["step"] == 3 else None)
    finally:
        logging.getLogger("lightly_distill").removeHandler(handler)
    assert there[-1] == "step-00000003.safetensors"
    assert torch.isfinite(checkpoint.load_newest(tmp_path / "run" / "checkpoints")[0]["images"]).all()
