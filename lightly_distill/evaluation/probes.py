"""How much a backbone knows of a labelled task: neighbours, a linear classifier, fine-tuning.

And how well the images alone carry a classifier's knowledge of it to another network: data-free distillation.

Shapes: n labelled images for training, k for testing, p features, m images of a set.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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

from lightly_distill.evaluation.augmentation import augment
from lightly_distill.runtime.seeding import generator, global_seed

CHUNK = 256  # images to the backbone at a time
REGULARISATION = 0.1  # scikit-learn's C; fixed, so that nothing is chosen by looking at test images
# Fine-tuning as in KRR-ST, arXiv:2310.06511, section 4.1.
FINETUNE_STEPS = 10_000
FINETUNE: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
FINETUNE_BATCH = 256
# Data-free distillation as in the released code of KRR-ST, algorithms/zeroshot_kd.py and test_kd.py.
DATA_FREE: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.0}  # AdamW; theirs for a network that is not pre-trained
DATA_FREE_BATCH = 512


@dataclass(frozen=True)
class Transfer:
    """What data-free distillation takes.

    Attributes:
        images: Of the arm, normalised, shape (m, 3, S, S): all that the student ever sees.
        teacher: Normalised images to logits (B, C); the same for all arms.
        build: Makes the student.
    """

    images: Tensor
    teacher: nn.Module
    build: Callable[[], nn.Module]


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
        finetune_steps: Steps of fine-tuning, and of data-free distillation.
        transfer: Of data-free distillation; None where the arm has no images.
    """

    backbone: nn.Module
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int
    seed: int = 0
    finetune_steps: int = FINETUNE_STEPS
    transfer: Transfer | None = None

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
    device = _device_of(backbone, images)
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


def finetuned(trial: Trial) -> nn.Module:
    """Returns a copy of the backbone with a linear head, trained on the labelled images by cross-entropy."""
    device = _device_of(trial.backbone, trial.images)
    images, labels = trial.images.to(device), trial.labels.to(device)
    with global_seed(trial.seed, "finetune", "init"):
        model = _with_head(copy.deepcopy(trial.backbone), images, trial.num_classes)
    model.train().requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), **FINETUNE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, trial.finetune_steps)
    for step, batch in enumerate(_batches(trial, len(images), FINETUNE_BATCH, "finetune")):
        with global_seed(trial.seed, "finetune", step, device=device):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
        _step(loss, optimizer, schedule)
    return model


def finetune_accuracy(trial: Trial) -> float:
    """Accuracy after training a copy of the backbone with a linear head on cross-entropy, in [0, 1]."""
    return _accuracy(finetuned(trial), trial)


def make_teacher(trial: Trial, build: Callable[[], nn.Module]) -> nn.Module:
    """Trains the teacher of data-free distillation: a network of random weights, fine-tuned on the labelled images.

    That is the model whose accuracy is the arm `scratch` with the probe `finetune`.

    Args:
        trial: For its images, labels, seed and steps; the backbone is not looked at.
        build: Makes the network, before training.
    """
    with global_seed(trial.seed, "pretrain", "init"):  # as the arm scratch
        backbone = build().to(_device_of(trial.backbone, trial.images))
    return finetuned(replace(trial, backbone=backbone)).eval()


def data_free_accuracy(trial: Trial) -> float:
    """Accuracy of a fresh student that saw a teacher's answers to the images of the arm and nothing else, in [0, 1].

    KRR-ST (arXiv:2310.06511), Table 4, asks what images distilled from another dataset are worth where those of the
    task cannot be had. As there, the student minimises the cross-entropy to the teacher's softmax at temperature 1,
    which has the gradient of their KL divergence, on augmented images, with AdamW and a cosine schedule. Three things
    differ. There the student was pre-trained on the set before; here it starts from random weights, the same for all
    arms, so that only the images tell arms apart. There the teacher is a ResNet-18, here of the student's architecture.
    And both networks are tested in eval mode, where the released code leaves batch norm in training mode.
    """
    assert trial.transfer is not None
    transfer = trial.transfer
    device = _device_of(transfer.teacher, transfer.images)
    images = transfer.images.to(device)
    # not the weights that the teacher started from: two networks of one start agree even on noise
    with global_seed(trial.seed, "data-free", "init"):
        student = _with_head(transfer.build().to(device), images, trial.num_classes).train()
    optimizer = torch.optim.AdamW(student.parameters(), **DATA_FREE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, trial.finetune_steps)
    for step, batch in enumerate(_batches(trial, len(images), DATA_FREE_BATCH, "data-free")):
        changed = augment(images[batch], generator(trial.seed, "data-free", "augment", step))
        with torch.no_grad():
            wanted = transfer.teacher(changed).softmax(1)
        with global_seed(trial.seed, "data-free", step, device=device):
            loss = F.cross_entropy(student(changed), wanted)
        _step(loss, optimizer, schedule)
    return _accuracy(student, trial)


def _device_of(model: nn.Module, otherwise: Tensor) -> torch.device:
    return next(chain(model.parameters(), model.buffers()), otherwise).device


def _with_head(backbone: nn.Module, images: Tensor, num_classes: int) -> nn.Module:
    with torch.no_grad():
        width = backbone.eval()(images[:2]).shape[1]
    return nn.Sequential(backbone, nn.Linear(width, num_classes)).to(images.device)


def _batches(trial: Trial, count: int, batch_size: int, name: str) -> Iterator[Tensor]:
    """Yields the indices of each step; what does not fill a batch is left out of an epoch."""
    draw, batch_size = generator(trial.seed, name, "batches"), min(batch_size, count)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(trial.finetune_steps):
        if len(order) < batch_size:
            order = torch.randperm(count, generator=draw)
        batch, order = order[:batch_size], order[batch_size:]
        yield batch


def _step(loss: Tensor, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimizer.step()
    schedule.step()


def _accuracy(model: nn.Module, trial: Trial) -> float:
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
    "data-free": data_free_accuracy,
}


def _one_thread() -> threadpool_limits:
    # The problems are small. On busy cores the threads of a BLAS wait for each other: 4.5 s a fit instead of 0.04.
    return threadpool_limits(limits=1, user_api="blas")
