"""The small ConvNet of dataset distillation, under timm names: `convnet_128_256_512` and any other widths."""

import re
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from torch import Tensor, nn

__all__ = ["ConvNet", "register"]  # timm appends each registered name

_NAME = re.compile(r"convnet((?:_[1-9]\d*)+)(_in)?")
_REGISTERED = [
    f"convnet_{widths}{norm}" for widths in ("32_64_128", "128_256_512", "64_128_256_512") for norm in ("", "_in")
]
# timm looks here while a name is being registered, so this comes before the first `register`.
default_cfgs: dict[str, Any] = {}


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, norm, ReLU and 2x2 average pooling; the features are the flattened last map.

    As in KRR-ST (arXiv:2310.06511, section 4.1). The width of the features depends on the image size: 8192 for
    widths 128-256-512 at 32x32.

    Args:
        widths: Channels of each block.
        instance_norm: Normalises each image by itself, with learned scale and shift, instead of each batch.
        num_classes: Width of the linear head; 0 for features `(B, num_features)`.
        in_chans: Channels of the images.
        img_size: Height and width of the images, in pixels.

    Raises:
        ValueError: If the images are too small to be halved once a block.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        instance_norm: bool = False,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 32,
    ) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        smallest = 2 ** len(widths)
        if min(height, width) < smallest:
            raise ValueError(f"{len(widths)} blocks need images of {smallest}x{smallest} or more, not {height}x{width}")
        self.img_size = (height, width)
        self.blocks = nn.Sequential(
            *(_block(*channels, instance_norm) for channels in zip((in_chans, *widths), widths, strict=False))
        )
        self.num_features = widths[-1] * (height // smallest) * (width // smallest)
        self.head_hidden_size = self.num_features
        self.head: nn.Module
        self.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        """Returns the linear head, or an identity where there is none."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Puts in a new linear head, or none for 0 classes."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Returns the last map, `(B, widths[-1], H', W')`."""
        features: Tensor = self.blocks(x)
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Flattens the last map and, unless `pre_logits`, applies the head."""
        x = torch.flatten(x, 1)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `(B, num_classes)`, or the features `(B, num_features)` where there is no head."""
        return self.forward_head(self.forward_features(x))


def register(name: str) -> bool:
    """Makes `convnet_<widths>` or `convnet_<widths>_in` known to timm.

    Returns:
        Whether the name is one of this family; timm knows it from then on.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return False
    if not is_model(name):
        default_cfgs.update(generate_default_cfgs({name: _config()}))
        widths = tuple(int(width) for width in match[1].split("_")[1:])
        register_model(_entry_point(name, widths, instance_norm=match[2] is not None))
    return True


def _block(channels_in: int, channels_out: int, instance_norm: bool) -> nn.Module:
    # GroupNorm of one channel a group is the instance norm that also takes a 1x1 map.
    norm = nn.GroupNorm(channels_out, channels_out) if instance_norm else nn.BatchNorm2d(channels_out)
    convolution = nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1)
    return nn.Sequential(convolution, norm, nn.ReLU(inplace=True), nn.AvgPool2d(2))


def _config() -> dict[str, Any]:
    # A fixed input size makes timm hand `img_size` to the constructor.
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 32, 32),
        "fixed_input_size": True,
        "first_conv": "blocks.0.0",
        "classifier": "head",
    }


def _entry_point(name: str, widths: tuple[int, ...], instance_norm: bool) -> Any:
    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        model: nn.Module = build_model_with_cfg(
            ConvNet, name, pretrained, widths=widths, instance_norm=instance_norm, **kwargs
        )
        return model

    build.__name__ = name  # the name of the function is the name that timm registers
    return build


for _name in _REGISTERED:
    register(_name)
