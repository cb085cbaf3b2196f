"""On the pretended device: no step waits for it, and nothing that is not as it should be goes further than on a CPU."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pretended
import tiny
from lightly_distill.data.source import open_source
from lightly_distill.errors import DistillError
from lightly_distill.method import watch
from lightly_distill.method.config import DistillConfig
from lightly_distill.method.distill import distill
from lightly_distill.method.real_images import RealImages
from lightly_distill.method.state import DistillState
from lightly_distill.method.step import RealBatch
from lightly_distill.models.targets import as_target


class Memory:
    """Keeps rows and the steps of checkpoints, whose numbers must be finite."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.saved: list[int] = []

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def checkpoint(self, state: DistillState) -> None:
        assert all(value.cpu().isfinite().all() for value in state.tensors().values()), state.step
        self.saved.append(state.step)

    def leave(self, state: DistillState, number: int) -> None:
        raise AssertionError


def make(
    config: DistillConfig,
    encoder: nn.Module | None = None,
    student: Callable[[], nn.Module] = tiny.student,
    images: Tensor | None = None,
) -> tuple[DistillState, RealImages]:
    device = torch.device(config.device)
    target = as_target(encoder or tiny.encoder()).to(device)
    real = RealImages.of_target(open_source(tiny.images() if images is None else images), target, config, device)
    return DistillState.start(real, [("tiny", student)], config), real


def each_step(state: DistillState, act: Callable[[int], None]) -> None:
    """Calls a function with the number of steps done before each step."""
    draw = state.pool.draw

    def drawn(step: int) -> Any:
        act(step)
        return draw(step)

    state.pool.draw = drawn  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("options", "resident"),
    [
        ({"source_views": 0}, True),
        ({"source_views": "random", "target_map": 2, "map_dims": 3}, False),
        ({"source_views": 2, "target_map": 2, "map_dims": 3, "eight_bits": True, "outer": {"grain": 2}}, False),
        ({"source_views": "random", "target_dims": 3, "pool": {"mixup": True, "crop_and_flip": True}}, True),
        ({"chunk_size": 4, "ridge": {"dtype": "float64"}, "num_images": 40}, False),
        ({"pool": {"max_age": 12}}, True),  # students are replaced
    ],
)
def test_twenty_steps_between_two_rows_wait_for_nothing(options: dict[str, Any], resident: bool) -> None:
    # steps 22 to 41: the run measures a tenth at a time, and most students live longer than that
    options = {**options, "pool": {"max_age": 60, **options.get("pool", {})}}
    config = tiny.config(steps=210, log_every=1000, checkpoint_every=1000, device="cuda", **options)
    with pretended.cuda() as seen:
        seen.memory.free = 2**30 if resident else 0
        state, real = make(config)
        assert (real.resident is not None) == resident
        state.initial = {"heldout_loss": None}  # without the warm-up
        found = []

        def act(step: int) -> None:
            if step == 21:
                seen.clear()
            if step == 41:
                found.extend((dict(seen.waits), dict(seen.uploads), seen.launches.total()))
                raise KeyboardInterrupt

        each_step(state, act)
        with pytest.raises(KeyboardInterrupt):
            distill(state, real, config, Memory())
    assert found[:2] == [{}, {}] and found[2] > 20 * 50


def test_the_next_batch_is_made_before_a_step_reads_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.config(steps=3, log_every=3, device="cuda", holdout=0)
    order: list[str] = []
    own_read = watch.Sent.read
    with pretended.cuda():
        state, real = make(config)
        state.initial = {"heldout_loss": None}
        own_batches = real.batches

        def batches(*args: Any, **kwargs: Any) -> Iterator[RealBatch]:
            for batch in own_batches(*args, **kwargs):
                order.append("batch")
                yield batch

        def read(sent: watch.Sent) -> list[float]:
            order.append("read")
            return own_read(sent)

        monkeypatch.setattr(real, "batches", batches)
        monkeypatch.setattr(watch.Sent, "read", read)
        distill(state, real, config, Memory())
    assert order[:3] == ["batch", "batch", "read"] and order.count("batch") == 3


@pytest.mark.parametrize("views", [0, "random"])
def test_losses_and_set_are_those_of_the_cpu(views: int | str) -> None:
    found = []
    for device in ("cpu", "cuda"):
        with pretended.cuda():
            config = tiny.config(steps=12, log_every=3, device=device, source_views=views)
            state, real = make(config)
            memory = Memory()
            distill(state, real, config, memory)
            numbers = {name: value.detach().cpu() for name, value in state.tensors().items()}
            found.append((numbers, [row.get("loss", 0) for row in memory.rows], memory.saved))
    (ours, losses, saved), (theirs, expected, also) = found
    assert saved == also == [0, 4, 8, 12] and losses == pytest.approx(expected, rel=1e-4)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)


