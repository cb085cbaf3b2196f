"""Neighbours and linear classifier as in `probes.py`, on a GPU, where one thread of scikit-learn would take hours.

The definitions are scikit-learn's, so that both measure the same. lightly's `knn_predict` has another one: it weighs
neighbours by exp(similarity / 0.1), where here it is the inverse of the cosine distance.

Shapes: n labelled images for training, k for testing, p features. All tensors are on one device.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightly_distill.method.krr import full_precision

_AT_ONCE = 2**26  # similarities at a time: 256 MiB
_MEMORY = 10  # steps that L-BFGS remembers, as scikit-learn's
_ROUNDING = 1e-6  # of a feature, relative to its mean, that is no variation


@torch.no_grad()
def knn_accuracy(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, neighbours: int) -> float:
    """Accuracy of the nearest neighbours by cosine, weighed by the inverse of their distance, in [0, 1].

    Args:
        train: Features, float32, shape (n, p).
        labels: int64, each from 0 to the largest at least once, shape (n,).
        test: Shape (k, p).
        test_labels: Shape (k,).
        neighbours: How many; all, where there are fewer.
    """
    train, test = F.normalize(train), F.normalize(test)
    classes, rows = int(labels.max()) + 1, max(1, _AT_ONCE // len(train))
    right = torch.zeros((), dtype=torch.long, device=test.device)
    with full_precision(test.device):
        for start in range(0, len(test), rows):
            some, wanted = test[start : start + rows], test_labels[start : start + rows]
            similarity, nearest = (some @ train.T).topk(min(neighbours, len(train)))
            distance = (1 - similarity).clamp(min=0)
            same = distance == 0  # counts alone: an inverse would be infinite
            weights = torch.where(same.any(1, keepdim=True), same.float(), 1 / distance)
            votes = (F.one_hot(labels[nearest], classes) * weights[..., None]).sum(1)
            right += (votes.argmax(1) == wanted).sum()
    return int(right) / len(test)


def linear_accuracy(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    C: float,
    tol: float,
    max_iter: int,
) -> float:
    """Accuracy of a logistic regression on standardised features, in [0, 1].

    Args:
        train: As for `knn_accuracy`, as the others.
        labels: Of these.
        test: Features.
        test_labels: Of these.
        C: Inverse of the regularisation, as scikit-learn's.
        tol: Largest number of the gradient at which it stops.
        max_iter: Steps of L-BFGS after which it stops.
    """
    spread, mean = torch.var_mean(train, dim=0, correction=0)
    spread = spread.sqrt()
    spread = torch.where(spread > _ROUNDING * mean.abs(), spread, torch.ones_like(spread))
    with full_precision(train.device):
        model = _fit((train - mean) / spread, labels, C, tol, max_iter)
        with torch.no_grad():
            scores = model((test - mean) / spread)
    return int((scores.argmax(1) == test_labels).sum()) / len(test)


class _Logits(nn.Module):
    """A linear layer; of two classes it has one weight for each feature, as scikit-learn has, not two."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 1 if classes == 2 else classes)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.linear(features)
        return F.pad(scores, (1, 0)) if scores.shape[1] == 1 else scores


def _fit(features: Tensor, labels: Tensor, C: float, tol: float, max_iter: int) -> _Logits:
    """Minimises the mean cross-entropy plus half the squared weights over C n; the bias is free."""
    model = _Logits(features.shape[1], int(labels.max()) + 1).to(features.device)
    penalty = 0.5 / (C * len(labels))
    optimizer: torch.optim.Optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=max_iter,
        tolerance_grad=tol,
        history_size=_MEMORY,
        line_search_fn="strong_wolfe",
    )

    def loss_and_gradient() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(features), labels) + penalty * model.linear.weight.square().sum()
        torch.autograd.backward(loss)
        return loss.item()

    optimizer.step(loss_and_gradient)
    return model
