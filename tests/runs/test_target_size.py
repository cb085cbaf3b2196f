"""A whole run whose target sees larger images than its students, and what is done with its set."""

import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import pictures
import tiny
from golden import scenario
from lightly_distill import DistillationStage, SyntheticSet, UsageError, as_target, evaluate
from lightly_distill.cli.main import main
from lightly_distill.data.source import open_source
from lightly_distill.evaluation.sweep.sweep import sweep
from lightly_distill.models.targets import Target
from lightly_distill.runs.origin import RealSide, real_side
from lightly_distill.synthetic.describe import describe

S, T = 8, 28
OPTIONS: dict[str, Any] = {
    "student": "convnet_4_4",
    "num_images": 6,
    "steps": 4,
    "batch_size": 12,
    "image_size": S,
    "checkpoint_every": 2,
    "log_every": 1,
    "holdout": 4,
    "pool": {"size": 2, "max_age": 3},
    "device": "cpu",
    **tiny.PLAIN,
}


class Encoder(nn.Module):
    """Remembers the sizes that it was given."""

    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 5, stride=2), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        seen: Tensor = self.layers(images)
        return seen


def target_of(own_size: int | None = T, crop: float = 0.75) -> Target:
    encoder: Any = Encoder()
    encoder.own_size, encoder.crop = own_size, crop
    return as_target(encoder)


def sizes_given(target: Target) -> list[tuple[int, ...]]:
    given: list[tuple[int, ...]] = []
    target.register_forward_pre_hook(lambda module, inputs: given.append(tuple(inputs[0].shape[-2:])))
    return given


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    whole = pictures.position(280, 80)
    for number in range(40):
        (root / f"class{number % 2}").mkdir(exist_ok=True)
        content = pictures.jpeg(
            whole.crop((4 * number, 0, 4 * number + 100, 80)).rotate(90 * (number % 4), expand=True)
        )
        (root / f"class{number % 2}" / f"{number:02d}.jpg").write_bytes(content)
    return root


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    DistillationStage(target_of(), **OPTIONS).run(folder, out=out)
    return out


def test_the_set_names_both_sizes_and_so_do_its_card_and_inspect(run: Path, folder: Path, tmp_path: Path) -> None:
    synthetic = SyntheticSet.load(run)
    assert synthetic.images.shape == (6, 3, S, S)
    assert synthetic.provenance["source"]["image_size"] == S
    seen = {name: synthetic.provenance["target"][name] for name in ("image_size", "crop", "interpolation")}
    assert seen == {"image_size": T, "crop": 0.75, "interpolation": "bicubic"}
    assert synthetic.provenance["config"]["target_size"] is None
    assert yaml.safe_load((run / "config.yaml").read_text())["target_size"] is None
    synthetic.push_to_hub("me/two-sizes", dry_run=tmp_path / "hub", data=folder, target=target_of())
    card = (tmp_path / "hub" / "README.md").read_text()
    assert f"which saw them at {T}x{T} pixels" in card and f"8-bit pixels of {S}x{S}" in card
    text = " ".join(describe(run).split())
    assert f"image_size {T}" in text and f"6 of 3x{S}x{S}" in text


def test_where_both_sizes_are_one_the_card_names_one(folder: Path, tmp_path: Path) -> None:
    synthetic = DistillationStage(target_of(None), **OPTIONS).run(folder, out=tmp_path / "run")
    assert synthetic.provenance["target"]["image_size"] == S and "crop" not in synthetic.provenance["target"]
    assert "which saw them" not in (tmp_path / "run" / "set" / "README.md").read_text()


def test_the_target_is_given_no_image_of_another_size(folder: Path) -> None:
    for asked, size in ((None, T), (20, 20), (S, S)):
        target = target_of()
        given = sizes_given(target)
        DistillationStage(target, **OPTIONS, target_size=asked).run(folder)
        assert set(given) == {(size, size)}


