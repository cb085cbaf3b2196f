"""The long ways of the project on the pretended device: nothing is on the wrong one, and results are the CPU's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

import pretended
import tiny
from lightly_distill import DistillationStage, SyntheticSet, as_target, pretrain
from lightly_distill.data.source import open_source
from lightly_distill.evaluation.evaluate import evaluate
from lightly_distill.method.memory import estimate
from lightly_distill.runs.origin import RealSide
from lightly_distill.runtime.device import free_memory
from lightly_distill.sharing.near_copies import find_near_copies

OPTIONS: dict[str, Any] = {**tiny.QUICK, "steps": 4, "checkpoint_every": 2, "log_every": 2}
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture
def seen() -> Iterator[pretended.Seen]:
    with pretended.cuda() as seen:
        yield seen


@pytest.fixture(scope="module")
def on_cpu() -> SyntheticSet:
    return DistillationStage(tiny.encoder(), **OPTIONS).run(tiny.images(40))


@pytest.mark.parametrize(("views", "optimizer"), [(0, "sgd"), ("random", "adamw")])
def test_a_run_and_one_that_goes_on_give_the_set_of_the_cpu(
    seen: pretended.Seen, tmp_path: Path, views: int | str, optimizer: str
) -> None:
    pool = {**OPTIONS["pool"], "optimizer": optimizer}
    options = {**OPTIONS, "source_views": views, "target_dims": 3, "pool": pool}
    expected = DistillationStage(tiny.encoder(), **options).run(tiny.images(40))
    model = tiny.encoder().to("cuda")  # as after training
    straight = DistillationStage(model, **{**options, "device": "cuda"}).run(tiny.images(40), out=tmp_path / "straight")
    stage = DistillationStage(model, **{**options, "device": "cuda"})

    class Stop:
        def start(self) -> None:
            pass

        def log(self, row: dict[str, Any]) -> None:
            if row["step"] == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.run(tiny.images(40), out=tmp_path / "stopped", log=Stop())
    resumed = stage.run(tiny.images(40), out=tmp_path / "stopped", resume=True)
    assert "a pretended GPU" in str(straight.provenance)
    for synthetic in (straight, resumed):
        torch.testing.assert_close(synthetic.images, expected.images, **CLOSE)
        torch.testing.assert_close(synthetic.representations, expected.representations, **CLOSE)


def test_a_student_is_pre_trained_as_on_the_cpu(seen: pretended.Seen, on_cpu: SyntheticSet) -> None:
    settings: dict[str, Any] = {"steps": 4, "batch_size": 4, "verbose": False}
    ours, theirs = (pretrain("convnet_4_4", on_cpu, device=device, **settings) for device in ("cuda", "cpu"))
    assert seen.launches
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name].cpu(), value, **CLOSE)


def test_near_copies_are_those_of_the_cpu(seen: pretended.Seen, on_cpu: SyntheticSet) -> None:
    found = [
        find_near_copies(
            on_cpu, RealSide(open_source(tiny.images(40)), as_target(tiny.encoder()), torch.device(device))
        )
        for device in ("cuda", "cpu")
    ]
    assert seen.launches
    torch.testing.assert_close(*(each.pixels.synthetic.cpu() for each in found), **CLOSE)
    assert found[0].facts()["near"] == found[1].facts()["near"]


def test_an_evaluation_measures_what_it_measures_on_the_cpu(seen: pretended.Seen, on_cpu: SyntheticSet) -> None:
    labels = torch.arange(30) % 3
    task = (TensorDataset(tiny.images(30), labels), TensorDataset(tiny.images(30)[:12], labels[:12]))
    found = [
        evaluate(
            on_cpu,
            "convnet_4_4",
            [task],
            data=tiny.images(40),
            target=as_target(tiny.encoder()),
            baselines=("scratch", "random", "full", "target"),
            probes=("knn", "linear"),
            steps=3,
            full_epochs=1,
            seeds=1,
            device=device,
        )[0]
        for device in ("cuda", "cpu")
    ]
    assert seen.launches
    ours, theirs = (
        {(arm, measure): values for arm, each in result.arms.items() for measure, values in each.values.items()}
        for result in found
    )
    assert list(ours) == list(theirs) and len(ours) == 10
    for which, accuracies in theirs.items():  # an image of twelve may change sides
        assert ours[which] == pytest.approx(accuracies, abs=0.09), which


def test_blocks_that_the_allocator_holds_are_free_and_make_no_small_chunks(seen: pretended.Seen) -> None:
    device, images = torch.device("cuda"), torch.zeros(200, 3, 8, 8, device="cuda")
    student = tiny.student().to("cuda")
    needed = estimate([student], images, 16, None).bytes
    seen.memory.free, seen.memory.reserved, seen.memory.allocated = 10, 3 * needed, 0
    assert free_memory(device) == 3 * needed + 10
    assert estimate([student], images, 16, "auto").chunk_size is None
    seen.memory.allocated = 3 * needed  # now tensors are in them
    assert free_memory(device) == 10
    assert estimate([student], images, 16, "auto").chunk_size == 2


def test_an_estimate_is_that_of_the_cpu(seen: pretended.Seen) -> None:
    images = torch.zeros(50, 3, 8, 8)
    expected = estimate([tiny.student()], images, 100, 10)
    found = estimate([tiny.student().to("cuda")], images.to("cuda"), 100, 10)
    assert found.bytes == expected.bytes
