import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor, nn

import reference
import tiny
from lightly_distill import DistillationStage
from lightly_distill.data.reading import Reading
from lightly_distill.data.source import Source, open_source
from lightly_distill.errors import DistillError, UsageError
from lightly_distill.method import distill as distilling
from lightly_distill.method.config import DistillConfig
from lightly_distill.method.distill import distill, held_out_loss
from lightly_distill.method.real_images import RealImages
from lightly_distill.method.state import DistillState
from lightly_distill.method.step import OuterGradient, outer_gradient
from lightly_distill.models.targets import as_target
from lightly_distill.runs import checkpoint
from lightly_distill.runtime import signals
from lightly_distill.runtime.seeding import global_seed


class Memory:
    """Keeps rows, and checkpoints as copies."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.saved: dict[int, tuple[dict[str, Tensor], dict[str, Any]]] = {}

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def checkpoint(self, state: DistillState) -> None:
        tensors = {name: value.detach().clone() for name, value in state.tensors().items()}
        self.saved[state.step] = (tensors, {"step": state.step, **state.facts()})

    def leave(self, state: DistillState, number: int) -> NoReturn:
        signals.leave(number)


def make(config: DistillConfig, dropout: float = 0.0, source: Source | None = None) -> tuple[DistillState, RealImages]:
    source = source or open_source(tiny.images())
    real = RealImages.of_target(source, as_target(tiny.encoder()), config, torch.device("cpu"))
    return DistillState.start(real, [("tiny", lambda: tiny.student(dropout))], config), real


def test_the_loop_equals_the_plain_reference_over_resets_of_the_pool() -> None:
    config = tiny.config(steps=14, holdout=0, ridge={"dtype": "float64"})
    state, real = make(config)
    target = as_target(tiny.encoder())
    before = state.images.detach().double(), state.representations.detach().double()
    memory = Memory()
    distill(state, real, config, memory)

    # the same story in float64, told by the reference; it is given the same draws
    images, reps = (tensor.clone().requires_grad_() for tensor in before)
    births = [0, 0, 0]

    def build(index: int) -> tuple[nn.Module, nn.Module]:
        with global_seed(0, "student", index, births[index]):
            return tiny.student(), nn.Linear(32, reps.shape[1])

    pool = [reference.new_student(lambda i=i: build(i)) for i in range(3)]  # type: ignore[misc]
    twin, _ = make(config)
    twin.pool.warm_up(twin.images, twin.representations)
    for student, slot in zip(pool, twin.pool.slots, strict=True):
        while student.age < slot.age:
            reference.train_student(student, images, reps)
    optimizer = torch.optim.AdamW([images, reps], weight_decay=0.0)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (real.mean, real.std))
    losses = []
    for step, batch in enumerate(real.batches(0, config.steps)):
        for group in optimizer.param_groups:
            group["lr"] = 2e-2 * (1 - (1 - 1e-3) * step / config.steps)
        drawn = twin.pool.draw(step).index
        if pool[drawn].age >= 4:  # left by the warm-up at age T: one outer step, no more training
            pool[drawn].age -= 1
            pool[drawn].optimizer.param_groups[0]["lr"] = 0.0
        births[drawn] += 1
        real_images = batch.images.double()
        losses.append(
            reference.outer_step(
                pool,
                drawn,
                images,
                reps,
                optimizer,
                real_images,
                lambda x: target((x * std + mean).float()).double(),
                4,
                lambda: build(drawn),  # noqa: B023
            )
        )
        if pool[drawn].age != 0:
            births[drawn] -= 1
    assert max(births) > 0
    ours = [row["loss"] for row in memory.rows if "loss" in row]
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(losses), rtol=1e-3, atol=0)
    torch.testing.assert_close(state.representations.detach().double(), reps.detach(), rtol=0, atol=2e-3)
    # AdamW moves each pixel by about the learning rate whatever its gradient; a pixel of no gradient may go either way
    assert ((state.images.detach() - images.detach()).abs() > 5e-3).double().mean() < 0.01


@pytest.mark.parametrize("views", [0, 2, "random"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(views: int | str) -> None:
    config = tiny.config(steps=12, checkpoint_every=1, source_views=views)
    straight, real = make(config, dropout=0.2)
    memory = Memory()
    distill(straight, real, config, memory)
    births = [sum(count["births"] for count in facts["slots"]) for _, facts in memory.saved.values()]
    reset = next(step for step in range(1, 12) if births[step] > births[step - 1])
    for stop in (0, 1, 7, reset):  # before the first step, in mid-epoch, at its end, exactly at a reset of the pool
        resumed, real = make(config, dropout=0.2)
        resumed.restore(*memory.saved[stop])
        torch.manual_seed(123)
        again = Memory()
        distill(resumed, real, config, again)
        ours, theirs = resumed.tensors(), straight.tensors()
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert resumed.facts() == straight.facts()
        assert again.rows[-1]["loss"] == memory.rows[-1]["loss"]


class Stopped(Memory):
    """Is asked to stop by a signal while a step is in hand, and keeps its checkpoint on disk."""

    def __init__(self, folder: Path, at: int) -> None:
        super().__init__()
        self.folder, self.at = folder, at

    def log(self, row: dict[str, Any]) -> None:
        super().log(row)
        if row["step"] == self.at:
            signal.raise_signal(signal.SIGTERM)

    def checkpoint(self, state: DistillState) -> None:
        checkpoint.save(self.folder, checkpoint.snapshot(state.step, state.tensors(), state.facts()))


SOURCES = {"memory": None, "decoded here": 0, "decoded by two workers": 2}


@pytest.mark.parametrize("kind", SOURCES)
def test_40_steps_are_23_a_stop_and_17_bit_for_bit(kind: str, tmp_path: Path) -> None:
    limit = {} if SOURCES[kind] is None else {"memory_limit": 0, "reading": Reading(SOURCES[kind])}

    def session(recorder: Memory, resume: bool = False) -> tuple[DistillState, RealImages]:
        # the images are held by a list: nothing of a session is left to the next one
        state, real = make(config, dropout=0.2, source=open_source(list(tiny.images()), **limit))
        if resume:
            state.restore(*checkpoint.load_newest(tmp_path, strict=True))
        torch.manual_seed(123)  # a new process is at another place of the global random numbers
        distill(state, real, config, recorder)
        return state, real

    config = tiny.config(steps=40, checkpoint_every=1)
    memory = Memory()
    straight, _ = session(memory)
    births = [sum(slot["births"] for slot in facts["slots"]) for _, facts in memory.saved.values()]
    # just after a reset of the pool, and in mid-epoch: an epoch has 54 // 16 batches
    reset = next(step for step in range(24, 40) if births[step] > births[step - 1])
    assert 23 % 3 and births[-1] > 5
    for stop in (23, reset):
        with pytest.raises(SystemExit) as end:
            session(Stopped(tmp_path, at=stop))
        assert end.value.code == 128 + signal.SIGTERM
        assert checkpoint.load_newest(tmp_path)[1]["step"] == stop
        again = Memory()
        resumed, _ = session(again, resume=True)
        ours, theirs = resumed.tensors(), straight.tensors()
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        for kept in (
            "images",
            "adamw.0.exp_avg",
            "adamw.1.exp_avg_sq",
            "pool.0.student.0.weight",
            "pool.2.head.vector.bias",
        ):
            assert kept in ours
        assert "pool.1.student.1.running_var" in ours  # BatchNorm's buffers
        assert resumed.facts() == straight.facts()  # ages, births
        told = [(row["step"], row["loss"]) for row in memory.rows if row["step"] > stop]
        assert [(row["step"], row["loss"]) for row in again.rows] == told  # so the batches were the same


def test_the_loss_of_a_row_counts_the_steps_before_an_interruption_too(tmp_path: Path) -> None:
    config = tiny.config(steps=20, checkpoint_every=1, log_every=20)
    memory, again = Memory(), Memory()
    state, real = make(config)
    distill(state, real, config, memory)
    resumed, real = make(config)
    tensors, facts = memory.saved[13]
    resumed.restore(tensors, json.loads(json.dumps(facts)))
    distill(resumed, real, config, again)
    assert [row["loss"] for row in again.rows] == [row["loss"] for row in memory.rows[-len(again.rows) :]]
    assert "seconds_per_step" in again.rows[0]


CUDA = """
import sys
import torch
import test_distill, tiny
from lightly_distill.method.distill import DistillState, distill
from lightly_distill.method.real_images import RealImages
from lightly_distill.data.source import open_source
from lightly_distill.models.targets import as_target

