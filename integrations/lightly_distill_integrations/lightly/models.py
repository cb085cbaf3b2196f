"""Finds the encoder inside a model that was put together from Lightly's parts, and rebuilds one from a checkpoint."""

import logging
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch
import torchvision.models
from lightly.models import ResNetGenerator
from lightly.models.modules import (
    MaskedCausalVisionTransformer,
    MaskedVisionTransformerTIMM,
    MaskedVisionTransformerTorchvision,
)
from lightly.models.modules.heads import ProjectionHead
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionVisionTransformer

from lightly_distill.adapters import FoundEncoder, MapReader
from lightly_distill.errors import UsageError
from lightly_distill.models import encoders, maps
from lightly_distill_integrations import checkpoints
from lightly_distill_integrations.timm import backbones as timm_backbones
from lightly_distill_integrations.timm import maps as timm_maps
from lightly_distill_integrations.torchvision import backbones as torchvision_backbones

_logger = logging.getLogger(__name__)

_WRAPPERS = ("_orig_mod", "module")  # torch.compile, DistributedDataParallel and AveragedModel
# MSN, PMSN and the DINO of the benchmarks: beside one of these, `backbone` is the moving average.
_AVERAGED = ("anchor_backbone", "student_backbone")
_OTHERS = re.compile("backbone|encoder")
# Beside one of these, a model is no encoder itself: what it returns is a projection, or several things.
_SIGNS_OF_A_METHOD = re.compile(
    "(^|_)(proj_head|projection|projector|prediction|predictor|prototypes|momentum|teacher|student)(_|$)"
)
_MASKED = (MaskedVisionTransformerTIMM, MaskedVisionTransformerTorchvision)
# names and shapes of the weights of each ResNet that was tried; building one takes a tenth of a second
_shapes: dict[str, dict[str, torch.Size]] = {}
_LIGHTLY_RESNETS = ("resnet-9", "resnet-18", "resnet-34", "resnet-50", "resnet-101", "resnet-152")
_TRANSFORMERS = (*_MASKED, TimmVisionTransformer, TorchvisionVisionTransformer)


class TransformerEncoder(nn.Module):
    """Calls a vision transformer, without a mask, so that it returns what its method is evaluated with.

    Args:
        encoder: A timm model, a torchvision vision transformer, or one of Lightly's.
        pooling: Which tokens of one of Lightly's masked transformers are averaged: all that stand for the whole image
            ("prefix") or those of patches ("patches"). By default its class token, or what the transformer itself does.

    Attributes:
        input_size: Height and width, in pixels, of the images it takes; None if it takes any.
        pooled: What it returns, in words.
    """

    def __init__(self, encoder: nn.Module, pooling: Literal["default", "prefix", "patches"] = "default") -> None:
        super().__init__()
        self.encoder: Any = encoder
        self.pooling = pooling
        self.input_size = _input_size(encoder)
        # Kept as a number: the transformer inside may be copied to where it is no longer asked.
        self.num_prefix_tokens = getattr(getattr(encoder, "vit", encoder), "num_prefix_tokens", 1)
        self.pooled = self._pooled()

    def forward(self, images: Tensor) -> Any:
        """Returns one vector `(B, d)` of each image, or the tokens `(B, N, d)` that are to be averaged."""
        if self.pooling == "prefix":
            return self.encoder.encode(images)[:, : self.num_prefix_tokens]
        if self.pooling == "patches":
            return self.encoder.encode(images)[:, self.num_prefix_tokens :]
        if isinstance(self.encoder, MaskedCausalVisionTransformer):
            return self.encoder.forward_features(images)  # AIM: `forward` does not run with a recent timm
        if hasattr(self.encoder, "forward_features"):
            return self.encoder.forward_head(self.encoder.forward_features(images), pre_logits=True)
        output = self.encoder(images)
        if isinstance(output, Tensor) and output.ndim == 3 and hasattr(self.encoder, "class_token"):
            return output[:, 1:]  # I-JEPA: its class token has no loss of its own
        return output

    def extra_repr(self) -> str:
        """Returns what tells it apart from another of the same weights."""
        return "" if self.pooling == "default" else f"pooling={self.pooling}"

    def with_map(self, images: Tensor) -> tuple[Any, Tensor]:
        """Returns what `forward` returns and, from the same pass, the map `(B, d, h, w)` that its patch tokens make."""
        encoder = self.encoder
        if hasattr(encoder, "forward_features") and not isinstance(encoder, MaskedCausalVisionTransformer):
            last, last_map = timm_maps.features(encoder, images)
            return encoder.forward_head(last, pre_logits=True), last_map
        transformer = getattr(encoder, "vit", encoder)
        # `encode` of the masked ones, and `forward` of I-JEPA's, return what this last layer returns
        norm = transformer.norm if hasattr(transformer, "norm") else transformer.encoder.ln
        with maps.output_of(norm) as returned:
            output = self(images)
        return output, maps.of_tokens(returned[-1], self.num_prefix_tokens)

    def _pooled(self) -> str:
        if self.pooling == "prefix":
            return f"mean of its {self.num_prefix_tokens} prefix tokens, without mask"
        if self.pooling == "patches":
            return "mean of its patch tokens, without mask"
        if isinstance(self.encoder, MaskedCausalVisionTransformer):
            return "mean of its tokens, without mask"
        if isinstance(self.encoder, _MASKED):
            return "class token, without mask"
        return "without head"


