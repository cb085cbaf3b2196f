import copy
import logging
from collections.abc import Callable

import lightly
import pytest
import timm
import torch
import torchvision
from lightly.models.modules import (
    DINOProjectionHead,
    MaskedCausalVisionTransformer,
    MaskedVisionTransformerTIMM,
    SimCLRProjectionHead,
)
from torch import Tensor, nn

import lightly_zoo
from lightly_distill.errors import DistillError, UsageError
from lightly_distill.models.targets import as_target
from lightly_distill_integrations.lightly import models

IMAGES = torch.rand(2, 3, 32, 32)


class Model(nn.Module):
    """Any module with the given parts."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def resnet() -> nn.Module:
    return nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])


def small_vit(**arguments: object) -> nn.Module:
    return timm.create_model("test_vit", img_size=32, dynamic_img_size=False, **arguments)


def test_simclr_is_represented_by_its_backbone() -> None:
    model = Model(backbone=resnet(), projection_head=SimCLRProjectionHead(512, 512, 128)).eval()
    target = as_target(model)
    torch.testing.assert_close(target(IMAGES), _normalised_features(model.backbone).flatten(1))
    assert target.name == "Model.backbone"
    assert target.input_size is None


def test_dino_is_represented_by_its_teacher_although_its_head_cannot_be_copied() -> None:
    model = Model(
        student_backbone=resnet(),
        student_head=DINOProjectionHead(512, 64, 32, 128, freeze_last_layer=1),
        teacher_backbone=resnet(),
        teacher_head=DINOProjectionHead(512, 64, 32, 128),
    ).eval()
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    target = as_target(model)
    assert target.name == "Model.teacher_backbone"
    torch.testing.assert_close(target(IMAGES), _normalised_features(model.teacher_backbone).flatten(1))


@pytest.mark.parametrize(
    "name", ["backbone", "teacher_backbone", "target_encoder", "encoder", "student_backbone", "features"]
)
def test_an_encoder_is_found_by_each_of_the_names_that_lightly_uses(name: str) -> None:
    encoder = nn.Conv2d(3, 4, 3)
    found = models.find_encoder(Model(**{name: encoder, "projection_head": nn.Flatten()}))
    assert found is not None and found.encoder is encoder and found.path == name


def test_backbone_comes_before_a_teacher_and_the_choice_is_explained(caplog: pytest.LogCaptureFixture) -> None:
    model = Model(backbone=nn.Conv2d(3, 4, 3), teacher_backbone=nn.Conv2d(3, 5, 3))
    with caplog.at_level(logging.INFO):
        target = as_target(model)
    assert target.reason == "its 'backbone', as Lightly evaluates it; passed over: teacher_backbone"
    assert f"Target: Model.backbone ({target.reason})." in caplog.text


def test_masked_transformer_is_called_without_a_mask_and_at_its_own_size() -> None:
    backbone = MaskedVisionTransformerTIMM(vit=small_vit())
    target = as_target(Model(backbone=backbone, mask_token=nn.Linear(2, 2)).eval())
    assert target.name == "Model.backbone"
    assert target.input_size == 32
    expected = _normalised_features(backbone.eval())
    torch.testing.assert_close(target(IMAGES), expected)
    assert target(torch.rand(2, 3, 48, 40)).shape == expected.shape == (2, 64)


@pytest.mark.skipif(lightly.__version__ < "1.6", reason="older versions of Lightly cannot build AIM with a recent timm")
def test_aim_is_represented_by_the_mean_of_its_tokens() -> None:
    backbone = MaskedCausalVisionTransformer(
        img_size=32, patch_size=16, embed_dim=12, depth=1, num_heads=2, class_token=False, global_pool="avg"
    )
    target = as_target(Model(backbone=backbone).eval())
    images = (IMAGES - target._mean) / target._std
    torch.testing.assert_close(target(IMAGES), backbone.forward_features(images).mean(1))


def test_timm_backbone_with_a_head_is_represented_by_its_features_and_lightlys_normalisation() -> None:
    target = as_target(Model(backbone=small_vit(num_classes=9)))
    assert target(IMAGES).shape == (2, 64)
    assert target.mean == (0.485, 0.456, 0.406)
    assert target.input_size == 32


def test_tokens_of_a_model_with_class_token_are_averaged_without_it() -> None:
    class TokenModel(torchvision.models.VisionTransformer):
        def forward(self, x: Tensor) -> Tensor:  # as Lightly's IJEPABackbone
            tokens = self._process_input(x)
            return self.encoder(torch.cat([self.class_token.expand(len(x), -1, -1), tokens], dim=1))

    backbone = TokenModel(image_size=32, patch_size=16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8)
    target = as_target(Model(target_encoder=backbone).eval())
    torch.testing.assert_close(target(IMAGES), _normalised_features(backbone)[:, 1:].mean(1))


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod"])
def test_wrapped_models_are_looked_into(wrapper: str) -> None:
    backbone = nn.Conv2d(3, 4, 3)
    outer = models.find_encoder(Model(**{wrapper: Model(backbone=backbone)}))
    assert outer is not None and outer.encoder is backbone and outer.path == f"{wrapper}.backbone"
    inner = models.find_encoder(Model(backbone=Model(**{wrapper: backbone})))
    assert inner is not None and inner.encoder is backbone and inner.path == f"backbone.{wrapper}"


@pytest.mark.parametrize(
    "model",
    [
        lambda: timm.create_model("vgg11", num_classes=0),
        lambda: torchvision.models.squeezenet1_1(),
        lambda: nn.Sequential(nn.Flatten()),
    ],
    ids=["timm", "torchvision", "plain"],
)
def test_models_that_are_not_lightlys_are_left_to_others(model: Callable[[], nn.Module]) -> None:
    with torch.device("meta"):
        assert models.find_encoder(model()) is None


@pytest.mark.parametrize(
    "parts",
    [
        {"trunk": resnet, "projection_head": lambda: nn.Linear(512, 9)},
        {"trunk": resnet, "top": lambda: SimCLRProjectionHead(512, 512, 128)},
        {"trunk": resnet, "trunk_momentum": resnet},
    ],
    ids=["name", "lightly-head", "momentum"],
)
def test_a_method_whose_encoder_has_an_unknown_name_is_refused_with_its_parts(
    parts: dict[str, Callable[[], nn.Module]],
) -> None:
    model = Model(**{name: make() for name, make in parts.items()})
    message = (
        r"^The encoder of Model cannot be found: it has none of backbone, .*\. Name it with encoder= "
        r"\(--target-encoder\); of its parts: trunk \(2, 512, 1, 1\), .*\.$"
    )
    with pytest.raises(UsageError, match=message):
        as_target(model)
    assert as_target(model, "trunk")(IMAGES).shape == (2, 512)


def test_the_parts_are_told_when_the_whole_returns_several_things() -> None:
    class Pair(Model):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return self.trunk(images), images

    message = r"returned a tuple of .* Name its encoder with encoder= \(--target-encoder\) of its parts: trunk \(2, 4, "
    with pytest.raises(DistillError, match=message):
        as_target(Pair(trunk=nn.Conv2d(3, 4, 3)))(IMAGES)


def test_a_torchvision_backbone_inside_is_taken_without_its_classifier() -> None:
    target = as_target(Model(backbone=torchvision.models.resnet18()))
    assert target(IMAGES).shape == (2, 512)
    assert target.encoder_name == "Model.backbone" and "without head" in target.reason
    assert as_target(torchvision.models.resnet18())(IMAGES).shape == (2, 512)


def test_a_torchvision_transformer_is_taken_without_its_classifier_and_at_its_own_size() -> None:
    def build() -> nn.Module:
        return torchvision.models.VisionTransformer(
            image_size=32, patch_size=16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=5
        )

    for target in (as_target(build()), as_target(Model(backbone=build(), projection_head=nn.Linear(8, 2)))):
        assert target(torch.rand(2, 3, 48, 48)).shape == (2, 8)
        assert target.input_size == 32 and "without head" in target.reason


def test_a_class_made_from_torchvisions_loses_its_classifier_too() -> None:
    class MyResNet(torchvision.models.ResNet):
        pass

    own = MyResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    assert as_target(Model(backbone=own))(IMAGES).shape == (2, 512)


def test_squeezenets_map_is_averaged_whatever_the_size() -> None:
    target = as_target(torchvision.models.squeezenet1_1())
    assert target(IMAGES).shape == target(torch.rand(2, 3, 64, 64)).shape == (2, 512)


@pytest.mark.parametrize("name", ["features", "model"])
def test_a_network_of_ones_own_is_taken_whole_whatever_its_parts_are_called(name: str) -> None:
    class Net(Model):
        def forward(self, images: Tensor) -> Tensor:
            return self.pool(getattr(self, name)(images))

    net = Net(**{name: nn.Conv2d(3, 4, 3), "pool": nn.MaxPool2d(30)})
    target = as_target(net)
    assert target.encoder_name == "Net" and "taken whole" in target.reason
    torch.testing.assert_close(target(IMAGES), _normalised_features(net).flatten(1))


def test_an_encoder_that_the_user_names_is_taken_whatever_its_parts_are_called() -> None:
    encoder = Model(patch_proj=nn.Conv2d(3, 4, 3))
    assert as_target(encoder).reason == "no adapter knows the model, so it is taken whole"
    odd = nn.Sequential()
    odd.add_module("predictor", nn.Conv2d(3, 4, 3))  # a sign of a method, but the user has said
    assert as_target(Model(trunk=odd), "trunk")(IMAGES).shape == (2, 4)


def test_loading_by_name_says_what_to_give_instead() -> None:
    with pytest.raises(UsageError, match=r"There is no file 'simclr'; expected weights, in a file ending in \.ckpt"):
        models.load("simclr")


def _normalised_features(backbone: nn.Module) -> Tensor:
    target = as_target(lambda images: images.mean((2, 3)))
    with torch.no_grad():
        return backbone((IMAGES - target._mean) / target._std)


def test_one_transformer_whose_other_tokens_are_averaged_is_another_target() -> None:
    model = lightly_zoo.METHODS["simmim"].build(nn.Module)
    by_patches, by_class_token = as_target(model), as_target(model, "backbone")
    images = torch.rand(2, 3, lightly_zoo.SIZE, lightly_zoo.SIZE)
    assert not torch.allclose(by_patches(images), by_class_token(images))
    assert (
        by_patches.weights_sha256() != by_class_token.weights_sha256() == as_target(model, "backbone").weights_sha256()
    )
