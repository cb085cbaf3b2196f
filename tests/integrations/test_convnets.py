import pytest
import timm
import torch
from torch import nn

from lightly_distill_integrations import convnets


def test_the_papers_convnet_has_8192_features_at_32_pixels() -> None:
    model = timm.create_model("convnet_128_256_512", num_classes=0)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 8192)
    assert model.num_features == model.head_hidden_size == 8192


@pytest.mark.parametrize("size", [32, 48, 64])
def test_the_stated_feature_width_is_the_returned_one_at_every_image_size(size: int) -> None:
    model = timm.create_model("convnet_32_64_128", num_classes=0, img_size=size)
    assert model(torch.rand(2, 3, size, size)).shape == (2, model.num_features)


def test_features_are_conv_norm_relu_pool_repeated_then_flattened() -> None:
    assert convnets.register("convnet_4_5")
    model = timm.create_model("convnet_4_5", num_classes=0, img_size=8)
    images = torch.rand(3, 3, 8, 8)
    expected = images
    for convolution in (layer for layer in model.modules() if isinstance(layer, nn.Conv2d)):
        expected = nn.functional.conv2d(expected, convolution.weight, convolution.bias, padding=1)
        expected = nn.functional.batch_norm(expected, None, None, training=True)
        expected = nn.functional.avg_pool2d(expected.relu(), 2)
    torch.testing.assert_close(model.train()(images), expected.flatten(1))


def test_instance_norm_sees_each_image_alone() -> None:
    images = torch.rand(2, 3, 32, 32)
    alone, other = (timm.create_model(name, num_classes=0).train() for name in ("convnet_32_64_128_in",) * 2)
    other.load_state_dict(alone.state_dict())
    torch.testing.assert_close(alone(images[:1]), other(images)[:1])
    batch_norm = timm.create_model("convnet_32_64_128", num_classes=0).train()
    assert not torch.allclose(batch_norm(images[:1]), batch_norm(images)[:1], atol=1e-3)


def test_head_is_put_in_and_taken_out_as_in_any_timm_model() -> None:
    model = timm.create_model("convnet_32_64_128", num_classes=7)
    images = torch.rand(2, 3, 32, 32)
    assert model(images).shape == (2, 7)
    assert model.forward_head(model.forward_features(images), pre_logits=True).shape == (2, model.num_features)
    assert model.get_classifier().out_features == 7
    model.reset_classifier(0)
    assert model(images).shape == (2, model.num_features)
    assert model.num_classes == 0


def test_images_that_cannot_be_halved_once_a_block_are_refused() -> None:
    with pytest.raises(ValueError, match="3 blocks need images of 8x8 or more, not 4x4"):
        timm.create_model("convnet_32_64_128", img_size=4)


@pytest.mark.parametrize("name", ["convnet", "convnet_", "convnet_0", "convnet_8_in_4", "convnext_tiny", "resnet18"])
def test_a_name_of_another_form_is_not_registered(name: str) -> None:
    known = timm.is_model(name)
    assert not convnets.register(name)
    assert timm.is_model(name) == known
