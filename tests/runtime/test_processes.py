"""Two processes on the CPU, joined by gloo, against one."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import several
import tiny
from lightly_distill import DistillationStage, SyntheticSet, UsageError
from lightly_distill.runs import stage
from lightly_distill.runs.checkpoint import load_newest
from lightly_distill.runs.run_folder import run_metrics
from lightly_distill.runtime import processes
from lightly_distill.runtime.processes import ALONE, Processes, launched
from several import finish

# float64 where it can be had: what is compared is the division of work, not rounding
OPTIONS: dict[str, Any] = {
    "student": "convnet_4_8",
    "num_images": 7,
    "image_size": 8,
    "batch_size": 15,
    "steps": 8,
    "holdout": 4,
    "log_every": 2,
    "checkpoint_every": 4,
    "device": "cpu",
    "ridge": {"strength": 1e-2, "dtype": "float64"},
    "pool": {"size": 4, "max_age": 5, "lr": 0.01, **tiny.PLAIN_POOL},
    **tiny.PLAIN,
    "outer": {"lr_images": 1e-3, "lr_representations": 1e-3, "grain": 1},
}
CHILD = """
import json
import tiny
from lightly_distill import DistillationStage
arguments = json.loads(sys.argv[1])
{before}
stage = DistillationStage(tiny.encoder(), **arguments["options"])
synthetic = stage.run(tiny.images(50), **arguments["run"])
{after}
"""


def start(
    run: dict[str, Any], options: dict[str, Any], count: int = 2, before: str = "", after: str = ""
) -> list[subprocess.Popen[str]]:
    """Starts the same run as several processes."""
    return several.start(CHILD.format(before=before, after=after), {"options": options, "run": run}, count)


def in_two(run: dict[str, Any], **options: Any) -> None:
    for status, _, errors in finish(start(run, {**OPTIONS, **options})):
        assert status == 0, errors


def in_one(out: Path, **options: Any) -> SyntheticSet:
    return DistillationStage(tiny.encoder(), **{**OPTIONS, **options}).run(tiny.images(50), out=out)


def close(a: SyntheticSet, b: SyntheticSet, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(a.images, b.images, rtol=0, atol=tolerance)
    torch.testing.assert_close(a.representations, b.representations, rtol=0, atol=tolerance)


def test_shares_are_consecutive_even_and_complete() -> None:
    for length, count in ((7, 2), (1, 3), (12, 4)):
        shares = [Processes(index, count).share(length) for index in range(count)]
        rows = [row for share in shares for row in range(length)[share]]
        assert rows == list(range(length))
        sizes = [len(range(length)[share]) for share in shares]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"source_views": "random", "chunk_size": 2},
        pytest.param({"source_views": 2}, marks=pytest.mark.slow),
    ],
)
def test_two_processes_with_the_same_global_batch_equal_one(tmp_path: Path, options: dict[str, Any]) -> None:
    one = in_one(tmp_path / "one", **options)
    in_two({"out": str(tmp_path / "two")}, **options)
    two = SyntheticSet.load(tmp_path / "two")
    close(one, two)
    moved = (
        (
            one.images
            - DistillationStage(tiny.encoder(), **{**OPTIONS, **options, "steps": 1}).run(tiny.images(50)).images
        )
        .abs()
        .max()
    )
    assert moved > 1e-3  # the steps do move them
    for a, b in zip(run_metrics(tmp_path / "one"), run_metrics(tmp_path / "two"), strict=True):
        assert a["step"] == b["step"]
        assert {"loss", "heldout_loss"} & set(a) == {"loss", "heldout_loss"} & set(b)
        assert b.get("loss", 0) == pytest.approx(a.get("loss", 0), rel=1e-5)
        assert b.get("heldout_loss", 0) == pytest.approx(a.get("heldout_loss", 0), rel=1e-5)


def test_two_processes_make_the_set_of_one_with_maps_mixup_and_8_bits(tmp_path: Path) -> None:
    rich = {"target_dims": "auto", "target_map": 4, "map_dims": 3, "eight_bits": True, "outer": {"lr_images": 0.02}}
    rich["pool"] = {"size": 4, "max_age": 5, "lr": 0.01}
    one = in_one(tmp_path / "one", **rich)
    in_two({"out": str(tmp_path / "two")}, **rich)
    two = SyntheticSet.load(tmp_path / "two")
    assert one.maps is not None and two.maps is not None and one.pixels is not None and two.pixels is not None
    # what the last bit makes of a number in the middle between two grey levels
    differences = (one.pixels.int() - two.pixels.int()).abs()
    assert differences.max() <= 2 and (differences > 0).float().mean() < 0.02
    assert (one.targets != two.targets).float().mean() < 0.05
    torch.testing.assert_close(one.targets, two.targets, rtol=0, atol=0.1)


SMALL_SHARDS = """
from lightly_distill.method import representation_cache
from lightly_distill.models.targets import Target
representation_cache.SHARD, shown, forward = 10, [], Target.forward