exact = sys.argv[1] == "exact"
torch.use_deterministic_algorithms(exact)
config = tiny.config(steps=40, checkpoint_every=1, device="cuda")

def session(saved=None):
    source = open_source(tiny.images())
    real = RealImages.of_target(source, as_target(tiny.encoder()).to("cuda"), config, torch.device("cuda"))
    state = DistillState.start(real, [("tiny", lambda: tiny.student(0.2))], config)
    if saved is not None:
        state.restore({name: value.cpu() for name, value in saved[0].items()}, saved[1])
    memory = test_distill.Memory()
    distill(state, real, config, memory)
    return state, memory

straight, memory = session()
gaps = []
for stop in (1, 23):
    resumed, _ = session(memory.saved[stop])
    ours, theirs = resumed.tensors(), straight.tensors()
    if exact:
        different = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
        assert not different and resumed.facts() == straight.facts(), (stop, different)
    for name in ("images", "representations"):
        gaps.append(((ours[name] - theirs[name]).norm() / theirs[name].norm()).item())
print(max(gaps))
"""


def gap_of_resumed_runs(kind: str, device: str) -> float:
    """Returns the largest relative difference of what a straight and a resumed run have learned, of a new process."""
    # a process of its own: cuBLAS reads its setting when it starts
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path])
    script = CUDA.replace('"cuda"', repr(device))
    result = subprocess.run([sys.executable, "-c", script, kind], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return float(result.stdout.split()[-1])


@pytest.mark.gpu
def test_a_resumed_run_equals_the_uninterrupted_one_on_cuda_with_deterministic_algorithms() -> None:
    assert gap_of_resumed_runs("exact", "cuda") == 0


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_without_deterministic_algorithms_a_resumed_run_stays_near_the_uninterrupted_one(
    device: str, record_property: Callable[[str, object], None]
) -> None:
    gap = gap_of_resumed_runs("near", device)
    record_property("largest relative difference of a resumed run", gap)
    assert gap <= (0 if device == "cpu" else 1e-2)


def test_a_state_that_is_not_whole_is_refused_by_name() -> None:
    # Every random draw follows from the seed, a name and a count (seeding.py), so the random state of a run is its seed
    # and its counts: steps, ages and births. The seed is among the settings, in which a resumed run may not differ (see
    # test_stage.py). A count that is missing, or is not the one of the rest, is an error; nothing is drawn anew.
    config = tiny.config(steps=6, checkpoint_every=1)
    state, real = make(config)
    memory = Memory()
    distill(state, real, config, memory)
    tensors, facts = memory.saved[4]
    slots = facts["slots"]

    def without(mapping: dict[str, Any], name: str) -> dict[str, Any]:
        return {key: value for key, value in mapping.items() if key != name}

    for broken_tensors, broken_facts, why in (
        (tensors, without(facts, "step"), "it lacks 'step'"),
        (tensors, {**facts, "step": 3}, "it is of step 3, AdamW in it of step 4"),
        (tensors, {**facts, "step": 0}, "it is of step 0, AdamW in it of step 4"),
        (tensors, without(facts, "slots"), "it lacks 'slots'"),
        (tensors, {**facts, "slots": slots[:2]}, "2 students instead of 3"),
        (tensors, {**facts, "slots": [without(slots[0], "age"), *slots[1:]]}, "it lacks 'age'"),
        (tensors, {**facts, "slots": [without(slots[0], "births"), *slots[1:]]}, "it lacks 'births'"),
        (without(tensors, "adamw.1.exp_avg"), facts, "it lacks 'adamw.1.exp_avg'"),
        (without(tensors, "images"), facts, "it lacks 'images'"),
        (without(tensors, "pool.1.student.1.running_mean"), facts, "running_mean"),
    ):
        fresh, _ = make(config)
        with pytest.raises(DistillError, match=r"does not hold the whole state of this run \(.*start again") as error:
            fresh.restore(broken_tensors, broken_facts)
        assert why in str(error.value)


def test_minutes_make_checkpoints_too_and_change_nothing() -> None:
    runs = {}
    for minutes in (1e-9, 1000.0):
        config = tiny.config(steps=6, checkpoint_every=4, checkpoint_minutes=minutes)
        state, real = make(config)
        memory = Memory()
        distill(state, real, config, memory)
        runs[minutes] = state, list(memory.saved)
    assert runs[1e-9][1] == [0, 1, 2, 3, 4, 5, 6] and runs[1000.0][1] == [0, 4, 6]
    assert torch.equal(runs[1e-9][0].images, runs[1000.0][0].images)


def test_images_and_representations_move_with_their_own_decaying_rates() -> None:
    config = tiny.config(steps=10, outer={"lr_images": 3e-2, "lr_representations": 1e-3, "final_lr": 0.1})
    state, real = make(config)
    images, reps = state.images.detach().clone(), state.representations.detach().clone()
    distill(state, real, config, Memory())
    assert 1e-2 < float((state.images.detach() - images).abs().max()) <= 10 * 3e-2
    assert 1e-4 < float((state.representations.detach() - reps).abs().max()) <= 10 * 1e-3
    assert [group["lr"] for group in state.optimizer.param_groups] == pytest.approx([3e-2 * 0.19, 1e-3 * 0.19])


def test_the_loss_on_images_that_no_step_has_seen_falls() -> None:
    config = tiny.config(steps=80, log_every=20, outer={"lr_images": 3e-2, "lr_representations": 3e-2})
    state, real = make(config)
    memory = Memory()
    distill(state, real, config, memory)
    first, last = memory.rows[0]["heldout_loss"], memory.rows[-1]["heldout_loss"]
    assert last < 0.8 * first
    assert {"heldout_loss": first} == state.initial
    assert {"heldout_loss": last} == held_out_loss(state, real.held_out(), config)


def test_a_start_from_noise_learns_as_well() -> None:
    config = tiny.config(init="noise", steps=80, outer={"lr_images": 3e-2, "lr_representations": 3e-2})
    state, real = make(config)
    assert (state.source_index == -1).all()
    memory = Memory()
    distill(state, real, config, memory)
    assert memory.rows[-1]["heldout_loss"] < 0.8 * memory.rows[0]["heldout_loss"]


def test_a_mixed_pool_is_measured_by_student_too_and_a_resumed_run_remembers_it() -> None:
    config = tiny.config(steps=4, checkpoint_every=2, student="smooth,plain", pool={"size": 3, "max_age": 4})
    students = [("smooth", tiny.student), ("plain", lambda: nn.Sequential(nn.AvgPool2d(4), nn.Flatten()))]
    real = RealImages.of_target(open_source(tiny.images()), as_target(tiny.encoder()), config, torch.device("cpu"))
    state = DistillState.start(real, students, config)
    memory = Memory()
    distill(state, real, config, memory)

    by_student = [row["heldout_loss_by_student"] for row in memory.rows if "heldout_loss" in row]
    assert len(by_student) == 5 and all(list(losses) == ["smooth", "plain"] for losses in by_student)
    assert by_student[0]["smooth"] != by_student[0]["plain"] and by_student[-1] != by_student[0]
    alone = []
    for slot in list(state.pool.slots):  # smooth, plain, smooth
        state.pool.slots = [slot]
        alone.append(held_out_loss(state, real.held_out(), config)["heldout_loss"])
    assert memory.rows[-1]["heldout_loss"] == sorted(alone)[1]  # one that was just replaced does not rule it
    assert by_student[-1] == {"smooth": pytest.approx((alone[0] + alone[2]) / 2), "plain": alone[1]}

    resumed = DistillState.start(real, students, config)
    tensors, facts = memory.saved[2]
    resumed.restore(tensors, json.loads(json.dumps(facts)))  # as a checkpoint keeps them
    again = Memory()
    distill(resumed, real, config, again)
    assert [row["step"] for row in again.rows] == [3, 4]
    assert resumed.initial["heldout_loss_by_student"] == by_student[0]
    assert again.rows[-1]["heldout_loss_by_student"] == by_student[-1]


@pytest.mark.parametrize("where", ["student", "images"])
def test_nan_stops_the_run_before_the_update_and_names_step_and_student(where: str) -> None:
    config = tiny.config(steps=6)
    state, real = make(config)

    class Poison(Memory):
        def log(self, row: dict[str, Any]) -> None:
            if row["step"] == 2:
                slot = state.pool.draw(2)  # the student of the third step
                tensor = slot.student[0].weight if where == "student" else state.images
                with torch.no_grad():
                    tensor[(0,) * tensor.ndim] = float("nan")
                self.frozen = state.representations.detach().clone()

    memory = Poison()
    with pytest.raises(
        DistillError,
        match=r"Stopped before the update of step 3, student \d \(tiny, age \d\): NaN or infinity in the feat",
    ):
        distill(state, real, config, memory)
    assert torch.equal(state.representations, memory.frozen)
    assert state.step == 2 and max(memory.saved) == 0  # the good checkpoint is the newest one


def test_the_target_is_bit_identical_after_a_run() -> None:
    config = tiny.config(source_views="random")
    target = as_target(tiny.encoder())
    before = target.weights_sha256()
    real = RealImages.of_target(open_source(tiny.images()), target, config, torch.device("cpu"))
    distill(DistillState.start(real, [("tiny", tiny.student)], config), real, config, Memory())
    assert target.weights_sha256() == before


def test_bf16_runs_and_stays_near_fp32() -> None:
    rows = {}
    for precision in ("fp32", "bf16"):
        config = tiny.config(precision=precision)
        state, real = make(config)
        memory = Memory()
        distill(state, real, config, memory)
        assert state.images.dtype == state.representations.dtype == torch.float32
        rows[precision] = memory.rows
    assert rows["bf16"][1]["loss"] != rows["fp32"][1]["loss"]
    assert rows["bf16"][0]["heldout_loss"] == pytest.approx(rows["fp32"][0]["heldout_loss"], rel=0.3)


@pytest.mark.parametrize(
    ("computes", "limit", "taken"), [(True, 1.0, "bf16"), (True, 0.0, "fp32"), (False, 1.0, "fp32")]
)
def test_auto_is_bf16_where_the_processor_computes_in_it_and_the_loss_stays_the_same(
    computes: bool, limit: float, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightly_distill.models.recipe.computes_bf16", lambda device: computes)
    monkeypatch.setattr("lightly_distill.method.distill.SAME", limit)
    rows = {}
    for precision in ("auto", taken):
        config = tiny.config(precision=precision)
        state, real = make(config)
        memory = Memory()
        distill(state, real, config, memory)
        assert state.precision == memory.saved[config.steps][1]["precision"] == taken
        rows[precision] = [(row["loss"], row["heldout_loss"]) for row in memory.rows[1:] if "heldout_loss" in row]
    assert rows["auto"] == rows[taken]


@pytest.mark.parametrize(("student", "taken"), [("convnet_4_4", "bf16"), ("convnet_4_4,test_efficientnet", "fp32")])
def test_auto_stays_fp32_where_one_of_the_students_is_slower_in_bf16(
    student: str, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightly_distill.models.recipe.computes_bf16", lambda device: True)
    monkeypatch.setattr("lightly_distill.method.distill.SAME", 1.0)
    options = {**tiny.QUICK, "student": student, "pool": {"size": 2, "max_age": 2}, "steps": 1, "precision": "auto"}
    images = torch.nn.functional.interpolate(tiny.images().float(), 32).byte()
    made = DistillationStage(tiny.encoder(), **{**options, "image_size": 32}).run(images)
    assert made.provenance["precision"] == taken


def test_bf16_is_refused_where_the_gradient_of_a_student_is_wrong_in_it() -> None:
    options = {**tiny.QUICK, "student": "convnet_4_4,test_resnet", "pool": {"size": 2, "max_age": 2}}
    stage = DistillationStage(tiny.encoder(), **{**options, "image_size": 16, "precision": "bf16"})
    with pytest.raises(UsageError, match="precision=bf16 does not suit student 'test_resnet' at 16 pixels"):
        stage.run(torch.nn.functional.interpolate(tiny.images().float(), 16).byte())


def test_a_resumed_run_keeps_the_precision_that_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightly_distill.models.recipe.computes_bf16", lambda device: True)
    monkeypatch.setattr("lightly_distill.method.distill.SAME", 1.0)
    config = tiny.config(precision="auto")
    state, real = make(config)
    memory = Memory()
    distill(state, real, config, memory)
    tensors, facts = memory.saved[4]
    monkeypatch.setattr("lightly_distill.models.recipe.computes_bf16", lambda device: False)  # of another machine
    again, real = make(config)
    again.restore(tensors, facts)
    distill(again, real, config, Memory())
    assert again.precision == "bf16" and torch.equal(again.images, state.images)


def test_a_warm_up_in_bf16_sees_the_weights_of_each_step() -> None:
    config = tiny.config(precision="bf16", pool={"size": 1, "max_age": 40})
    state, real = make(config)
    memory = Memory()
    distill(state, real, config, memory)
    warm, facts = memory.saved[0]
    age = facts["slots"][0]["age"]
    assert 1 < age < 40
    twin, _ = make(config)
    for _ in range(age):
        with torch.autocast("cpu", dtype=torch.bfloat16):  # a context for each step, so that nothing can be kept
            twin.pool.advance(twin.pool.slots[0], twin.images, twin.representations)
    assert torch.equal(warm["pool.0.student.0.weight"], twin.pool.slots[0].student[0].weight)


def test_a_batch_of_one_real_image_and_a_set_of_two_run() -> None:
    config = tiny.config(steps=3, batch_size=1, num_images=2)
    state, real = make(config)
    distill(state, real, config, Memory())
    assert torch.isfinite(state.images).all()


def test_each_time_that_a_penalty_had_to_grow_is_counted() -> None:
    # images that are all alike, and a penalty that rounding swamps in float32
    source = open_source(tiny.images(1).repeat(60, 1, 1, 1))
    jitters = {}
    for dtype in ("float32", "float64"):
        config = tiny.config(steps=3, ridge={"strength": 1e-9, "dtype": dtype})
        state, real = make(config, source=source)
        distill(state, real, config, Memory())
        jitters[dtype] = state.jitters
    assert jitters["float32"] >= 3 and jitters["float64"] == 0, jitters


def test_the_loss_is_read_before_the_optimizer_has_work_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.config(steps=1)
    state, real = make(config)
    order: list[str] = []

    class Loss(Tensor):
        def __float__(self) -> float:
            order.append("loss")
            return 0.0

    def watched(*args: Any, **kwargs: Any) -> OuterGradient:
        return replace(outer_gradient(*args, **kwargs), loss=torch.zeros(()).as_subclass(Loss))

    monkeypatch.setattr(distilling, "outer_gradient", watched)
    monkeypatch.setattr(state.optimizer, "step", lambda: order.append("step"))
    distill(state, real, config, Memory())
    assert order == ["loss", "step"]


class Full(nn.Module):
    """Has no memory for more than a few images at a time."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.inner, self.most = tiny.student(), most

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.most:
            raise torch.OutOfMemoryError(f"{len(images)} images")
        features: Tensor = self.inner(images)
        return features


