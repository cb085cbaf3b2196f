import json
import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from lightly_distill.errors import DistillError, UsageError
from lightly_distill.models.targets import as_target, load_target
from lightly_distill_integrations.timm import backbones

METADATA = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 32, 32], "seed": 7}


def encoder_of(model: nn.Module) -> Any:
    found = backbones.find_encoder(model)
    assert found is not None and found.path == ""
    return found.encoder


def build(name: str) -> nn.Module:
    if name.startswith("test_") and not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    torch.manual_seed(0)
    return backbones.build(name, 32)


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("convnet_8_16", 1024),
        ("resnet10t", 512),
        ("mobilenetv3_small_050", 1024),  # its num_features says 288
        ("test_vit", 64),
        ("test_coatnet", 128),  # takes 32 pixels only if told when built
        ("test_convnext", 64),
        ("test_mambaout", 256),
        pytest.param("crossvit_tiny_240", 288, marks=pytest.mark.slow),  # fails if told the size
        pytest.param("vgg11", 4096, marks=pytest.mark.slow),
    ],
)
def test_any_kind_of_timm_model_gives_features_of_32_pixel_images(name: str, width: int) -> None:
    model = build(name)
    for mode in (True, False):
        assert model.train(mode)(torch.rand(2, 3, 32, 32)).shape == (2, width)


def test_first_build_draws_the_same_numbers_as_a_later_one() -> None:
    first, second = build("convnet_3_5"), build("convnet_3_5")
    assert all(torch.equal(*pair) for pair in zip(first.parameters(), second.parameters(), strict=True))


def test_rebuilding_costs_one_construction_and_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    build("convnet_3_7")
    calls = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: calls.append(args) or create(*args, **kwargs))
    monkeypatch.setattr(nn.Conv2d, "forward", lambda *_: pytest.fail("a forward pass"))
    build("convnet_3_7")
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet_18", r"timm knows no model 'resnet_18'. Did you mean 'resnet18', "),
        ("convnet_0", "timm knows no model 'convnet_0'"),
        (
            "convnet_1_1_1_1_1_1",
            "6 blocks need images of 64x64 or more, not 32x32. The smallest .* takes is 64x64. Near",
        ),
        ("resnt18:stem=small", "timm knows no model 'resnt18'. Did you mean 'resnet18', "),
        (
            "resnet18:stem=smal",
            "Unknown option 'stem=smal' of the student 'resnet18'. Did you mean 'resnet18:stem=small'",
        ),
        ("resnet18:size=3", "Unknown option 'size=3' of the student 'resnet18'. Did you mean 'resnet18:stem=small'"),
    ],
)
def test_a_name_that_cannot_be_used_is_told_in_one_line(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        build(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("convnet_8_16", {}), ("test_vit", {"img_size": 32}), ("test_resnet_small_stem", {})],
)
def test_timm_loads_a_saved_student_bit_for_bit(name: str, arguments: dict[str, int], tmp_path: Path) -> None:
    model = build(name)
    backbones.save(model, str(tmp_path), METADATA)
    loaded = timm.create_model(name, num_classes=0, checkpoint_path=tmp_path / "model.safetensors", **arguments)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key]), key


def test_saved_configuration_carries_normalisation_size_and_metadata(tmp_path: Path) -> None:
    backbones.save(build("test_vit"), str(tmp_path), METADATA)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "test_vit"
    assert (
        config["pretrained_cfg"] | {key: METADATA[key] for key in ("mean", "std", "input_size")}
        == config["pretrained_cfg"]
    )
    assert config["lightly_distill"] == METADATA
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["convnet_8_16", "test_vit", "test_coatnet"])
def test_a_saved_student_loads_as_a_target_with_its_own_size_and_normalisation(name: str, tmp_path: Path) -> None:
    model = build(name).eval()
    backbones.save(model, str(tmp_path), METADATA)
    encoder = encoder_of(backbones.load(f"{name}@{tmp_path}/model.safetensors"))
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(encoder.eval()(images), model(images))
    assert encoder.mean == (0.1, 0.2, 0.3)
    assert encoder.std == (0.4, 0.5, 0.6)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_a_classifiers_head_is_left_aside_and_logged(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classifier = timm.create_model("resnet10t", num_classes=5)
    path = tmp_path / f"weights{suffix}"
    write = save_file if suffix == ".safetensors" else torch.save
    write(classifier.state_dict(), path)
    with caplog.at_level(logging.INFO):
        model = backbones.load(f"resnet10t@{path}")
    assert f"Left over in {path}: fc (2 tensors)." in caplog.text
    assert torch.equal(model.state_dict()["conv1.0.weight"], classifier.state_dict()["conv1.0.weight"])


def test_weights_of_another_model_are_refused_by_key(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    backbones.save(build("convnet_8_16"), str(tmp_path), METADATA)
    weights = load_file(path)
    bias = weights.pop("blocks.0.0.bias")
    weights["stray.weight"] = bias
    weights["blocks.1.0.bias"] = bias.clone()
    save_file(weights, path)
    message = r"missing: blocks\.0\.0\.bias; unexpected: stray\.weight; of another shape: blocks\.1\.0\.bias\.$"
    with pytest.raises(UsageError, match=message):
        backbones.load(f"convnet_8_16@{path}")


def test_a_pickled_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(2, 2), path)
    message = r"holds more than tensors .* \(torch\.nn\.modules\.linear\.Linear\), .* would run code from the file"
    with pytest.raises(UsageError, match=message):
        backbones.load(f"resnet10t@{path}")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("absent.pt", r"There is no file '.*absent\.pt'; expected weights, in a file ending in \.ckpt, \.pt, \.pth,"),
        ("weights.npz", r"is not a file of weights; expected one ending in \.ckpt, \.pt, \.pth, \.pth\.tar, \.bin, "),
    ],
)
def test_a_file_that_is_not_there_or_not_weights_is_refused(file: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "weights.npz").touch()
    with pytest.raises(UsageError, match=message):
        backbones.load(f"resnet10t@{tmp_path}/{file}")


