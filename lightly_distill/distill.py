"""The method, top to bottom: KRR-ST, Algorithm 1 (Lee et al., ICLR 2024, arXiv:2310.06511)."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from statistics import fmean
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from lightly_distill.config import DistillConfig
from lightly_distill.errors import DistillError
from lightly_distill.krr import kernel_ridge
from lightly_distill.pool import Slot, StudentBuilder, StudentPool
from lightly_distill.real import RealImages
from lightly_distill.step import RealBatch, kernel_pass, outer_gradient, require_finite

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


@dataclass
class DistillState:
    """All that a run changes.

    Attributes:
        images: Synthetic images, shape (M, C, H, W), normalised. A leaf that requires grad.
        representations: Synthetic representations, shape (M, D). A leaf that requires grad.
        source_index: Index in the source of the real image that each started from, -1 where it was noise, shape (M,).
        pool: Online students.
        optimizer: AdamW over images and representations.
        step: Outer steps done.
        jitters: How often a ridge penalty had to grow.
        initial: What `held_out_loss` returned before the first step; empty until then.
    """

    images: Tensor
    representations: Tensor
    source_index: Tensor
    pool: StudentPool
    optimizer: torch.optim.AdamW
    step: int = 0
    jitters: int = 0
    initial: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(
        cls, real: RealImages, students: Sequence[tuple[str, StudentBuilder]], config: DistillConfig
    ) -> "DistillState":
        """Makes the initial state: images and representations as `config.init` says, an untrained pool."""
        index, batch = (real.noise if config.init == "noise" else real.initial)(config.num_images)
        images = batch.images.clone().requires_grad_()
        representations = batch.representations.clone().requires_grad_()
        pool = StudentPool(students, config.pool, images, representations.shape[1], config.seed)
        optimizer = torch.optim.AdamW([{"params": [images]}, {"params": [representations]}], weight_decay=0.0)
        return cls(images, representations, index, pool, optimizer)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors of the state by flat name."""
        tensors, _ = self.pool.state_dict()
        tensors |= {"images": self.images, "representations": self.representations, "source_index": self.source_index}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adamw.{number}.{name}": value for name, value in moments.items()}
        return tensors

    def facts(self) -> dict[str, Any]:
        """Returns the numbers of the state, JSON-able."""
        _, counts = self.pool.state_dict()
        return {"jitters": self.jitters, "initial": self.initial, "slots": counts}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Sets the state to what `tensors` and `facts` returned when it was saved."""
        with torch.no_grad():
            self.images.copy_(tensors["images"])
            self.representations.copy_(tensors["representations"])
        self.source_index = tensors["source_index"]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adamw."):
                _, number, key = name.split(".")
                moments.setdefault(int(number), {})[key] = value.clone()  # AdamW steps them in place
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.pool.load_state_dict(tensors, facts["slots"])
        self.step, self.jitters, self.initial = facts["step"], facts["jitters"], facts["initial"]


def distill(state: DistillState, real: RealImages, config: DistillConfig, recorder: Recorder) -> None:
    """Runs the outer loop from where `state` stands to `config.steps`, changing `state` in place.

    Args:
        state: From `DistillState.start`, or restored from a checkpoint.
        real: Real batches.
        config: All settings.
        recorder: Receives measurements and checkpoints.

    Raises:
        DistillError: If a loss, gradient or student is not finite, naming step and student; before the update.
    """
    precision = _precision(config, state.images.device)
    held_out = real.held_out()
    if not state.initial:  # not a resumed run
        with precision():
            state.pool.warm_up(state.images, state.representations)
        state.initial = held_out_loss(state, held_out, config)
        recorder.log({"step": 0, **state.initial})
        recorder.checkpoint(state)

    progress = tqdm(total=config.steps, initial=state.step, desc="Distilling", unit="step", disable=None)
    window, since = [], time.perf_counter()
    for batch in real.batches(state.step, config.steps):
        slot = state.pool.draw(state.step)
        with precision():
            window.append(_outer_step(state, slot, batch, config))
            state.pool.advance(slot, state.images, state.representations)
        state.step += 1
        progress.update()

        measure = state.step == config.steps or state.step % max(1, config.steps // MEASUREMENTS) == 0
        if measure or state.step % config.log_every == 0:
            seconds, since = (time.perf_counter() - since) / len(window), time.perf_counter()
            row: dict[str, Any] = {"step": state.step, "loss": sum(window) / len(window), "seconds_per_step": seconds}
            if measure:
                row |= held_out_loss(state, held_out, config)
                since = time.perf_counter()
            recorder.log(row)
            progress.set_postfix(loss=f"{row['loss']:.4g}")
            if measure and progress.disable:  # no terminal: tell now and then instead
                _logger.info("Step %d of %d: loss %.4g", state.step, config.steps, row["loss"])
            window = []
        # after the measurement, which fails on a student that is not finite: such a state is not kept
        if state.step % config.checkpoint_every == 0 or state.step == config.steps:
            recorder.checkpoint(state)
    progress.close()


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
        )
    state.images.grad, state.representations.grad = gradient.images, gradient.representations
    decay = 1 - (1 - config.outer.final_lr) * state.step / config.steps
    rates = (config.outer.lr_images, config.outer.lr_representations)
    for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * decay
    state.optimizer.step()
    state.jitters += gradient.jitters
    return float(gradient.loss)


def held_out_loss(state: DistillState, held_out: RealBatch | None, config: DistillConfig) -> dict[str, Any]:
    """Measures the outer loss on real images that no step has seen.

    Returns:
        `heldout_loss`, the mean over the students of the pool, None without held-out images; in a pool of several
        architectures also `heldout_loss_by_student`, the mean over the students of each, by name.
    """
    if held_out is None:
        return {"heldout_loss": None}
    by_student: dict[str, list[float]] = {}
    for slot in state.pool.slots:
        who = _named(f"Stopped at the measurement after step {state.step}", slot)
        with who, kernel_pass(slot.student), torch.no_grad(), _precision(config, state.images.device)():
            real_BF, syn_MF = slot.student(held_out.images), slot.student(state.images)
            require_finite("features of the held-out images", real_BF)
            require_finite("features of the synthetic images", syn_MF)
            prediction = kernel_ridge(
                real_BF,
                syn_MF,
                state.representations,
                ridge=config.ridge.strength,
                dtype=getattr(torch, config.ridge.dtype),
            )
            loss = F.mse_loss(prediction.values, held_out.representations.to(prediction.values.dtype))
            by_student.setdefault(slot.name, []).append(float(loss))
    measured: dict[str, Any] = {"heldout_loss": fmean(chain(*by_student.values()))}
    if len(by_student) > 1:
        measured["heldout_loss_by_student"] = {name: fmean(losses) for name, losses in by_student.items()}
    return measured


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
