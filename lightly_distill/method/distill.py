"""The method, top to bottom: KRR-ST, Algorithm 1 (Lee et al., ICLR 2024, arXiv:2310.06511)."""

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from statistics import fmean, median
from typing import Any, NoReturn, Protocol, TypeVar

import torch

from lightly_distill.errors import DistillError
from lightly_distill.method.cadence import Cadence, measures
from lightly_distill.method.config import DistillConfig
from lightly_distill.method.forecast import Forecast
from lightly_distill.method.grain import smooth_step_
from lightly_distill.method.objective import Objective
from lightly_distill.method.pool import Slot
from lightly_distill.method.real_images import Ahead, RealImages
from lightly_distill.method.state import DistillState
from lightly_distill.method.step import (
    OuterGradient,
    RealBatch,
    features,
    kernel_pass,
    outer_gradient,
    require_finite,
    require_finite_sums,
)
from lightly_distill.models.recipe import gains_from_bf16
from lightly_distill.runtime.progress import Progress
from lightly_distill.runtime.signals import EndOnSignal

T = TypeVar("T")

SAME = 1e-3  # of the outer loss: so much it may change by bfloat16

_logger = logging.getLogger(__name__)


class Recorder(Protocol):
    """Where a run leaves its traces; see `runs/run_folder.py`."""

    def log(self, row: dict[str, Any]) -> None:
        """Takes one row of measurements."""
        ...

    def checkpoint(self, state: "DistillState") -> None:
        """Takes the state after a step."""
        ...

    def leave(self, state: "DistillState", number: int) -> NoReturn:
        """Ends the program as a signal asks; `checkpoint` has been given the state, if the pool was warmed up."""
        ...


def distill(state: DistillState, real: RealImages, config: DistillConfig, recorder: Recorder) -> None:
    """Runs the outer loop from where `state` stands to `config.steps`, changing `state` in place.

    Args:
        state: From `DistillState.start`, or restored from a checkpoint.
        real: Real batches.
        config: All settings.
        recorder: Receives measurements and checkpoints.

    Raises:
        DistillError: If a loss, gradient or student is not finite, naming step and student; before the update, and on
            CUDA, where no step waits for a look, before anything of it is kept.
        KeyboardInterrupt, SystemExit: After a signal, with the step in hand done and its state given to `recorder`;
            during the warm-up at once.
    """
    if not config.steps:  # a selection of real images: there is nothing to learn
        return
    held_out = real.held_out()
    # a resumed run keeps the chunks that it began with: in others, batch norm is trained otherwise
    chunk_size = state.pool.chunk_size if state.initial else config.chunk_size
    if not state.initial and config.precision == "auto":
        _settle_precision(state, held_out or real.plain(real.split.train[: config.batch_size]), config)
    forecast = _forecast(state, real, held_out, config, chunk_size)
    if state.step == config.steps:
        _logger.info("All %s steps were done before.", f"{config.steps:,}")
    else:
        forecast.tell_memory(state.pool.chunk_size)
    if not state.initial:  # not a resumed run
        _warm_up(state, held_out, config, recorder, forecast)
    elif state.step < config.steps:
        forecast.tell_time()

    shown, note = state.team.all.main, ""
    progress = Progress("Distilling", config.steps, "step", done=state.step, shown=shown)
    with Cadence(config, state.team.all, state.step) as cadence, progress:
        batches = Ahead(real.batches(state.step, config.steps, team=state.team))
        for batch in batches:
            slot = state.pool.draw(state.step)
            with _precision(state):
                _outer_step(state, slot, batch, config, batches)
                _in_memory(state, batch, partial(state.pool.advance, slot, *state.learned()))
            state.step += 1

            if cadence.logs(state.step):
                state.pool.watch.settle()
                loss = fmean(chain(*state.team.split.gather(state.losses)))
                seconds = cadence.seconds_per_step(state.step)
                row: dict[str, Any] = {"step": state.step, "loss": loss, "seconds_per_step": seconds}
                if cadence.measures(state.step):
                    row |= held_out_loss(state, held_out, config)
                recorder.log(row)
                note = f"loss {loss:.4g}"
                state.losses = []
                cadence.logged(state.step)
            progress.add(note=note)
            # after the measurement, which fails on a student that is not finite: such a state is not kept
            if cadence.saves(state.step):
                state.pool.watch.settle()
                recorder.checkpoint(state)
                cadence.saved()
            if cadence.stop is not None:
                break
    if cadence.stop is not None:
        recorder.leave(state, cadence.stop)


