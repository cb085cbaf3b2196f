import dataclasses
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.transforms.functional import to_pil_image

import tiny
from lightly_distill import (
    DistillationStage,
    DistillError,
    PretrainConfig,
    SyntheticSet,
    TransferConfig,
    UsageError,
    as_target,
)
from lightly_distill.data.pixels import normalise
from lightly_distill.data.source import open_source
from lightly_distill.evaluation import measure
from lightly_distill.evaluation.baselines import arms
from lightly_distill.evaluation.baselines.arms import ARMS
from lightly_distill.evaluation.data_free import data_free_accuracy, make_teacher
from lightly_distill.evaluation.evaluate import evaluate
from lightly_distill.evaluation.finetune import finetuned
from lightly_distill.evaluation.probes import PROBES
from lightly_distill.evaluation.results import ArmResult, Evaluation
from lightly_distill.evaluation.tasks import open_task
from lightly_distill.evaluation.trial import Transfer, Trial, features, pooled_features
from lightly_distill.models.students import student_builder
from lightly_distill.runs.origin import RealSide
from lightly_distill.runtime.seeding import global_seed
from lightly_distill.synthetic import artifact
from lightly_distill.synthetic.pretrain import pretrain

STUDENT = "convnet_4_4"
QUICK: dict[str, Any] = {"steps": 3, "full_epochs": 1, "seeds": 2, "finetune_steps": 3, "device": "cpu"}
ALL = ("scratch", "random", "kmeans", "noise", "full", "target")


def task(classes: int = 3, size: int = 8) -> tuple[Any, Any]:
    labels = torch.arange(30) % classes
    images = tiny.images(30) if size == 8 else torch.zeros(30, 3, size, size, dtype=torch.uint8)
    return TensorDataset(images, labels), TensorDataset(images[:12], labels[:12])


@pytest.fixture(scope="module")
def target() -> Any:
    return as_target(tiny.encoder())


@pytest.fixture(scope="module")
def synthetic(target: Any) -> SyntheticSet:
    options = {"student": STUDENT, "num_images": 8, "steps": 4, "batch_size": 16, "pool": {"size": 2, "max_age": 3}}
    return DistillationStage(target, **options).run(tiny.images(40))


def test_every_arm_is_measured_by_every_probe_with_every_seed(
    synthetic: SyntheticSet, target: Any, tmp_path: Path
) -> None:
    (result,) = evaluate(
        synthetic,
        STUDENT,
        [task()],
        data=tiny.images(40),
        target=target,
        baselines=ALL,
        others={"earlier": synthetic},
        probes=("knn", "linear", "linear-pooled"),
        labels=(None, 6),
        out=tmp_path / "results",
        **QUICK,
    )
    assert list(result.arms) == ["scratch", "random", "kmeans", "noise", "distilled", "full", "target", "earlier"]
    measures = {f"TensorDataset/{p}{n}" for p in ("knn", "linear", "linear-pooled") for n in ("", "@6")}
    for name, arm in result.arms.items():
        assert set(arm.values) == measures, name
        assert all(len(values) == 2 and all(0 <= value <= 1 for value in values) for values in arm.values.values())
        assert len(arm.seconds) == 2
        assert len(arm.peak_memory) == (2 if arm.images else 0)
        size = (3 * 8 * 8 + synthetic.dim * 4) * arm.images  # the images of the arm are held by pre-training too
        assert all(size <= peak < size + 100e6 for peak in arm.peak_memory), name
    assert {name: arm.images for name, arm in result.arms.items()} == {
        "scratch": 0, "random": 8, "kmeans": 8, "noise": 8, "distilled": 8, "full": 40, "target": 0, "earlier": 8
    }  # fmt: skip
    assert result.arms["distilled"].bytes == artifact.stored_bytes(synthetic)  # as inspect tells
    sizes = {name: result.arms[name].bytes for name in ("random", "distilled", "full")}
    assert 3000 < sizes["random"] < 1.1 * sizes["distilled"] and sizes["full"] > 1.5 * sizes["random"]
    # the same set under another name is the same arm
    assert result.arms["earlier"].values == result.arms["distilled"].values
    (written,) = json.loads((tmp_path / "results" / "results.json").read_text())
    assert written["arms"]["random"] == result.arms["random"].values
    assert written["peak_memory"]["full"] == result.arms["full"].peak_memory
    assert written["seeds"] == [0, 1] and written["setting"]["student"] == STUDENT


@pytest.mark.slow
def test_two_evaluations_give_the_same_numbers(synthetic: SyntheticSet, target: Any) -> None:
    def run() -> Any:
        return evaluate(synthetic, STUDENT, [task()], data=tiny.images(40), target=target, probes=PROBES, **QUICK)

    first, again = run(), run()
    assert [arm.values for arm in first[0].arms.values()] == [arm.values for arm in again[0].arms.values()]


def labelled(count: int = 40) -> Any:
    return TensorDataset(tiny.images(count), torch.arange(count) % 3)