def test_the_set_starts_from_representations_of_the_originals(folder: Path, run: Path) -> None:
    options = {**OPTIONS, "steps": 1, "outer": {"lr_images": 1e-12, "lr_representations": 1e-12}}
    synthetic = DistillationStage(target_of(), **options).run(folder)
    real = real_side(synthetic, folder, target_of(), synthetic, torch.device("cpu"))
    chosen = real.chosen(synthetic.source_index)
    torch.testing.assert_close(synthetic.representations, chosen.representations, rtol=0, atol=1e-5)
    torch.testing.assert_close(synthetic.images, chosen.images, rtol=0, atol=1e-5)
    small = RealSide(real.source, real.target, real.device).chosen(synthetic.source_index)
    assert (small.representations - chosen.representations).abs().max() > 1e-3


def test_evaluate_uses_the_size_that_the_set_records(run: Path, folder: Path) -> None:
    images, labels = open_source(folder, image_size=S), [number % 2 for number in range(40)]
    items = [(image, label) for image, label in zip(images.read(torch.arange(40)), labels, strict=True)]
    target = target_of()
    given = sizes_given(target)
    arms = ("random", "kmeans", "noise", "krr-labels", "full", "target")
    (result,) = evaluate(
        run,
        "convnet_4_4",
        [("halves", items[:30], items[30:])],
        data=folder,
        target=target,
        baselines=arms,
        probes=("knn",),
        seeds=1,
        steps=1,
        full_epochs=1,
        device="cpu",
    )
    assert set(result.arms) == {*arms, "distilled"} and not result.failed
    assert set(given) == {(T, T)}


def test_a_set_without_a_record_is_compared_as_in_older_versions(run: Path, folder: Path) -> None:
    old = SyntheticSet.load(run)
    old.provenance = {**old.provenance, "target": {"name": "of old"}, "source": {"name": "of old"}}
    real = real_side(old, folder, target_of(), old, torch.device("cpu"))
    assert real.target_size == S and real.source.frame.crop == 1
    assert real.source.fingerprint == open_source(folder, image_size=S).fingerprint


@pytest.mark.parametrize("damage", [{"image_size": 10**6}, {"image_size": "28"}, {"crop": 0.0}, {"interpolation": "x"}])
def test_a_strangers_record_of_sizes_is_not_trusted(run: Path, folder: Path, damage: dict[str, Any]) -> None:
    own = SyntheticSet.load(run)
    own.provenance = {**own.provenance, "target": {**own.provenance["target"], **damage}}
    with pytest.raises(UsageError, match="record of what its target saw cannot be used"):
        real_side(own, folder, target_of(), own, torch.device("cpu"))


def stop_at(step: int) -> tiny.EachRow:
    return tiny.EachRow(lambda row: os.kill(os.getpid(), signal.SIGTERM) if row["step"] == step else None)


@pytest.fixture
def interrupted(folder: Path, tmp_path: Path) -> Path:
    with pytest.raises(SystemExit):
        DistillationStage(target_of(), **OPTIONS).run(folder, out=tmp_path / "run", log=stop_at(2))
    return tmp_path / "run"


def test_a_resume_goes_on_without_asking_the_target_again(interrupted: Path, folder: Path, run: Path) -> None:
    target = target_of()
    given = sizes_given(target)
    synthetic = DistillationStage(target, **OPTIONS, target_size=T).run(folder, out=interrupted, resume=True)
    assert len(given) == 1  # the first images, before the work
    assert torch.equal(synthetic.images, SyntheticSet.load(run).images)


def test_a_resume_with_another_target_size_is_refused(interrupted: Path, folder: Path) -> None:
    for asked, message in ((20, r"config\.target_size: 28 -> 20"), (S, r"config\.target_size: 28 -> 8")):
        with pytest.raises(UsageError, match=message):
            DistillationStage(target_of(), **OPTIONS, target_size=asked).run(folder, out=interrupted, resume=True)


def test_a_run_of_an_older_version_goes_on_at_the_size_of_its_images(folder: Path, tmp_path: Path) -> None:
    """An older version recorded neither the option nor what the target saw: that was what the students saw."""
    golden = scenario.KEPT / "interrupted"
    assert "target_size" not in (golden / "config.yaml").read_text()
    shutil.copytree(golden, tmp_path / "run")
    images, labels = scenario.digits()
    source = [(image, label) for image, label in zip(images[:500], labels, strict=False)]
    with pytest.raises(UsageError, match=r"config\.target_size: 8 -> 16"):
        DistillationStage(scenario.model(), **scenario.STAGE, target_size=16).run(
            source, out=tmp_path / "run", resume=True
        )
    DistillationStage(scenario.model(), **scenario.STAGE, target_size=8).run(source, out=tmp_path / "run", resume=True)


