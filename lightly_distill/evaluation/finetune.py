"""Fine-tuning, and what it shares with data-free distillation: head, batches, a step, the accuracy."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightly_distill.data.pixels import Normalised
from lightly_distill.evaluation.trial import Trial, in_eval_mode
from lightly_distill.runtime.seeding import generator, global_seed

# As in KRR-ST, arXiv:2310.06511, section 4.1.
FINETUNE: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
FINETUNE_BATCH = 256


def finetuned(trial: Trial) -> nn.Module:
    """Returns a copy of the backbone with a linear head, trained on the labelled images by cross-entropy."""
    device = trial.device
    images, labels = trial.images.to(device), trial.labels.to(device)
    with global_seed(trial.seed, "finetune", "init"):
        model = with_head(copy.deepcopy(trial.backbone), images, trial.num_classes)
    model.train().requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), **FINETUNE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, trial.finetune_steps)
    for step, batch in enumerate(batches(trial, len(images), FINETUNE_BATCH, "finetune")):
        with global_seed(trial.seed, "finetune", step, device=device), in_bf16(device):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
        descend(loss, optimizer, schedule)
    return model


def finetune_accuracy(trial: Trial) -> float:
    """Accuracy after training a copy of the backbone with a linear head on cross-entropy, in [0, 1]."""
    return accuracy(finetuned(trial), trial)


def with_head(backbone: nn.Module, images: Normalised, num_classes: int) -> nn.Module:
    """Puts a linear head of fresh weights on a backbone, whose width is that of its features of the images."""
    with torch.no_grad():
        width = backbone.eval()(images[:2]).shape[1]
    return nn.Sequential(backbone, nn.Linear(width, num_classes)).to(images.device)


def batches(trial: Trial, count: int, batch_size: int, name: str) -> Iterator[Tensor]:
    """Yields the indices of each step; what does not fill a batch is left out of an epoch."""
    draw, batch_size = generator(trial.seed, name, "batches"), min(batch_size, count)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(trial.finetune_steps):
        if len(order) < batch_size:
            order = torch.randperm(count, generator=draw)
        batch, order = order[:batch_size], order[batch_size:]
        yield batch


def in_bf16(device: torch.device) -> torch.autocast:
    """Computes in bfloat16 on a GPU that has arithmetic for it, which is faster there; in float32 elsewhere."""
    has_it = device.type == "cuda" and torch.cuda.is_bf16_supported(False)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_it)


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
    """Takes a step of the optimizer and of its schedule."""
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimizer.step()
    schedule.step()


def accuracy(model: nn.Module, trial: Trial) -> float:
    """Returns the accuracy of logits on the test images, in [0, 1]."""
    scores = in_eval_mode(model, trial.test_images, model)
    return float((scores.argmax(1) == trial.test_labels.numpy()).mean())
