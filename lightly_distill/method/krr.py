"""Kernel ridge regression from synthetic to real images: pure functions, tensors in and out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightly_distill.errors import DistillError

# Shape letters: M synthetic images, B real images, F student features, D target representation, N = M or F + 1.

RIDGE = 1e-6  # fraction of the kernel's trace; the value in the KRR-ST authors' code, algorithms/distill.py
JITTERS = (0.0, 10.0, 100.0, 1000.0)  # extra penalty tried in turn when a solve fails, in units of the penalty itself
RESIDUAL_LIMIT = 1e-2  # relative; a float32 solve at the paper's size and ridge leaves about 1e-4


class Prediction(NamedTuple):
    """What `kernel_ridge` returns.

    Attributes:
        values: Predicted representations of the real images, shape (B, D).
        jitters: How many times the penalty had to grow before the solve succeeded; 0 is the normal case.
        residual: Relative residual of the solve; a scalar on the device, where the host has not waited for it.
    """

    values: Tensor
    jitters: int
    residual: float | Tensor


def kernel_ridge(
    real_BF: Tensor,
    syn_MF: Tensor,
    syn_MD: Tensor,
    *,
    ridge: float = RIDGE,
    dtype: torch.dtype = torch.float32,
    late: bool = False,
) -> Prediction:
    """Predicts target representations of real images by kernel ridge regression.

    A constant feature 1 is appended to the features (the bias). The dual form is solved when there are no more
    synthetic images than features, else the primal one; both give the same prediction. Kernel and solve run in `dtype`
    even under autocast: a bf16 kernel is useless at a ridge of 1e-6.

    Source: KRR-ST, Lee et al., ICLR 2024, arXiv:2310.06511, equation 6.

    Args:
        real_BF: Student features of the real images, shape (B, F). No gradient flows to them.
        syn_MF: Student features of the synthetic images, shape (M, F). Carries gradient.
        syn_MD: Synthetic representations, shape (M, D). Carries gradient.
        ridge: Penalty as a fraction of the kernel's trace. No unit, must be > 0.
        dtype: float32 or float64.
        late: Whether the first solve is taken whatever its residual, at which who calls looks later: it must be at most
            RESIDUAL_LIMIT. By default the host waits for it, and lets the penalty grow where it is not.

    Raises:
        ValueError: If the shapes do not belong together.
        DistillError: If the system cannot be solved even with a larger penalty.
    """
    if len(syn_MF) != len(syn_MD):
        raise ValueError(
            f"Got features of {len(syn_MF)} synthetic images and representations of {len(syn_MD)}. "
            "Both come from one SyntheticSet; was one of them sliced to a batch?"
        )
    if real_BF.ndim != 2 or syn_MF.ndim != 2 or real_BF.shape[1] != syn_MF.shape[1]:
        raise ValueError(f"Features must be (B, F) and (M, F); got {tuple(real_BF.shape)} and {tuple(syn_MF.shape)}.")
    with full_precision(syn_MF.device):
        real_BF, syn_MF, syn_MD = real_BF.detach().to(dtype), syn_MF.to(dtype), syn_MD.to(dtype)
        # trace of the kernel with its bias; detached, because the penalty follows the features and does not train them
        penalty = ridge * (syn_MF.detach().square().sum() + len(syn_MF))
        if syn_MF.shape[0] <= syn_MF.shape[1] + 1:
            # appending a constant 1 to both sides adds 1 to each inner product
            weights_MD, jitters, residual = _solve(syn_MF @ syn_MF.T + 1.0, syn_MD, penalty, late)
            values = (real_BF @ syn_MF.T + 1.0) @ weights_MD
        else:
            syn_MF, real_BF = _with_bias(syn_MF), _with_bias(real_BF)
            weights_FD, jitters, residual = _solve(syn_MF.T @ syn_MF, syn_MF.T @ syn_MD, penalty, late)
            values = real_BF @ weights_FD
    return Prediction(values, jitters, residual)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Turns autocast and TF32 off: the gradient of `kernel_ridge` must be computed inside too."""
    matmul: Any = torch.backends.cuda.matmul
    # torch 2.9 brought a new name, and refuses a mixture of both
    flag, off = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    before = getattr(matmul, flag)
    setattr(matmul, flag, off)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        setattr(matmul, flag, before)


def _with_bias(features: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones(len(features), 1)], dim=1)


def _solve(matrix_NN: Tensor, rhs_ND: Tensor, penalty: Tensor, late: bool) -> tuple[Tensor, int, float | Tensor]:
    """Solves `(matrix + penalty I) x = rhs` and returns x, the number of jitters and the relative residual."""
    if late:
        solution_ND, relative = _CholeskySolve.apply(matrix_NN, rhs_ND, penalty)
        return solution_ND, 0, relative
    residual = float("nan")
    for jitters, jitter in enumerate(JITTERS):
        solution_ND, relative = _CholeskySolve.apply(matrix_NN, rhs_ND, penalty * (1 + jitter))
        residual = float(relative)
        if residual <= RESIDUAL_LIMIT:
            return solution_ND, jitters, residual
    raise DistillError(
        f"The ridge system of size {len(matrix_NN)} cannot be solved, even with {1 + JITTERS[-1]:.0f} times the "
        f"penalty (relative residual {residual:.2g}): raise ridge.strength, or set ridge.dtype to float64."
    )


class _CholeskySolve(torch.autograd.Function):
    """Solves a symmetric positive definite system; one factor serves both directions.

    Autograd through `torch.linalg.cholesky` would differentiate the factorisation, which costs several times as much.
    """

    @staticmethod
    def forward(ctx: Any, matrix_NN: Tensor, rhs_ND: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
        system_NN = matrix_NN.clone()
        system_NN.diagonal().add_(penalty)
        factor_NN, info = torch.linalg.cholesky_ex(system_NN)
        solution_ND = torch.cholesky_solve(rhs_ND, factor_NN)
        error = torch.linalg.norm(system_NN @ solution_ND - rhs_ND)
        residual = error / torch.linalg.norm(rhs_ND).clamp_min(torch.finfo(rhs_ND.dtype).tiny)
        # a failed factorisation is a residual of infinity, so that one number says it all; NaN compares false too
        residual = torch.where(info == 0, residual, torch.full_like(residual, torch.inf))
        ctx.save_for_backward(factor_NN, solution_ND)
        ctx.mark_non_differentiable(residual)
        return solution_ND, residual

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        factor_NN, solution_ND = ctx.saved_tensors
        grad_rhs_ND = torch.cholesky_solve(grads[0], factor_NN)
        return -grad_rhs_ND @ solution_ND.T, grad_rhs_ND, None