def _forecast(
    state: DistillState,
    real: RealImages,
    held_out: RealBatch | None,
    config: DistillConfig,
    chunk_size: int | str | None,
) -> Forecast:
    """Has the chunks decided, and returns what is to come."""
    with _precision(state):  # in which the students will work
        plan = state.pool.fit_memory(state.images, real.batch_size, chunk_size)
    looks = sum(measures(step, config.steps) for step in range(state.step + 1, config.steps + 1))
    looks += not state.initial
    seen = 0 if held_out is None else len(held_out.images) + len(state.images)
    return Forecast(plan, config.steps - state.step, looks * seen * len(state.pool.slots) // state.team.divide.count)


def _in_memory(state: DistillState, batch: RealBatch, work: Callable[[], T]) -> T:
    """Does a part of a step, in smaller chunks where the device has no memory for larger ones.

    What fails must have changed nothing but running statistics of batch norm. Several processes, which would have to
    agree, end.
    """
    while True:
        try:
            return work()
        except torch.OutOfMemoryError:
            now = state.pool.chunk_size or max(len(state.images), len(batch.images))
            if state.team.all.count > 1 or now <= 2:
                raise
            state.pool.chunk_size = max(2, now // 2)
        gc.collect()
        if state.images.device.type == "cuda":
            torch.cuda.empty_cache()
        _logger.warning(
            "Out of memory at step %d: from now on, students are given %d images at a time (--chunk-size).",
            state.step + 1,
            state.pool.chunk_size,
        )


def _warm_up(
    state: DistillState, held_out: RealBatch | None, config: DistillConfig, recorder: Recorder, forecast: Forecast
) -> None:
    """Trains the pool to staggered ages, and measures and saves what the first step starts from."""
    with _precision(state), EndOnSignal(partial(recorder.leave, state)):
        first = RealBatch(state.images[:0], state.representations[:0])
        _in_memory(state, first, partial(state.pool.warm_up, *state.learned(), tell=forecast.tell_time))
    state.initial = held_out_loss(state, held_out, config)
    try:
        recorder.log({"step": 0, **state.initial})
    finally:  # a user's function or a tracker that fails on its first row does not cost the warm-up
        recorder.checkpoint(state)


def _outer_step(state: DistillState, slot: Slot, batch: RealBatch, config: DistillConfig, batches: Ahead) -> None:
    """Steps X_s and Y_s down the gradient of the outer loss of one student, and adds the loss to the state's."""
    gradient = _gradient(state, slot, batch, config, late=state.pool.watch.late)
    if gradient.unsolved is not None:
        batches.prepare()  # while the device is busy, before a number of it is read
        if gradient.unsolved.read() != [0]:
            state.pool.watch.settle()  # what went wrong before is the reason, where something did
            gradient = _gradient(state, slot, batch, config, late=False)
    _look(state, slot, gradient)
    gradients = state.team.split.mean(gradient.images, gradient.representations)
    # in the layout of what they change, which convolutions do not keep: a fused optimizer refuses others
    state.images.grad, state.representations.grad = (each.contiguous() for each in gradients)
    decay = 1 - (1 - config.outer.final_lr) * state.step / config.steps
    rates = (config.outer.lr_images, config.outer.lr_representations)
    for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * decay
    before = state.images.detach().clone() if config.outer.grain > 1 else None
    state.optimizer.step()
    if before is not None:
        smooth_step_(state.images, before, config.outer.grain)
    if state.rounding is not None:
        state.rounding.clamp_(state.images, state.representations)
    state.jitters += gradient.jitters


def _look(state: DistillState, slot: Slot, gradient: OuterGradient) -> None:
    """Adds the loss of a step to the state's; where nobody has looked yet, after the look that refuses a NaN."""
    if not state.pool.watch.late:
        state.losses.append(float(gradient.loss))  # here, where the check for NaN has just waited for the device
        return
    step, drawn, names = state.step + 1, replace(slot), list(gradient.finite)  # as they are now

    def judge(numbers: list[float]) -> None:
        with _named(f"Stopped at step {step}", drawn):
            require_finite_sums(names, numbers[1:])
        state.losses.append(numbers[0])

    state.pool.watch.look(torch.stack([gradient.loss, *gradient.finite.values()]), judge)


def _gradient(state: DistillState, slot: Slot, batch: RealBatch, config: DistillConfig, *, late: bool) -> OuterGradient:
    """Computes the gradient of a step, and changes nothing."""
    compute = partial(outer_gradient, slot.student, *state.learned(), batch, objective=_objective(state, slot, config))
    with _named(f"Stopped before the update of step {state.step + 1}", slot):
        return _in_memory(
            state,
            batch,
            lambda: compute(chunk_size=state.pool.chunk_size, processes=state.team.divide, late=late),
        )


def _objective(state: DistillState, slot: Slot, config: DistillConfig) -> Objective:
    ridge = config.ridge
    return Objective(ridge.strength, ridge.map_strength, getattr(torch, ridge.dtype), slot.features, state.targets)


def held_out_loss(state: DistillState, held_out: RealBatch | None, config: DistillConfig) -> dict[str, Any]:
    """Measures the outer loss on real images that no step has seen.

    Returns:
        `heldout_loss`, the median over the students of the pool, None without held-out images; in a pool of several
        architectures also `heldout_loss_by_student`, the median over the students of each, by name. A student that has
        just been replaced has learned nothing yet and a loss several times that of the others: it ruled a mean.
    """
    if held_out is None:
        return {"heldout_loss": None}
    team = state.team
    # of students that all processes hold, each measures some
    mine = [slot for slot in state.pool.slots if slot.index % team.divide.count == team.divide.index]
    own = [(slot.index, slot.name, _held_out_loss_of(slot, state, held_out, config)) for slot in mine]
    by_student: dict[str, list[float]] = {}
    for _, name, loss in sorted(chain(*team.all.gather(own))):
        by_student.setdefault(name, []).append(loss)
    measured: dict[str, Any] = {"heldout_loss": median(chain(*by_student.values()))}
    if len(by_student) > 1:
        measured["heldout_loss_by_student"] = {name: median(losses) for name, losses in by_student.items()}
    return measured


def _held_out_loss_of(slot: Slot, state: DistillState, held_out: RealBatch, config: DistillConfig) -> float:
    who = _named(f"Stopped at the measurement after step {state.step}", slot)
    with who, kernel_pass(slot.student), torch.no_grad(), _precision(state):
        images, representations = state.learned()
        real_BF = features(slot.student, held_out.images, state.pool.chunk_size)
        syn_MF = features(slot.student, images, state.pool.chunk_size)
        require_finite({"features of the held-out images": real_BF, "features of the synthetic images": syn_MF})
        objective = _objective(state, slot, config)
        return float(objective.loss(real_BF, syn_MF, representations, held_out.representations).value)


@contextmanager
def _named(when: str, slot: Slot) -> Iterator[None]:
    """Adds step and student to an error."""
    try:
        yield
    except DistillError as error:
        raise DistillError(f"{when}, student {slot.index} ({slot.name}, age {slot.age}): {error}") from error


def _settle_precision(state: DistillState, real: RealBatch, config: DistillConfig) -> None:
    """Takes bfloat16 if all architectures are quicker in it everywhere, and the outer loss of each stays what it is."""
    slots = {slot.name: slot for slot in state.pool.slots}.values()
    quicker = all(gains_from_bf16(slot.student, state.images.detach()) for slot in slots)
    if not all(state.team.all.gather(quicker)):
        return
    exact = [_held_out_loss_of(slot, state, real, config) for slot in slots]
    state.precision = "bf16"
    rough = [_held_out_loss_of(slot, state, real, config) for slot in slots]
    gap = max(state.team.all.gather(max(abs(b / a - 1) for a, b in zip(exact, rough, strict=True))))
    if not gap <= SAME:
        state.precision = "fp32"
    _logger.info(
        "Precision: %s, as the outer loss in bfloat16 differs by %.2g of itself (limit %g; --precision).",
        state.precision,
        gap,
        SAME,
    )


def _precision(state: DistillState) -> AbstractContextManager[None]:
    if state.precision != "bf16":  # not one that is off either: compiled code would be compiled anew for it
        return nullcontext()
    # without the cache: it would keep bf16 copies of weights that the warm-up changes under the same context
    return torch.autocast(state.images.device.type, dtype=torch.bfloat16, cache_enabled=False)