def test_published_weights_without_network_fail_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("offline\nand more")

    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)
    with pytest.raises(
        DistillError, match=r"\(offline\)\. .*timm:resnet10t@weights\.safetensors, or .*timm:resnet10t:random$"
    ):
        backbones.load("resnet10t")


def test_a_model_without_published_weights_asks_for_a_file() -> None:
    with pytest.raises(UsageError, match="timm publishes no weights for 'convnet_8_16'"):
        backbones.load("convnet_8_16")


def test_encoder_is_a_headless_copy_with_the_models_normalisation() -> None:
    model = timm.create_model("test_vit", num_classes=9).eval()
    encoder = encoder_of(model)
    images = torch.rand(2, 3, 160, 160)
    torch.testing.assert_close(encoder(images), model.forward_head(model.forward_features(images), pre_logits=True))
    assert model(images).shape == (2, 9)
    assert encoder.mean == encoder.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [
        ("test_vit", {"dynamic_img_size": False}, 160),
        ("test_vit", {"dynamic_img_size": False, "img_size": 64}, 64),
        ("test_vit", {}, None),
        ("convnet_32_64_128", {"img_size": 64}, 64),
        ("resnet10t", {}, None),
    ],
)
def test_encoder_knows_whether_it_takes_one_size_only(name: str, arguments: dict[str, int], size: int | None) -> None:
    assert encoder_of(timm.create_model(name, **arguments)).input_size == size


@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [
        ("resnet18", {}, 224),
        ("resnet10t", {}, 176),
        ("test_vit", {}, 160),  # takes others too
        ("test_vit", {"img_size": 64}, 64),
        ("test_vit", {"dynamic_img_size": False}, None),  # the only one is `input_size`
        ("convnet_32_64_128", {"img_size": 64}, None),
    ],
)
def test_encoder_knows_the_size_that_it_was_made_for(name: str, arguments: dict[str, int], size: int | None) -> None:
    assert as_target(timm.create_model(name, **arguments)).own_size == size


def test_encoder_brings_crop_and_interpolation_of_its_configuration() -> None:
    for crop, interpolation, expected in ((0.9, "bilinear", "bilinear"), (1.2, "lanczos", "bicubic")):
        known = {"crop_pct": crop, "interpolation": interpolation}
        target = as_target(timm.create_model("resnet10t", pretrained_cfg_overlay=known))
        assert (target.crop, target.interpolation) == (min(crop, 1.0), expected)


def test_a_saved_student_is_a_target_for_the_small_whole_images_that_it_was_trained_on(tmp_path: Path) -> None:
    backbones.save(backbones.build("resnet10t", 32), str(tmp_path), METADATA)
    target = load_target(f"timm:resnet10t@{tmp_path / 'model.safetensors'}")
    assert (target.own_size, target.input_size, target.crop) == (32, None, 1.0)


def test_a_module_of_another_library_is_not_taken() -> None:
    assert backbones.find_encoder(nn.Linear(2, 2)) is None


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("timm:resnet10t:randm", "Unknown option 'randm' of the target 'resnet10t'. Did you mean 'resnet10t:random'?"),
        ("timm:resnet10t:size=3", "Unknown option 'size=3' of the target 'resnet10t'. Known: random, stem=small."),
    ],
)
def test_an_unknown_option_of_a_target_is_told_with_those_of_targets(spec: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_target(spec)
    assert str(caught.value) == told


@pytest.mark.parametrize("spec", ["timm:test_resnet@~/w.safetensors", "torchvision:resnet18@~/w.safetensors"])
def test_a_file_of_weights_may_be_in_the_home_folder(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    prefix, name = spec.partition("@")[0].split(":")
    model = timm.create_model(name) if prefix == "timm" else torchvision.models.get_model(name)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    assert load_target(spec).name == spec