def counted(self, images):
    shown.append(len(images) if len(images) > 4 else 0)  # four are tried before the work
    return forward(self, images)

Target.forward = counted
"""


def test_two_processes_divide_the_representations_and_share_one_projection(tmp_path: Path) -> None:
    options = {**OPTIONS, "target_dims": 3}
    run = {"out": str(tmp_path / "two"), "representations": str(tmp_path / "kept")}
    told = finish(start(run, options, before=SMALL_SHARDS, after="print(sum(shown))"))
    assert [status for status, _, _ in told] == [0, 0], told
    assert [int(output.split()[-1]) for _, output, _ in told] == [30, 20]
    one, two = in_one(tmp_path / "one", target_dims=3), SyntheticSet.load(tmp_path / "two")
    close(one, two, 1e-4)
    torch.testing.assert_close(one.original_representations(), two.original_representations(), rtol=0, atol=1e-4)


def test_a_split_pool_averages_the_gradients_of_each_processs_own_student_and_batch(tmp_path: Path) -> None:
    in_two({"out": str(tmp_path / "two")}, parallel="pool", steps=1)
    # the same by hand: processes take the slots in turn, and the batches 2 step + rank
    stage_gradients(tmp_path, SyntheticSet.load(tmp_path / "two"))


def stage_gradients(tmp_path: Path, two: SyntheticSet) -> None:
    from lightly_distill.data.source import open_source
    from lightly_distill.method.config import make_config
    from lightly_distill.method.objective import Objective
    from lightly_distill.method.real_images import RealImages
    from lightly_distill.method.state import DistillState
    from lightly_distill.method.step import outer_gradient
    from lightly_distill.models.students import student_builder
    from lightly_distill.models.targets import as_target
    from lightly_distill.runtime.processes import Team

    config = make_config(**{**OPTIONS, "parallel": "pool", "steps": 1})
    real = RealImages.of_target(open_source(tiny.images(50)), as_target(tiny.encoder()), config, torch.device("cpu"))
    state = DistillState.start(real, [("convnet_4_8", student_builder("convnet_4_8", 8))], config)
    state.pool.warm_up(state.images, state.representations)
    slots, gradients = [], []
    for rank in range(2):
        team = Team(split=Processes(rank, 2))
        mine = [slot for slot in state.pool.slots if slot.index % 2 == rank]
        state.pool.team, whole = team, state.pool.slots
        state.pool.slots = mine
        slot = state.pool.draw(0)
        state.pool.slots = whole
        batch = next(iter(real.batches(0, 1, team=team)))
        slots.append(slot.index)
        gradients.append(
            outer_gradient(
                slot.student,
                *state.learned(),
                batch,
                objective=Objective(1e-2, dtype=torch.float64),
            )
        )
    assert slots[0] % 2 == 0 and slots[1] % 2 == 1
    mean: Tensor = (gradients[0].images + gradients[1].images) / 2
    state.images.grad = mean
    state.representations.grad = (gradients[0].representations + gradients[1].representations) / 2
    for group in state.optimizer.param_groups:
        group["lr"] = 1e-3
    state.optimizer.step()
    close(two, SyntheticSet(state.images.detach(), state.representations.detach(), mean=two.mean, std=two.std))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [pytest.param("batch", marks=pytest.mark.slow), "pool"])
def test_a_resumed_run_of_two_equals_one_that_was_left_alone_bit_for_bit(tmp_path: Path, parallel: str) -> None:
    in_two({"out": str(tmp_path / "whole")}, parallel=parallel)
    in_two({"out": str(tmp_path / "parts")}, parallel=parallel, steps=8)
    newest = max((tmp_path / "parts" / "checkpoints").glob("*.safetensors"))
    newest.unlink()  # as if it had been killed after step 4
    in_two({"out": str(tmp_path / "parts"), "resume": True}, parallel=parallel)
    whole, parts = SyntheticSet.load(tmp_path / "whole"), SyntheticSet.load(tmp_path / "parts")
    assert torch.equal(whole.images, parts.images) and torch.equal(whole.representations, parts.representations)


def test_a_failing_process_ends_the_run(tmp_path: Path) -> None:
    fail = """