def test_other_distillers_run_once_a_seed_with_the_settings_of_the_set(
    synthetic: SyntheticSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int, SyntheticSet]] = []

    def counted(arm: arms.Arm) -> arms.Arm:
        def make(inputs: arms.Inputs, seed: int) -> Any:
            made.append((arm.name, seed, arm.make(inputs, seed)))
            return made[-1][2]

        return dataclasses.replace(arm, make=make)

    baselines, students = ["dm", "krr-labels", "scratch"], [STUDENT, "convnet_8_8"]
    for name in baselines[:2]:
        monkeypatch.setitem(ARMS, name, counted(ARMS[name]))
    # without a target: labels stand for its representations
    results = evaluate(synthetic, students, [task()], data=labelled(), baselines=baselines, probes=["knn"], **QUICK)
    assert [(name, seed) for name, seed, _ in made] == [
        ("krr-labels", 0), ("dm", 0), ("krr-labels", 1), ("dm", 1)
    ]  # fmt: skip
    own = synthetic.provenance["config"]
    for name, seed, arm_set in made:
        config = arm_set.provenance["config"]
        assert (config["num_images"], config["steps"], config["student"]) == (8, 4, STUDENT)
        assert config == {**own, "seed": seed, "device": "cpu"} and arm_set.provenance["distiller"] == name
        assert arm_set.dim == synthetic.dim and arm_set.mean == synthetic.mean
    spread = synthetic.representations.var(0, correction=0).sum()
    labels = made[1][2].representations[:, :3] + made[1][2].representations[:, :3].min().abs()  # one-hot times scale
    torch.testing.assert_close(labels.max().square() * (1 - 1 / 3), spread)
    for result in results:
        assert list(result.arms) == ["scratch", "krr-labels", "dm", "distilled"]
        assert all(len(arm.values["TensorDataset/knn"]) == 2 for arm in result.arms.values())
        assert result.arms["dm"].images == 8 and result.arms["dm"].bytes > 3000


def unrecorded() -> SyntheticSet:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return SyntheticSet(torch.randn(8, 3, 8, 8), torch.randn(8, 2), mean=mean, std=std)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "The arms krr-labels and dm need the real images .* with labels: give data, or leave these arms out"),
        (
            {"data": tiny.images(40)},
            r"Item 0 of the source Tensor has no label: leave such items out. Give the labelled",
        ),
        ({"data": open_source(tiny.images(40))}, "The source Tensor is opened already, and no longer knows its labels"),
        ({"data": TensorDataset(tiny.images(40), torch.ones(40))}, r"are all of one class \(1\)\. Give the labelled"),
        ({"data": TensorDataset(tiny.images(40), torch.arange(40))}, "8 images are too few for 40 classes"),
        ({"data": labelled(30)}, "The set was distilled from another source than TensorDataset"),
        ({"data": labelled(), "synthetic": unrecorded()}, "The set has no record of how it was distilled"),
    ],
)
def test_other_distillers_without_what_they_need_are_told_before_any_work(
    synthetic: SyntheticSet, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "pretrain", lambda *_, **__: pytest.fail("pre-trained"))
    for name in ("krr-labels", "dm"):
        unmade = dataclasses.replace(ARMS[name], make=lambda *_: pytest.fail("distilled"))
        monkeypatch.setitem(ARMS, name, unmade)
    arguments = {"synthetic": synthetic, "baselines": ["krr-labels", "dm"], **QUICK, **changes}
    with pytest.raises(UsageError, match=message) as caught:
        evaluate(student=STUDENT, tasks=[task()], **arguments)
    assert "\n" not in str(caught.value)


def test_several_students_are_measured_each_for_itself(synthetic: SyntheticSet) -> None:
    config = TransferConfig(baselines=["scratch"], **QUICK)
    results = evaluate(synthetic, ["convnet_4_4", "convnet_8_8"], [task()], config=config)
    assert [result.student for result in results] == ["convnet_4_4", "convnet_8_8"]
    assert all(set(result.arms) == {"scratch", "distilled"} for result in results)
    again = evaluate(synthetic, "convnet_4_4, convnet_8_8", [task()], config=config)  # as the command line has them
    assert [result.to_dict()["arms"] for result in again] == [result.to_dict()["arms"] for result in results]


def test_scratch_starts_from_the_weights_that_pretraining_starts_from(synthetic: SyntheticSet) -> None:
    (result,) = evaluate(synthetic, STUDENT, [task()], baselines=["scratch"], probes=["linear"], **QUICK)
    with global_seed(1, "pretrain", "init"):
        backbone = student_builder(STUDENT, 8)()
    images = (tiny.images(30).float() / 255 - torch.tensor(synthetic.mean).view(3, 1, 1)) / torch.tensor(
        synthetic.std
    ).view(3, 1, 1)
    labels = torch.arange(30) % 3
    expected = PROBES["linear"].accuracy(Trial(backbone, images, labels, images[:12], labels[:12], 3))
    assert result.arms["scratch"].values["TensorDataset/linear"][1] == expected


