"""One outer step: one student, one real batch, the loss and its gradient."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightly_distill.errors import DistillError
from lightly_distill.method.krr import full_precision
from lightly_distill.method.objective import Objective
from lightly_distill.method.watch import Sent
from lightly_distill.runtime.processes import ALONE, Processes

_OF_VECTORS = Objective()
_TRUTH = "target's representations of the real images"


@dataclass(frozen=True)
class RealBatch:
    """Real images and the target's representations of them.

    Attributes:
        images: Normalised, shape (B, C, H, W).
        representations: Targets, rows of shape (B, D); see `models/rows.py`.
        total: Images of the whole batch, where this is one process's part of it. None: these are all.
    """

    images: Tensor
    representations: Tensor
    total: int | None = None


@dataclass(frozen=True)
class OuterGradient:
    """The outer loss and its gradient.

    Attributes:
        loss: A scalar.
        images: Gradient with respect to the synthetic images, shape (M, C, H, W).
        representations: Gradient with respect to the synthetic representations, shape (M, D).
        jitters: How many times the ridge penalty had to grow.
        finite: What is to be finite, by name: a sum of its numbers.
        unsolved: Of a late look, how many ridge systems are not solved: then the rest is of no use.
    """

    loss: Tensor
    images: Tensor
    representations: Tensor
    jitters: int
    finite: dict[str, Tensor]
    unsolved: Sent | None = None


@contextmanager
def kernel_pass(student: nn.Module) -> Iterator[None]:
    """Puts a student in eval mode without gradients to its weights, and restores modes and flags after it."""
    modes = [(module, module.training) for module in student.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in student.parameters()]
    student.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)


def outer_gradient(
    student: nn.Module,
    images: Tensor,
    representations: Tensor,
    real: RealBatch,
    *,
    objective: Objective = _OF_VECTORS,
    chunk_size: int | None = None,
    processes: Processes = ALONE,
    late: bool = False,
) -> OuterGradient:
    """Computes the outer loss and its gradient to the synthetic set; see `objective.py`.

    The gradient to the features comes first; the backward pass through the student then goes chunk by chunk, so that
    the memory for activations does not grow with M. A chunk smaller than M costs one more forward pass of the synthetic
    images. The student is in eval mode: its batch norm uses kept statistics, and no chunk knows of another.

    Args:
        student: Images to features (., F). Used in eval mode; its modes, flags and buffers come back unchanged.
        images: Synthetic images, shape (M, C, H, W). A leaf that requires grad.
        representations: Synthetic representations, shape (M, D). A leaf that requires grad.
        real: Real batch; of several processes, this one's part of it.
        objective: The outer loss. Default: KRR-ST's own, of rows that are vectors.
        chunk_size: Images that the student is given at a time. None: all.
        processes: That divide the work; each returns the same.
        late: On CUDA, whether nothing is waited for: who calls looks at `finite` and `unsolved` later.

    Raises:
        DistillError: If features, loss or gradient are not finite, or the ridge system cannot be solved.
    """
    mine = processes.share(len(images))
    with kernel_pass(student):
        real_BF = features(student, real.images, chunk_size)
        chunks = chunks_of(images.detach()[mine], chunk_size)
        passes = [_Pass(student, chunk, keep=len(chunks) == 1) for chunk in chunks]
        own_MF = torch.cat([each.features for each in passes]) if passes else real_BF[:0]
        syn_MF = processes.join(own_MF, mine, len(images)).requires_grad_()
        guarded = {"features of the real images": real_BF, "features of the synthetic images": syn_MF}
        if images.device.type == "cuda":  # where the target has not looked at them itself
            guarded[_TRUTH] = real.representations
        try:
            found = objective.loss(real_BF, syn_MF, representations, real.representations, real.total, late=late)
        except DistillError:
            require_finite(guarded)  # the reason, where it is one
            raise
        with full_precision(images.device):  # the backward pass of the solve
            grad_MF, grad_representations = torch.autograd.grad(found.value, [syn_MF, representations])
        more = [] if found.unsolved is None else [found.unsolved]
        loss, grad_MF, grad_representations, *more = processes.sum(
            found.value.detach(), grad_MF, grad_representations, *more
        )
        unsolved = Sent(more[0]) if more else None  # before the longest part of the backward pass
        parts = [each.gradient(grad) for each, grad in zip(passes, chunks_of(grad_MF[mine], chunk_size), strict=True)]
    own = torch.cat(parts) if parts else images.detach()[:0]
    grad_images = processes.join(own, mine, len(images))
    guarded["outer loss"] = loss
    guarded["gradient of the synthetic images"] = grad_images
    guarded["gradient of the synthetic representations"] = grad_representations
    finite = sums_of(guarded)
    if not late:
        require_finite_sums(finite, torch.stack([*finite.values()]).tolist())
    return OuterGradient(loss, grad_images, grad_representations, found.jitters, finite, unsolved)


class _Pass:
    """One chunk of synthetic images through the student.

    Attributes:
        features: Shape (m, F), without a graph.
    """

    def __init__(self, student: nn.Module, images: Tensor, *, keep: bool) -> None:
        self._student, self._images = student, images.detach()  # a leaf of its own
        self._kept = self._forward() if keep else None
        if self._kept is not None:
            self.features = self._kept.detach()
        else:
            with torch.no_grad():
                self.features = student(self._images)

    def _forward(self) -> Tensor:
        self._images.requires_grad_()
        output: Tensor = self._student(self._images)
        return output

    def gradient(self, grad_features: Tensor) -> Tensor:
        """Takes the gradient from the features to the images; runs the student again if its graph was not kept."""
        output = self._forward() if self._kept is None else self._kept
        (gradient,) = torch.autograd.grad(output, self._images, grad_features)
        return gradient


@torch.no_grad()
def features(student: nn.Module, images: Tensor, chunk_size: int | None) -> Tensor:
    """Returns features without a graph, shape (B, F); `chunk_size` images at a time."""
    return torch.cat([student(chunk) for chunk in chunks_of(images, chunk_size)])


def chunks_of(rows: Tensor, chunk_size: int | None) -> Sequence[Tensor]:
    """Splits rows into chunks as even as can be, of at most `chunk_size`, None: one; no rows are no chunk.

    A small last chunk would count in batch norm's running statistics as much as a full one, and on a single image batch
    norm may not train at all: so three come together where the `chunk_size` is 2 and the number of rows is odd.
    """
    if not len(rows):
        return []
    count = -(-len(rows) // (chunk_size or len(rows)))
    return torch.tensor_split(rows, max(1, min(count, len(rows) // 2)))


def require_finite(values: dict[str, Tensor]) -> None:
    """Raises a DistillError that names the first of `values` in which a number is NaN or infinite."""
    sums = sums_of(values)
    require_finite_sums(sums, torch.stack([*sums.values()]).tolist())  # one wait for the device for all of them


def sums_of(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the sum of each of `values`, which shows a number that is NaN or infinite."""
    # one reduction each instead of a mask as large as the tensor; the sum of finite float32 features does not overflow
    return {what: value.detach().sum(dtype=torch.float32) for what, value in values.items()}


def require_finite_sums(names: Iterable[str], sums: Sequence[float]) -> None:
    """As `require_finite`, of the sums of what has these names."""
    for what, total in zip(names, sums, strict=True):
        if not math.isfinite(total):
            cure = "" if what == _TRUTH else "; lower outer.lr_images or pool.lr"
            raise DistillError(f"NaN or infinity in the {what}{cure}.")
