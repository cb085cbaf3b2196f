"""Principal components of what the target makes of real images, in which the outer loss is measured.

The mean squared error of raw representations is ruled by the few directions in which they vary most. Fewer directions
(`target_dims`) are less to learn and to store, and whitened ones (`target_whiten`) all count alike. Without whitening
all are divided by one number, so that the numbers of every target, and of its map, have variance 1 on average: losses
and learning rates then mean the same for all of them.

Shapes: n real images, B images of a chunk, D numbers of a representation, K of a projected one.
"""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

from lightly_distill.errors import UsageError
from lightly_distill.models.projection import Projection
from lightly_distill.runtime.device import free_memory

CHUNK = 2048  # images at a time
MOST = 64  # directions, if the user does not say; of a wide target the rest is little of the variance
_TABLES = 4  # of covariances in memory: of a chunk, of all, their directions, and what finding these takes
_NO_VARIANCE = 1e-10  # of the first direction's; what float32 makes of a constant


def check_dims(dims: int | Literal["auto"], *, images: int | None = None, dim: int | None = None) -> None:
    """Refuses more directions than there can be.

    Args:
        dims: K; "auto" never asks for too many.
        images: n, None where it is not known yet.
        dim: D, None where it is not known yet.

    Raises:
        UsageError: If there are not so many.
    """
    if dim is not None and dims != "auto" and dims > dim:
        raise UsageError(f"target_dims={dims} is more than the {dim} numbers of the target's representations.")
    need = _TABLES * 8 * (dim or 0) ** 2
    if need > free_memory(torch.device("cpu")):
        raise UsageError(
            f"target_dims needs the covariance of all {dim} numbers of the target's representations, "
            f"{need / 2**30:.0f} GiB: give target_dims=null, or a target with fewer."
        )
    if images is not None and dims != "auto" and dims >= images:
        raise UsageError(
            f"target_dims={dims} needs more than {dims} real images to find so many directions, and there are {images} "
            "that are not held out: ask for fewer directions or give a larger source."
        )


def fit_projection(
    of_images: Callable[[Tensor], Tensor],
    indices: Tensor,
    wanted: int | Literal["auto"],
    *,
    whiten: bool = False,
    rows: int = 1,
) -> Projection:
    """Finds the directions in which representations vary most.

    Args:
        of_images: Indices to representations, float32, shape (B * rows, D).
        indices: Of the images, shape (n,).
        wanted: K; "auto": `MOST`, or as many as there are if that is fewer.
        whiten: Whether each direction is divided by its standard deviation, and not all by one number.
        rows: Of each image: one representation, or the cells of its map.

    Returns:
        The projection, on the CPU.

    Raises:
        UsageError: If there are not so many directions, or one that is to be whitened has no variance.
    """
    check_dims(wanted, images=len(indices) * rows)
    mean, covariance = _moments(of_images(part).double() for part in torch.split(indices, max(1, CHUNK // rows)))
    check_dims(wanted, dim=len(mean))
    dims = max(1, min(MOST, len(mean), len(indices) - 1)) if wanted == "auto" else wanted
    variances, directions = torch.linalg.eigh(covariance)  # increasing
    variances, basis = variances.flip(0).clamp(min=0), directions.flip(1)[:, :dims]
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    basis = basis * largest.sign()  # the sign of a direction is anybody's: its largest entry is positive
    scale = variances[:dims].mean().sqrt().clamp(min=1e-12).expand(dims)
    if whiten:
        used = int((variances > _NO_VARIANCE * variances[0]).sum())
        if used < dims:
            raise UsageError(
                f"target_whiten cannot scale {dims} directions: the target's representations vary in {used} only. "
                "Give fewer target_dims, or leave target_whiten out."
            )
        scale = variances[:dims].sqrt()
    share = variances[:dims].sum() / variances.sum().clamp(min=1e-300)
    return Projection(mean.float(), basis.float().contiguous(), scale.float(), share.float())


def _moments(chunks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns mean and covariance of rows in float64, in one pass: a pass may be one of the target."""
    count, shift, sums, products = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
    for rows in chunks:
        if not count:
            shift = rows.mean(0)  # near the mean, so that little is lost when it is taken off again
        rows = rows - shift
        count, sums, products = count + len(rows), sums + rows.sum(0), products + rows.T @ rows
    return shift + sums / count, products / count - torch.outer(sums, sums) / count**2