def find_encoder(model: nn.Module) -> FoundEncoder | None:
    """Returns the encoder inside a model made of Lightly's parts, or None if the model is not made of them.

    Lightly normalises with ImageNet's mean and standard deviation whatever the backbone, so none are brought along.

    Raises:
        UsageError: If the model is one of self-supervised learning, but its encoder has no name that Lightly uses.
    """
    of_another_library = timm_backbones.is_timm(model) or torchvision_backbones.is_torchvision(model)
    if isinstance(model, MaskedCausalVisionTransformer) or (
        isinstance(model, _TRANSFORMERS) and not of_another_library
    ):
        transformer = TransformerEncoder(model)
        return FoundEncoder(transformer, "", f"a vision transformer, {transformer.pooled}")
    # Whole classifiers of the two libraries have parts by these names (`features` of VGG) that are less than they.
    if of_another_library:
        return None
    for name, why in checkpoints.ENCODERS.items():
        encoder = getattr(model, name, None)
        # a network of one's own may well call its convolutions `features`
        if isinstance(encoder, nn.Module) and (name != "features" or _is_method(model)):
            return _found(model, name, why, encoder)
    if isinstance(model, LightlyCheckpoint):
        names = ", ".join(name for name, _ in model.named_children())
        raise UsageError(
            f"The checkpoint holds several ResNets ({names}): choose one with encoder= (--target-encoder)."
        )
    for name in (*_WRAPPERS, "model"):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            found = find_encoder(inner)
            if found is None and name in _WRAPPERS:
                found = timm_backbones.find_encoder(inner) or torchvision_backbones.find_encoder(inner)
                found = found or FoundEncoder(inner, "", "taken whole")
            # what holds a `model` may do more than it, unless that one is a method with an encoder inside
            if found is not None and (found.path or name in _WRAPPERS):
                return found._replace(path=".".join(filter(None, (name, found.path))))
    if _is_method(model):
        raise UsageError(
            f"The encoder of {type(model).__name__} cannot be found: it has none of {', '.join(checkpoints.ENCODERS)}. "
            f"Name it with encoder= (--target-encoder); of its parts: {encoders.candidates(model)}."
        )
    return None


def find_map(model: nn.Module) -> MapReader | None:
    """Returns what runs a transformer as found here and has its last map, or None if it is not one of these."""
    return TransformerEncoder.with_map if isinstance(model, TransformerEncoder) else None


