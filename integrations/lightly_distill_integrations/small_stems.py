"""timm models with a stem for small images, under timm names: `resnet18_small_stem` for `resnet18:stem=small`.

A network for 224x224 shrinks its images to a quarter before its first block, so that one of 32x32 ends at a single
position. The paper's networks for small images start with a 3x3 convolution of stride 1 and no max-pool
(arXiv:2310.06511, section 4.1); so do these.
"""

import dataclasses
from collections import deque
from typing import Any

from timm.models import DefaultCfg, get_pretrained_cfg, is_model, load_pretrained, model_entrypoint, register_model
from torch import nn

from lightly_distill.errors import UsageError

__all__ = ["register"]  # timm appends each registered name

SUFFIX = "_small_stem"
# Where timm's architectures keep the pooling of their stem.
_POOLS = ("maxpool", "pool0", "stem.pool", "features.pool0", "features.conv1_pool")

# timm looks here while a name is being registered.
default_cfgs: dict[str, Any] = {}


def register(name: str) -> bool:
    """Makes `<timm name>_small_stem` known to timm.

    Returns:
        Whether the name is one of this family; timm knows it from then on.
    """
    base = name.removesuffix(SUFFIX)
    if base == name or base.endswith(SUFFIX) or not is_model(base):
        return False
    if not is_model(name):
        known = get_pretrained_cfg(base)
        if known is None:
            return False
        # the published weights are not of this stem
        own = dataclasses.replace(known, url=None, file=None, hf_hub_id=None, custom_load=False)
        default_cfgs[name] = DefaultCfg(tags=deque([""]), cfgs={"": own})
        register_model(_entry_point(name, base))
    return True


def shrink_stem(model: nn.Module, name: str) -> None:
    """Makes the first convolution of a fresh model 3x3 with stride 1, and its stem's pooling an identity.

    Args:
        model: A timm model with fresh weights; changed in place.
        name: Of the model, for errors.

    Raises:
        UsageError: If the model does not start with a convolution, as where it cuts its images into patches, or its
            stem keeps their size already.
    """
    modules = dict(model.named_modules())
    path: Any = getattr(model, "pretrained_cfg", {}).get("first_conv")  # a tuple where several stand side by side
    convolution = modules.get(path) if isinstance(path, str) else None
    if not isinstance(convolution, nn.Conv2d) or convolution.stride[0] >= max(convolution.kernel_size[0], 2):
        raise UsageError(f"stem=small is for networks that start with an overlapping convolution; '{name}' does not.")
    pools = [pool for pool in _POOLS if pool in modules and _shrinks(modules[pool])]
    if convolution.stride[0] == 1 and not pools:
        raise UsageError(f"The stem of '{name}' keeps the size of its images already: leave stem=small out.")
    for pool in pools:
        model.set_submodule(pool, nn.Identity())
        if pool == "stem.pool" and "stem.pad" in modules:
            model.set_submodule("stem.pad", nn.Identity())  # that of the pooling
    convolution.stride = (1, 1)
    kernel = convolution.kernel_size[0]
    if kernel > 3:
        # The centre of a random kernel is one too; scaled as an initialisation by fan-in or fan-out would have it.
        cut = kernel // 2 - 1
        centre = convolution.weight.detach()[..., cut : cut + 3, cut : cut + 3] * (kernel / 3)
        convolution.weight = nn.Parameter(centre.clone())
        convolution.kernel_size, convolution.padding = (3, 3), (1, 1)


def _shrinks(pool: nn.Module) -> bool:
    """Returns whether a pooling makes its map smaller; some architectures put a convolution in its place."""
    strides = (getattr(module, "stride", 1) for module in pool.modules())
    return any((stride if isinstance(stride, int) else stride[0]) > 1 for stride in strides)


def _entry_point(name: str, base: str) -> Any:
    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if not kwargs.get("pretrained_cfg"):
            kwargs["pretrained_cfg"] = default_cfgs[name].default.to_dict()
        model: Any = model_entrypoint(base)(pretrained=False, **kwargs)
        shrink_stem(model, base)
        model.pretrained_cfg["architecture"] = name
        if pretrained:  # weights of this stem, as from a repository of somebody's student
            load_pretrained(model, num_classes=model.num_classes, in_chans=kwargs.get("in_chans", 3))
        built: nn.Module = model
        return built

    build.__name__ = name  # the name of the function is the name that timm registers
    return build
