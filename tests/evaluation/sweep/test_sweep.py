import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

import tiny
from lightly_distill import DistillationStage, DistillError, SyntheticSet, UsageError, as_target, evaluate, sweep
from lightly_distill.data.source import open_source
from lightly_distill.evaluation import measure
from lightly_distill.evaluation.sweep import sweep as size_sweep
from lightly_distill.evaluation.sweep.record import Sweep
from lightly_distill.method import distill
from lightly_distill.method.pool import StudentPool
from lightly_distill.method.state import DistillState
from lightly_distill.runs.run_folder import RunFolder
from lightly_distill.runtime import seeding

STUDENT = "convnet_4_4"
IMAGES = tiny.images(60)
OPTIONS: dict[str, Any] = {
    "student": STUDENT,
    "steps": 4,
    "batch_size": 16,
    "checkpoint_every": 2,
    "pool": {"size": 2, "max_age": 3},
}
QUICK: dict[str, Any] = {"steps": 3, "full_epochs": 1, "seeds": 2}


def task(images: Any = None) -> tuple[str, Any, Any]:
    labels = torch.arange(30) % 3
    train = TensorDataset(tiny.images(30), labels) if images is None else images
    return "shapes", train, TensorDataset(tiny.images(12), labels[:12])


def stage(**options: Any) -> DistillationStage:
    return DistillationStage(tiny.encoder(), **{**OPTIONS, **options})


def run(out: Path, sizes: tuple[int, ...] = (4, 8), **changes: Any) -> Sweep:
    own = changes.pop("stage", None) or stage()
    return sweep(
        own, changes.pop("data", IMAGES), sizes, changes.pop("tasks", [task()]), out=out, **{**QUICK, **changes}
    )


def values(done: Sweep) -> dict[int, Any]:
    return {
        size: [{name: arm.values for name, arm in result.arms.items()} for result in each.results]
        for size, each in done.sizes.items()
    }