def _bad_weights(state: DistillState) -> None:
    for slot in state.pool.slots:
        next(slot.student.parameters()).data.mul_(float("nan"))


def _bad_head(state: DistillState) -> None:
    for slot in state.pool.slots:
        next(slot.head.parameters()).data.mul_(float("nan"))


def _bad_images(state: DistillState) -> None:
    state.images.data[3].mul_(float("inf"))


@pytest.mark.parametrize("checkpoint_every", [5, 26])  # the bad step is in the middle, or a checkpoint is due after it
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            _bad_weights,
            r"Stopped before the update of step 26, student \d \(tiny, age \d+\): NaN .* of the real images; ",
        ),
        (_bad_images, r"Stopped before the update of step 26, student \d \(tiny, age \d+\): NaN .* synthetic images; "),
        (_bad_head, r"Student \d \(tiny\) diverged at training step \d+ on the synthetic set \(loss nan\)"),
    ],
)
def test_what_is_not_finite_is_named_and_not_kept(
    spoil: Callable[[DistillState], None], message: str, checkpoint_every: int
) -> None:
    config = tiny.config(
        steps=210, log_every=1000, checkpoint_every=checkpoint_every, device="cuda", pool={"max_age": 60}
    )
    with pretended.cuda():
        state, real = make(config)
        state.initial = {"heldout_loss": None}
        memory = Memory()
        each_step(state, lambda step: spoil(state) if step == 25 else None)
        with pytest.raises(DistillError, match=message):
            distill(state, real, config, memory)
        assert state.step <= 27
    assert memory.saved == list(range(5, 26, 5) if checkpoint_every == 5 else [])
    assert [row["step"] for row in memory.rows] == [21]


class Breaking(nn.Module):
    """An encoder that returns NaN once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.broken = tiny.encoder(), False

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.inner(images)
        return found * float("nan") if self.broken else found


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_target_that_breaks_in_the_run_is_named_and_nothing_of_it_is_kept(device: str) -> None:
    config = tiny.config(
        steps=210, log_every=1000, checkpoint_every=26, source_views="random", device=device, pool={"max_age": 60}
    )
    with pretended.cuda():
        state, real = make(config, Breaking())
        state.initial = {"heldout_loss": None}
        encoder = real.truth._target.encoder  # type: ignore[attr-defined]
        memory = Memory()
        # on the device the batch of step 26 is made in step 25
        each_step(state, lambda step: setattr(encoder, "broken", step >= 24))
        message = {
            "cpu": r"The target Breaking, given images of shape .*, returned NaN or infinity",
            "cuda": r"Stopped at step 26, student \d \(tiny, age \d+\): NaN or infinity in the target's .* images\.$",
        }
        with pytest.raises(DistillError, match=message[device]):
            distill(state, real, config, memory)
    assert memory.saved == [] and [row["step"] for row in memory.rows] == [21]


def test_a_solve_that_needs_a_larger_penalty_gives_what_the_cpu_gives() -> None:
    alike = tiny.images(1).repeat(60, 1, 1, 1)  # and a penalty that rounding swamps
    found = []
    for device in ("cpu", "cuda"):
        with pretended.cuda():
            config = tiny.config(steps=3, ridge={"strength": 1e-9}, device=device)
            state, real = make(config, images=alike)
            memory = Memory()
            distill(state, real, config, memory)
            found.append((state.jitters, [row.get("loss", 0) for row in memory.rows], state.images.detach().cpu()))
    assert found[0][0] == found[1][0] >= 3
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-3)
    # on average: of images that are all alike some gradients are next to nothing, and AdamW steps by their sign
    assert (found[1][2] - found[0][2]).abs().mean() < 1e-3


class Full(nn.Module):
    """Has no memory for more than a few images at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny.student()

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > 6:
            raise torch.OutOfMemoryError(f"{len(images)} images")
        features: Tensor = self.inner(images)
        return features


def test_out_of_memory_halves_the_chunks_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    config = tiny.config(chunk_size=None, device="cuda")
    with pretended.cuda():
        state, real = make(config, student=Full)
        memory = Memory()
        distill(state, real, config, memory)
    assert state.step == config.steps and 2 <= (state.pool.chunk_size or 0) <= 6
    assert "Out of memory at step 1: from now on, students are given" in caplog.text
    assert memory.saved == [0, 4, 8, 12] and len(memory.rows) == 13


def test_seconds_a_step_are_measured_with_the_device_at_rest() -> None:
    rests = []
    with pretended.cuda() as seen:

        class Clocked(Memory):
            def log(self, row: dict[str, Any]) -> None:
                rests.append("seconds_per_step" in row and any("synchronize" in wait for wait in seen.waits))
                seen.clear()

        config = tiny.config(steps=6, log_every=2, device="cuda", holdout=0)
        state, real = make(config)
        distill(state, real, config, Clocked())
    assert rests[1:] and all(rests[1:])
