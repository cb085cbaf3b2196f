"""What a run does on a device, on each device that there is: the CPU's part runs everywhere, CUDA's is marked `gpu`.

Tolerances are fractions of the norm: rounding of float32 on a CPU; on a GPU convolutions are in TF32 by default, which,
tried on a CPU, puts the gradient of the images off by 0.012.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import reference
import tiny
from lightly_distill import DistillationStage, SyntheticSet, as_target, pretrain
from lightly_distill.data.source import open_source
from lightly_distill.evaluation.baselines.arms import BASELINES
from lightly_distill.evaluation.evaluate import evaluate
from lightly_distill.evaluation.probes import PROBES
from lightly_distill.method.config import DistillConfig, PoolConfig
from lightly_distill.method.distill import distill
from lightly_distill.method.pool import StudentPool
from lightly_distill.method.real_images import RealImages
from lightly_distill.method.state import DistillState
from lightly_distill.method.step import RealBatch, outer_gradient
from lightly_distill.models.rows import Layout
from lightly_distill.runs import checkpoint
from lightly_distill.runs.origin import RealSide
from lightly_distill.runtime.seeding import generator, global_seed
from lightly_distill.runtime.usage import measured
from lightly_distill.sharing.near_copies import find_near_copies

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
CLOSE = {"cpu": 1e-4, "cuda": 3e-2}
OPTIONS: dict[str, Any] = {
    **tiny.QUICK, "student": "convnet_8_8", "num_images": 10, "steps": 6, "log_every": 1, "target_size": tiny.SIZE
}  # fmt: skip
QUICK: dict[str, Any] = {"labels": (12,), "seeds": 1, "steps": 3, "full_epochs": 1, "finetune_steps": 3}

each_device = pytest.mark.parametrize("device", ["cpu", CUDA])


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Photos, where there are any: the first of CIFAR-10, in so few pixels as the rest here has."""
    if folder := os.environ.get("LIGHTLY_DISTILL_DATA"):
        source = open_source(f"{folder}/cifar10#test", image_size=tiny.SIZE)
        return source.read(torch.arange(200))
    return tiny.images(200)


@pytest.fixture(scope="module")
def synthetic(images: Tensor) -> SyntheticSet:
    return DistillationStage(tiny.encoder(), **OPTIONS).run(images)


def close(ours: Tensor, truth: Tensor, device: str) -> None:
    ours, truth = ours.detach().cpu().double(), truth.detach().cpu().double()
    assert ours.shape == truth.shape
    far = float((ours - truth).norm() / truth.norm())
    assert far <= CLOSE[device], f"{far:.2g} of the norm"


def problem(dtype: torch.dtype, device: str, m: int = 20) -> tuple[nn.Module, Tensor, Tensor, RealBatch]:
    """A student with statistics, a set and a real batch."""
    g = generator(0, "devices")
    syn, real = (torch.randn(n, 3, 8, 8, generator=g) for n in (m, 40))
    reps, truth = (torch.randn(n, 5, generator=g) for n in (m, 40))
    with global_seed(0, "student"):
        student = tiny.student()
    student.train()(torch.randn(20, 3, 8, 8, generator=g) * 2 + 1)
    batch = RealBatch(*(each.to(device, dtype) for each in (real, truth)))
    syn, reps = (each.to(device, dtype).requires_grad_() for each in (syn, reps))
    return student.to(device, dtype), syn, reps, batch


@each_device
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_loss_and_gradient_are_those_of_the_plain_reference(device: str, chunk_size: int | None) -> None:
    student, syn, reps, real = problem(torch.float64, "cpu")
    loss = reference.outer_loss(student, syn, reps, real.images, real.representations)
    truth = torch.autograd.grad(loss, [syn, reps])
    student, syn, reps, real = problem(torch.float32, device)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    ours = outer_gradient(student, syn, reps, real, chunk_size=chunk_size)
    close(ours.loss, loss, device)
    close(ours.images, truth[0], device)
    close(ours.representations, truth[1], device)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


@pytest.mark.gpu
def test_chunks_take_less_memory() -> None:
    student, syn, reps, real = problem(torch.float32, "cuda", m=4000)
    taken = []
    for chunk_size in (None, 200):
        with measured(torch.device("cuda")) as cost:
            outer_gradient(student, syn, reps, real, chunk_size=chunk_size)
        taken.append(cost.bytes)
    assert taken[1] < 0.7 * taken[0]


