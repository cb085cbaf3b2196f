"""torchvision's models as targets, without their classifier."""

import copy
from pathlib import Path
from typing import Any

import torchvision.models
from torch import nn
from torchvision.models import SqueezeNet, VisionTransformer

from lightly_distill.adapters import FoundEncoder
from lightly_distill.errors import DistillError, UsageError, did_you_mean, first_line
from lightly_distill_integrations import checkpoints

_HEADS = ("fc", "classifier", "heads", "head")  # ResNet; DenseNet, VGG, MobileNet; ViT; Swin


def load(spec: str) -> nn.Module:
    """Loads a model with weights, without its head.

    Args:
        spec: `NAME` for the weights that torchvision publishes, or `NAME@FILE` for a checkpoint; names in the file may
            have a prefix, or be those of a sliced model (`backbone.0.weight`).

    Raises:
        UsageError: If the name is unknown, or the file is not there or not of this model.
        DistillError: If published weights cannot be fetched.
    """
    name, separator, file = spec.partition("@")
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        hint = did_you_mean(name, known, most=3, list_up_to=0) or " See torchvision.models.list_models()."
        raise UsageError(f"torchvision knows no model '{name}'.{hint}")
    if separator:
        model = headless(torchvision.models.get_model(name, weights=None))
        checkpoints.read(Path(file).expanduser()).fill(model, name, strict=True)
        return model
    try:
        return headless(torchvision.models.get_model(name, weights="DEFAULT"))
    except Exception as error:  # the kinds of failure of a download are without number
        raise DistillError(
            f"The weights of '{name}' cannot be fetched ({first_line(error)}). "
            f"Without network, give them as a file: torchvision:{name}@weights.pth"
        ) from error


def find_encoder(model: nn.Module) -> FoundEncoder | None:
    """Returns a copy of a torchvision classifier without its head, or None if the model is not torchvision's."""
    if not is_torchvision(model):
        return None
    encoder: Any = headless(copy.deepcopy(model))
    encoder.input_size = getattr(encoder, "image_size", None)  # a vision transformer takes images of one size only
    return FoundEncoder(encoder, "", "a model of torchvision, without head")


def is_torchvision(model: nn.Module) -> bool:
    """Returns whether this is one of torchvision's classifiers, or of a class made from one."""
    if isinstance(model, VisionTransformer) and type(model) is not VisionTransformer:
        return False  # Lightly's own, which return tokens
    ours = any(kind.__module__.startswith("torchvision.models.") for kind in type(model).__mro__)
    return ours and any(hasattr(model, name) for name in _HEADS)


def headless(model: nn.Module) -> nn.Module:
    """Takes the classifier off a model, which is changed, and returns it."""
    for name in _HEADS:
        if hasattr(model, name):
            # SqueezeNet averages its map in the head, and flattens whatever is left
            setattr(model, name, nn.AdaptiveAvgPool2d(1) if isinstance(model, SqueezeNet) else nn.Identity())
    return model