import os
import signal
import lightly_distill.method.distill as d
old = d._outer_step
d._outer_step = lambda *a: 1 / 0 if os.environ["RANK"] == "1" else old(*a)
"""
    first, second = start({"out": str(tmp_path / "out")}, OPTIONS, before=fail)
    ended = finish([first, second])
    assert ended[1][0] != 0 and "ZeroDivisionError" in ended[1][2]
    # gloo notices that its peer is gone; why, the peer has said
    assert (
        ended[0][0] == 1 and "DistillError: Process 1 of 2 failed: ZeroDivisionError: division by zero" in ended[0][2]
    )


def test_wrong_use_is_told_by_all_processes_and_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("here")
    for status, _, errors in finish(start({"out": str(tmp_path)}, OPTIONS)):
        assert status != 0 and "is not empty: go on with --resume" in errors


@pytest.mark.slow
def test_the_folder_is_that_of_the_main_process_whatever_the_others_are_given(tmp_path: Path) -> None:
    only_main = """
import os
if os.environ["RANK"] != "0":
    arguments["run"] = {"strict": True}
"""
    run = {"out": str(tmp_path / "run")}
    for again in ({}, {"resume": True, "strict": True}):
        for status, _, errors in finish(start({**run, **again}, {**OPTIONS, "steps": 2}, before=only_main)):
            assert status == 0, errors
    assert len(SyntheticSet.load(tmp_path / "run")) == 7


@pytest.mark.slow
def test_a_pool_smaller_than_the_processes_is_refused(tmp_path: Path) -> None:
    for status, _, errors in finish(start({}, {**OPTIONS, "parallel": "pool", "pool": {"size": 1}})):
        assert status != 0 and "pool.size must be at least 2, one student for each process; got 1" in errors


@pytest.mark.parametrize("options", [{"batch_size": 2}, {"num_images": 2}])
def test_a_batch_of_fewer_real_images_than_processes_is_refused_before_any_work(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    three = Processes(0, 3)
    monkeypatch.setattr(stage, "launched", lambda device: (three, device))
    for name, alone in (("gather", lambda self, value: [value] * 3), ("copy_from_main", lambda self, *tensors: None)):
        monkeypatch.setattr(Processes, name, alone)
    monkeypatch.setattr(Processes, "in_main", lambda self, function: function())
    monkeypatch.setattr(stage, "failing_together", contextlib.nullcontext)
    monkeypatch.setattr(stage, "RealImages", lambda *a, **k: pytest.fail("represented"))
    with pytest.raises(UsageError, match="A batch must have at least 3 real images, one for each process; it has 2"):
        DistillationStage(tiny.encoder(), **{**OPTIONS, **options}).run(tiny.images(2))


@pytest.mark.slow
def test_the_targets_of_all_are_that_of_the_main_process(tmp_path: Path) -> None:
    other = """
import os
import signal
encoder = tiny.encoder()
if os.environ["RANK"] == "1":
    encoder[0].weight.data.mul_(2)
    encoder[1].running_mean.add_(1)
tiny.encoder = lambda: encoder
"""
    in_two({"out": str(tmp_path / "alike")})
    for status, _, errors in finish(start({"out": str(tmp_path / "two")}, OPTIONS, before=other)):
        assert status == 0, errors
    alike, two = SyntheticSet.load(tmp_path / "alike"), SyntheticSet.load(tmp_path / "two")
    assert torch.equal(alike.images, two.images) and torch.equal(alike.representations, two.representations)


@pytest.mark.slow
def test_processes_with_different_images_are_refused(tmp_path: Path) -> None:
    other = "import os\nwhole = tiny.images\ntiny.images = lambda n: whole(n + int(os.environ['RANK']))"
    for status, _, errors in finish(start({}, OPTIONS, before=other)):
        assert status != 0 and "The processes were given different real images: give all the same" in errors


def test_alone_there_is_no_process_group() -> None:
    assert launched("cpu") == (ALONE, "cpu")
    assert ALONE.in_main(lambda: 3) == 3
    with pytest.raises(UsageError, match="here"):
        ALONE.in_main(lambda: (_ for _ in ()).throw(UsageError("here")))


def test_the_processes_of_a_machine_share_its_memory() -> None:
    told = """
from lightly_distill.data import shared
from lightly_distill.method import pool
for module in (shared, pool):
    module.free_memory = lambda device: 1_000_000
