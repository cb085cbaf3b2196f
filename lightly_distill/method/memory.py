"""How much memory a run will need for the students' activations, what fits, and how long its steps will take."""

import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from lightly_distill.runtime.device import free_memory

SHARE = 0.5  # of the free memory that activations may take; features, gradients and the target need the rest
_LIVE = 4  # layers of which a network without a graph holds the outputs at the same time, at most: a residual block
_PROBED = 32  # images of the measurement, at most: fewer take more time each
_TIMED = (3, 7)  # passes, of which the middle one counts: a single one varies by half beside other work
_LONG = 1.0  # seconds after which the least number of them is enough


@dataclass(frozen=True)
class Estimate:
    """What one outer step will need.

    Attributes:
        chunk_size: Synthetic images that a student is given at a time; None: all.
        bytes: For activations and features, at the peak.
        seconds: Of a step, roughly: from the time that a few images take.
        training_seconds: Of a training step of one student, which is a part of that.
        image_seconds: Of one image through a student, forward.
    """

    chunk_size: int | None
    bytes: int
    seconds: float
    training_seconds: float
    image_seconds: float


def estimate(
    students: list[nn.Module],
    images: Tensor,
    batch_size: int,
    chunk_size: "int | str | None",
    *,
    processes: int = 1,
    free: int | None = None,
) -> Estimate:
    """Measures the students on a few images and computes what all of them will need.

    Args:
        students: One of each architecture. Come back as they were.
        images: Synthetic images, shape (M, C, H, W).
        batch_size: Real images of a step, of this process.
        chunk_size: As in `DistillConfig`; `auto` is resolved: all, where they fit into `SHARE` of the free memory.
        processes: That divide the work.
        free: Bytes of free memory; by default measured.
    """
    few = images.detach()[:_PROBED]
    per_image, largest, width, forward = 0, 0, 0, 0.0
    for student in students:
        tried, (saved, layer, features, seconds) = _probe_what_fits(student, few)
        per_image, largest = max(per_image, saved // tried), max(largest, layer // tried)
        width = max(width, features)
        forward = max(forward, seconds / tried)
    count = len(images)
    free = free_memory(images.device) if free is None else free
    auto = chunk_size == "auto"
    if auto:
        fitting = int(SHARE * free) // max(1, per_image)
        chunk_size = None if fitting >= count else max(2, fitting)
    at_once = min(count, int(chunk_size or count))
    again = 1 if at_once < count else 0  # a chunked backward pass repeats the forward one
    # forward, and backward to the images; forward, and backward to weights and activations
    passes = batch_size + count * (2 + again) / processes + count * 3
    # the real batch has no graph, and goes through the student as a whole
    if auto and chunk_size is None and batch_size * _LIVE * largest > SHARE * free:
        chunk_size = max(count, int(SHARE * free) // (_LIVE * largest))  # the synthetic images stay in one piece
    real = min(batch_size, int(chunk_size or batch_size)) * _LIVE * largest
    return Estimate(
        chunk_size if chunk_size is None else int(chunk_size),
        max(at_once * per_image, real) + (3 * count + batch_size) * width * few.element_size(),
        passes * forward,
        count * 3 * forward,
        forward,
    )


def _probe_what_fits(student: nn.Module, images: Tensor) -> tuple[int, tuple[int, int, int, float]]:
    """Tries a student on as many of the images as there is memory for; returns how many these are, and `_probe`."""
    while True:
        try:
            return len(images), _probe(student, images)
        except torch.OutOfMemoryError:
            if len(images) <= 2:
                raise
        images = images[: len(images) // 2]


def _probe(student: nn.Module, images: Tensor) -> tuple[int, int, int, float]:
    """Tries a student.

    Returns:
        The bytes that autograd keeps for training on these images, those of the largest tensor among them, the width of
        the features, and seconds.
    """
    kept: dict[tuple[int, int], int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in student.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr(), storage.nbytes()] = storage.nbytes()
        return tensor

    buffers = {name: buffer.clone() for name, buffer in student.named_buffers()}
    training = student.training
    student.train()
    try:
        # `forward` leaves out what torch.compile has put around it, whose first call takes a minute
        with torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):
            with torch.no_grad():
                student.forward(images)  # the first call loads and chooses
            # the kept tensors are alive until the hooks are done with, so that no address is used twice
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                features = student.forward(images.clone().requires_grad_())
            width = int(features.shape[1])
            del features
            seconds = _seconds(student, images)
    finally:
        student.train(training)
        with torch.no_grad():
            for name, buffer in student.named_buffers():
                buffer.copy_(buffers[name])
    return sum(kept.values()), max(kept.values(), default=0), width, seconds


def _seconds(student: nn.Module, images: Tensor) -> float:
    """Returns the time of a forward pass, in the middle of several."""
    each: list[float] = []
    least, most = _TIMED
    while len(each) < least or (len(each) < most and sum(each) < _LONG):
        started = time.perf_counter()
        float(student.forward(images.clone().requires_grad_()).detach().sum())  # waits for the device
        each.append(time.perf_counter() - started)
    return median(each)
