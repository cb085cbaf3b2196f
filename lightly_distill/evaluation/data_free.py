"""Data-free distillation: how well the images alone carry a classifier's knowledge of a task to another network."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lightly_distill.evaluation.augmentation import augment
from lightly_distill.evaluation.finetune import accuracy, batches, descend, finetuned, in_bf16, with_head
from lightly_distill.evaluation.trial import Trial, device_of
from lightly_distill.runtime.seeding import generator, global_seed

# As in the released code of KRR-ST, algorithms/zeroshot_kd.py and test_kd.py.
DATA_FREE: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.0}  # AdamW; theirs for a network that is not pre-trained
DATA_FREE_BATCH = 512


def make_teacher(trial: Trial, build: Callable[[], nn.Module]) -> nn.Module:
    """Trains the teacher of data-free distillation: a network of random weights, fine-tuned on the labelled images.

    That is the model whose accuracy is the arm `scratch` with the probe `finetune`.

    Args:
        trial: For its images, labels, seed and steps; the backbone is not looked at.
        build: Makes the network, before training.
    """
    with global_seed(trial.seed, "pretrain", "init"):  # as the arm scratch
        backbone = build().to(trial.device)
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
    device = device_of(transfer.teacher, transfer.images)
    images = transfer.images.to(device)
    # not the weights that the teacher started from: two networks of one start agree even on noise
    with global_seed(trial.seed, "data-free", "init"):
        student = with_head(transfer.build().to(device), images, trial.num_classes).train()
    optimizer = torch.optim.AdamW(student.parameters(), **DATA_FREE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, trial.finetune_steps)
    for step, batch in enumerate(batches(trial, len(images), DATA_FREE_BATCH, "data-free")):
        changed = augment(images[batch], generator(trial.seed, "data-free", "augment", step))
        with torch.no_grad(), in_bf16(device):
            wanted = transfer.teacher(changed).softmax(1)
        with global_seed(trial.seed, "data-free", step, device=device), in_bf16(device):
            loss = F.cross_entropy(student(changed), wanted)
        descend(loss, optimizer, schedule)
    return accuracy(student, trial)