def test_a_sweep_shows_the_target_its_size(folder: Path, tmp_path: Path) -> None:
    images = open_source(folder, image_size=S).read(torch.arange(40))
    items = [(image, number % 2) for number, image in enumerate(images)]
    target = target_of()
    stage = DistillationStage(target, **{**OPTIONS, "pool": {"size": 2, "max_age": 2}})
    given = sizes_given(stage.target)
    options: dict[str, Any] = {"baselines": ("random",), "probes": ("knn",), "seeds": 1, "steps": 1}
    tasks = [("halves", items[:30], items[30:])]
    sweep(stage, folder, [4, 6], tasks, out=tmp_path / "sweep", **options)
    assert set(given) == {(T, T)}
    record = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert record["settings"]["target"]["image_size"] == T
    other = DistillationStage(target, **{**OPTIONS, "pool": {"size": 2, "max_age": 2}}, target_size=20)
    with pytest.raises(UsageError, match=r"target\.image_size: 28 -> 20"):
        sweep(other, folder, [4, 6], tasks, out=tmp_path / "sweep", **options)


def test_the_command_line_takes_the_size_of_the_target(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = timm.create_model("resnet10t", num_classes=0)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    arguments = ["distill", "--data", str(folder), "--target", f"timm:resnet10t@{tmp_path / 'weights.safetensors'}"]
    arguments += ["--student", "convnet_4_4", "--num-images", "4", "--steps", "1", "--batch-size", "8"]
    arguments += ["--pool.size", "2", "--pool.max-age", "1", "--image-size", "8", "--target-size", "40"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    facts = SyntheticSet.load(tmp_path / "run").provenance["target"]
    assert (facts["image_size"], facts["interpolation"]) == (40, network.pretrained_cfg["interpolation"])
    assert facts["crop"] == network.pretrained_cfg["crop_pct"]
    assert main(["distill", "--help"]) == 0
    assert "--target-size" in capsys.readouterr().out


def test_what_target_and_students_see_is_said_before_the_work(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        DistillationStage(target_of(), **OPTIONS).check(folder)
    assert f"The target sees images of {T} pixels, the students of {S}." in caplog.text


@pytest.mark.parametrize("size", [0, -3, 1.5, "large", True])
def test_a_target_size_that_is_none_is_refused(size: Any) -> None:
    with pytest.raises(UsageError, match="target_size must be a positive whole number"):
        DistillationStage(target_of(), target_size=size)


def test_the_arm_target_sees_the_originals_of_a_task_and_not_the_small_images_enlarged(
    run: Path, folder: Path, tmp_path: Path
) -> None:
    class Stripes(nn.Module):
        """Differences of neighbours, across and down: what small images have lost."""

        def forward(self, images: Tensor) -> Tensor:
            across, down = images.diff(dim=3).abs().mean((1, 2, 3)), images.diff(dim=2).abs().mean((1, 2, 3))
            return torch.stack([across, down, images.mean((1, 2, 3))], 1)

    fine = 8 * S
    for split in ("train", "test"):
        for number in range(20):
            # noise hides what small images keep of the stripes
            grey = np.random.default_rng((number, split == "test")).integers(60, 120, (fine, fine, 3)).astype(np.uint8)
            grey[:, ::2] += 80
            place = tmp_path / "stripes" / split / ("across" if number % 2 else "down") / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(grey if number % 2 else grey.transpose(1, 0, 2)).save(place)
    target = as_target(Stripes())
    stage = DistillationStage(target, **{**OPTIONS, "target_size": fine})
    stage.run(folder, out=tmp_path / "run")
    (result,) = evaluate(
        tmp_path / "run",
        "convnet_4_4",
        [str(tmp_path / "stripes")],
        data=folder,
        target=target,
        baselines=("scratch", "target"),
        probes=("knn", "linear"),
        seeds=1,
        steps=1,
        device="cpu",
    )
    accuracies = {name: arm.values[f"{tmp_path / 'stripes'}/knn"][0] for name, arm in result.arms.items()}
    assert accuracies["target"] == 1.0 and accuracies["scratch"] < 0.9
