"""How much a backbone knows of a labelled task: neighbours, a linear classifier, fine-tuning.

Shapes: n labelled images for training, k for testing, p features.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F

from lightly_distill.seeding import generator, global_seed

CHUNK = 256  # images to the backbone at a time
REGULARISATION = 0.1  # scikit-learn's C; fixed, so that nothing is chosen by looking at test images
# Fine-tuning as in KRR-ST, arXiv:2310.06511, section 4.1.
FINETUNE_STEPS = 10_000
FINETUNE: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
FINETUNE_BATCH = 256


@dataclass
class Trial:
    """One backbone on one task.

    Attributes:
        backbone: Normalised images to features (B, p). Is not changed.
        images: Normalised, for training, shape (n, 3, S, S).
        labels: Of these, int64, shape (n,).
        test_images: Normalised, shape (k, 3, S, S).
        test_labels: int64, shape (k,).
        num_classes: C.
        seed: Of the draws of fine-tuning.
        finetune_steps: SGD steps of fine-tuning.
    """

    backbone: nn.Module
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int
    seed: int = 0
    finetune_steps: int = FINETUNE_STEPS

    @cached_property
    def features(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Of the images for training and for testing, shapes (n, p) and (k, p)."""
        return features(self.backbone, self.images), features(self.backbone, self.test_images)

    @cached_property
    def pooled(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """As `features`, but the last map averaged over its positions where the backbone has one."""
        return pooled_features(self.backbone, self.images), pooled_features(self.backbone, self.test_images)


Probe = Callable[[Trial], float]


@torch.no_grad()
def features(backbone: nn.Module, images: Tensor) -> NDArray[Any]:
    """Returns the features of normalised images (n, 3, H, W), shape (n, p), in eval mode."""
    return _in_eval_mode(backbone, images, backbone)


def pooled_features(backbone: nn.Module, images: Tensor) -> NDArray[Any]:
    """As `features`, but a last map (B, C, H, W) is averaged over its positions instead of flattened, shape (n, C)."""

    def pooled(chunk: Tensor) -> Tensor:
        last: Tensor = backbone.forward_features(chunk)  # type: ignore[operator]
        whole: Tensor = backbone(chunk)
        # features that are no flattened map are pooled already
        return last.mean((2, 3)) if last.ndim == 4 and last[0].numel() == whole.shape[1] else whole

    channels_first = getattr(backbone, "output_fmt", "NCHW") == "NCHW"  # timm's Swin and others keep theirs last
    return _in_eval_mode(
        backbone, images, pooled if channels_first and hasattr(backbone, "forward_features") else backbone
    )


@torch.no_grad()
def _in_eval_mode(backbone: nn.Module, images: Tensor, function: Callable[[Tensor], Tensor]) -> NDArray[Any]:
    device = next(chain(backbone.parameters(), backbone.buffers()), images).device
    training = backbone.training
    backbone.eval()
    parts = [function(chunk.to(device)).float().cpu() for chunk in torch.split(images, CHUNK)]
    backbone.train(training)
    return torch.cat(parts).numpy()


def knn_accuracy(
    train: NDArray[Any], labels: NDArray[Any], test: NDArray[Any], test_labels: NDArray[Any], neighbours: int = 5
) -> float:
    """Accuracy of the nearest neighbours by cosine among labelled features, in [0, 1]."""
    classifier = KNeighborsClassifier(min(neighbours, len(train)), metric="cosine", weights="distance")
    with _one_thread():
        return float(classifier.fit(train, labels).score(test, test_labels))


def linear_accuracy(train: NDArray[Any], labels: NDArray[Any], test: NDArray[Any], test_labels: NDArray[Any]) -> float:
    """Accuracy of a logistic regression on standardised features, in [0, 1]."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=REGULARISATION, max_iter=2000))
    with _one_thread():
        return float(classifier.fit(train, labels).score(test, test_labels))


def finetune_accuracy(trial: Trial) -> float:
    """Accuracy after training a copy of the backbone with a linear head on cross-entropy, in [0, 1]."""
    device = next(chain(trial.backbone.parameters(), trial.backbone.buffers()), trial.images).device
    images, labels = trial.images.to(device), trial.labels.to(device)
    with global_seed(trial.seed, "finetune", "init"), torch.no_grad():
        width = trial.backbone.eval()(images[:2]).shape[1]
        model = nn.Sequential(copy.deepcopy(trial.backbone), nn.Linear(width, trial.num_classes)).to(device)
    model.train().requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), **FINETUNE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, trial.finetune_steps)
    draw = generator(trial.seed, "finetune", "batches")
    order = torch.empty(0, dtype=torch.long)
    batch_size = min(FINETUNE_BATCH, len(images))
    for step in range(trial.finetune_steps):
        if len(order) < batch_size:
            order = torch.randperm(len(images), generator=draw)
        batch, order = order[:batch_size], order[batch_size:]
        with global_seed(trial.seed, "finetune", step, device=device):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    scores = _in_eval_mode(model, trial.test_images, model)
    return float((scores.argmax(1) == trial.test_labels.numpy()).mean())


def _knn(trial: Trial) -> float:
    return knn_accuracy(trial.features[0], trial.labels.numpy(), trial.features[1], trial.test_labels.numpy())


def _linear(trial: Trial) -> float:
    return linear_accuracy(trial.features[0], trial.labels.numpy(), trial.features[1], trial.test_labels.numpy())


def _linear_pooled(trial: Trial) -> float:
    return linear_accuracy(trial.pooled[0], trial.labels.numpy(), trial.pooled[1], trial.test_labels.numpy())


PROBES: dict[str, Probe] = {
    "knn": _knn,
    "linear": _linear,
    "linear-pooled": _linear_pooled,
    "finetune": finetune_accuracy,
}


def _one_thread() -> threadpool_limits:
    # The problems are small. On busy cores the threads of a BLAS wait for each other: 4.5 s a fit instead of 0.04.
    return threadpool_limits(limits=1, user_api="blas")
