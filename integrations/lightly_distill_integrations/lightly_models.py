"""Finds the encoder inside a model that was put together from Lightly's parts."""

import logging
from typing import Any

from lightly.models.modules import (
    MaskedCausalVisionTransformer,
    MaskedVisionTransformerTIMM,
    MaskedVisionTransformerTorchvision,
)
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionVisionTransformer

from lightly_distill.errors import UsageError
from lightly_distill_integrations import timm_backbones

_logger = logging.getLogger(__name__)

_WRAPPERS = ("_orig_mod", "module")  # torch.compile, DistributedDataParallel
# In this order: a model with `backbone` and `teacher_backbone` is evaluated by its `backbone` (Lightly's benchmarks),
# one without `backbone` by its teacher (DINO, iBOT, CAPI, I-JEPA).
_ENCODERS = ("backbone", "teacher_backbone", "target_encoder", "encoder", "student_backbone", "features")
_TRANSFORMERS = (
    MaskedVisionTransformerTIMM,
    MaskedVisionTransformerTorchvision,
    TimmVisionTransformer,
    TorchvisionVisionTransformer,
)


class TransformerEncoder(nn.Module):
    """Calls a vision transformer so that it returns what its method is evaluated with.

    Args:
        encoder: A timm model, a torchvision vision transformer, or one of Lightly's.

    Attributes:
        input_size: Height and width, in pixels, of the images it takes; None if it takes any.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.input_size = _input_size(encoder)

    def forward(self, images: Tensor) -> Any:
        """Returns one vector `(B, d)` of each image, or the tokens `(B, N, d)` that are to be averaged."""
        if isinstance(self.encoder, MaskedCausalVisionTransformer):
            return self.encoder.forward_features(images)  # AIM: `forward` does not run with a recent timm
        if hasattr(self.encoder, "forward_features"):
            return self.encoder.forward_head(self.encoder.forward_features(images), pre_logits=True)
        output = self.encoder(images)
        if isinstance(output, Tensor) and output.ndim == 3 and hasattr(self.encoder, "class_token"):
            return output[:, 1:]  # I-JEPA: its class token has no loss of its own
        return output


def find_encoder(model: nn.Module) -> nn.Module | None:
    """Returns the encoder inside a model made of Lightly's parts, or None if there is none by a known name.

    Lightly normalises with ImageNet's mean and standard deviation whatever the backbone, so none are brought along.
    """
    model = _unwrap(model)
    inner = getattr(model, "model", None)
    if type(model).__name__ == "SelfSupervisedEmbedding" and isinstance(inner, nn.Module):
        model = _unwrap(inner)
    if isinstance(model, MaskedCausalVisionTransformer) or (
        isinstance(model, _TRANSFORMERS) and not timm_backbones.is_timm(model)
    ):
        return TransformerEncoder(model)
    # Whole classifiers of the two libraries have parts by these names (`features` of VGG) that are less than they.
    if timm_backbones.is_timm(model) or type(model).__module__.startswith("torchvision.models"):
        return None
    for name in _ENCODERS:
        encoder = getattr(model, name, None)
        if isinstance(encoder, nn.Module):
            others = [other for other in _ENCODERS if other != name and hasattr(model, other)]
            passed = f" (passed over: {', '.join(others)})" if others else ""
            _logger.info("Encoder of %s: its '%s', as Lightly evaluates it%s.", type(model).__name__, name, passed)
            encoder = _unwrap(encoder)
            called_by_us = isinstance(encoder, _TRANSFORMERS) or timm_backbones.is_timm(encoder)
            return TransformerEncoder(encoder) if called_by_us else encoder
    return None


def load(spec: str) -> nn.Module:
    """Refuses: Lightly's checkpoints hold weights without their class.

    Raises:
        UsageError: Always; says what to give instead.
    """
    raise UsageError(
        f"'lightly:{spec}' cannot be loaded by name: Lightly publishes parts, not models. "
        "Give pkg.module:callable, a function that returns your model with its weights, or timm:NAME."
    )


def _unwrap(model: nn.Module) -> nn.Module:
    for name in _WRAPPERS:
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            return _unwrap(inner)
    return model


def _input_size(encoder: Any) -> int | None:
    if isinstance(encoder, MaskedVisionTransformerTIMM):
        return timm_backbones.fixed_size(encoder.vit)
    if isinstance(encoder, MaskedVisionTransformerTorchvision):
        return None  # adapts its positions to the image
    if hasattr(encoder, "forward_features"):
        return timm_backbones.fixed_size(encoder)
    # Subclasses of torchvision's transformer (I-JEPA's) adapt their positions, torchvision's own checks the size.
    return encoder.image_size if type(encoder) is TorchvisionVisionTransformer else None