def load(spec: str) -> nn.Module:
    """Loads a checkpoint; see `load_checkpoint`."""
    return load_checkpoint(spec, None)


def load_checkpoint(path: str, model_class: Callable[..., Any] | None) -> nn.Module:
    """Brings back the model in a checkpoint of PyTorch Lightning, of `lightly-ssl-train`, or in bare weights.

    Nothing in the file is executed.

    Args:
        path: File ending in .ckpt, .pt, .pth or .safetensors.
        model_class: Class of the model, or a function that returns it. It is given those of the file's hyper-parameters
            that it takes. By default the weights must be those of a ResNet of torchvision or Lightly, under one of the
            names that Lightly's scripts use.

    Raises:
        UsageError: If there is no such file, it holds more than tensors and plain values, or its weights do not fit.
    """
    content = checkpoints.read(path)
    if model_class is not None:
        model = content.build(model_class)
        content.fill(model, type(model).__name__, strict=False)
        return model
    holder, used = _recognised(content.tensors)
    if not used:
        found = checkpoints.groups(content.tensors)
        raise UsageError(
            f"The class of the model in '{path}' does not follow from its weights ({found}){_class_path(content)}: "
            f"give --target-class pkg.module:Class, or timm:NAME@{path} or torchvision:NAME@{path} for a backbone of "
            "theirs."
        )
    content.report_left_over(used)
    return holder


class LightlyCheckpoint(nn.Module):
    """Holds the encoders that were recognised in a checkpoint, under their names there."""


def _recognised(tensors: dict[str, Tensor]) -> tuple[nn.Module, set[str]]:
    """Rebuilds the ResNets among weights.

    Returns:
        One module, if the weights are those of one ResNet, or else a holder of those that have a name of their own; and
        the names of the weights that are in them.
    """
    names = {key.partition(".")[0] for key in tensors}
    if names == {"model"}:  # `lightly-ssl-train`
        holder, used = _recognised({key.removeprefix("model."): tensor for key, tensor in tensors.items()})
        return holder, {f"model.{key}" for key in used}
    whole = _resnet(tensors)
    if whole is not None:
        return whole, set(checkpoints.without_head(tensors))
    holder, used = LightlyCheckpoint(), set()
    for name in sorted(names):
        part = {key.removeprefix(f"{name}."): tensors[key] for key in tensors if key.startswith(f"{name}.")}
        encoder = _resnet(part)
        if encoder is not None:
            holder.add_module(name, encoder)
            used |= {f"{name}.{key}" for key in checkpoints.without_head(part)}
    found = list(holder.children())
    if len(found) == 1 and not any(hasattr(holder, name) for name in checkpoints.ENCODERS):
        return found[0], used
    return holder, used


def _resnet(tensors: dict[str, Tensor]) -> nn.Module | None:
    """Returns the ResNet of torchvision or Lightly whose weights, all but a head's, have these names and shapes."""
    weights = checkpoints.without_head(tensors)
    shapes = {key: tensor.shape for key, tensor in weights.items()}
    stem = next((shape for shape in shapes.values() if len(shape) == 4 and shape[1] == 3), None)
    if stem is None:
        return None
    for name, build in _resnets(width=stem[0], bottleneck=shapes.get("7.weight", (0,))[0]):
        if name not in _shapes:
            with torch.device("meta"):
                _shapes[name] = {key: tensor.shape for key, tensor in build().state_dict().items()}
        if shapes == _shapes[name]:
            model = build()
            model.load_state_dict(weights)
            _logger.info("Recognised %s.", name)
            return model
    return None