def test_test_images_that_are_real_images_too_are_told(
    synthetic: SyntheticSet, target: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"data": tiny.images(40), "target": target, "baselines": ["random"], "probes": ["knn"], **QUICK}
    evaluate(synthetic, STUDENT, [task()], out=tmp_path / "out", **options)
    told = "12 of the 12 test images of TensorDataset are among the real images, pixel for pixel"
    assert told in caplog.text and told in (tmp_path / "out" / "report.md").read_text().split("##")[0]
    train, test = task()
    apart = train, TensorDataset(255 - test.tensors[0], test.tensors[1])
    caplog.clear()
    (result,) = evaluate(synthetic, STUDENT, [apart], **options)
    assert not result.notes and "pixel for pixel" not in caplog.text


def test_a_runs_configuration_names_the_data_and_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number, image in enumerate(tiny.images(40)):
        to_pil_image(image).save(Path("photos") / f"{number:02d}.png")
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), "weights.safetensors")
    options = {"student": STUDENT, "num_images": 8, "steps": 2, "batch_size": 16, "pool": {"size": 2, "max_age": 3}}
    DistillationStage("timm:test_resnet@weights.safetensors", **options).run("photos", out="run")
    for place in ("run", "run/set"):
        (result,) = evaluate(place, STUDENT, [task()], baselines=["random"], probes=["knn"], **QUICK)
        assert list(result.arms) == ["random", "distilled"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baselines": ["randm"]}, r"Unknown baseline 'randm'\. Did you mean 'random'"),
        ({"probes": ["lin"]}, r"Unknown probe 'lin'\. Did you mean 'linear'"),
        ({"baselines": ["random"]}, r"The arm random needs the real images and .*: give data and target, or other"),
        ({"baselines": ["scratch", "random", "kmeans"]}, r"The arms random and kmeans need the real images and the"),
        ({"seeds": 0}, "seeds is a number of repetitions"),
        ({"tasks": []}, "Name a task to try the students on"),
        ({"tasks": [task(classes=1)]}, "has one class only"),
        ({"labels": [2]}, r"has 3 classes and 30 labelled images; labels=2 would be 2 of them"),
        ({"student": "convnet_4_4_4_4"}, "4 blocks need images of 16x16"),
        ({"others": {"random": "x"}}, "The name of another set cannot be that of an arm: random"),
        ({"tasks": [task(), task()]}, r"Two tasks are named TensorDataset: give one of them another name"),
        ({"tasks": ["nowhere/at/all/x"]}, "There is no file or folder 'nowhere/at/all/x'"),
        ({"probes": []}, "Nothing would be measured: name a probe"),
        ({"labels": []}, "Nothing would be measured: name a number of labels, or all"),
        ({"labels": [float("nan")]}, "labels takes whole numbers, shares below 1, or None for all; got nan"),
        ({"labels": [7.5]}, "labels takes whole numbers, .* got 7.5"),
        ({"steps": 0}, "steps must be a positive whole number; got 0"),
        ({"full_epochs": 0}, "full_epochs must be a positive whole number; got 0"),
        ({"finetune_steps": -1}, "finetune_steps must be a positive whole number; got -1"),
        ({"step": 3}, r"Unknown option 'step'\. Did you mean 'steps'"),
        ({"config": TransferConfig()}, "Give either config or single options, here baselines, device"),
        ({"lr": 0}, "lr must be a positive number; got 0"),
    ],
)
def test_what_does_not_fit_is_told_before_any_training(
    synthetic: SyntheticSet, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "pretrain", lambda *_, **__: pytest.fail("pre-trained"))
    arguments = {"student": STUDENT, "tasks": [task()], "baselines": ["scratch"], **QUICK, **changes}
    with pytest.raises(UsageError, match=message) as caught:
        evaluate(synthetic, **arguments)
    assert "\n" not in str(caught.value)


def test_the_whole_source_is_refused_before_any_training_where_it_does_not_fit(
    synthetic: SyntheticSet, target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "pretrain", lambda *_, **__: pytest.fail("pre-trained"))
    monkeypatch.setattr(arms, "free_memory", lambda _device: 40 * (2 * 3 * 8 * 8 + 7 * 4 * synthetic.layout.width) - 1)
    message = r"The arm full needs 0\.0 GiB of memory \(cpu\) for all 40 real images, .* leave it out"
    with pytest.raises(UsageError, match=message):
        evaluate(synthetic, STUDENT, [task()], data=tiny.images(40), target=target, baselines=["full"], **QUICK)


