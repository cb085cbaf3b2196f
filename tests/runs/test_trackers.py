import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, TensorBoardTracker, get_available_trackers

import tiny
from lightly_distill import DistillationStage
from lightly_distill.errors import DistillError, UsageError
from lightly_distill.runs.run_folder import RunFolder
from lightly_distill.runs.trackers import Trackers, numbers
from lightly_distill.runtime.processes import Processes
from tensorboard_files import read_back

CONFIG = {"data": "photos", "steps": 4, "image_size": None, "pool": {"size": 2, "lr": 0.1}}
ROWS: list[dict[str, Any]] = [
    {"step": 0, "heldout_loss": 0.5, "heldout_loss_by_student": {"small": 0.25, "large": 0.75}},
    {"step": 2, "loss": 0.125, "seconds_per_step": 0.5},
    {"step": 4, "loss": 0.0625, "heldout_loss": None},
]


@pytest.fixture(autouse=True)
def fresh_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program that has not asked Accelerate for anything yet."""
    monkeypatch.setattr(PartialState, "_shared_state", {})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


def test_tensorboard_has_the_measurements_and_the_settings(run: Path) -> None:
    with Trackers(["tensorboard", "tensorboard"], run) as trackers:
        assert not (run / "trackers").exists()  # the run may still refuse or empty its folder
        trackers.start()
        for row in ROWS:
            trackers.log(row)
    assert read_back(run / "trackers") == {
        "heldout_loss": [(0, 0.5)],
        "heldout_loss_by_student/small": [(0, 0.25)],
        "heldout_loss_by_student/large": [(0, 0.75)],
        "loss": [(2, 0.125), (4, 0.0625)],
        "seconds_per_step": [(2, 0.5)],
    }
    settings = yaml.safe_load(next((run / "trackers").rglob("hparams.yml")).read_text())
    assert settings == {"data": "photos", "steps": 4, "image_size": "None", "pool.size": 2, "pool.lr": 0.1}


def test_trackers_leave_the_state_of_accelerate_to_the_program(run: Path) -> None:
    def all_of_a_run() -> None:
        with Trackers(["tensorboard"], run) as trackers:
            trackers.start()
            trackers.log(ROWS[0])

    all_of_a_run()
    assert not PartialState._shared_state  # the next to ask makes it, with the device that it wants
    users = PartialState()
    users.device = torch.device("meta")
    all_of_a_run()
    assert PartialState().device == torch.device("meta")


def test_an_unknown_and_a_missing_tracker_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^Unknown tracker 'tensorbord'\. Did you mean 'tensorboard'\?$"):
        Trackers(["tensorbord"], tmp_path)
    with pytest.raises(UsageError, match=r"^Unknown tracker ''\. Known: .*wandb"):
        Trackers(["tensorboard", ""], tmp_path)
    missing = next(name for name in ("wandb", *LOGGER_TYPE_TO_CLASS) if name not in map(str, get_available_trackers()))
    with pytest.raises(UsageError, match=f"^The tracker {missing} is not installed: pip install {missing}$"):
        Trackers(["tensorboard", missing], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_cannot_start_is_one_line(run: Path) -> None:
    (run / "trackers").write_text("in the way")
    with (
        pytest.raises(
            DistillError, match=r"^The tracker tensorboard cannot be started: .* leave it out of --log-with\.$"
        ),
        Trackers(["tensorboard"], run) as trackers,
    ):
        trackers.start()


def test_a_tracker_that_cannot_start_is_told_before_the_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Keyless(TensorBoardTracker):
        def start(self) -> None:
            raise RuntimeError("no key")

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "tensorboard", Keyless)
    stage = DistillationStage(tiny.encoder(), student="convnet_4_4", num_images=4, steps=1, device="cpu")
    with (
        caplog.at_level(logging.INFO),
        Trackers(["tensorboard"], tmp_path) as trackers,
        pytest.raises(DistillError, match=r"^The tracker tensorboard cannot be started: no key\."),
    ):
        stage.run(tiny.images(), out=tmp_path, log=trackers)
    assert "Distilling" in caplog.text and "Warming up" not in caplog.text


def test_a_tracker_that_fails_later_does_not_end_the_run(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(TensorBoardTracker):
        def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
            if step == 2:
                raise ConnectionError("The server hung up\nand more")
            super().log(values, step=step, **kwargs)

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "tensorboard", Failing)
    with caplog.at_level(logging.WARNING), Trackers(["tensorboard"], run) as trackers:
        trackers.start()
        for row in ROWS:
            trackers.log(row)
    assert caplog.messages == ["The tracker tensorboard fails and is left out from now on: The server hung up"]
    assert set(read_back(run / "trackers")) == set(numbers(ROWS[0])) - {"step"}


def test_a_tracker_is_finished_when_the_run_fails_and_its_own_failure_is_a_warning(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(TensorBoardTracker):
        def finish(self) -> None:
            raise ConnectionError("gone")

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "tensorboard", Failing)
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt), Trackers(["tensorboard"], run) as trackers:
        trackers.start()
        trackers.log(ROWS[0])
        raise KeyboardInterrupt
    assert caplog.messages == ["The tracker tensorboard did not finish: gone"]


def test_the_row_is_on_disk_before_anybody_else_is_told_and_only_the_main_process_tells(tmp_path: Path) -> None:
    facts: dict[str, Any] = {"source": {"fingerprint": "a"}, "target": {"sha256": "b"}}
    told: list[list[dict[str, Any]]] = []

    def tell(row: dict[str, Any]) -> None:
        told.append([json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()])

    for index in range(2):
        RunFolder(tmp_path, facts, tiny.EachRow(tell), Processes(index, 2)).log(ROWS[1])
    assert told == [[ROWS[1]]]
