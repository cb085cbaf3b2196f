"""The outer loss: how well what a student makes of the synthetic images predicts the targets of real ones.

Two ridge regressions share the student's pass. That of the vectors is KRR-ST's own (arXiv:2310.06511, equation 6):
synthetic images to learned representations. That of the maps has a row for each position of each image, and asks of
the channels there what the target's map says of the same place: many rows and few features, so that the small primal
system is solved. It ties pixels to what is seen near them, where the mean says only that it is somewhere.

Shapes: M synthetic images, B real images, F numbers of a row of features, D of a row of targets.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightly_distill.method.krr import RESIDUAL_LIMIT, RIDGE, Prediction, kernel_ridge
from lightly_distill.models.rows import Layout

MAP_RIDGE = 1e-5  # fraction of the trace


class Loss(NamedTuple):
    """What `Objective.loss` returns.

    Attributes:
        value: A scalar of the objective's `dtype`.
        jitters: How many times a penalty had to grow.
        unsolved: Of a late look, how many systems are not solved, on the device, shape (1,).
    """

    value: Tensor
    jitters: int
    unsolved: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """The outer loss of one student.

    Attributes:
        ridge: Penalty of the vectors' regression, as a fraction of the kernel's trace.
        map_ridge: Of the maps' regression, as a fraction of its trace.
        dtype: Of both regressions.
        features: Layout of the student's rows; None: vectors.
        targets: Layout of the targets' rows; None: vectors.
    """

    ridge: float = RIDGE
    map_ridge: float = MAP_RIDGE
    dtype: torch.dtype = torch.float32
    features: Layout | None = None
    targets: Layout | None = None

    def loss(
        self,
        real_BF: Tensor,
        syn_MF: Tensor,
        syn_MD: Tensor,
        truth_BD: Tensor,
        total: int | None = None,
        *,
        late: bool = False,
    ) -> Loss:
        """Computes the mean squared error of the predicted vectors plus that of the predicted maps.

        Args:
            real_BF: Features of the real images. No gradient flows to them.
            syn_MF: Features of the synthetic images. Carries gradient.
            syn_MD: Synthetic targets. Carries gradient.
            truth_BD: Targets of the real images.
            total: Images of the whole batch, where these are a part of it: the losses of the parts add up.
            late: As for `kernel_ridge`.

        Raises:
            DistillError: If a system cannot be solved.
        """
        features = self.features or Layout(syn_MF.shape[1])
        targets = self.targets or Layout(syn_MD.shape[1])
        real, syn = features.split(real_BF), features.split(syn_MF)
        learned, truth = targets.split(syn_MD), targets.split(truth_BD)
        share = len(real_BF) / (total or len(real_BF))
        predicted = kernel_ridge(real[0], syn[0], learned[0], ridge=self.ridge, dtype=self.dtype, late=late)
        loss = share * _error(predicted.values, truth[0])
        if real[1] is None or syn[1] is None or learned[1] is None or truth[1] is None:
            return Loss(loss, predicted.jitters, _unsolved(predicted))
        of_maps = map(_cells, (real[1], syn[1], learned[1]))
        cells = kernel_ridge(*of_maps, ridge=self.map_ridge, dtype=self.dtype, late=late)
        loss = loss + share * _error(cells.values, _cells(truth[1]))
        return Loss(loss, predicted.jitters + cells.jitters, _unsolved(predicted, cells))


def _unsolved(*predicted: Prediction) -> Tensor | None:
    """Returns how many of the systems are not solved; None where the host has looked."""
    residuals = [each.residual for each in predicted if isinstance(each.residual, Tensor)]
    if not residuals:
        return None
    return (~(torch.stack(residuals) <= RESIDUAL_LIMIT)).float().sum(0, keepdim=True)  # NaN is not solved either


def _cells(maps: Tensor) -> Tensor:
    """Returns the positions of maps (B, C, g, g) as rows (B g g, C)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def _error(predicted: Tensor, truth: Tensor) -> Tensor:
    if not len(predicted):  # a process may have none of a small batch
        return predicted.sum()
    return (predicted - truth.to(predicted.dtype)).square().mean()
