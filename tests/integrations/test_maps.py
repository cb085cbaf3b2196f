"""The maps of targets of each library: they show where an image was changed, beside the representation as it was."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import SwinTransformer

from lightly_distill import as_target, register_target
from lightly_distill.models.maps import of_tokens
from lightly_zoo import BENCHMARKS, METHODS, torchvision_transformer

SIZE = 128
GRID = 4


def _torchvision(name: str, **arguments: Any) -> nn.Module:
    model: nn.Module = torchvision.models.get_model(name, weights=None, **arguments)
    return model


def _timm(name: str, **arguments: Any) -> nn.Module:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    model: nn.Module = timm.create_model(name, **arguments)
    return model


AVERAGED: dict[str, Callable[[], nn.Module]] = {  # the representation is the average of all positions
    **{
        name: partial(METHODS[name].build, nn.Module)
        for name in ("aim", "dino", "ijepa", "simclr", "simmim", "vicregl")
    },
    "timm-mixer": partial(_timm, "mixer_s32_224", img_size=SIZE),
    "timm-registers-averaged": partial(
        _timm, "test_vit", img_size=SIZE, reg_tokens=3, global_pool="avg", fc_norm=False
    ),
    "timm-resnet": partial(_timm, "resnet10t"),
    "timm-swin": partial(_timm, "swin_tiny_patch4_window7_224", img_size=SIZE, depths=(1, 1, 1, 1), embed_dim=24),
    "torchvision-resnet": partial(_torchvision, "resnet18"),
    "torchvision-swin": partial(SwinTransformer, [4, 4], 24, [1, 1, 1, 1], [1, 2, 4, 8], [4, 4]),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    **{name: partial(METHODS[name].build, nn.Module) for name in ("capi", "mae", "msn", "pixio")},
    "timm-convnext": partial(_timm, "test_convnext"),  # norm and layers after the average
    "timm-mobilenet": partial(_timm, "mobilenetv3_small_050"),
    "timm-pit": partial(_timm, "pit_ti_224", img_size=SIZE),  # its `forward_features` gives class tokens
    "timm-registers": partial(_timm, "test_vit", img_size=SIZE, reg_tokens=3),
    "torchvision-vit": torchvision_transformer,
}


@pytest.fixture(scope="module")
def images() -> Tensor:
    """An image, and the same with another upper right corner."""
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    other = image.clone()
    other[:, :, : SIZE // GRID, -SIZE // GRID :] = 1 - other[:, :, : SIZE // GRID, -SIZE // GRID :]
    return torch.cat([image, other])


def differ_most_at_the_upper_right(cells: Tensor) -> bool:
    difference = (cells[0] - cells[1]).abs().sum(0)
    return difference.shape == (GRID, GRID) and difference.amax() == difference[: GRID // 2, GRID // 2 :].amax()


@pytest.mark.parametrize("kind", [*AVERAGED, *OTHERS])
def test_the_map_of_each_kind_of_target_shows_where_an_image_was_changed(kind: str, images: Tensor) -> None:
    torch.manual_seed(0)
    target = as_target((AVERAGED | OTHERS)[kind]())
    representations, cells = target.maps(images, GRID)
    assert torch.equal(representations, target(images))
    assert differ_most_at_the_upper_right(cells)
    mean = target.maps(images, 1)[1].flatten(1)
    if kind in AVERAGED:
        torch.testing.assert_close(mean, representations, rtol=1e-4, atol=1e-5)
    else:
        assert mean.shape != representations.shape or not torch.allclose(mean, representations, rtol=1e-4, atol=1e-5)


def test_the_map_of_a_masked_transformer_is_its_tokens_of_patches_in_their_places(images: Tensor) -> None:
    target = as_target(METHODS["capi"].build(nn.Module))
    small = torch.nn.functional.interpolate(images, 32, mode="bilinear", antialias=True)
    encoder: Any = target.encoder
    with torch.no_grad():
        tokens = encoder.encoder.encode((small - target._mean) / target._std)
    assert tokens.shape[1] == 1 + 7 + 16
    torch.testing.assert_close(target.maps(images, GRID)[1], of_tokens(tokens, 8))


@pytest.mark.parametrize("registered", [True, False])
def test_registers_of_a_transformer_inside_a_model_of_ones_own_are_known(registered: bool, images: Tensor) -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # 4 patches and 5 others: their number does not show it, as 9 tokens fill a square as well
            self.trunk = _timm("test_vit", img_size=32, reg_tokens=4, num_classes=0)

    if registered:
        register_target(lambda model: model.trunk if isinstance(model, Mine) else None)
    target = as_target(Mine(), None if registered else "trunk", input_size=32)
    encoder: Any = target.encoder
    small = torch.nn.functional.interpolate(images, 32, mode="bilinear", antialias=True, align_corners=False)
    with torch.no_grad():
        tokens = getattr(encoder, "encoder", encoder).forward_features((small - target._mean) / target._std)
    assert tokens.shape[1] == 9
    torch.testing.assert_close(target.maps(images, 2)[1], of_tokens(tokens, 5))


def test_an_encoder_of_timm_that_was_never_a_classifier_is_a_target_with_a_map(images: Tensor) -> None:
    target = as_target(_timm("qwen3_vit_88m_enc", depth=1))
    representations, cells = target.maps(images, GRID)
    assert torch.equal(representations, target(images)) and cells.shape == (*representations.shape, GRID, GRID)
    assert differ_most_at_the_upper_right(cells)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [*METHODS.values(), *BENCHMARKS.values()], ids=[*METHODS, *(f"benchmark-{name}" for name in BENCHMARKS)]
)
def test_every_method_of_lightly_has_a_map(method: Any, images: Tensor) -> None:
    target = as_target(method.build(nn.Module))
    representations, cells = target.maps(images, GRID)
    assert torch.equal(representations, target(images))
    assert cells.shape == (2, representations.shape[1], GRID, GRID)
    assert differ_most_at_the_upper_right(cells)


CLASSES = ("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t")
CLASSES += ("mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "resnet18", "shufflenet_v2_x0_5")
CLASSES += ("squeezenet1_0", "swin_v2_t", "vgg11", "vit_b_32")


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_of_torchvision_has_a_map(name: str) -> None:
    target = as_target(_torchvision(name, **({"init_weights": False} if name in ("googlenet", "inception_v3") else {})))
    images = torch.rand(1, 3, 224, 224)
    representations, cells = target.maps(images, GRID)
    assert torch.equal(representations, target(images)) and cells.shape[2:] == (GRID, GRID)
    if name not in ("alexnet", "vgg11", "vit_b_32"):  # flattened, and a class token
        mean = target.maps(images, 1)[1].flatten(1)
        torch.testing.assert_close(mean, representations, rtol=1e-4, atol=1e-5)
