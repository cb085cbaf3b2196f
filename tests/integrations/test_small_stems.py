import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from lightly_distill.errors import UsageError
from lightly_distill_integrations import small_stems
from lightly_distill_integrations.timm import backbones


def build(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return backbones.build(name, 32)


def test_the_papers_resnet_starts_with_3x3_of_stride_1_and_no_pooling() -> None:
    model = build("resnet18:stem=small")
    assert (model.conv1.kernel_size, model.conv1.stride, model.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    assert model.conv1.weight.shape == (64, 3, 3, 3) and isinstance(model.maxpool, nn.Identity)
    images = torch.rand(2, 3, 32, 32)
    stem = torch.relu(model.train().bn1(nn.functional.conv2d(images, model.conv1.weight, padding=1)))
    expected = model.layer4(model.layer3(model.layer2(model.layer1(stem)))).mean((2, 3))
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize(
    ("name", "map_size"),
    [
        ("resnet10t", 4),  # a deep stem
        ("legacy_seresnet18", 4),
        ("regnetx_002", 2),
        ("efficientnet_b0", 2),
        ("tf_mobilenetv3_small_075", 2),  # pads as TensorFlow does
        *(
            pytest.param(name, size, marks=pytest.mark.slow)
            for name, size in {
                "resnet26d": 4,
                "seresnet18": 4,
                "resnest14d": 4,
                "skresnet18": 4,
                "res2net50_14w_8s": 4,
                "densenet121": 4,
                "resnetv2_18": 4,
                "resnetv2_50x1_bit": 4,  # a padding before its pooling
                "resnetrs50": 4,  # a convolution in the place of its pooling
                "dpn48b": 4,
                "cspresnet50": 4,
                "mobilenetv3_small_050": 2,
                "hgnetv2_b0": 2,  # a pooling of stride 1, which stays
            }.items()
        ),
    ],
)
def test_a_small_stem_keeps_a_larger_map_and_trains(name: str, map_size: int) -> None:
    model = build(f"{name}:stem=small").train()
    images = torch.rand(2, 3, 32, 32)
    assert model.forward_features(images).shape[-2:] == (map_size, map_size)
    assert build(name).train().forward_features(images).shape[-1] == 1
    features = model(images)
    assert features.ndim == 2
    features.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.eval()(images).isfinite().all()


def test_the_smaller_kernel_is_as_wide_as_its_initialisation_makes_one() -> None:
    weight = build("resnet50:stem=small").conv1.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)  # kaiming, fan-out
    assert torch.equal(weight, build("resnet50:stem=small").conv1.weight)
    assert not torch.equal(weight, build("resnet50:stem=small", seed=1).conv1.weight)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test_vit", "stem=small is for networks that start with an overlapping convolution; 'test_vit' does not."),
        ("test_convnext", "stem=small is for networks .* 'test_convnext' does not."),
        ("mobileone_s0", "stem=small is for networks .* 'mobileone_s0' does not."),  # several side by side
        ("convnet_4_8", "The stem of 'convnet_4_8' keeps the size of its images already: leave stem=small out."),
    ],
)
def test_a_network_without_a_stem_to_make_smaller_is_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(f"{name}:stem=small")


@pytest.mark.parametrize("name", ["resnet18", "no_such_small_stem", "_small_stem", "resnet18_small_stem_small_stem"])
def test_a_name_of_another_form_is_not_registered(name: str) -> None:
    known = timm.is_model(name)
    assert not small_stems.register(name)
    assert timm.is_model(name) == known


def test_a_saved_student_is_loaded_by_the_printed_lines_in_another_process(tmp_path: Path) -> None:
    model = build("test_resnet:stem=small").eval()
    backbones.save(model, str(tmp_path), {"input_size": [3, 32, 32]})
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "test_resnet_small_stem"
    lines = backbones.how_to_load(model, "test_resnet:stem=small", str(tmp_path))
    images = torch.rand(2, 3, 32, 32)
    save_file({"images": images, "features": model(images).detach()}, tmp_path / "expected.safetensors")
    check = (
        f"from safetensors.torch import load_file; told = load_file({str(tmp_path / 'expected.safetensors')!r}); "
        "import torch; assert torch.allclose(backbone.eval()(told['images']), told['features'], atol=1e-6)"
    )
    subprocess.run([sys.executable, "-c", f"{lines}\n{check}"], check=True)


@pytest.mark.skipif(
    tuple(map(int, timm.__version__.split(".")[:3])) < (1, 0, 31),
    reason="older timm reads a local repository as pickle",
)
def test_timm_loads_a_small_stem_from_a_local_repository_as_from_the_hub(tmp_path: Path) -> None:
    model = build("test_resnet:stem=small")
    backbones.save(model, str(tmp_path), {})
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0)
    assert loaded.pretrained_cfg["architecture"] == "test_resnet_small_stem"
    assert torch.equal(loaded.conv1[0].weight, model.conv1[0].weight)


def test_there_are_no_published_weights_of_a_small_stem() -> None:
    small_stems.register("resnet18_small_stem")
    assert not timm.is_model_pretrained("resnet18_small_stem")
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model("resnet18_small_stem", pretrained=True)
    with pytest.raises(UsageError, match="timm publishes no weights for 'resnet18_small_stem'"):
        backbones.load("resnet18:stem=small")


def test_weights_of_a_small_stem_load_as_a_target(tmp_path: Path) -> None:
    model = build("test_resnet:stem=small").eval()
    backbones.save(model, str(tmp_path), {})
    found = backbones.find_encoder(backbones.load(f"test_resnet:stem=small@{tmp_path}/model.safetensors"))
    assert found is not None
    encoder: Any = found.encoder
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(encoder.eval()(images), model(images))


def test_the_tag_of_published_weights_is_of_no_account_to_a_fresh_student() -> None:
    tagged, plain = build("resnet10t.c3_in1k:stem=small"), build("resnet10t:stem=small")
    assert {k: v.shape for k, v in tagged.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
