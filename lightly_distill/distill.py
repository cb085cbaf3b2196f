"""The method, top to bottom: KRR-ST, Algorithm 1 (Lee et al., ICLR 2024, arXiv:2310.06511)."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from statistics import fmean
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from lightly_distill.config import DistillConfig
from lightly_distill.errors import DistillError
from lightly_distill.krr import kernel_ridge
from lightly_distill.pool import Slot, StudentBuilder, StudentPool
from lightly_distill.processes import ALONE, Processes, Team
from lightly_distill.real import RealImages
from lightly_distill.signals import StopOnSignal
from lightly_distill.step import RealBatch, features, kernel_pass, outer_gradient, require_finite

_logger = logging.getLogger(__name__)

MEASUREMENTS = 10  # of the held-out loss, over the whole run, besides the one at the start


class Recorder(Protocol):
    """Where a run leaves its traces; see `run_folder.py`."""

    def log(self, row: dict[str, Any]) -> None:
        """Takes one row of measurements."""
        ...

    def checkpoint(self, state: "DistillState") -> None:
        """Takes the state after a step."""
        ...

    def leave(self, state: "DistillState", number: int) -> NoReturn:
        """Ends the program as a signal asks; `checkpoint` has been given the state."""
        ...


@dataclass
class DistillState:
    """All that a run changes.

    Attributes:
        images: Synthetic images, shape (M, C, H, W), normalised. A leaf that requires grad.
        representations: Synthetic representations, shape (M, D). A leaf that requires grad.
        source_index: Index in the source of the real image that each started from, -1 where it was noise, shape (M,).
        pool: Online students.
        optimizer: AdamW over images and representations.
        team: The processes, and how they work together.
        step: Outer steps done.
        jitters: How often a ridge penalty had to grow.
        losses: Outer losses of the steps since the last row of measurements.
        initial: What `held_out_loss` returned before the first step; empty until then.
    """

    images: Tensor
    representations: Tensor
    source_index: Tensor
    pool: StudentPool
    optimizer: torch.optim.AdamW
    team: Team
    step: int = 0
    jitters: int = 0
    losses: list[float] = field(default_factory=list)
    initial: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        real: RealImages,
        students: Sequence[tuple[str, StudentBuilder]],
        config: DistillConfig,
        processes: Processes = ALONE,
    ) -> "DistillState":
        """Makes the initial state: images and representations as `config.init` says, an untrained pool."""
        team = Team.of(processes, config.parallel)
        index, batch = real.initial(config.num_images)
        images, representations = batch.images.clone(), batch.representations.clone()
        processes.copy_from_main(images, representations)  # on a GPU, computed twice they need not be the same
        images, representations = images.requires_grad_(), representations.requires_grad_()
        pool = StudentPool(
            students, config.pool, images, representations.shape[1], config.seed, team, compile=config.compile
        )
        optimizer = torch.optim.AdamW([{"params": [images]}, {"params": [representations]}], weight_decay=0.0)
        return cls(images, representations, index, pool, optimizer, team)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors of the state by flat name."""
        tensors = self.pool.tensors()
        tensors |= {"images": self.images, "representations": self.representations, "source_index": self.source_index}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adamw.{number}.{name}": value for name, value in moments.items()}
        return tensors

    def facts(self) -> dict[str, Any]:
        """Returns the numbers of the state, JSON-able."""
        losses = [fmean(each) for each in zip(*self.team.split.gather(self.losses), strict=True)]
        own = {"jitters": self.jitters, "losses": losses, "initial": self.initial, "slots": self.pool.counts()}
        return {**own, "chunk_size": self.pool.chunk_size}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Sets the state to what `tensors` and `facts` returned when it was saved, after `facts["step"]` steps.

        Raises:
            DistillError: If a part is missing or does not fit the others. The step is the random state of a run, since
                every draw follows from it and the seed (`seeding.py`), so it is checked against AdamW's own count.
        """
        try:
            with torch.no_grad():
                self.images.copy_(tensors["images"])
                self.representations.copy_(tensors["representations"])
            self.source_index = tensors["source_index"]
            moments = _moments(tensors) if facts["step"] or "adamw.0.step" in tensors else {}
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
            self.pool.restore(tensors, facts["slots"])
            self.step, self.jitters, self.initial = facts["step"], facts["jitters"], facts["initial"]
            self.losses = list(facts["losses"])
            self.pool.chunk_size = facts["chunk_size"]
            if any(int(own["step"]) != self.step for own in moments.values()):
                raise ValueError(f"it is of step {self.step}, AdamW in it of step {int(moments[0]['step'])}")
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            why = " ".join(str(error).split())
            why = f"it lacks {why}" if isinstance(error, KeyError) else why
            raise DistillError(
                f"The checkpoint does not hold the whole state of this run ({why}): start again with --overwrite."
            ) from error


def distill(state: DistillState, real: RealImages, config: DistillConfig, recorder: Recorder) -> None:
    """Runs the outer loop from where `state` stands to `config.steps`, changing `state` in place.

    Args:
        state: From `DistillState.start`, or restored from a checkpoint.
        real: Real batches.
        config: All settings.
        recorder: Receives measurements and checkpoints.

    Raises:
        DistillError: If a loss, gradient or student is not finite, naming step and student; before the update.
        KeyboardInterrupt, SystemExit: After a signal, with the step in hand done and its state given to `recorder`.
    """
    precision = _precision(config, state.images.device)
    held_out = real.held_out()
    real.free_target()
    # a resumed run keeps the chunks that it began with: in others, batch norm is trained otherwise
    chunk_size = state.pool.chunk_size if state.initial else config.chunk_size
    state.pool.fit_memory(state.images, real.batch_size, chunk_size, steps=config.steps - state.step)
    if not state.initial:  # not a resumed run
        with precision():
            state.pool.warm_up(state.images, state.representations)
        state.initial = held_out_loss(state, held_out, config)
        try:
            recorder.log({"step": 0, **state.initial})
        finally:  # a user's function or a tracker that fails on its first row does not cost the warm-up
            recorder.checkpoint(state)

    quiet = True if not state.team.all.main else None  # None: quiet without a terminal
    progress = tqdm(total=config.steps, initial=state.step, desc="Distilling", unit="step", disable=quiet)
    since = saved = time.perf_counter()
    timed = 0  # steps since `since`
    stop: int | None = None  # the signal that asked for it
    with StopOnSignal() as signalled:
        for batch in real.batches(state.step, config.steps, team=state.team):
            slot = state.pool.draw(state.step)
            with precision():
                state.losses.append(_outer_step(state, slot, batch, config))
                state.pool.advance(slot, state.images, state.representations)
            state.step += 1
            timed += 1
            progress.update()

            measure = state.step == config.steps or state.step % max(1, config.steps // MEASUREMENTS) == 0
            pause = measure or state.step % config.log_every == 0
            if pause:
                seconds, since, timed = (time.perf_counter() - since) / timed, time.perf_counter(), 0
                loss = fmean(chain(*state.team.split.gather(state.losses)))
                row: dict[str, Any] = {"step": state.step, "loss": loss, "seconds_per_step": seconds}
                if measure:
                    row |= held_out_loss(state, held_out, config)
                    since = time.perf_counter()
                recorder.log(row)
                progress.set_postfix(loss=f"{row['loss']:.4g}")
                if measure and progress.disable:  # no terminal: tell now and then instead
                    _logger.info("Step %d of %d: loss %.4g", state.step, config.steps, row["loss"])
                state.losses = []
            stop, due = signalled.received, (time.perf_counter() - saved) / 60 >= config.checkpoint_minutes
            if state.team.all.count > 1:  # clocks and signals differ; several processes agree when they pause
                stop, due = _agreed(state.team.all, stop, due) if pause else (None, False)
            due = due or state.step == config.steps or state.step % config.checkpoint_every == 0
            # after the measurement, which fails on a student that is not finite: such a state is not kept
            if stop is not None or due:
                recorder.checkpoint(state)
                saved = time.perf_counter()
            if stop is not None:
                break
    progress.close()
    if stop is not None:
        recorder.leave(state, stop)


def _agreed(processes: Processes, stop: int | None, due: bool) -> tuple[int | None, bool]:
    """Returns the signal that any process was sent, and whether the main process wants to save."""
    told = processes.gather((stop, due))
    return next((number for number, _ in told if number is not None), None), told[0][1]


def _moments(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Returns the state of AdamW over images (0) and representations (1); copies, since it steps them in place."""
    names = ("step", "exp_avg", "exp_avg_sq")
    return {number: {name: tensors[f"adamw.{number}.{name}"].clone() for name in names} for number in (0, 1)}


