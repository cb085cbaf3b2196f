"""One backbone on one labelled task, as a probe is given it, and the backbone's features there.

Shapes: n labelled images for training, k for testing, p features, m images of a set.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightly_distill.data.pixels import Normalised

CHUNK = 256  # images to the backbone at a time
FINETUNE_STEPS = 10_000  # as KRR-ST, arXiv:2310.06511, section 4.1


@dataclass(frozen=True)
class Transfer:
    """What data-free distillation takes.

    Attributes:
        images: Of the arm, shape (m, 3, S, S): all that the student ever sees.
        teacher: Normalised images to logits (B, C); the same for all arms.
        build: Makes the student.
    """

    images: Normalised
    teacher: nn.Module
    build: Callable[[], nn.Module]


@dataclass
class Trial:
    """One backbone on one task.

    Attributes:
        backbone: Normalised images to features (B, p). Is not changed.
        images: For training, shape (n, 3, S, S).
        labels: Of these, int64, shape (n,).
        test_images: Shape (k, 3, S, S).
        test_labels: int64, shape (k,).
        num_classes: C.
        seed: Of the draws of fine-tuning.
        finetune_steps: Steps of fine-tuning, and of data-free distillation.
        transfer: Of data-free distillation; None where the arm has no images.
    """

    backbone: nn.Module
    images: Normalised
    labels: Tensor
    test_images: Normalised
    test_labels: Tensor
    num_classes: int
    seed: int = 0
    finetune_steps: int = FINETUNE_STEPS
    transfer: Transfer | None = None

    @property
    def device(self) -> torch.device:
        """Where the backbone computes."""
        return device_of(self.backbone, self.images)

    @cached_property
    def features(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Of the images for training and for testing, shapes (n, p) and (k, p)."""
        return features(self.backbone, self.images), features(self.backbone, self.test_images)

    @cached_property
    def pooled(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """As `features`, but the last map averaged over its positions where the backbone has one."""
        return pooled_features(self.backbone, self.images), pooled_features(self.backbone, self.test_images)


@torch.no_grad()
def features(backbone: nn.Module, images: Normalised) -> NDArray[Any]:
    """Returns the features of images (n, 3, H, W), shape (n, p), in eval mode."""
    return in_eval_mode(backbone, images, backbone)


def pooled_features(backbone: nn.Module, images: Normalised) -> NDArray[Any]:
    """As `features`, but a last map (B, C, H, W) is averaged over its positions instead of flattened, shape (n, C)."""

    def pooled(chunk: Tensor) -> Tensor:
        last: Tensor = backbone.forward_features(chunk)  # type: ignore[operator]
        whole: Tensor = backbone(chunk)
        # features that are no flattened map are pooled already
        return last.mean((2, 3)) if last.ndim == 4 and last[0].numel() == whole.shape[1] else whole

    channels_first = getattr(backbone, "output_fmt", "NCHW") == "NCHW"  # timm's Swin and others keep theirs last
    return in_eval_mode(
        backbone, images, pooled if channels_first and hasattr(backbone, "forward_features") else backbone
    )


@torch.no_grad()
def in_eval_mode(backbone: nn.Module, images: Normalised, function: Callable[[Tensor], Tensor]) -> NDArray[Any]:
    """Returns what a function of the backbone makes of images, `CHUNK` at a time, with the backbone in eval mode."""
    device = device_of(backbone, images)
    training = backbone.training
    backbone.eval()
    chunks = (images[start : start + CHUNK] for start in range(0, len(images), CHUNK))
    parts = [function(chunk.to(device)).float().cpu() for chunk in chunks]
    backbone.train(training)
    return torch.cat(parts).numpy()


def device_of(model: nn.Module, otherwise: Normalised) -> torch.device:
    """Returns the device of a model, or that of images where the model has none."""
    return next(chain(model.parameters(), model.buffers()), otherwise).device
