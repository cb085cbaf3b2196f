import importlib.metadata
import json
import logging
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import timm
import torch
import yaml
from datasets import Dataset as HuggingFaceDataset
from lightly.data import LightlyDataset
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import to_pil_image

import pretended
import tiny
from lightly_distill import (
    DistillationStage,
    DistillConfig,
    DistillError,
    SyntheticSet,
    UsageError,
    as_target,
    pretrain,
)
from lightly_distill.runs import checkpoint
from lightly_distill.synthetic.describe import describe, describe_set

STUDENT = "convnet_4_4"
OPTIONS: dict[str, Any] = {
    "student": STUDENT,
    "num_images": 8,
    "steps": 6,
    "batch_size": 16,
    "checkpoint_every": 2,
    "log_every": 2,
    "pool": {"size": 2, "max_age": 3},
}


class SSLModel(nn.Module):
    """In the manner of Lightly's examples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )
        self.projection_head = nn.Linear(6, 99)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for number, image in enumerate(tiny.images(40)):
        (root / f"class{number % 2}").mkdir(exist_ok=True)
        to_pil_image(image).save(root / f"class{number % 2}" / f"{number:02d}.png")
    return root


def datasets_of(folder: Path) -> dict[str, Any]:
    pictures = [to_pil_image(image) for image in tiny.images(40)]
    return {
        "torchvision": ImageFolder(str(folder)),
        "lightly": LightlyDataset(str(folder)),
        "huggingface": HuggingFaceDataset.from_dict({"image": pictures, "label": [0] * 40}),
        "list": pictures,
        "tensor": tiny.images(40),
        "folder": folder,
    }


@pytest.mark.parametrize("kind", ["torchvision", "lightly", "huggingface", "list", "tensor", "folder"])
def test_the_three_lines_work_on_every_kind_of_dataset(folder: Path, tmp_path: Path, kind: str) -> None:
    model = SSLModel()
    stage = DistillationStage(target=model, **OPTIONS)
    synthetic = stage.run(datasets_of(folder)[kind])
    synthetic.save(tmp_path / "set")
    assert synthetic.images.shape == (8, 3, 8, 8) and synthetic.representations.shape == (8, 6)
    assert SyntheticSet.load(tmp_path / "set").provenance == synthetic.provenance
    assert synthetic.provenance["target"]["name"] == "SSLModel.backbone"
    assert synthetic.provenance["source"]["images"] == 40


def test_the_users_model_is_as_it_was(folder: Path) -> None:
    model = SSLModel().train()
    model.backbone[0].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    DistillationStage(target=model, **OPTIONS).run(folder)
    assert all(module.training for module in model.modules())
    assert not model.backbone[0].bias.requires_grad and model.backbone[0].weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_target_of_the_users_own_is_on_its_device_after_a_check_and_a_run(folder: Path) -> None:
    with pretended.cuda():
        target = as_target(SSLModel()).to("cuda")
        stage = DistillationStage(target=target, device="cpu", **OPTIONS)
        for work in (stage.check, stage.run):
            work(folder)
            assert stage.target is target
            assert {tensor.device for tensor in target.state_dict().values()} == {pretended.DEVICE}


def test_a_run_folder_holds_what_is_documented(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    synthetic = DistillationStage(target=SSLModel(), **OPTIONS).run(folder, out=out)
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["data"] == str(folder) and config["num_images"] == 8 and config["pool"]["max_age"] == 3
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5, 6]  # a short run is measured at each step
    assert {path.name for path in (out / "checkpoints").iterdir()} == {f"step-0000000{s}.safetensors" for s in (4, 6)}
    assert {path.name for path in (out / "pictures").iterdir()} == {"before_after.png", "loss.png"}
    assert torch.equal(SyntheticSet.load(out).images, synthetic.images)
    known = synthetic.provenance
    assert known["heldout_loss"] == {"initial": rows[0]["heldout_loss"], "final": rows[-1]["heldout_loss"]}
    assert known["heldout_images"] == 4
    assert known["config"]["student"] == STUDENT and known["steps"] == 6 and known["peak_memory_bytes"] > 1e7
    assert {"torch", "timm", "torchvision", "lightly", "lightly-distill", "python"} == set(known["versions"])
    assert (known["chunk_size"], known["threads"], known["tf32"]) == (8, torch.get_num_threads(), "off")
    assert known["device"].startswith("CPU ") and "sessions" not in known


def test_the_set_is_there_even_if_no_picture_can_be_drawn(folder: Path, tmp_path: Path) -> None:
    in_the_way = tmp_path / "pictures" / "before_after.png"
    log = tiny.EachRow(lambda row: in_the_way.mkdir(exist_ok=True))
    with pytest.raises(DistillError, match=r"pictures cannot be written: .*Is a directory"):
        DistillationStage(target=SSLModel(), **OPTIONS).run(folder, out=tmp_path, log=log)
    assert len(SyntheticSet.load(tmp_path)) == 8


def test_two_runs_with_one_seed_are_the_same_and_another_seed_is_not(folder: Path) -> None:
    first, again, other = (DistillationStage(target=SSLModel(), seed=s, **OPTIONS).run(folder) for s in (0, 0, 1))
    assert torch.equal(first.images, again.images) and torch.equal(first.representations, again.representations)
    assert not torch.equal(first.images, other.images)


class Interrupted(Exception):
    pass


@pytest.fixture
def interrupted(folder: Path, tmp_path: Path) -> Path:
    """The folder of a run that ended at step 5, after the checkpoint of step 4."""

    def fail(row: dict[str, Any]) -> None:
        if row["step"] == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        DistillationStage(target=SSLModel(), **OPTIONS).run(folder, out=tmp_path / "run", log=tiny.EachRow(fail))
    return tmp_path / "run"


def test_an_interrupted_run_resumes_to_the_same_set(folder: Path, tmp_path: Path, interrupted: Path) -> None:
    straight = DistillationStage(target=SSLModel(), **OPTIONS).run(folder, out=tmp_path / "straight")
    with open(interrupted / "metrics.jsonl", "a") as log:  # beside the row of step 5, after the checkpoint,
        log.write('{"step": 6, "lo')  # one that a kill cut off
    resumed = DistillationStage(target=SSLModel(), **OPTIONS).run(folder, out=interrupted, resume=True)
    assert torch.equal(resumed.images, straight.images)
    assert torch.equal(resumed.representations, straight.representations)
    losses = [
        [(row["step"], row.get("loss")) for row in map(json.loads, (tmp_path / d / "metrics.jsonl").open())]
        for d in ("straight", "run")
    ]
    assert losses[0] == losses[1]


def test_a_log_that_fails_on_its_first_row_does_not_cost_the_warm_up(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    straight = DistillationStage(target=SSLModel(), **OPTIONS).run(folder)

    def fail(row: dict[str, Any]) -> None:
        raise RuntimeError("no key")

    with pytest.raises(RuntimeError, match="no key"):
        DistillationStage(target=SSLModel(), **OPTIONS).run(folder, out=tmp_path, log=tiny.EachRow(fail))
    with caplog.at_level(logging.INFO):
        resumed = DistillationStage(target=SSLModel(), **OPTIONS).run(folder, out=tmp_path, resume=True)
    assert "Distilling" in caplog.text and "Warming up" not in caplog.text
    assert torch.equal(resumed.images, straight.images)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()] == [0, 1, 2, 3, 4, 5, 6]


def test_resuming_with_another_setting_source_or_target_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = DistillationStage(target=SSLModel(), **OPTIONS).run(folder, out=out)
    other = SSLModel()
    other.backbone[0].weight.data += 0.1
    for stage, data, message in (
        (DistillationStage(target=SSLModel(), **{**OPTIONS, "steps": 8}), folder, r"config.steps: 6 -> 8"),
        (DistillationStage(target=SSLModel(), **{**OPTIONS, "num_images": 9}), folder, r"config.num_images: 8 -> 9"),
        (DistillationStage(target=other, **OPTIONS), folder, r"target.sha256: \w+ -> \w+\)"),
        (
            DistillationStage(target=SSLModel(), **OPTIONS),
            tiny.images(39),
            r"source.fingerprint: .*source.images: 40 -> 39",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            stage.run(data, out=out, resume=True)
    same = DistillationStage(target=SSLModel(), **{**OPTIONS, "log_every": 3}).run(folder, out=out, resume=True)
    assert torch.equal(same.images, first.images)
    assert same.provenance["seconds"] >= first.provenance["seconds"] - 0.1  # all sessions count


@pytest.mark.parametrize("kept", [True, False])
def test_an_interrupt_in_a_notebook_comes_after_the_step_and_tells_where_it_is(
    folder: Path, tmp_path: Path, kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            DistillationStage(target=SSLModel(), **OPTIONS).run(
                folder,
                out=tmp_path / "run" if kept else None,
                log=tiny.EachRow(lambda row: signal.raise_signal(signal.SIGINT) if row["step"] == 3 else None),
            )
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    if kept:
        assert checkpoint.load_newest(tmp_path / "run" / "checkpoints")[1]["step"] == 3
        assert f"Stopped by SIGINT: step 3 is saved in {tmp_path / 'run'}; go on with --resume (resume=T" in caplog.text
    else:
        assert "Stopped by SIGINT: step 3 is not saved, since the run has no output folder." in caplog.text


def test_a_run_outside_the_main_thread_works_as_in_it(folder: Path) -> None:
    results = []
    thread = threading.Thread(
        target=lambda: results.append(DistillationStage(target=SSLModel(), **OPTIONS).run(folder).images)
    )
    thread.start()
    thread.join()
    assert torch.equal(results[0], DistillationStage(target=SSLModel(), **OPTIONS).run(folder).images)


def test_another_seed_or_none_in_a_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    # the seed is a part of the random state, as the other half of which test_distill.py checks the counts
    DistillationStage(target=SSLModel(), **OPTIONS).run(folder, out=tmp_path / "run")
    with pytest.raises(UsageError, match=r"had other settings \(config.seed: 0 -> 1\)"):
        DistillationStage(target=SSLModel(), **OPTIONS, seed=1).run(folder, out=tmp_path / "run", resume=True)
    tensors, facts = checkpoint.load_newest(tmp_path / "run" / "checkpoints")
    del facts["settings"]["config"]["seed"]
    checkpoint.save(tmp_path / "run" / "checkpoints", checkpoint.snapshot(facts.pop("step"), tensors, facts))
    with pytest.raises(UsageError, match=r"had other settings \(config.seed: None -> 0\)"):
        DistillationStage(target=SSLModel(), **OPTIONS).run(folder, out=tmp_path / "run", resume=True)


def test_the_representations_of_a_run_are_kept_for_it_and_for_the_one_that_replaces_it(
    folder: Path, tmp_path: Path
) -> None:
    seen: list[int] = []  # images that the target is given at a time
    model = SSLModel()
    model.backbone.register_forward_hook(lambda module, inputs, features: seen.append(len(features)))
    first = DistillationStage(target=model, **OPTIONS).run(folder, out=tmp_path / "run")
    kept = sorted((tmp_path / "run" / "representations").rglob("*.npy"))
    assert len(kept) == 1 and sum(seen) >= 40
    seen.clear()
    DistillationStage(target=model, **OPTIONS).run(folder, out=tmp_path / "run", resume=True)
    again = DistillationStage(target=model, **OPTIONS).run(folder, out=tmp_path / "run", overwrite=True)
    assert torch.equal(again.images, first.images) and sum(seen) < 40  # only the first few, to try the target
    other = SSLModel()
    other.backbone[0].weight.data += 0.1
    DistillationStage(target=other, **OPTIONS).run(folder, out=tmp_path / "run", overwrite=True)
    assert len(list((tmp_path / "run" / "representations").rglob("*.npy"))) == 1 and not kept[0].exists()


def test_an_output_folder_in_use_is_refused_before_the_images_are_looked_for(tmp_path: Path) -> None:
    stage = DistillationStage(target=SSLModel(), **OPTIONS)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "other" / "set").mkdir(parents=True)
    (tmp_path / "other" / "set" / "notes.txt").write_text("mine")
    for flags, out, message in (
        ({"overwrite": True}, tmp_path / "other", "set holds notes.txt, which is not part of a set"),
        ({}, tmp_path, "is not empty: go on with --resume, replace its run with --overwrite"),
        ({"resume": True}, tmp_path, "Nothing to resume: there is no checkpoint in"),
        ({"resume": True}, None, "Resuming needs the folder"),
        ({"resume": True, "overwrite": True}, tmp_path, "contradict each other"),
        ({"overwrite": True, "strict": True}, tmp_path, "--strict is about the checkpoint that --resume goes on from"),
        ({}, tmp_path / "notes.txt", "is a file"),
        ({}, tmp_path / "notes.txt" / "run", "cannot be made: .*notes.txt is a file"),
    ):
        with pytest.raises(UsageError, match=message):
            stage.run("no/such/images", out=out, **flags)
    assert all(notes.read_text() == "mine" for notes in tmp_path.rglob("notes.txt"))


def test_overwrite_replaces_a_run_and_leaves_other_files(folder: Path, tmp_path: Path) -> None:
    DistillationStage(target=SSLModel(), **OPTIONS).run(folder, out=tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    DistillationStage(target=SSLModel(), **{**OPTIONS, "num_images": 5}).run(folder, out=tmp_path, overwrite=True)
    assert len(SyntheticSet.load(tmp_path)) == 5
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("log", [lambda row: None, print, logging.getLogger(), object()])
def test_a_log_that_is_none_is_refused_before_the_folder_is_made(folder: Path, tmp_path: Path, log: Any) -> None:
    message = r"^log must be an object with the methods start\(\) and log\(row\); got .*\. Put a function of each row"
    with pytest.raises(UsageError, match=message):
        DistillationStage(target=SSLModel(), **OPTIONS).run(folder, out=tmp_path / "run", log=log)
    assert not (tmp_path / "run").exists()


def test_options_are_checked_when_the_stage_is_made() -> None:
    with pytest.raises(UsageError, match=r"Unknown option 'num_image'. Did you mean 'num_images'"):
        DistillationStage(target=SSLModel(), num_image=5)
    with pytest.raises(UsageError, match=r"Unknown option 'verbos'. Did you mean 'verbose'"):
        DistillationStage(target=SSLModel(), verbos=False)
    with pytest.raises(UsageError, match="either config or preset and options"):
        DistillationStage(target=SSLModel(), config=DistillConfig(), seed=1)
    with pytest.raises(UsageError, match=r"timm knows no model 'resnt18'. Did you mean 'resnet18'"):
        DistillationStage(target=SSLModel(), student=["convnet_4_4", "resnt18"])
    assert DistillationStage(target=SSLModel(), preset="cifar", seed=4).config.steps == 160_000


def test_a_student_that_does_not_fit_is_refused_before_the_target_runs(folder: Path) -> None:
    class Untouchable(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pytest.fail("the target ran")

    with pytest.raises(UsageError, match="5 blocks need images of 32x32 or more"):
        DistillationStage(target=Untouchable(), **{**OPTIONS, "student": "convnet_4_4_4_4_4"}).run(folder)


def test_a_set_that_could_not_be_saved_is_refused_before_any_long_work(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    wide = lambda images: images.mean((1, 2, 3))[:, None].expand(-1, 2**17 + 1)  # noqa: E731
    for target, options in ((SSLModel(), {"num_images": 10**6 + 1}), (wide, {"target_dims": None})):
        stage = DistillationStage(target=target, **{**OPTIONS, **options})
        with pytest.raises(UsageError, match=r"^The synthetic set asked for has the shape .* at most"):
            stage.run(tiny.images(40))
    assert "Distilling" not in caplog.text


def test_a_target_that_returns_nan_is_named(folder: Path) -> None:
    model = SSLModel()
    model.backbone[0].weight.data[0] = float("nan")
    with pytest.raises(DistillError, match=r"SSLModel.backbone.*NaN"):
        DistillationStage(target=model, **OPTIONS).run(folder)


def test_a_mixed_pool_of_timm_students_runs_and_tells_the_loss_of_each(folder: Path, tmp_path: Path) -> None:
    students = ["convnet_4_4", "test_resnet:stem=small", "test_vit"]
    options = {**OPTIONS, "student": students, "pool": {"size": 3, "max_age": 3}}
    synthetic = DistillationStage(target=SSLModel(), **options, image_size=32).run(folder, out=tmp_path)
    assert synthetic.images.shape[-1] == 32
    first, *_, last = (json.loads(line) for line in (tmp_path / "metrics.jsonl").open())
    assert synthetic.provenance["heldout_loss"] == {
        "initial": first["heldout_loss"],
        "final": last["heldout_loss"],
        "by_student": {
            name: {
                "initial": first["heldout_loss_by_student"][name],
                "final": last["heldout_loss_by_student"][name],
            }
            for name in students
        },
    }


def test_somebody_else_pretrains_from_the_folder(folder: Path, tmp_path: Path) -> None:
    DistillationStage(target=SSLModel(), **OPTIONS).run(folder, out=tmp_path)
    backbone = pretrain(STUDENT, SyntheticSet.load(tmp_path), steps=3)
    assert backbone(torch.zeros(2, 3, 8, 8)).shape == (2, 16)


def test_a_set_of_one_image_which_no_student_could_be_trained_on_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="num_images must be at least 2, a whole number; got 1"):
        DistillationStage(target=SSLModel(), **{**OPTIONS, "num_images": 1})
    assert len(DistillationStage(target=SSLModel(), **{**OPTIONS, "num_images": 2}).run(folder)) == 2


def test_overwriting_removes_the_old_run_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stage = DistillationStage(target=SSLModel(), **OPTIONS)
    stage.run(folder, out=out)
    rows = (out / "metrics.jsonl").read_text().count("\n")
    (out / "checkpoints" / "step-00000099.safetensors").touch()  # of a longer run
    (out / "notes.txt").write_text("mine")
    stage.run(folder, out=out, overwrite=True)
    assert (out / "metrics.jsonl").read_text().count("\n") == rows
    assert not (out / "checkpoints" / "step-00000099.safetensors").exists()
    assert (out / "notes.txt").read_text() == "mine"


def test_what_no_run_wrote_is_no_run_to_go_on_with_and_stays(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    for name in ("checkpoints/last.ckpt", "pictures/mine.png", "set/notes.txt"):
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("mine")
    stage = DistillationStage(tiny.encoder(), **OPTIONS)
    with pytest.raises(UsageError, match="Nothing to resume"):
        stage.run(folder, out=out, resume=True)
    (out / "set" / "notes.txt").rename(out / "notes.txt")
    stage.run(folder, out=out, overwrite=True)
    stage.run(folder, out=out, overwrite=True)
    assert (out / "checkpoints" / "last.ckpt").read_text() == (out / "notes.txt").read_text() == "mine"


def test_a_finished_run_without_its_checkpoints_keeps_its_set(folder: Path, tmp_path: Path) -> None:
    stage = DistillationStage(tiny.encoder(), **OPTIONS)
    made = stage.run(folder, out=tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UsageError, match=r"is finished and its checkpoints are gone: its set is in .*set"):
        stage.run(folder, out=tmp_path / "run", resume=True)
    assert torch.equal(SyntheticSet.load(tmp_path / "run").images, made.images)


def test_overwriting_takes_links_and_what_a_file_manager_leaves(folder: Path, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    stage = DistillationStage(target=SSLModel(), **OPTIONS)
    stage.run(folder, out=out)
    (out / "representations" / ".DS_Store").touch()
    (out / "checkpoints").rename(elsewhere)
    (out / "checkpoints").symlink_to(elsewhere)
    stage.run(folder, out=out, overwrite=True)
    assert not (out / "checkpoints").is_symlink() and any((out / "checkpoints").iterdir())
    assert any(elsewhere.iterdir())


def test_with_less_free_memory_another_set_is_made_and_its_record_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enough = DistillationStage(target=SSLModel(), **OPTIONS).run(folder)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**14))
    little = DistillationStage(target=SSLModel(), **OPTIONS).run(folder)
    assert not torch.equal(little.images, enough.images)
    assert (enough.provenance["chunk_size"], little.provenance["chunk_size"]) == (8, 2)
    assert little.provenance["config"]["chunk_size"] == "auto"
    assert "2 of 8 images at a time" in describe_set(little, None)


@pytest.fixture
def another_thread() -> Iterator[tuple[int, int]]:
    """The number of threads before and inside the test."""
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    yield before, before + 1
    torch.set_num_threads(before)


def test_a_resume_under_the_same_conditions_is_silent(
    folder: Path, interrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    synthetic = DistillationStage(target=SSLModel(), **OPTIONS).run(folder, out=interrupted, resume=True)
    assert not caplog.messages and "sessions" not in synthetic.provenance


def test_a_resume_under_other_conditions_warns_of_each_and_the_set_tells_it(
    folder: Path, interrupted: Path, another_thread: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    tensors, facts = checkpoint.load_newest(interrupted / "checkpoints")
    facts["sessions"][0]["versions"]["timm"] = "1.0.0"
    checkpoint.save(interrupted / "checkpoints", checkpoint.snapshot(facts.pop("step"), tensors, facts))
    known = DistillationStage(target=SSLModel(), **OPTIONS).run(folder, out=interrupted, resume=True).provenance
    changes = f"threads: {another_thread[0]} -> {another_thread[1]}; versions.timm: 1.0.0 -> {timm.__version__}"
    assert caplog.messages == [
        f"The run in {interrupted} goes on under other conditions ({changes}): the rest of the run is not bit for bit "
        "what the uninterrupted one would have been."
    ]
    assert [(each["from_step"], each["threads"]) for each in known["sessions"]] == [
        (0, another_thread[0]),
        (4, another_thread[1]),
    ]
    assert known["threads"] == another_thread[1]
    assert f"at step 4 with {changes.replace(';', ',')}" in " ".join(describe(interrupted).split())
    again = DistillationStage(target=SSLModel(), **OPTIONS).run(folder, out=interrupted, resume=True)
    assert again.provenance["sessions"] == known["sessions"] and len(caplog.messages) == 1


def test_a_finished_run_keeps_its_conditions_when_it_is_resumed_under_others(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage, threads = DistillationStage(target=SSLModel(), **OPTIONS), torch.get_num_threads()
    stage.run(folder, out=tmp_path / "run")
    torch.set_num_threads(threads + 1)
    try:
        known = stage.run(folder, out=tmp_path / "run", resume=True).provenance
    finally:
        torch.set_num_threads(threads)
    assert not caplog.messages and known["threads"] == threads and "sessions" not in known


def test_a_checkpoint_that_records_no_conditions_is_resumed_without_a_warning(
    folder: Path, interrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors, facts = checkpoint.load_newest(interrupted / "checkpoints")
    del facts["sessions"]
    checkpoint.save(interrupted / "checkpoints", checkpoint.snapshot(facts.pop("step"), tensors, facts))
    known = DistillationStage(target=SSLModel(), **OPTIONS).run(folder, out=interrupted, resume=True).provenance
    assert not caplog.messages and [each["from_step"] for each in known["sessions"]] == [4]


def test_a_package_without_a_version_is_named_before_the_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = importlib.metadata.version

    def no_timm(name: str) -> str:
        if name == "timm":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", no_timm)
    stage = DistillationStage(target=lambda images: pytest.fail("the target ran"), **OPTIONS)
    message = r"^The version of timm, which a set records, cannot be found: install timm with pip\.$"
    with pytest.raises(DistillError, match=message):
        stage.run(folder, out=tmp_path / "run")
    with pytest.raises(DistillError, match=message):
        stage.check(folder)
    assert not (tmp_path / "run").exists()


def test_the_time_of_the_sessions_before_counts(folder: Path, interrupted: Path) -> None:
    tensors, facts = checkpoint.load_newest(interrupted / "checkpoints")
    facts["seconds"] += 1000
    checkpoint.save(interrupted / "checkpoints", checkpoint.snapshot(facts.pop("step"), tensors, facts))
    known = DistillationStage(target=SSLModel(), **OPTIONS).run(folder, out=interrupted, resume=True).provenance
    assert known["seconds"] >= 1000  # rounded


def test_the_preset_auto_is_decided_by_the_images_and_options_have_the_last_word() -> None:
    stage = DistillationStage(
        tiny.encoder(), preset="auto", num_images=8, steps=2, student="convnet_4_4", pool={"max_age": 2}
    )
    made = stage.run(tiny.images(40))
    config = made.provenance["config"]
    assert (config["num_images"], config["steps"], config["student"]) == (8, 2, "convnet_4_4")
    assert (config["batch_size"], config["image_size"], config["pool"]) == (
        256,
        8,
        {**config["pool"], "size": 8, "max_age": 2},
    )


def test_what_is_written_has_the_modes_of_any_file(folder: Path, tmp_path: Path) -> None:
    synthetic = DistillationStage(SSLModel(), **{**OPTIONS, "target_dims": 3}).run(folder, out=tmp_path / "run")
    pretrain("convnet_4_4", synthetic, steps=2, device="cpu", verbose=False, out=tmp_path / "student")
    (tmp_path / "any").touch()
    expected = (tmp_path / "any").stat().st_mode
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert not [str(path) for path in files if path.stat().st_mode != expected]