@each_device
def test_training_steps_of_the_pool_are_those_of_the_plain_reference(device: str) -> None:
    _, syn, reps, _ = problem(torch.float32, device)
    config = PoolConfig(size=1, max_age=9, **tiny.PLAIN_POOL)
    pool = StudentPool([("tiny", tiny.student)], config, syn, Layout(5), seed=0)
    slot = pool.slots[0]
    model, head = tiny.student(), nn.Linear(32, 5)
    model.load_state_dict(slot.student.state_dict())
    head.load_state_dict(slot.head.vector.state_dict())
    twin = reference.new_student(lambda: (model, head))
    for _ in range(3):
        pool.advance(slot, syn, reps)
        reference.train_student(twin, syn.detach().cpu().double(), reps.detach().cpu().double())
    assert slot.age == 3
    for part, plain in ((slot.student, twin.model), (slot.head.vector, twin.head)):
        for name, value in plain.state_dict().items():
            close(part.state_dict()[name], value, device)


def state_of(config: DistillConfig, images: Tensor, device: str) -> tuple[DistillState, RealImages]:
    real = RealImages.of_target(open_source(images), as_target(tiny.encoder()), config, torch.device(device))
    return DistillState.start(real, [("tiny", tiny.student)], config), real


@each_device
@pytest.mark.parametrize("views", [0, 2, "random"])
def test_real_batches_are_the_same_and_lie_on_the_device(device: str, views: int | str, images: Tensor) -> None:
    config = tiny.config(source_views=views)
    _, there = state_of(config, images, device)
    _, here = state_of(config, images, "cpu")
    assert (there.resident is not None) == (device == "cuda")
    for ours, truth in zip(there.batches(0, 5), here.batches(0, 5), strict=True):
        assert ours.images.device.type == ours.representations.device.type == device
        close(ours.images, truth.images, device)
        close(ours.representations, truth.representations, device)


class Broken(RuntimeError):
    """A program that ends in the middle."""


def run(images: Tensor, out: Path | None = None, stop: int = -1, **options: Any) -> tuple[SyntheticSet, list[float]]:
    """Returns the set and the losses of the rows; with `stop`, the program ends there, and the run is resumed."""
    losses: dict[int, float] = {}

    def log(row: dict[str, Any]) -> None:
        losses[row["step"]] = row.get("loss", row["heldout_loss"])
        if row["step"] == stop and not losses.get(-1):
            losses[-1] = 1.0
            raise Broken

    def session(resume: bool) -> SyntheticSet:
        stage = DistillationStage(tiny.encoder(), **{**OPTIONS, "checkpoint_every": 1, **options})
        return stage.run(images, out=out, resume=resume, log=tiny.EachRow(log))

    if stop < 0:
        made = session(resume=False)
    else:
        with pytest.raises(Broken):
            session(resume=False)
        made = session(resume=True)
    return made, [losses[step] for step in range(OPTIONS["steps"] + 1)]


@each_device
def test_a_short_run_is_that_of_the_cpu_and_one_that_is_resumed_too(
    device: str, images: Tensor, tmp_path: Path
) -> None:
    plain: dict[str, Any] = {
        "eight_bits": False,
        "image_quality": None,
        "target_bits": 8,
    }  # a rounded number may go either way
    truth, losses = run(images, **plain)
    whole, ours = run(images, tmp_path / "whole", device=device, **plain)
    close(torch.tensor(ours), torch.tensor(losses), device)
    resumed, again = run(images, tmp_path / "resumed", stop=4, device=device, **plain)
    close(torch.tensor(again), torch.tensor(ours), device)
    # AdamW's first steps go by a gradient's sign, which may be either where it is next to none: not every pixel
    far = [(made.images - truth.images).abs() > CLOSE[device] for made in (whole, resumed)]
    assert all(each.float().mean() < 0.02 for each in far)
    if device == "cpu":  # on a GPU with deterministic algorithms: see method/test_distill.py
        assert torch.equal(resumed.images, whole.images)
        assert torch.equal(resumed.representations, whole.representations)


@each_device
def test_mixed_precision_stays_near_to_float32(device: str, images: Tensor) -> None:
    _, exact = run(images, device=device)
    _, rounded = run(images, device=device, precision="bf16")
    assert exact != rounded
    assert all(math.isclose(a, b, rel_tol=0.1) for a, b in zip(exact, rounded, strict=True))


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), CUDA])
def test_a_compiled_run_stays_near_to_one_that_is_not(device: str, images: Tensor) -> None:
    _, plain = run(images, device=device)
    _, compiled = run(images, device=device, compile=True)
    close(torch.tensor(compiled), torch.tensor(plain), device)


