"""The last map of a timm model: what its `forward_features` returns, with the channels in second place."""

from contextlib import nullcontext
from typing import Any

import torch
from timm.models.pit import PoolingVisionTransformer
from torch import Tensor

from lightly_distill.models import maps


def read(model: Any, images: Tensor) -> tuple[Any, Tensor]:
    """Returns what `model(images)` returns and, from the same pass, its last map `(B, C, h, w)`."""
    last, last_map = features(model, images)
    return model.forward_head(last), last_map


def features(model: Any, images: Tensor) -> tuple[Any, Tensor]:
    """Returns what `model.forward_features(images)` returns, and the last map in it `(B, C, h, w)`.

    Raises:
        NoMapError: If its tokens fill no square.
    """
    if isinstance(model, PoolingVisionTransformer):
        return _features_of_pit(model, images)
    # no hook gets into compiled code, and most models need none
    with nullcontext() if torch.compiler.is_compiling() else maps.watch(len(images)) as seen:
        last = model.forward_features(images)
    if not isinstance(last, Tensor):  # several: of CoaT, CrossViT and EfficientViM
        if seen is None:
            raise maps.NoMapError("compiled code shows no map of a model that returns several")
        return last, seen.map(None)
    if last.ndim == 3:
        return last, maps.of_tokens(last, getattr(model, "num_prefix_tokens", None))
    return last, last.permute(0, 3, 1, 2) if getattr(model, "output_fmt", "") == "NHWC" else last


def _features_of_pit(model: Any, images: Tensor) -> tuple[Any, Tensor]:
    # its `forward_features` returns class tokens alone
    with maps.output_of(model.transformers[-1].blocks) as returned:
        last = model.forward_features(images)
    return last, maps.of_tokens(returned[-1], model.cls_token.shape[1])
