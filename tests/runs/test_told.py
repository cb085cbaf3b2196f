"""What a run tells the user who watches it."""

import logging
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
import timm
from torchvision.transforms.functional import to_pil_image

import tiny
from lightly_distill import DistillationStage, SyntheticSet, pretrain
from lightly_distill.cli.main import main
from lightly_distill.method import pool
from lightly_distill.method.cadence import Cadence
from lightly_distill.method.config import DistillOptions
from lightly_distill.method.memory import Estimate
from lightly_distill.method.pool import StudentPool
from lightly_distill.models.targets import load_target
from lightly_distill.runs import checkpoint
from lightly_distill.runtime.words import duration
from lightly_distill.synthetic.card import text


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="lightly_distill")


@pytest.mark.parametrize(
    ("out", "said"), [("run", "there is no checkpoint yet; --resume"), (None, "nothing of the run is kept.")]
)
def test_a_stop_during_the_warm_up_says_what_is_kept(
    out: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    train, folder = StudentPool._train, None if out is None else tmp_path / out

    def interrupted(self: StudentPool, *args: Any) -> None:
        train(self, *args)
        signal.raise_signal(signal.SIGTERM)

    stage = DistillationStage(tiny.encoder(), **tiny.QUICK)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(StudentPool, "_train", interrupted)
        stage.run(tiny.images(40), out=folder)
    assert end.value.code == 143
    assert f"Stopped by SIGTERM while the pool was warmed up: {said}" in caplog.text
    if folder is not None:
        assert not checkpoint.exists(folder / "checkpoints")
        assert len(stage.run(tiny.images(40), out=folder, resume=True)) == 8


def test_a_target_with_random_weights_is_flagged_on_the_console_and_in_the_record(
    caplog: pytest.LogCaptureFixture,
) -> None:
    target = load_target("timm:resnet10t:random")
    assert "Target: ResNet (a model of timm, without head; random weights: for trying out only)." in caplog.text
    made = DistillationStage(target, **{**tiny.QUICK, "steps": 0}).run(tiny.images(40))
    assert "random weights: for trying out only" in text(made)
    caplog.clear()
    DistillationStage(timm.create_model("resnet10t"))  # of a script that may have trained it
    assert "Target:" in caplog.text and "random" not in caplog.text


def test_a_target_without_a_map_is_told_once_with_an_advice_that_can_be_followed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = DistillationStage(timm.create_model("resnet10t"), **tiny.QUICK)
    stage.rehearse(tiny.images(40))  # which checks and runs
    (told,) = (line for line in caplog.messages if line.startswith("Representations alone are predicted, no map."))
    assert told.endswith("smaller than 2x2 cells; take larger images (--target-size, target_size).")
    assert len([line for line in caplog.messages if line.startswith("Image size: 8, as item 0 of a tensor")]) == 1
    stage.run(tiny.images(40))  # another one, which says it anew
    assert caplog.messages.count(told) == 2


def test_what_took_no_step_tells_of_no_seconds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stage = DistillationStage(tiny.encoder(), **tiny.QUICK)
    stage.run(tiny.images(40), out=tmp_path / "run")
    caplog.clear()
    stage.run(list(tiny.images(40)), out=tmp_path / "run", resume=True)
    assert "All 3 steps were done before." in caplog.messages and "for 0 outer steps" not in caplog.text
    assert "Distilling 40 images of a list into 8; 4 of them are held out to measure the loss" in caplog.messages
    caplog.clear()
    DistillationStage(tiny.encoder(), **{**tiny.QUICK, "steps": 0}).run(tiny.images(40))
    assert "GiB at the peak" in caplog.text and "a step" not in caplog.text


def test_the_estimate_counts_the_measurements_and_takes_the_seconds_of_real_training_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # by passes alone a step takes 10 s, 1 s of it to train a student, which really takes 2 s; an image measured, 1 s
    monkeypatch.setattr(pool, "estimate", lambda *args, **options: Estimate(None, 2**30, 10.0, 1.0, 1.0))
    monkeypatch.setattr(StudentPool, "_time_some", lambda self, ages, *tensors: {"convnet_4_4": 2.0})
    stage, images = DistillationStage(tiny.encoder(), **tiny.QUICK), tiny.images(40)
    stage.run(images, out=tmp_path)
    students, measured = tiny.QUICK["pool"]["size"], 4 * (4 + 8)  # before the first step and after each of three
    memory, told = (line for line in caplog.messages if line.startswith("Estimated: "))
    assert memory == "Estimated: 1 GiB for activations and features."
    warming, stepping = told.removeprefix("Estimated: ").split(" training steps of the pool, then about ")
    seconds, steps = warming.split(" s for ")
    assert float(seconds) == 2 * int(steps)
    assert stepping == f"{duration(3 * 11 + students * measured)} for 3 outer steps and their measurements."


def test_the_first_training_step_does_not_count_in_the_estimate(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    train, now = StudentPool._train, [0.0]

    def slow_at_first(self: StudentPool, *args: Any) -> None:
        now[0] += 0.5 if now[0] else 500.0
        train(self, *args)

    monkeypatch.setattr(StudentPool, "_train", slow_at_first)
    monkeypatch.setattr(pool, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    DistillationStage(tiny.encoder(), **{**tiny.QUICK, "pool": {"size": 2, "max_age": 40}}).run(tiny.images(40))
    (told,) = (line for line in caplog.messages if "training steps of the pool" in line)
    seconds, rest = told.removeprefix("Estimated: ").split(" s for ", 1)
    assert float(seconds) == pytest.approx(int(rest.split()[0]) / 2, rel=0.05)


def test_the_seconds_of_a_step_are_not_those_of_the_last_row_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Cadence, "seconds_per_step", lambda self, step: {1: 9.0, 2: 2.0, 3: 70.0}[step])
    DistillationStage(tiny.encoder(), **tiny.QUICK).run(tiny.images(40))
    assert "GiB at the peak, 9 s a step" in caplog.text


def test_pretraining_tells_the_first_and_the_last_loss(caplog: pytest.LogCaptureFixture) -> None:
    made: SyntheticSet = DistillationStage(tiny.encoder(), **{**tiny.QUICK, "steps": 0}).run(tiny.images(40))
    pretrain("convnet_4_4", made, steps=30)
    (told,) = (line for line in caplog.messages if line.startswith("Pre-trained convnet_4_4 for 30 steps: loss "))
    first, last = (float(part.split()[0].rstrip(",")) for part in told.split("loss ")[1].split("first pass, "))
    assert told.endswith("in the last.") and last < first


def test_the_end_of_distill_says_what_comes_next_and_what_to_look_for_before_sharing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number, image in enumerate(tiny.images(40)):
        to_pil_image(image).save(f"photos/{number:02d}.png")
    Path("next_target.py").write_text("import tiny\n\ndef make():\n    return tiny.encoder()\n")
    small = ["--student", "convnet_4_4", "--num-images", "8", "--steps", "0"]
    assert main(["distill", "--data", "photos", "--target", "next_target:make", "--out", "run", *small]) == 0
    told = capsys.readouterr().out
    assert "publish run OWNER/NAME --dry-run DIR looks for near copies" in told
    assert [*caplog.messages, *told.splitlines()].count("Wrote run") == 1 and "Wrote" not in told


def test_help_lists_every_option_of_the_stage() -> None:
    told = DistillationStage.__init__.__doc__ or ""
    assert all(name in told for name in get_type_hints(DistillOptions))


def test_a_loss_that_rose_names_the_options_to_lower(caplog: pytest.LogCaptureFixture) -> None:
    options = {**tiny.QUICK, "steps": 20, "outer": {"lr_images": 1.0, "lr_representations": 1.0}}
    losses = DistillationStage(tiny.encoder(), **options).run(tiny.images(40)).provenance["heldout_loss"]
    assert losses["final"] > losses["initial"]
    assert "on the command line --outer.lr-images, --outer.lr-representations)" in caplog.text