def test_out_of_memory_halves_the_chunks_tells_it_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    config = tiny.config(chunk_size=None)

    def run(most: int) -> DistillState:
        source = open_source(tiny.images())
        real = RealImages.of_target(source, as_target(tiny.encoder()), config, torch.device("cpu"))
        state = DistillState.start(real, [("full", lambda: Full(most))], config)
        distill(state, real, config, Memory())
        return state

    whole = run(1000)
    assert whole.pool.chunk_size is None and not caplog.messages
    state = run(6)
    assert state.step == config.steps and state.pool.chunk_size is not None and state.pool.chunk_size <= 6
    assert "Out of memory at step 1: from now on, students are given" in caplog.text
    with pytest.raises(torch.OutOfMemoryError):
        run(1)


def test_a_step_that_fails_after_it_was_taken_is_not_taken_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.config(outer={"grain": 2})
    state, real = make(config)

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(distilling, "smooth_step_", full)
    with pytest.raises(torch.OutOfMemoryError):
        distill(state, real, config, Memory())
    assert state.step == 0


def test_students_at_rest_hold_no_gradients() -> None:
    config = tiny.config()
    state, real = make(config)
    distill(state, real, config, Memory())
    parameters = [p for slot in state.pool.slots for part in (slot.student, slot.head) for p in part.parameters()]
    assert parameters and all(parameter.grad is None for parameter in parameters)
