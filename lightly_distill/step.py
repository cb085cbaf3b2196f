"""One outer step: one student, one real batch, the loss and its gradient."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightly_distill.errors import DistillError
from lightly_distill.krr import RIDGE, full_precision, kernel_ridge


@dataclass(frozen=True)
class RealBatch:
    """Real images, normalised, shape (B, C, H, W), and the target's representations of them, shape (B, D)."""

    images: Tensor
    representations: Tensor


@dataclass(frozen=True)
class OuterGradient:
    """The outer loss and its gradient.

    Attributes:
        loss: Mean squared error of the ridge prediction, a scalar.
        images: Gradient with respect to the synthetic images, shape (M, C, H, W).
        representations: Gradient with respect to the synthetic representations, shape (M, D).
        jitters: How many times the ridge penalty had to grow.
    """

    loss: Tensor
    images: Tensor
    representations: Tensor
    jitters: int


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
    ridge: float = RIDGE,
    dtype: torch.dtype = torch.float32,
) -> OuterGradient:
    """Computes the outer loss of KRR-ST and its gradient to the synthetic set (arXiv:2310.06511, equation 6).

    Args:
        student: Images to features (., F). Used in eval mode; its modes, flags and buffers come back unchanged.
        images: Synthetic images, shape (M, C, H, W). A leaf that requires grad.
        representations: Synthetic representations, shape (M, D). A leaf that requires grad.
        real: Real batch.
        ridge: See `kernel_ridge`.
        dtype: See `kernel_ridge`.

    Raises:
        DistillError: If features, loss or gradient are not finite, or the ridge system cannot be solved.
    """
    with kernel_pass(student):
        with torch.no_grad():
            real_BF = student(real.images)
        syn_MF = student(images)
        require_finite("features of the real images", real_BF)
        require_finite("features of the synthetic images", syn_MF)
        prediction = kernel_ridge(real_BF, syn_MF, representations, ridge=ridge, dtype=dtype)
        loss = F.mse_loss(prediction.values, real.representations.to(dtype))
        with full_precision(images.device):  # the backward pass of the solve
            grad_images, grad_representations = torch.autograd.grad(loss, [images, representations])
    require_finite("outer loss", loss)
    require_finite("gradient of the synthetic images", grad_images)
    require_finite("gradient of the synthetic representations", grad_representations)
    return OuterGradient(loss.detach(), grad_images, grad_representations, prediction.jitters)


def require_finite(what: str, value: Tensor) -> None:
    """Raises a DistillError that names `what` if a number of `value` is NaN or infinite."""
    # one reduction instead of a mask as large as the tensor; the sum of finite float32 features does not overflow here
    if not torch.isfinite(value.detach().sum(dtype=torch.float32)):
        raise DistillError(f"NaN or infinity in the {what}; lower outer.lr_images or pool.lr.")