def _resnets(width: int, bottleneck: int) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Yields the ResNets with a stem of this width, in the forms in which Lightly's scripts use them."""
    if width == 64:
        for name in torchvision.models.list_models(include=["*resnet*", "resnext*"], module=torchvision.models):
            whole = partial(torchvision.models.get_model, name, weights=None)
            yield f"torchvision's {name}", partial(_headless, whole)
            yield f"torchvision's {name}, sliced", partial(_sliced, whole)
    for name in _LIGHTLY_RESNETS:
        whole = partial(ResNetGenerator, name, width / 64)
        yield f"Lightly's {name}, {width} wide", partial(_sliced, whole)
        if bottleneck:
            description = f"the {name} of lightly-ssl-train, {width} to {bottleneck} wide"
            yield description, partial(_of_lightly_ssl_train, whole, bottleneck)


def _headless(whole: Callable[[], nn.Module]) -> nn.Module:
    return torchvision_backbones.headless(whole())


def _sliced(whole: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(*list(whole().children())[:-1])


def _of_lightly_ssl_train(whole: Callable[[], nn.Module], num_features: int) -> nn.Module:
    *layers, head = whole().children()
    bottleneck = nn.Conv2d(head.in_features, num_features, 1)  # type: ignore[arg-type]
    return nn.Sequential(nn.BatchNorm2d(3), *layers, bottleneck, nn.AdaptiveAvgPool2d(1))


def _class_path(content: checkpoints.Checkpoint) -> str:
    # What the file names is imported only if the user says so.
    named = str(content.hyper_parameters.get("_class_path") or "")
    return f", and it names its class {named}, which is used only if you give it" if named else ""


def _found(model: nn.Module, name: str, why: str, encoder: nn.Module) -> FoundEncoder:
    names = [child for child, _ in model.named_children()]
    averaged = [other for other in _AVERAGED if other in names]
    if name == "backbone" and averaged:
        why = f"the moving average of its '{averaged[0]}', which is what the method evaluates"
    passed_over = [other for other in names if other != name and _OTHERS.search(other)]
    path, encoder = _unwrapped(name, encoder)
    reason = f"its '{name}', {why}" + (f"; passed over: {', '.join(passed_over)}" if passed_over else "")
    headless = torchvision_backbones.find_encoder(encoder)
    if headless is not None:
        return FoundEncoder(headless.encoder, path, f"{reason}; {headless.reason}")
    if isinstance(encoder, _TRANSFORMERS) or timm_backbones.is_timm(encoder):
        called = TransformerEncoder(encoder, _pooling(model, encoder))
        return FoundEncoder(called, path, f"{reason}; {called.pooled}")
    return FoundEncoder(encoder, path, reason)


def _pooling(model: nn.Module, encoder: nn.Module) -> Literal["default", "prefix", "patches"]:
    decoder = getattr(model, "decoder", None)
    if isinstance(encoder, _MASKED) and isinstance(decoder, nn.Linear):
        return "patches"  # SimMIM: no loss reaches its class token; its paper averages the patches
    tokens = getattr(getattr(encoder, "vit", None), "num_prefix_tokens", 1)
    if isinstance(encoder, MaskedVisionTransformerTIMM) and decoder is not None and tokens > 1:
        return "prefix"  # Pixio, as Lightly's benchmark does
    return "default"


def _unwrapped(path: str, encoder: nn.Module) -> tuple[str, nn.Module]:
    for name in _WRAPPERS:
        inner = getattr(encoder, name, None)
        if isinstance(inner, nn.Module):
            return _unwrapped(f"{path}.{name}", inner)
    return path, encoder


def _is_method(model: nn.Module) -> bool:
    if any(isinstance(part, ProjectionHead) for part in model.modules()):
        return True
    return any(_SIGNS_OF_A_METHOD.search(name) for name, _ in model.named_children())


def _input_size(encoder: Any) -> int | None:
    if isinstance(encoder, MaskedVisionTransformerTIMM):
        return timm_backbones.fixed_size(encoder.vit)
    if isinstance(encoder, MaskedVisionTransformerTorchvision):
        return None  # adapts its positions to the image
    if hasattr(encoder, "forward_features"):
        return timm_backbones.fixed_size(encoder)
    return None  # subclasses of torchvision's transformer, as I-JEPA's, adapt their positions too
