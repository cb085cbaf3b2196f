"""How a student is trained on a synthetic set, in the pool as in pre-training: what both have in common."""

from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from lightly_distill.errors import UsageError
from lightly_distill.runtime.device import computes_bf16
from lightly_distill.runtime.settings import check_bool, check_number, check_one_of

# learning rate and weight decay of each, where the user does not say; those of SGD are of KRR-ST, arXiv:2310.06511
DEFAULTS = {"sgd": (0.1, 1e-3), "adamw": (1e-3, 0.05)}


@dataclass(frozen=True)
class Recipe:
    """Augmentation and optimizer."""

    mixup: bool = True
    """Mix pairs of images, and their targets alike (arXiv:1710.09412), anew in each training step."""
    crop_and_flip: bool = True
    """Shift images by up to an eighth of their side and mirror half of them, anew in each training step."""
    optimizer: Literal["auto", "sgd", "adamw"] = "auto"
    """auto: SGD for students with batch norm, AdamW for those with layer norm instead, such as ViTs."""
    lr: float | None = None
    """Learning rate of the students. Default: 0.1 with SGD, 0.001 with AdamW."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float | None = None
    """Weight decay of students and heads. Default: 0.001 with SGD, 0.05 with AdamW."""

    prefix = ""  # of the fields in messages; no field itself

    def __post_init__(self) -> None:
        check_bool(self, "mixup", "crop_and_flip", prefix=self.prefix)
        check_one_of(f"{self.prefix}optimizer", self.optimizer, ("auto", "sgd", "adamw"))
        check_number(self, "momentum", least=0, prefix=self.prefix)
        if self.lr is not None:
            check_number(self, "lr", prefix=self.prefix)
        if self.weight_decay is not None:
            check_number(self, "weight_decay", least=0, prefix=self.prefix)


class RecipeOptions(TypedDict, total=False):
    """The fields of `Recipe` as keywords."""

    mixup: bool
    crop_and_flip: bool
    optimizer: Literal["auto", "sgd", "adamw"]
    lr: float | None
    momentum: float
    weight_decay: float | None


def make_optimizer(student: nn.Module, head: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Makes the optimizer of a student and its head."""
    kind = recipe.optimizer if recipe.optimizer != "auto" else _kind_for(student)
    lr, weight_decay = DEFAULTS[kind]
    options: dict[str, Any] = {
        "lr": lr if recipe.lr is None else recipe.lr,
        "weight_decay": weight_decay if recipe.weight_decay is None else recipe.weight_decay,
    }
    parameters = [*student.parameters(), *head.parameters()]
    options["fused"] = fused(parameters[0].device)
    if kind == "adamw":
        return torch.optim.AdamW(parameters, **options)
    return torch.optim.SGD(parameters, momentum=recipe.momentum, **options)


def gains_from_bf16(student: nn.Module, images: Tensor) -> bool:
    """Returns whether a student is quicker in bfloat16, as far as we know: on a CPU that computes in it.

    Not with convolutions in groups: MobileNets and EfficientNets have 0.4 of their speed in it. And not where its
    gradient is wrong, see `check_bf16`.

    Args:
        student: On the device of the images.
        images: Normalised, shape (B, 3, S, S); one is enough.
    """
    if not computes_bf16(images.device):
        return False
    seen = _seen(student, images)
    return not any(convolution.groups > 1 or _strided_on_one_pixel(convolution, shape) for convolution, shape in seen)


def check_bf16(student: nn.Module, name: str, images: Tensor) -> None:
    """Refuses a student whose gradient in bfloat16 is wrong.

    On a CPU, torch 2.14 returns that of the weights of a convolution with a stride on a map of one pixel as whatever
    was in memory.

    Args:
        student: On the device of the images.
        name: Of the student.
        images: As for `gains_from_bf16`.

    Raises:
        UsageError: If it has such a convolution at this size of images, and they are on a CPU.
    """
    if images.device.type == "cpu" and any(_strided_on_one_pixel(*each) for each in _seen(student, images)):
        raise UsageError(
            f"precision=bf16 does not suit student '{name}' at {images.shape[-1]} pixels: a convolution of it has a "
            "stride on a map of one pixel, of which torch gets the gradient wrong in bfloat16 on a CPU. Give "
            "precision=fp32 or auto, or larger images."
        )


def _strided_on_one_pixel(convolution: nn.Conv2d, shape: torch.Size) -> bool:
    return convolution.kernel_size != (1, 1) and convolution.stride != (1, 1) and shape[-1] == 1


def _seen(student: nn.Module, images: Tensor) -> list[tuple[nn.Conv2d, torch.Size]]:
    """Returns the convolutions that an image passes, each with the shape of what it is given."""
    seen: list[tuple[nn.Conv2d, torch.Size]] = []

    def look(module: nn.Conv2d, given: tuple[Tensor, ...]) -> None:
        seen.extend((module, each.shape) for each in given)

    convolutions = [module for module in student.modules() if isinstance(module, nn.Conv2d)]
    hooks = [module.register_forward_pre_hook(look) for module in convolutions]
    training = student.training
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            student.eval()(images[:1])
    finally:
        student.train(training)
        for hook in hooks:
            hook.remove()
    return seen


def fused(device: torch.device) -> bool | None:
    """Returns whether an optimizer's step is one launch: on a GPU, where a launch costs more than the arithmetic."""
    return True if device.type == "cuda" else None  # None: as torch has it


def _kind_for(student: nn.Module) -> Literal["sgd", "adamw"]:
    """Returns which optimizer suits a student: SGD, or AdamW where it has layer norm and no batch norm, as ViTs."""
    has_batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in student.modules())
    has_layer_norm = any(isinstance(module, nn.LayerNorm) for module in student.modules())
    return "adamw" if has_layer_norm and not has_batch_norm else "sgd"