@each_device
def test_a_student_is_pretrained_as_on_the_cpu(device: str, synthetic: SyntheticSet) -> None:
    shown = synthetic.images
    ours, truth = (
        pretrain("convnet_8_8", synthetic, steps=4, batch_size=5, device=each, verbose=False).cpu()(shown)
        for each in (device, "cpu")
    )
    close(ours, truth, device)


def accuracies(synthetic: SyntheticSet, images: Tensor, device: str, arm: str, probe: str) -> dict[str, list[float]]:
    labels = torch.arange(len(images)) % 3
    task = TensorDataset(images[:30], labels[:30]), TensorDataset(images[30:60], labels[30:60])
    data = TensorDataset(images, labels)
    (result,) = evaluate(
        synthetic, "convnet_8_8", [task], data=data, target=tiny.encoder(), baselines=[arm] if arm else [],
        probes=[probe], device=device, **QUICK
    )  # fmt: skip
    return {name: values for arm in result.arms.values() for name, values in arm.values.items()}


@each_device
@pytest.mark.parametrize("probe", PROBES)
def test_each_probe_measures_on_the_device(device: str, probe: str, synthetic: SyntheticSet, images: Tensor) -> None:
    measures = accuracies(synthetic, images, device, "", probe)
    assert list(measures) == [f"TensorDataset/{probe}@12"]
    ((accuracy,),) = measures.values()
    assert 0 <= accuracy <= 1 and (accuracy * 30) % 1 == pytest.approx(0, abs=1e-6)


@each_device
@pytest.mark.parametrize("arm", BASELINES)
@pytest.mark.slow
def test_each_arm_is_made_on_the_device(device: str, arm: str, synthetic: SyntheticSet, images: Tensor) -> None:
    ((accuracy,),) = accuracies(synthetic, images, device, arm, "knn").values()
    assert 0 <= accuracy <= 1


@each_device
def test_near_copies_are_those_that_the_cpu_finds(device: str, synthetic: SyntheticSet, images: Tensor) -> None:
    found, truth = (
        find_near_copies(
            synthetic, RealSide(open_source(images), as_target(tiny.encoder()).to(each), torch.device(each))
        )
        for each in (device, "cpu")
    )
    assert torch.equal(found.near.cpu(), truth.near.cpu())
    close(found.pixels.synthetic, truth.pixels.synthetic, device)


@each_device
def test_a_checkpoint_goes_to_the_cpu_and_back(device: str, images: Tensor, tmp_path: Path) -> None:
    config = tiny.config(steps=4)
    there, real = state_of(config, images, device)
    distill(there, real, config, Kept())
    checkpoint.save(tmp_path / "there", checkpoint.snapshot(there.step, there.tensors(), there.facts()))
    here, _ = state_of(config, images, "cpu")
    here.restore(*checkpoint.load_newest(tmp_path / "there"))
    checkpoint.save(tmp_path / "here", checkpoint.snapshot(here.step, here.tensors(), here.facts()))
    again, _ = state_of(config, images, device)
    again.restore(*checkpoint.load_newest(tmp_path / "here"))
    for name, value in there.tensors().items():
        other = again.tensors()[name]
        assert torch.equal(other, value) and other.device == value.device, name
    assert again.facts() == there.facts()


class Kept:
    """A recorder that keeps nothing."""

    def log(self, row: dict[str, Any]) -> None:
        pass

    def checkpoint(self, state: DistillState) -> None:
        pass

    def leave(self, state: DistillState, number: int) -> None:
        raise AssertionError(number)


@pytest.mark.gpu
@pytest.mark.parametrize("views", [0, "random"])
def test_steps_between_two_rows_do_not_wait_for_the_device(
    views: int | str, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.config(steps=100, log_every=100, checkpoint_every=None, source_views=views)  # a row every 10 steps
    state, real = state_of(config, images, "cuda")
    whole = real.batches

    def batches(*args: Any, **named: Any) -> Iterator[RealBatch]:
        for number, batch in enumerate(whole(*args, **named)):
            # from the third step after a row to the last but one before the next
            torch.cuda.set_sync_debug_mode("error" if 12 <= number < 18 else "default")
            yield batch

    monkeypatch.setattr(real, "batches", batches)
    try:
        distill(state, real, config, Kept())
    finally:
        torch.cuda.set_sync_debug_mode("default")