def _outer_step(state: DistillState, slot: Slot, batch: RealBatch, config: DistillConfig) -> float:
    """Steps X_s and Y_s down the gradient of the outer loss of one student; returns the loss."""
    with _named(f"Stopped before the update of step {state.step + 1}", slot):
        gradient = outer_gradient(
            slot.student,
            state.images,
            state.representations,
            batch,
            ridge=config.ridge.strength,
            dtype=getattr(torch, config.ridge.dtype),
            chunk_size=state.pool.chunk_size,
            processes=state.team.divide,
        )
    loss = float(gradient.loss)  # here, where the check for NaN has just waited for the device
    gradients = state.team.split.mean(gradient.images, gradient.representations)
    state.images.grad, state.representations.grad = gradients
    decay = 1 - (1 - config.outer.final_lr) * state.step / config.steps
    rates = (config.outer.lr_images, config.outer.lr_representations)
    for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * decay
    state.optimizer.step()
    state.jitters += gradient.jitters
    return loss


def held_out_loss(state: DistillState, held_out: RealBatch | None, config: DistillConfig) -> dict[str, Any]:
    """Measures the outer loss on real images that no step has seen.

    Returns:
        `heldout_loss`, the mean over the students of the pool, None without held-out images; in a pool of several
        architectures also `heldout_loss_by_student`, the mean over the students of each, by name.
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
    measured: dict[str, Any] = {"heldout_loss": fmean(chain(*by_student.values()))}
    if len(by_student) > 1:
        measured["heldout_loss_by_student"] = {name: fmean(losses) for name, losses in by_student.items()}
    return measured


def _held_out_loss_of(slot: Slot, state: DistillState, held_out: RealBatch, config: DistillConfig) -> float:
    who = _named(f"Stopped at the measurement after step {state.step}", slot)
    with who, kernel_pass(slot.student), torch.no_grad(), _precision(config, state.images.device)():
        real_BF = features(slot.student, held_out.images, state.pool.chunk_size)
        syn_MF = features(slot.student, state.images, state.pool.chunk_size)
        require_finite({"features of the held-out images": real_BF, "features of the synthetic images": syn_MF})
        prediction = kernel_ridge(
            real_BF,
            syn_MF,
            state.representations,
            ridge=config.ridge.strength,
            dtype=getattr(torch, config.ridge.dtype),
        )
        return float(F.mse_loss(prediction.values, held_out.representations.to(prediction.values.dtype)))


@contextmanager
def _named(when: str, slot: Slot) -> Iterator[None]:
    """Adds step and student to an error."""
    try:
        yield
    except DistillError as error:
        raise DistillError(f"{when}, student {slot.index} ({slot.name}, age {slot.age}): {error}") from error


def _precision(config: DistillConfig, device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    enabled = config.precision == "bf16"
    # without the cache: it would keep bf16 copies of weights that the warm-up changes under the same context
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled, cache_enabled=False)