fits, estimate = shared.fits, pool.estimate
shared.fits = lambda images, limit: print(limit) or fits(images, limit)
pool.estimate = lambda *args, free, **options: print(free) or estimate(*args, free=free, **options)
"""
    for status, output, errors in finish(start({}, {**OPTIONS, "steps": 1}, before=told)):
        assert status == 0, errors
        assert output.split() == ["500000", "500000"]  # the images are there once


def test_a_signal_to_all_saves_and_ends_all(tmp_path: Path) -> None:
    children = start({"out": str(tmp_path)}, {**OPTIONS, "steps": 100_000, "checkpoint_every": 100_000})
    log = tmp_path / "metrics.jsonl"
    while not (log.exists() and len(log.read_text().splitlines()) > 3):
        assert all(child.poll() is None for child in children)
        time.sleep(0.1)
    for child in children:  # as a launcher does
        child.send_signal(signal.SIGTERM)
    ended = finish(children)
    assert [status for status, *_ in ended] == [143, 143], ended
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert len(saved) == 2 and saved[0] == "step-00000000.safetensors"


LAYOUTS = """
import torch
from lightly_distill.runtime.processes import launched
processes, _ = launched("cpu")
images = torch.arange(24.0).view(1, 3, 2, 4)
mine = images.to(memory_format=torch.channels_last) if processes.main else images.clone()
assert torch.equal(processes.sum(mine)[0], 2 * images)
given = mine.clone() if processes.main else torch.zeros(1, 3, 2, 4)
processes.copy_from_main(given)
assert torch.equal(given, images) and given.stride() == mine.stride()
"""


def test_what_is_exchanged_does_not_depend_on_the_layout_of_each_process() -> None:
    # a mixed pool: the gradient of a convolution is channels last, that of a transformer is not
    for status, _, errors in finish(several.start(LAYOUTS)):
        assert status == 0, errors


NO_TENSOR_PICKLED = (
    SMALL_SHARDS
    + """
from lightly_distill.runtime.processes import Processes
gather = Processes.gather

def light(self, value):
    assert not isinstance(value, dict) or not any(map(torch.is_tensor, value.values())), value
    return gather(self, value)

import torch
Processes.gather = light
"""
)


def test_representations_without_a_folder_are_sent_as_tensors(tmp_path: Path) -> None:
    options = {**OPTIONS, "source_views": 2, "steps": 2}
    save = f"synthetic.save({str(tmp_path)!r} + '/' + os.environ['RANK'])"
    for status, _, errors in finish(start({}, options, before=NO_TENSOR_PICKLED + "import os", after=save)):
        assert status == 0, errors
    one = in_one(tmp_path / "one", source_views=2, steps=2)
    for rank in "01":
        close(one, SyntheticSet.load(tmp_path / rank))


def test_the_students_of_a_split_pool_are_sent_as_tensors(tmp_path: Path) -> None:
    options = {**OPTIONS, "parallel": "pool", "steps": 2}
    for status, _, errors in finish(start({"out": str(tmp_path / "two")}, options, before=NO_TENSOR_PICKLED)):
        assert status == 0, errors
    tensors, facts = load_newest(tmp_path / "two" / "checkpoints")
    students = {name.split(".")[1] for name in tensors if name.startswith("pool.")}
    assert students == {str(index) for index in range(len(facts["slots"]))} and len(students) > 1


@pytest.mark.parametrize("rank", ["0", "1"])
def test_wrong_usage_is_told_where_a_launcher_has_left_its_variables(rank: str, tmp_path: Path) -> None:
    options = ["--data", "nowhere/at/all/x", "--target", "timm:resnet18", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "lightly_distill", "distill", *options]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "RANK": rank}, check=False)
    assert done.returncode == 2 and "error: " in done.stderr


def test_waiting_for_processes_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """With WORLD_SIZE left over, one process waits for another that never comes."""
    monkeypatch.setattr(processes, "TELL_AFTER", 0.2)
    monkeypatch.setenv("WORLD_SIZE", "2")

    class Waiting:
        def __init__(self, **_: Any) -> None:
            time.sleep(1)
            raise KeyboardInterrupt

    monkeypatch.setattr("accelerate.PartialState", Waiting)
    with pytest.raises(KeyboardInterrupt):
        launched("cpu")
    assert caplog.messages == [
        "Waiting for the 2 processes that WORLD_SIZE names to start; if this is the only one, unset RANK and "
        "WORLD_SIZE, which a launcher has left."
    ]