def test_the_whole_source_has_to_fit_on_the_gpu_as_pixels_with_its_targets(
    synthetic: SyntheticSet, target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, need = torch.device("cuda"), 40 * (3 * 8 * 8 + 4 * synthetic.layout.width)
    inputs = arms.Inputs(synthetic, RealSide(open_source(tiny.images(40)), target, gpu))
    monkeypatch.setattr(arms, "free_memory", lambda device: need if device == gpu else 2**30)
    ARMS["full"].check(inputs)
    monkeypatch.setattr(arms, "free_memory", lambda device: need - 1 if device == gpu else 2**30)
    with pytest.raises(UsageError, match=r"The arm full needs 0\.0 GiB of memory \(cuda\) for all 40 real images"):
        ARMS["full"].check(inputs)


@pytest.mark.parametrize("eight_bits", [True, False])
def test_many_real_images_are_pre_trained_on_as_pixels(target: Any, eight_bits: bool) -> None:
    options: dict[str, Any] = {"student": STUDENT, "num_images": 8, "steps": 0, "batch_size": 16}
    own = DistillationStage(target, eight_bits=eight_bits, **options).run(tiny.images(40))
    inputs = arms.open_inputs([ARMS["full"]], own, own, tiny.images(40), target, torch.device("cpu"))
    made = ARMS["full"].make(inputs, 0)
    assert isinstance(made, SyntheticSet) and made.normalised.nbytes == 40 * 3 * 8 * 8
    backbone = pretrain(STUDENT, made, steps=4, batch_size=16, device="cpu")
    assert "images" not in vars(made)  # never whole as float32
    whole = SyntheticSet(made.images, made.representations, mean=made.mean, std=made.std)
    if not eight_bits:  # as a set of float32 images, whose targets have no scales
        expected = pretrain(STUDENT, whole, steps=4, batch_size=16, device="cpu")
        pairs = zip(backbone.state_dict().values(), expected.state_dict().values(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


def test_an_arm_that_diverges_is_left_out_and_the_others_are_kept(
    synthetic: SyntheticSet, target: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    huge = SyntheticSet(synthetic.images, synthetic.representations * 1e18, mean=synthetic.mean, std=synthetic.std)
    options = {"data": tiny.images(40), "target": target, "baselines": ["scratch", "random"], "probes": ["knn"]}
    (plain,) = evaluate(synthetic, STUDENT, [task()], **options, **QUICK)
    (result,) = evaluate(synthetic, STUDENT, [task()], others={"huge": huge}, out=tmp_path / "out", **options, **QUICK)
    assert {name: arm.values for name, arm in result.arms.items()} == {n: a.values for n, a in plain.arms.items()}
    assert list(result.failed) == ["huge"] and result.failed["huge"].startswith("seed 0: The loss of student")
    assert "arm huge is left out: seed 0" in caplog.text
    (written,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["failed"] == result.failed
    for file in ("report.html", "report.md"):
        assert "huge: left out" in (tmp_path / "out" / file).read_text()


def test_a_distiller_that_diverges_is_left_out_too_and_not_run_again(
    synthetic: SyntheticSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []

    def diverges(_inputs: arms.Inputs, seed: int) -> SyntheticSet:
        seeds.append(seed)
        raise DistillError("too fast")

    monkeypatch.setitem(ARMS, "dm", dataclasses.replace(ARMS["dm"], make=diverges))
    (result,) = evaluate(synthetic, STUDENT, [task()], data=labelled(), baselines=["dm"], probes=["knn"], **QUICK)
    assert list(result.arms) == ["distilled"] and result.failed == {"dm": "seed 0: too fast"} and seeds == [0]


def test_the_folder_of_a_run_is_no_folder_for_an_evaluation(synthetic: SyntheticSet, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "set").mkdir(parents=True)
    (run / "config.yaml").write_text("data: mine")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(UsageError, match=r"run is the folder of a run, which an evaluation would replace"):
            evaluate(synthetic, STUDENT, [task()], out=run, **options)
    assert (run / "config.yaml").read_text() == "data: mine"


def test_a_task_that_was_opened_at_another_size_is_refused(synthetic: SyntheticSet) -> None:
    opened = open_task(task(), image_size=4)
    with pytest.raises(UsageError, match="was opened with images of 4 pixels, and the set has 8"):
        evaluate(synthetic, STUDENT, [opened], **QUICK)


@pytest.mark.parametrize(
    ("given", "seeds"), [(np.int64(2), [0, 1]), (np.array([4, 1]), [4, 1]), (range(2, 4), [2, 3]), (2, [0, 1])]
)
def test_seeds_are_how_many_or_which(given: Any, seeds: list[int]) -> None:
    assert TransferConfig(seeds=given).seed_list == seeds


@pytest.mark.parametrize(("passes", "steps"), [(1, 12), (2, 16)])  # four times those of the other arms at least
def test_one_recipe_of_pre_training_is_that_of_all_arms_but_for_full(
    synthetic: SyntheticSet, target: Any, passes: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes: list[PretrainConfig] = []
    own = measure.pretrain

    def counted(student: str, synthetic: SyntheticSet, *, config: Any = None, **options: Any) -> Any:
        if config is None:  # no arm: the first training, which loads libraries
            return own(student, synthetic, **options)
        recipes.append(config)
        return own(student, synthetic, config=config, **options)

    monkeypatch.setattr(measure, "pretrain", counted)
    options = {"data": tiny.images(40), "target": target, "baselines": ["random", "full"], "probes": ["knn"]}
    quick = {**QUICK, "full_epochs": passes}
    (result,) = evaluate(synthetic, STUDENT, [task()], lr=0.03, batch_size=5, **options, **quick)
    usual = PretrainConfig(steps=3, lr=0.03, batch_size=5)
    whole = dataclasses.replace(usual, steps=steps, mixup=False, color_jitter=0)  # 8 a pass of 40 images
    assert recipes == [usual, usual, whole] * 2  # random, distilled and full with two seeds
    assert (result.setting["lr"], result.setting["batch_size"]) == (0.03, 5)


@pytest.mark.slow
def test_more_random_images_are_trained_on_for_longer(
    synthetic: SyntheticSet, target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, int]] = []
    own = measure.pretrain

    def counted(student: str, synthetic: SyntheticSet, *, config: Any = None, **options: Any) -> Any:
        if config is not None:
            steps.append((len(synthetic), config.steps))
        return own(student, synthetic, config=config, **options)

    monkeypatch.setattr(measure, "pretrain", counted)
    names = ["random@bytes", "random@bytes-x2", "random@bytes-x5", "random@bytes-x10"]
    options = {"data": tiny.images(600), "target": target, "baselines": names, "probes": ["knn"], **QUICK, "seeds": 1}
    whole = DistillationStage(target, student=STUDENT, num_images=30, steps=0).run(tiny.images(600))
    evaluate(whole, STUDENT, [task()], **options)
    assert [count for _, count in sorted(steps)] == [3, 3, 6, 6, 6]  # the set itself is the smallest


def test_another_arm_is_one_entry_of_the_table(
    synthetic: SyntheticSet, target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first(inputs: arms.Inputs, _seed: int) -> SyntheticSet:
        return inputs.real.chosen(torch.arange(4))

    monkeypatch.setitem(ARMS, "first", arms.Arm("first", "the first four real images", ("real",), make=first))
    options = {"data": tiny.images(40), "target": target, "baselines": ["first"], "probes": ["knn"]}
    (result,) = evaluate(synthetic, STUDENT, [task()], out=tmp_path / "out", **options, **QUICK)
    assert list(result.arms) == ["distilled", "first"] and len(result.arms["first"].values["TensorDataset/knn"]) == 2
    assert result.arms["first"].images == 4 and result.arms["first"].bytes < result.arms["distilled"].bytes
    assert "the first four real images" in (tmp_path / "out" / "report.html").read_text()


def test_a_set_of_another_shape_or_another_normalisation_is_told(synthetic: SyntheticSet, target: Any) -> None:
    other = SyntheticSet(torch.zeros(4, 3, 16, 16), torch.zeros(4, 2), mean=synthetic.mean, std=synthetic.std)
    with pytest.raises(UsageError, match=r"The set 'big' has images of 3x16x16, the distilled one of 3x8x8"):
        evaluate(synthetic, STUDENT, [task()], baselines=[], others={"big": other}, **QUICK)
    shifted = SyntheticSet(synthetic.images, synthetic.representations, mean=(0, 0, 0), std=synthetic.std)
    with pytest.raises(UsageError, match=r"The set 'other' is normalised with mean \(0\.0, 0\.0, 0\.0\)"):
        evaluate(synthetic, STUDENT, [task()], baselines=[], others={"other": shifted}, **QUICK)
    shifted = SyntheticSet(synthetic.images, synthetic.representations, mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(UsageError, match="it was distilled from another target"):
        evaluate(shifted, STUDENT, [task()], data=tiny.images(40), target=target, **QUICK)


def test_a_set_of_another_target_or_other_images_is_told(synthetic: SyntheticSet, target: Any) -> None:
    other = tiny.encoder()
    with torch.no_grad():
        other[0].weight.mul_(2)
    with pytest.raises(UsageError, match="The set was distilled from another target than Sequential"):
        evaluate(synthetic, STUDENT, [task()], data=tiny.images(40), target=other, **QUICK)
    with pytest.raises(UsageError, match="The set was distilled from another source than Tensor"):
        evaluate(synthetic, STUDENT, [task()], data=tiny.images(30), target=target, **QUICK)


def test_two_pairs_of_one_class_are_told_apart_by_their_names(synthetic: SyntheticSet) -> None:
    tasks = [("first", *task()), ("second", *task())]
    (result,) = evaluate(synthetic, STUDENT, tasks, baselines=[], probes=["knn"], **QUICK)
    assert set(result.arms["distilled"].values) == {"first/knn", "second/knn"}


def test_the_target_is_not_fine_tuned_and_may_be_a_function() -> None:
    function = as_target(lambda images: images.mean((2, 3)), name="mean")
    made = SyntheticSet(torch.randn(6, 3, 8, 8), torch.randn(6, 3), mean=function.mean, std=function.std)
    options = {"baselines": ["target"], "probes": ["knn", "finetune"], **QUICK}
    (result,) = evaluate(made, STUDENT, [task()], data=tiny.images(40), target=function, **options)
    assert set(result.arms["target"].values) == {"TensorDataset/knn"}
    assert set(result.arms["distilled"].values) == {"TensorDataset/knn", "TensorDataset/finetune"}


def test_the_target_sees_only_the_labelled_images_that_are_drawn_and_each_once(synthetic: SyntheticSet) -> None:
    target, shown = as_target(tiny.encoder()), []
    target.register_forward_pre_hook(lambda module, inputs: shown.append(len(inputs[0])))
    options = {"data": tiny.images(40), "target": target, "probes": ["knn"], **QUICK}
    (result,) = evaluate(synthetic, STUDENT, [task()], baselines=["target"], labels=(6, 3), **options)
    assert 12 + 6 <= sum(shown) <= 12 + 2 * 6  # those for testing, and six for each of two seeds, some of them the same
    (whole,) = evaluate(synthetic, STUDENT, [task()], baselines=["target"], labels=(6, 3, 30), **options)
    values = result.arms["target"].values
    assert values == {name: whole.arms["target"].values[name] for name in values} and len(values) == 2


RESUMED: dict[str, Any] = {"baselines": ["scratch", "random"], "probes": ["knn", "data-free"], "data": tiny.images(40)}


def interrupted(
    synthetic: SyntheticSet, target: Any, out: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> list[tuple[str, int]]:
    """Stops an evaluation after so many arms; returns what was measured."""
    made: list[tuple[str, int]] = []
    real = measure.Attempt.pretrained

    def counted(self: measure.Attempt, student: str) -> Any:
        if len(made) == after:
            raise KeyboardInterrupt
        made.append((self.arm.name, self.seed))
        return real(self, student)

    with monkeypatch.context() as patch:
        patch.setattr(measure.Attempt, "pretrained", counted)
        try:
            evaluate(synthetic, STUDENT, [task()], target=target, out=out, resume=out.exists(), **RESUMED, **QUICK)
        except KeyboardInterrupt:
            return made
    return made


def test_another_set_without_a_record_does_not_go_on_with_the_first(synthetic: SyntheticSet, tmp_path: Path) -> None:
    first, other = (synthetic.part(torch.arange(start, start + 4)) for start in (0, 2))
    options: dict[str, Any] = {"baselines": ["scratch"], "probes": ["knn"], "out": tmp_path / "out", **QUICK}
    evaluate(first, STUDENT, [task()], **options)
    with pytest.raises(UsageError, match="had other settings"):
        evaluate(other, STUDENT, [task()], resume=True, **options)


def test_an_interrupted_evaluation_goes_on_where_it_stopped_to_the_same_numbers(
    synthetic: SyntheticSet, target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, arms_in_order = tmp_path / "out", ["scratch", "random", "distilled"]
    first = interrupted(synthetic, target, out, monkeypatch, after=4)
    rest = interrupted(synthetic, target, out, monkeypatch, after=99)
    assert [*first, *rest] == [(name, seed) for seed in (0, 1) for name in arms_in_order]
    (straight,) = evaluate(synthetic, STUDENT, [task()], target=target, **RESUMED, **QUICK)
    (told,) = json.loads((out / "results.json").read_text())
    assert told["arms"] == {name: arm.values for name, arm in straight.arms.items()}
    assert (out / "report.html").exists() and not interrupted(synthetic, target, out, monkeypatch, after=0)
    # another arm and another seed are added to what is there
    more = {**RESUMED, "baselines": ["scratch", "kmeans", "random"], **QUICK, "seeds": 3}
    (result,) = evaluate(synthetic, STUDENT, [task()], target=target, out=out, resume=True, **more)
    assert list(result.arms) == ["scratch", "random", "kmeans", "distilled"]
    assert all(len(values) == 3 for arm in result.arms.values() for values in arm.values.values())
    assert result.arms["random"].values["TensorDataset/knn"][:2] == straight.arms["random"].values["TensorDataset/knn"]


def test_an_evaluation_that_is_there_is_neither_lost_nor_mixed_up(
    synthetic: SyntheticSet, target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"target": target, "out": out, **RESUMED, **QUICK}
    evaluate(synthetic, STUDENT, [task()], others={"huge": synthetic}, **options)
    before = (out / "results.json").read_bytes()
    monkeypatch.setattr(measure, "pretrain", lambda *_, **__: pytest.fail("pre-trained"))
    train, test = task()
    other = TensorDataset(255 - train.tensors[0], train.tensors[1]), test
    for changes, message in (
        ({}, "is not empty: go on with --resume, replace its run with --overwrite"),
        ({"resume": True, "overwrite": True}, "--resume and --overwrite contradict each other"),
        ({"resume": True, "out": tmp_path / "new"}, "Nothing to resume: there is no results.json in"),
        ({"resume": True}, "has the arm huge: name them too, or give another --out"),
        ({"resume": True, "seeds": 1}, r"has the arm huge, the seeds \[0, 1\]: name them too"),
        ({"resume": True, "others": {"huge": synthetic.part(torch.arange(4))}}, r"had other settings \(others\.huge"),
        ({"resume": True, "others": {"huge": synthetic}, "steps": 4}, r"had other settings \(steps: 3 -> 4\)"),
        (
            {
                "resume": True,
                "others": {"huge": synthetic},
                "tasks": [other],
            },
            r"had other settings \(fingerprints\.TensorDataset: \w+ -> \w+\)",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            evaluate(synthetic, STUDENT, **{"tasks": [task()], **options, **changes})
        assert (out / "results.json").read_bytes() == before and not (tmp_path / "new").exists()
    with pytest.raises(UsageError, match="has the student convnet_4_4: name them too"):
        evaluate(synthetic, "convnet_8_8", [task()], others={"huge": synthetic}, resume=True, **options)
    monkeypatch.undo()
    (result,) = evaluate(synthetic, STUDENT, [task()], overwrite=True, **{**options, "seeds": 1})
    (told,) = json.loads((out / "results.json").read_text())
    assert told["seeds"] == [0] and list(told["arms"]) == list(result.arms) == ["scratch", "random", "distilled"]
    (out / "results.json").write_text("[")
    with pytest.raises(DistillError, match=r"results\.json cannot be read \(.*\): start again with --overwrite"):
        evaluate(synthetic, STUDENT, [task()], resume=True, **options)


def test_a_strangers_configuration_runs_no_code(
    synthetic: SyntheticSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    synthetic.save("got/set")
    Path("evil.py").write_text("from pathlib import Path\nPath('ran').touch()\ndef go(): ...\n")
    for named in ("target: evil:go", "target: x.ckpt\ntarget_class: evil:go"):
        Path("got/config.yaml").write_text(f"data: photos\n{named}\n")
        with pytest.raises(UsageError, match="give target, or other baselines"):
            evaluate("got", STUDENT, [task()], **QUICK)
    assert not Path("ran").exists()


def result_of(**values: list[float]) -> Evaluation:
    arms = {name: ArmResult(8, 100, [1.0] * len(scores), {"t/linear": scores}) for name, scores in values.items()}
    return Evaluation("s", {}, list(range(len(next(iter(values.values()))))), arms)


def test_recovered_gap_is_the_share_of_what_the_whole_source_is_worth() -> None:
    result = result_of(scratch=[0.4, 0.4, 0.4], distilled=[0.5, 0.6, 0.55], full=[0.6, 0.8, 0.7])
    assert result.recovered_gap("t/linear") == pytest.approx(0.5)
    # two seeds that happen to agree prove nothing
    assert result_of(scratch=[0.4, 0.4], distilled=[0.39, 0.39], full=[0.41, 0.411]).recovered_gap("t/linear") is None
    assert result_of(scratch=[0.4], distilled=[0.5]).recovered_gap("t/linear") is None
    assert result_of(scratch=[0.4], distilled=[0.5], full=[0.3]).recovered_gap("t/linear") is None
    # a ceiling that is no more than noise above the floor
    noisy = result_of(scratch=[0.500, 0.505, 0.498], distilled=[0.6, 0.6, 0.6], full=[0.501, 0.506, 0.4965])
    assert noisy.recovered_gap("t/linear") is None


def test_distilled_is_compared_with_random_seed_by_seed() -> None:
    paired = result_of(random=[0.40, 0.50, 0.60], distilled=[0.45, 0.53, 0.67]).paired("t/linear")
    assert paired is not None
    assert paired["difference"] == pytest.approx(0.05)
    assert paired["standard_error"] == pytest.approx(0.02 / math.sqrt(3))
    assert paired["p"] == pytest.approx(0.0494, abs=1e-3)
    assert result_of(random=[0.4], distilled=[0.5]).paired("t/linear") is None
    # equal differences have no spread, whatever rounding says
    paired = result_of(random=[0.60, 0.70, 0.80], distilled=[0.62, 0.72, 0.82]).paired("t/linear")
    assert paired is not None and paired["standard_error"] == 0 and math.isnan(paired["p"])
    assert result_of(scratch=[0.4, 0.4], distilled=[0.5, 0.5]).paired("t/linear") is None


def test_pooled_features_average_the_map_that_flattened_ones_spread_out() -> None:
    backbone = student_builder("convnet_4_6", 8)().eval()
    images = torch.randn(5, 3, 8, 8)
    flat = torch.from_numpy(features(backbone, images))
    pooled = torch.from_numpy(pooled_features(backbone, images))
    assert flat.shape == (5, 24) and pooled.shape == (5, 6)
    torch.testing.assert_close(pooled, flat.view(5, 6, 4).mean(2))
    swin = student_builder("swin_tiny_patch4_window7_224", 32)()  # keeps its channels last, and pools by itself
    assert pooled_features(swin, torch.randn(2, 3, 32, 32)).shape == (2, 768)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 7))
    assert pooled_features(plain, images).shape == (5, 7)


def test_fine_tuning_learns_and_leaves_the_backbone_as_it_was() -> None:
    backbone = student_builder("convnet_8_8", 8)()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    labels = torch.arange(40) % 2
    images = torch.randn(40, 3, 8, 8) * 0.1 + labels.view(-1, 1, 1, 1)
    accuracy = PROBES["finetune"].accuracy(Trial(backbone, images, labels, images, labels, 2, finetune_steps=30))
    assert accuracy > 0.95
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def colours(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of two classes that differ in brightness, on noise."""
    labels = torch.arange(count) % 2
    return torch.randn(count, 3, 8, 8, generator=generator) * 0.3 + labels.view(-1, 1, 1, 1) - 0.5, labels


def test_data_free_distillation_moves_what_the_teacher_knows_as_far_as_the_images_allow() -> None:
    draw = torch.Generator().manual_seed(0)
    images, labels = colours(40, draw)
    tests, test_labels = colours(60, draw)
    build = student_builder("convnet_8_8", 8)
    trial = Trial(build(), images, labels, tests, test_labels, 2, finetune_steps=60)
    teacher = make_teacher(trial, build)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    alike, _ = colours(10, draw)
    trial.transfer = Transfer(alike, teacher, build)
    accuracy = data_free_accuracy(trial)
    assert accuracy > 0.9 and accuracy == data_free_accuracy(trial)
    # nothing to learn: the teacher says the same of one grey image and all its changes of place
    trial.transfer = Transfer(torch.zeros(10, 3, 8, 8), teacher, build)
    assert data_free_accuracy(trial) < accuracy - 0.2
    # what the teacher knows, not what is true
    trial.transfer = Transfer(alike, Contrary(teacher), build)
    assert data_free_accuracy(trial) < 0.1
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not teacher.training
    # the student is a fresh one of given seed, whatever backbone is tried
    born: list[nn.Module] = []

    def counted() -> nn.Module:
        born.append(build())
        before.update({key: value.clone() for key, value in born[-1].state_dict().items()})
        return born[-1]

    trial.transfer = Transfer(alike, teacher, counted)
    data_free_accuracy(trial)
    assert len(born) == 1
    with global_seed(0, "data-free", "init"):
        fresh = build().state_dict()
    assert all(torch.equal(value, before[key]) for key, value in fresh.items())
    weights = dict(born[0].named_parameters())
    assert not any(torch.equal(value, before[key]) for key, value in weights.items())  # it was trained


class Contrary(nn.Module):
    """Says the opposite."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.teacher(images).flip(1)
        return logits


def test_data_free_compares_images_alone_with_one_teacher_a_seed(
    synthetic: SyntheticSet, target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Trial] = []
    spy = replace(PROBES["data-free"], accuracy=lambda trial: seen.append(trial) or 0.5)
    monkeypatch.setitem(PROBES, "data-free", spy)
    # the same images with other representations: another backbone, the same answer
    other = SyntheticSet(synthetic.images, synthetic.representations + 1, mean=synthetic.mean, std=synthetic.std)
    options = {"baselines": ["scratch", "random", "target"], "others": {"other": other}, "labels": (None, 6)}
    (result,) = evaluate(
        synthetic, STUDENT, [task()], data=tiny.images(40), target=target, probes=["data-free"], **options, **QUICK
    )
    measures = {name: set(arm.values) for name, arm in result.arms.items()}
    both = {"TensorDataset/data-free", "TensorDataset/data-free@6"}
    assert measures == {"scratch": set(), "random": both, "distilled": both, "target": set(), "other": both}
    transfers = [trial.transfer for trial in seen]
    assert len(transfers) == 2 * 3 * 2 and all(transfers)
    assert len({id(each.teacher) for each in transfers if each}) == 2 * 2  # of a seed and a number of labels
    monkeypatch.undo()
    distilled, again = (trial for trial in seen[2::2] if trial.seed == 0)
    assert distilled.transfer and again.transfer
    assert torch.equal(distilled.transfer.images[:], again.transfer.images[:])
    assert data_free_accuracy(distilled) == data_free_accuracy(again)


def test_the_teacher_is_the_scratch_student_fine_tuned(synthetic: SyntheticSet) -> None:
    options = {"baselines": ["scratch"], "probes": ["finetune", "data-free"], **QUICK}
    (result,) = evaluate(synthetic, STUDENT, [task()], **options)
    build = student_builder(STUDENT, 8)
    images, labels = tiny.images(30), torch.arange(30) % 3
    images = normalise(images, synthetic.mean, synthetic.std)
    trial = Trial(nn.Identity(), images, labels, images[:12], labels[:12], 3, seed=1, finetune_steps=3)
    teacher = make_teacher(trial, build)
    scores = torch.from_numpy(features(teacher, images[:12]))
    accuracy = float((scores.argmax(1) == labels[:12]).double().mean())
    assert accuracy == result.arms["scratch"].values["TensorDataset/finetune"][1]
    with global_seed(1, "pretrain", "init"):
        scratch = build()
    again = finetuned(dataclasses.replace(trial, backbone=scratch)).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in teacher.state_dict().items())
    assert set(result.arms["distilled"].values) == {"TensorDataset/finetune", "TensorDataset/data-free"}


def test_random_real_images_of_equal_bytes_say_what_the_set_is_worth(
    synthetic: SyntheticSet, target: Any, tmp_path: Path
) -> None:
    names = [name for name in ARMS if name.startswith("random@bytes")]
    assert names == ["random@bytes", "random@bytes-x2", "random@bytes-x5", "random@bytes-x10"]
    images = tiny.images(400)
    own = DistillationStage(target, student=STUDENT, num_images=30, steps=0).run(images)
    (result,) = evaluate(
        own, STUDENT, [task()], data=images, target=target, baselines=names, probes=["knn"], out=tmp_path, **QUICK
    )
    whole = result.arms["distilled"].bytes
    for name, times in zip(names[:2], (1, 2), strict=True):
        assert 0.9 * times * whole < result.arms[name].bytes <= times * whole
    assert abs(result.arms["random@bytes"].images - 30) <= 3  # the set is of real images too
    assert result.arms["random@bytes-x10"].images == 400  # all there are
    assert {name: arm.all_images for name, arm in result.arms.items() if arm.all_images} == {"random@bytes-x10": True}
    assert "| random@bytes-x10: all 400 images |" in (tmp_path / "report.md").read_text()
    worth = result.worth("TensorDataset/knn")
    assert worth is not None and str(worth) in (tmp_path / "report.md").read_text()
    assert "Worth: " in (tmp_path / "report.html").read_text()
