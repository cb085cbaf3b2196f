"""How a student is trained on a synthetic set, in the pool as in pre-training: optimizer and augmentation."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightly_distill.models.rows import Layout

Kind = Literal["auto", "sgd", "adamw"]
# learning rate and weight decay of each, where the user does not say; those of SGD are of KRR-ST, arXiv:2310.06511
DEFAULTS = {"sgd": (0.1, 1e-3), "adamw": (1e-3, 0.05)}
PAD = 1 / 8  # of the side, reflected; a random crop of 4 pixels at 32


def vary(
    images: Tensor,
    rows: Tensor,
    targets: Layout,
    generator: torch.Generator,
    *,
    crop_and_flip: bool,
    mixup: bool,
) -> tuple[Tensor, Tensor]:
    """Crops and mirrors images, with the maps in their targets, and mixes pairs of images and of targets.

    Mixup (Zhang et al., ICLR 2018, arXiv:1710.09412) with weights drawn uniformly from 0 to 1 for each image.

    Args:
        images: Normalised, shape (B, C, S, S).
        rows: Targets, shape (B, D).
        targets: Their layout.
        generator: Of the draws, on the CPU.
        crop_and_flip: Whether images are shifted by up to an eighth of their side, and mirrored half of the time.
        mixup: Whether pairs are mixed.

    Returns:
        Images and targets of the same shapes.
    """
    if crop_and_flip:
        images, rows = _crop_and_flip(images, rows, targets, generator)
    if mixup:
        weights = torch.rand(len(images), generator=generator).to(images.device)
        partners = torch.randperm(len(images), generator=generator).to(images.device)
        images = images.lerp(images[partners], weights.view(-1, 1, 1, 1))
        rows = rows.lerp(rows[partners], weights.view(-1, 1))
    return images, rows


def _crop_and_flip(images: Tensor, rows: Tensor, targets: Layout, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    count, side, device = len(images), images.shape[-1], images.device
    pad = max(1, round(side * PAD))
    corners = torch.randint(2 * pad + 1, (2, count, 1), generator=generator).to(device)
    mirrored = torch.randint(2, (count,), generator=generator).bool().to(device)
    straight = torch.arange(side, device=device)
    padded = F.pad(images, (pad, pad, pad, pad), mode="reflect")
    down = corners[0] + straight
    across = corners[1] + torch.where(mirrored[:, None], straight.flip(0), straight)
    number = torch.arange(count, device=device)[:, None, None]
    images = padded[number, :, down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2)
    vectors, last_maps = targets.split(rows)
    if last_maps is not None:
        last_maps = torch.where(mirrored.view(-1, 1, 1, 1), last_maps.flip(3), last_maps)
    return images.contiguous(memory_format=torch.channels_last), targets.join(vectors, last_maps)


def kind_of(student: nn.Module, kind: Kind) -> Literal["sgd", "adamw"]:
    """Returns which optimizer suits a student: SGD, or AdamW where it has layer norm and no batch norm, as ViTs."""
    if kind != "auto":
        return kind
    has_batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in student.modules())
    has_layer_norm = any(isinstance(module, nn.LayerNorm) for module in student.modules())
    return "adamw" if has_layer_norm and not has_batch_norm else "sgd"


def make_optimizer(
    student: nn.Module,
    head: nn.Module,
    *,
    kind: Kind,
    lr: float | None,
    momentum: float,
    weight_decay: float | None,
) -> torch.optim.Optimizer:
    """Makes the optimizer of a student and its head.

    Args:
        student: The backbone.
        head: From features to targets.
        kind: Which; `auto` is decided by `kind_of`.
        lr: Learning rate; None: that of `DEFAULTS`.
        momentum: Of SGD.
        weight_decay: Of all weights; None: that of `DEFAULTS`.
    """
    kind = kind_of(student, kind)
    own_lr, own_decay = DEFAULTS[kind]
    parameters = [*student.parameters(), *head.parameters()]
    options: dict[str, Any] = {
        "lr": own_lr if lr is None else lr,
        "weight_decay": own_decay if weight_decay is None else weight_decay,
    }
    if kind == "adamw":
        return torch.optim.AdamW(parameters, **options)
    return torch.optim.SGD(parameters, momentum=momentum, **options)