def sets(out: Path, sizes: tuple[int, ...] = (4, 8)) -> list[torch.Tensor]:
    return [SyntheticSet.load(out / f"size-{size}" / "run").images for size in sizes]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Sweep]]:
    """A sweep that nothing interrupted."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    yield out, run(out)


def test_what_each_size_would_say_of_the_same_images_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="lightly_distill")
    own = DistillationStage(tiny.encoder(), target_size=16, **{**OPTIONS, "steps": 0})
    run(tmp_path / "out", stage=own, data=list(IMAGES), seeds=1, probes=["knn"], baselines=["scratch"])
    assert sum(line.startswith("Distilling") for line in caplog.messages) == 2
    for once in ("The target sees images of 16 pixels", "Image size: 8, as item 0 of a list.", "and are enlarged."):
        assert sum(once in line for line in caplog.messages) == 1, once


def test_a_sweep_leaves_what_is_documented(straight: tuple[Path, Sweep]) -> None:
    out, done = straight
    written = {"sweep.html", "sweep.md", "sweep.json", "size-4", "size-8", "representations"}
    assert {path.name for path in out.iterdir()} == written
    for size in (4, 8):
        assert len(SyntheticSet.load(out / f"size-{size}" / "run")) == size
        names = {path.name for path in (out / f"size-{size}" / "evaluation").iterdir()}
        assert names == {"results.json", "report.html", "report.md"}
    record = json.loads((out / "sweep.json").read_text())
    assert record["recommendation"]["images"] == done.recommended and record["recommendation"]["probe"] == "linear"
    assert set(record["recommendation"]["accuracies"]) == set(record["cost"]) == {"4", "8"}
    cost = done.cost(4)
    assert cost is not None and record["cost"]["4"]["making"] == cost.making == done.sizes[4].seconds
    assert cost.full_bytes > 1.5 * cost.small_bytes > 3000


def test_each_size_is_what_distill_and_evaluate_give(straight: tuple[Path, Sweep]) -> None:
    _, done = straight
    precision = SyntheticSet.load(straight[0] / "size-4" / "run").provenance["precision"]
    alone = stage(num_images=8, precision=precision).run(IMAGES)
    assert torch.equal(alone.images, sets(straight[0])[1])
    arms = ["scratch", "random", "full"]
    (expected,) = evaluate(alone, STUDENT, [task()], data=IMAGES, target=tiny.encoder(), baselines=arms, **QUICK)
    (result,) = done.sizes[8].results
    assert list(result.arms) == ["scratch", "random", "distilled", "full"]
    # scratch and full were measured with the other size, and are the same
    assert {name: arm.values for name, arm in result.arms.items()} == {
        name: arm.values for name, arm in expected.arms.items()
    }
    written = json.loads((straight[0] / "size-8" / "evaluation" / "results.json").read_text())
    assert written[0]["arms"]["full"] == expected.arms["full"].values


@pytest.mark.parametrize("kept", [None, "kept"])
def test_a_sweep_computes_the_representations_once_and_has_the_same_coordinates_in_all_arms(
    tmp_path: Path, kept: str | None
) -> None:
    own, shown = stage(target_dims=3, target_map=0), []
    own.target.register_forward_pre_hook(lambda module, inputs: shown.append(len(inputs[0])))
    given = kept and tmp_path / kept
    done = run(tmp_path / "out", stage=own, representations=given, seeds=1, baselines=["random"])
    assert [size for size in shown if size > 4] == [60]  # four are tried before the work
    place = given or tmp_path / "out" / "representations"
    assert set(done.sizes) == {4, 8} and len(list(place.iterdir())) == 1
    assert not list((tmp_path / "out").rglob("size-*/**/representations"))
    projection = SyntheticSet.load(tmp_path / "out" / "size-4" / "run").projection
    assert projection is not None and projection.basis.shape[1] == 3


@pytest.mark.parametrize("found", ["fp32", "bf16"])
def test_all_sizes_are_made_with_the_precision_that_the_first_one_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    tried: list[int] = []

    def settle(state: DistillState, *_: Any) -> None:
        tried.append(len(state.images))
        state.precision = found if len(tried) == 1 else "fp32"

    monkeypatch.setattr(distill, "_settle_precision", settle)
    run(tmp_path / "out", baselines=["scratch"], probes=("knn",), seeds=1)
    assert tried == [4]
    made = [SyntheticSet.load(tmp_path / "out" / f"size-{size}" / "run").provenance for size in (4, 8)]
    assert [each["precision"] for each in made] == [found, found] and made[0]["config"]["precision"] == "auto"


def test_what_is_finished_is_not_made_again(
    straight: tuple[Path, Sweep], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out, done = straight
    before = {path: path.stat().st_mtime_ns for path in out.rglob("size-*/**/*")}
    with monkeypatch.context() as patch:
        for name in ("evaluate", "run_search"):
            patch.setattr(size_sweep, name, lambda *_, **__: pytest.fail("made again"))
        patch.setattr(DistillationStage, "run", lambda *_, **__: pytest.fail("distilled again"))
        again = run(out)
    assert values(again) == values(done) and again.recommended == done.recommended
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("size-*/**/*")}


@pytest.mark.slow
def test_a_sweep_that_stopped_between_sizes_ends_as_one_that_did_not(
    straight: tuple[Path, Sweep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def stops(*arguments: Any, **options: Any) -> Any:
        made.append(len(arguments[0]))
        if len(made) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    real = size_sweep.evaluate
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(size_sweep, "evaluate", stops)
        run(tmp_path / "out")
    assert made == [4, 8]
    with monkeypatch.context() as patch:
        patch.setattr(DistillationStage, "run", lambda *_, **__: pytest.fail("distilled again"))
        again = run(tmp_path / "out")
    assert values(again) == values(straight[1])
    assert all(torch.equal(a, b) for a, b in zip(sets(tmp_path / "out"), sets(straight[0]), strict=True))


@pytest.mark.parametrize("step", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_distillation_that_stopped_goes_on_from_its_checkpoint(
    straight: tuple[Path, Sweep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    real, taken = RunFolder.checkpoint, []

    def stops(self: RunFolder, state: DistillState) -> None:
        real(self, state)
        if len(state.images) == 8 and state.step == step:
            raise KeyboardInterrupt

    def counts(self: RunFolder, state: DistillState) -> None:
        real(self, state)
        taken.append((len(state.images), state.step))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "checkpoint", stops)
        run(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "checkpoint", counts)
        again = run(tmp_path / "out")
    assert taken == [(8, each) for each in (2, 4) if each > step]
    assert values(again) == values(straight[1])
    assert torch.equal(sets(tmp_path / "out")[1], sets(straight[0])[1])


def test_an_evaluation_that_stopped_goes_on_with_the_next_arm(
    straight: tuple[Path, Sweep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    last = [4, 8, 100]

    def counts(attempt: measure.Attempt, student: str) -> Any:
        trained.append(attempt.arm.name)
        if len(trained) == last[0]:
            raise KeyboardInterrupt
        return real(attempt, student)

    real = measure.Attempt.pretrained
    monkeypatch.setattr(measure.Attempt, "pretrained", counts)
    while len(last) > 1:  # three of eight at the first size are done; the other five, and two of four at the second
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out")
        last.pop(0)
        trained.clear()
    done = run(tmp_path / "out")
    assert trained == ["random", "distilled"]
    assert values(done) == values(straight[1])


def test_a_run_without_a_checkpoint_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StudentPool, "warm_up", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        run(tmp_path / "out", sizes=(4,), probes=("knn",))
    left = tmp_path / "out" / "size-4" / "run"
    assert (left / "config.yaml").exists() and not list(left.glob("checkpoints/*"))
    assert set(run(tmp_path / "out", sizes=(4,), probes=("knn",)).sizes) == {4}


def test_other_settings_are_refused_by_name_and_more_sizes_are_not(straight: tuple[Path, Sweep]) -> None:
    out, done = straight
    other = tiny.encoder()
    with torch.no_grad():
        other[0].weight.mul_(2)
    for changes, message in (
        ({"stage": stage(steps=6)}, r"distill\.steps: 4 -> 6"),
        ({"steps": 4, "seeds": 3}, r"evaluate\.seeds: \[0, 1\] -> \[0, 1, 2\]; evaluate\.steps: 3 -> 4\)"),
        ({"stage": DistillationStage(other, **OPTIONS)}, r"settings \(target\.sha256: \w+ -> \w+\)"),
        ({"data": IMAGES[:59]}, r"source\.fingerprint: .*source\.images: 60 -> 59"),
        ({"search": ["lr"], "trials": 2}, r"search: None -> \{"),
    ):
        with pytest.raises(
            UsageError, match=r"The sweep in .* had other settings .*give the old ones or another --out"
        ):
            run(out, **changes)
        with pytest.raises(UsageError, match=message):
            run(out, **changes)
    more = run(out, sizes=(6,), stage=stage(checkpoint_every=3))
    assert list(more.sizes) == [4, 6, 8] and values(more)[8] == values(done)[8]
    assert list(json.loads((out / "sweep.json").read_text())["sizes"]) == ["4", "6", "8"]


def test_a_sweep_of_a_version_with_fewer_settings_goes_on(straight: tuple[Path, Sweep], tmp_path: Path) -> None:
    shutil.copytree(straight[0], tmp_path / "out")
    record = json.loads((tmp_path / "out" / "sweep.json").read_text())
    for name in ("batch_size", "momentum", "weight_decay"):
        del record["settings"]["evaluate"][name]
    (tmp_path / "out" / "sweep.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"had other settings \(evaluate\.batch_size: 256 -> 4\)"):
        run(tmp_path / "out", batch_size=4)
    assert {4, 8} <= set(run(tmp_path / "out").sizes)
    del record["settings"]["evaluate"]["color_jitter"]  # of a version that changed no colours
    (tmp_path / "out" / "sweep.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"had other settings \(evaluate\.color_jitter: 0 -> 0\.4\)"):
        run(tmp_path / "out")


def test_the_tasks_may_be_corrected_as_long_as_no_size_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(size_sweep, "evaluate", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        run(tmp_path / "out", sizes=(4,), probes=["knn"])
    assert set(run(tmp_path / "out", sizes=(4,)).accuracies()) == {4}


def test_settings_may_change_after_a_stop_in_the_first_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(attempt: measure.Attempt, student: str) -> Any:
        if attempt.arm.name == "full":
            raise KeyboardInterrupt
        return real(attempt, student)

    real = measure.Attempt.pretrained
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(measure.Attempt, "pretrained", stops)
        run(tmp_path / "out", sizes=(4,), seeds=1)
    assert (tmp_path / "out" / "size-4" / "evaluation" / "results.json").is_file()
    done = run(tmp_path / "out", sizes=(4,), seeds=1, steps=2)
    assert done.sizes[4].results[0].setting["steps"] == 2


class Untouchable(Dataset[Any]):
    """Images and labels that nobody may read before the search is over."""

    def __init__(self) -> None:
        self.images = TensorDataset(tiny.images(30), torch.arange(30) % 3)
        self.allowed = False

    def __len__(self) -> int:
        assert self.allowed, "the task was looked at"
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        assert self.allowed, "the task was read"
        return self.images[index]


def test_a_search_never_reads_the_task_and_all_sizes_use_what_it_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Untouchable()
    real = size_sweep.run_search

    def watched(*arguments: Any) -> Any:
        found = real(*arguments)
        images.allowed = True
        return found

    with monkeypatch.context() as patch:
        patch.setattr(size_sweep, "run_search", watched)
        done = run(tmp_path / "out", tasks=[task(images)], search=["lr", "steps"], trials=3, seeds=1)
    assert images.allowed and done.found is not None and len(done.found.trials) == 3
    for size in (4, 8):
        config = SyntheticSet.load(tmp_path / "out" / f"size-{size}" / "run").provenance["config"]
        assert config["outer"]["lr_images"] == done.found.settings["outer.lr_images"]
        assert config["steps"] == done.found.settings["steps"] and config["num_images"] == size
    cost = done.cost(8)
    assert cost is not None and cost.making == done.sizes[8].seconds + done.found.seconds
    record = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert record["found"] == asdict(done.found)
    with monkeypatch.context() as patch:  # the same command again searches no more
        patch.setattr(size_sweep, "run_search", lambda *_: pytest.fail("searched again"))
        again = run(tmp_path / "out", tasks=[task()], search=["lr", "steps"], trials=3, seeds=1)
    assert again.found == done.found and values(again) == values(done)


def test_without_full_no_cost_is_told(tmp_path: Path) -> None:
    done = run(tmp_path / "out", sizes=(4,), baselines=["random"], seeds=1)
    assert done.cost(4) is None and json.loads((tmp_path / "out" / "sweep.json").read_text())["cost"] == {"4": None}
    assert "What it saves is open: it needs the arm full" in (tmp_path / "out" / "sweep.md").read_text()


def test_several_students_and_tasks_are_averaged(tmp_path: Path) -> None:
    tasks = [task(), ("others", *task()[1:])]
    done = run(
        tmp_path / "out", sizes=(4,), student=["convnet_4_4", "convnet_4_8"], tasks=tasks, probes=["knn"], seeds=1
    )
    results = done.sizes[4].results
    each = [values[0] for result in results for values in result.arms["distilled"].values.values()]
    assert len(each) == 4 and done.accuracies() == {4: [pytest.approx(sum(each) / 4)]} and done.probe == "knn"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": (8, 4)}, r"Sizes increase from one to the next, such as 50,100,200; got 8,4"),
        ({"sizes": (4, 4)}, r"Sizes increase .*got 4,4"),
        ({"sizes": ()}, r"Sizes increase .*got none"),
        ({"sizes": (1, 4)}, r"Sizes are whole numbers of images, at least 2, such as 50,100,200; got 1"),
        ({"sizes": (4, 8.5)}, r"Sizes are whole numbers .*got 8\.5"),
        (
            {"sizes": (4, 55)},
            r"has 60 usable images \(6 of them held out to measure the loss\), fewer than num_images=55",
        ),
        ({"search": ["lr"]}, r"--search needs --trials"),
        ({"search": ["lr"], "trials": 2, "data": tiny.images(9)}, r"judged on held-out .*has fewer than 10 images"),
        ({"tasks": []}, r"Name a task to try the students on"),
        ({"tasks": [task(), task()]}, r"Two tasks are named shapes"),
        ({"tasks": ["nowhere/at/all/x"]}, r"There is no file or folder 'nowhere/at/all/x'"),
        ({"tasks": [3]}, r"A task is a source or a pair of datasets"),
        ({"labels": [2]}, r"has 3 classes and 30 labelled images"),
        ({"baselines": ["ful"]}, r"Unknown baseline 'ful'\. Did you mean 'full'"),
        ({"probes": ["lin"]}, r"Unknown probe 'lin'\. Did you mean 'linear'"),
        ({"device": "cuda:7"}, r"where it distils, on the stage's device, auto; got device='cuda:7'"),
        ({"seeds": 0}, r"seeds is a number of repetitions"),
        ({"probes": []}, r"Nothing would be measured: name a probe"),
        ({"baselines": ["scratch", "krr-labels"]}, r"A sweep has no arms that need labels of the source.*krr-labels"),
        ({"steps": 0}, r"steps must be a positive whole number; got 0"),
        ({"full_epochs": 0}, r"full_epochs must be a positive whole number; got 0"),
        ({"student": "convnet_4_4_4_4"}, r"4 blocks need images of 16x16"),
    ],
)
def test_what_does_not_fit_is_told_before_any_work(
    tmp_path: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DistillationStage, "run", lambda *_, **__: pytest.fail("distilled"))
    monkeypatch.setattr(size_sweep, "run_search", lambda *_: pytest.fail("searched"))
    with pytest.raises(UsageError, match=message) as caught:
        run(tmp_path / "out", **changes)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_task_of_the_same_name_with_other_images_is_told(tmp_path: Path) -> None:
    run(tmp_path / "out", sizes=(4,), probes=("knn",))
    name, train, test = task()
    other = (name, TensorDataset(255 - train.tensors[0], train.tensors[1]), test)
    with pytest.raises(UsageError, match=r"begun with other images or labels of the task shapes"):
        run(tmp_path / "out", sizes=(4, 8), probes=("knn",), tasks=[other])
    assert set(run(tmp_path / "out", sizes=(4, 8), probes=("knn",)).sizes) == {4, 8}


def test_an_arm_that_diverges_at_one_size_is_left_out_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = measure.pretrain

    def sometimes(student: str, synthetic: SyntheticSet, **options: Any) -> Any:
        if len(synthetic) == 8 and bool((synthetic.source_index == broken).all()):
            raise DistillError("too fast")
        return own(student, synthetic, **options)

    drawn = torch.randperm(60, generator=seeding.generator(0, "arm", "random"))[:8]
    broken = drawn
    monkeypatch.setattr(measure, "pretrain", sometimes)
    done = run(tmp_path / "out", probes=("knn",))
    assert "random" in done.sizes[4].results[0].arms and "random" not in done.sizes[8].results[0].arms
    assert "8 images, convnet_4_4, random: left out: seed 0: too fast" in (tmp_path / "out" / "sweep.md").read_text()


def test_a_student_that_diverges_on_the_set_ends_the_sweep_and_keeps_the_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = measure.pretrain

    def fails(student: str, synthetic: SyntheticSet, **options: Any) -> Any:
        if len(synthetic) == 2:  # the first training, which loads libraries
            return own(student, synthetic, **options)
        raise DistillError("too fast.")

    monkeypatch.setattr(measure, "pretrain", fails)
    with pytest.raises(
        DistillError, match=r"convnet_4_4 cannot be pre-trained on the set of 4: seed 0: too fast\. The"
    ):
        run(tmp_path / "out", baselines=[], probes=("knn",))
    assert len(SyntheticSet.load(tmp_path / "out" / "size-4" / "run")) == 4


def test_a_folder_of_something_else_or_a_damaged_record_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"is not empty and holds no sweep: choose another name"):
        run(tmp_path)
    with pytest.raises(UsageError, match=r"is a file"):
        run(tmp_path / "notes.txt")
    for damage in ("", "[]", '{"settings": {}, "found": null}', '{"settings": {}, "found": null, "sizes": {"4": 1}}'):
        (tmp_path / "sweep.json").write_text(damage)
        with pytest.raises(DistillError, match=r"sweep\.json cannot be read \(.*\): give another --out, or remove"):
            run(tmp_path)


def test_a_record_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "out" / "sweep.json.partial").mkdir(parents=True)
    (tmp_path / "out" / "sweep.json").write_text('{"settings": {}, "found": null, "sizes": {}}')
    with pytest.raises(DistillError, match=r"sweep\.json cannot be written"):
        size_sweep.write_record(Sweep({}, None, {}), tmp_path / "out")
    assert (tmp_path / "out" / "sweep.json").read_text().startswith('{"settings"')


def test_sweep_is_a_function_wherever_it_was_imported_from() -> None:
    import lightly_distill

    assert lightly_distill.sweep is sweep is size_sweep.sweep


def test_the_selection_that_tells_bytes_is_of_the_originals_that_the_target_sees(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="lightly_distill")
    images = [torch.randint(256, (3, 32, 32), generator=seeding.generator(0, "image", i)).byte() for i in range(40)]
    shown: list[torch.Tensor] = []

    def see(seen: torch.Tensor) -> torch.Tensor:
        shown.append(seen)
        return seen.flatten(1)[:, :9]

    own = DistillationStage(as_target(see, mean=(0,) * 3, std=(1,) * 3), **OPTIONS, image_size=8, target_size=32)
    size_sweep._fitting([10**6], own, open_source(images, image_size=8))
    (all_of_them,) = (seen for seen in shown if len(seen) == len(images))
    torch.testing.assert_close(all_of_them * 255, torch.stack(images).float())
    assert "enlarged" not in caplog.text


@pytest.mark.slow
def test_bytes_instead_of_sizes_say_what_to_take(tmp_path: Path) -> None:
    images = tiny.images(300)
    done = sweep(
        stage(holdout=4),
        images,
        (),
        [task()],
        bytes=(20_000, 30_000),
        out=tmp_path,
        probes=["knn"],
        seeds=1,
        **{name: value for name, value in QUICK.items() if name != "seeds"},
    )
    small, large = done.sizes
    assert small < large
    for budget, size in ((20_000, small), (30_000, large)):
        (result,) = done.sizes[size].results
        assert 0.8 * budget < result.arms["distilled"].bytes <= budget == done.sizes[size].budget
        assert result.arms["random@bytes"].bytes == pytest.approx(result.arms["distilled"].bytes, rel=0.25)
        assert result.worth("shapes/knn") is not None
    page = (tmp_path / "sweep.html").read_text()
    assert "Worth: " in page and "bytes on disk" in page
    few: list[int] = []
    own = stage()
    own.target.register_forward_pre_hook(lambda module, inputs: few.append(len(inputs[0])))
    with pytest.raises(UsageError, match="are too few for a set"):
        sweep(own, tiny.images(2000), (), [task()], bytes=(100,), out=tmp_path / "x")
    assert sum(few) < 1500  # a sample twice, for maps and representations; not the source
    with pytest.raises(UsageError, match="Give sizes in images or in bytes, not both"):
        sweep(stage(), images, (4,), [task()], bytes=(20_000,), out=tmp_path / "x")
    with pytest.raises(UsageError, match=r"100 bytes are too few for a set: two images take about [\d,]+"):
        sweep(stage(), images, (), [task()], bytes=(100,), out=tmp_path / "x")


def test_a_sweep_reads_tasks_as_its_source(tmp_path: Path) -> None:
    values = tiny.images(40).numpy().astype(np.float32) * 16  # not in [0, 1]: refused without a range
    rows = [{"photo": image, "mask": image, "label": number % 3} for number, image in enumerate(values)]
    options = {"data": rows, "tasks": [("scans", rows, rows[:12])], "baselines": ["random"], "seeds": 1}
    done = run(tmp_path / "out", (4,), stage=stage(column="photo", value_range=(0, 4095)), **options)
    assert set(done.sizes) == {4} and set(done.sizes[4].results[0].arms) == {"random", "distilled"}
    with pytest.raises(UsageError, match="A sweep reads tasks as the source: give column and value_range to the stage"):
        run(tmp_path / "other", (4,), **options, column="photo")
