import pytest
import timm
import torch
from torch import nn

from lightly_distill.models.recipe import Recipe, make_optimizer
from lightly_distill.models.students import student_builder


@pytest.mark.parametrize(
    ("name", "kind"),
    [("resnet10t", "sgd"), ("test_vit", "adamw"), ("test_convnext", "adamw"), ("convnet_4_4", "sgd")],
)
def test_the_family_decides_the_optimizer_unless_the_user_does(name: str, kind: str) -> None:
    student = student_builder(name, 32)() if name.startswith("convnet") else timm.create_model(name, num_classes=0)
    made = make_optimizer(student, nn.Linear(1, 1), Recipe())
    assert isinstance(made, torch.optim.AdamW if kind == "adamw" else torch.optim.SGD)
    assert isinstance(make_optimizer(student, nn.Linear(1, 1), Recipe(optimizer="sgd")), torch.optim.SGD)
    own = make_optimizer(student, nn.Linear(1, 1), Recipe(lr=0.25, weight_decay=0.125))
    assert (own.param_groups[0]["lr"], own.param_groups[0]["weight_decay"]) == (0.25, 0.125)
