"""Checkpoints as people have them, brought back as targets."""

import logging
import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from lightly.embedding import SelfSupervisedEmbedding
from lightly.models import ResNetGenerator
from lightly.models.modules import DINOProjectionHead, MaskedVisionTransformerTIMM, SimCLRProjectionHead
from pytorch_lightning import LightningModule, Trainer
from safetensors.torch import save_file
from torch import Tensor, nn

from lightly_distill.errors import UsageError
from lightly_distill.models.targets import as_target, load_target

IMAGES = torch.rand(2, 3, 32, 32)


def backbone() -> nn.Sequential:
    return nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])


class SimCLR(LightningModule):
    """As Lightly's example."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()
        self.projection_head = SimCLRProjectionHead(512, 64, 16)

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        return self.projection_head(self.backbone(batch).flatten(1)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class WithArguments(SimCLR):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection_head = SimCLRProjectionHead(512, width, 16)
        self.save_hyperparameters()


class DINO(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student_backbone, self.teacher_backbone = backbone(), backbone()
        self.student_head = DINOProjectionHead(512, 64, 32, 128, freeze_last_layer=1)
        self.teacher_head = DINOProjectionHead(512, 64, 32, 128)


class Network(nn.Module):
    """No ResNet: does not follow from its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fit(model: LightningModule) -> LightningModule:
    """Trains one step and leaves `last.ckpt`, as Lightning writes it."""
    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    trainer.fit(model, torch.utils.data.DataLoader(torch.rand(8, 3, 32, 32), batch_size=8))
    trainer.save_checkpoint("last.ckpt")
    return model


def same(target: Any, model: nn.Module, encoder: str | None = None) -> bool:
    return torch.equal(target(IMAGES), as_target(model, encoder)(IMAGES))


def test_a_lightning_checkpoint_of_an_example_needs_no_class(caplog: pytest.LogCaptureFixture) -> None:
    model = fit(SimCLR())
    with caplog.at_level(logging.INFO):
        target = load_target("last.ckpt")
    assert same(target, model)
    assert target.encoder_name == "LightlyCheckpoint.backbone"
    assert target.options == {"target": "last.ckpt"}
    assert "Recognised torchvision's resnet18, sliced." in caplog.text
    assert "Left over in last.ckpt: projection_head (12 tensors)." in caplog.text


@pytest.mark.parametrize("kind", [SimCLR, lambda: WithArguments(48)], ids=["plain", "hyper-parameters"])
def test_a_lightning_checkpoint_with_its_class(kind: Any) -> None:
    model = fit(kind())
    name = f"{__name__}:{type(model).__name__}"
    target = load_target("last.ckpt", target_class=name)
    assert same(target, model)
    assert target.encoder_name == f"{type(model).__name__}.backbone"
    assert target.options == {"target": "last.ckpt", "target_class": name}


def test_dinos_teacher_is_taken_and_its_student_can_be_asked_for() -> None:
    model = DINO()
    torch.save(model.state_dict(), "dino.pth")
    assert same(load_target("dino.pth"), model)
    assert same(load_target("dino.pth", "student_backbone"), model, "student_backbone")
    assert "passed over: student_backbone" in load_target("dino.pth").reason


def test_bare_weights_of_a_backbone_need_no_class() -> None:
    resnet = torchvision.models.resnet34()
    torch.save(resnet.state_dict(), "resnet34.pt")
    sliced = nn.Sequential(*list(resnet.children())[:-1])
    save_file(sliced.state_dict(), "sliced.safetensors")
    assert same(load_target("resnet34.pt"), sliced)
    assert same(load_target("sliced.safetensors"), sliced)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_what_wrappers_add_to_names_is_taken_off(wrapper: str) -> None:
    model = SimCLR()
    torch.save({f"{wrapper}{key}": value for key, value in model.state_dict().items()}, "weights.pt")
    assert same(load_target("weights.pt"), model)
    assert same(load_target("weights.pt", target_class=f"{__name__}:SimCLR"), model)


@pytest.mark.parametrize(("name", "width"), [("resnet-9", 0.25), ("resnet-18", 1)])
def test_what_lightly_ssl_train_writes_needs_no_class(name: str, width: float) -> None:
    from lightly.cli._cli_simclr import _SimCLR  # private there; only to write what it writes

    children = list(ResNetGenerator(name, width).children())
    features = nn.Sequential(
        nn.BatchNorm2d(3), *children[:-1], nn.Conv2d(children[-1].in_features, 32, 1), nn.AdaptiveAvgPool2d(1)
    )
    network = _SimCLR(features, num_ftrs=32)
    model = SelfSupervisedEmbedding(network, nn.Identity(), None, None)  # type: ignore[arg-type]
    torch.save({"state_dict": model.state_dict(), "epoch": 1}, "lightly_epoch_1.ckpt")
    target = load_target("lightly_epoch_1.ckpt")
    assert same(target, network) and target.dim == 32


def test_lightlys_own_resnet_in_an_example_needs_no_class() -> None:
    network = nn.Sequential(*list(ResNetGenerator("resnet-9", 0.25).children())[:-1], nn.AdaptiveAvgPool2d(1))
    model = SimCLR()
    model.backbone = network
    torch.save({"state_dict": model.state_dict()}, "smog.ckpt")
    assert same(load_target("smog.ckpt"), network)


def test_weights_of_an_unknown_network_ask_for_its_class() -> None:
    torch.save(Network().state_dict(), "mine.pt")
    message = (
        r"The class of the model in 'mine.pt' does not follow from its weights \(backbone \(2 tensors\)\): give "
        r"--target-class pkg.module:Class, or timm:NAME@mine.pt or torchvision:NAME@mine.pt"
    )
    with pytest.raises(UsageError, match=message):
        load_target("mine.pt")


def test_a_class_that_the_file_names_is_told_and_not_imported() -> None:
    hyper_parameters = {"_class_path": "os.system", "width": 3}
    torch.save({"state_dict": Network().state_dict(), "hyper_parameters": hyper_parameters}, "mine.ckpt")
    with pytest.raises(UsageError, match=r"it names its class os\.system, which is used only if you give it"):
        load_target("mine.ckpt")


def test_weights_are_found_under_a_prefix_and_in_the_order_of_lightlys_encoders(
    caplog: pytest.LogCaptureFixture,
) -> None:
    timm = pytest.importorskip("timm")
    anchor, target_vit = (timm.create_model("test_vit", img_size=32) for _ in range(2))
    model = nn.Module()
    model.anchor_backbone = MaskedVisionTransformerTIMM(vit=anchor)
    model.backbone = MaskedVisionTransformerTIMM(vit=target_vit)
    model.projection_head = nn.Linear(3, 3)
    torch.save({"state_dict": model.state_dict()}, "msn.ckpt")
    Path("config.json").write_text('{"pretrained_cfg": {"mean": [0.5], "std": [0.5], "input_size": [3, 32, 32]}}')
    with caplog.at_level(logging.INFO):
        loaded = load_target("timm:test_vit@msn.ckpt")
    assert torch.equal(loaded.encoder.state_dict()["patch_embed.proj.weight"], target_vit.patch_embed.proj.weight)  # type: ignore[union-attr]
    assert "msn.ckpt under 'backbone.vit.'" in caplog.text
    assert "anchor_backbone" in caplog.text and "projection_head (2 tensors)" in caplog.text


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_named_backbone_takes_the_weights_of_a_sliced_one(library: str) -> None:
    model = SimCLR()
    with torch.no_grad():
        model.backbone.train()(torch.randn(4, 3, 32, 32))
    torch.save(model.state_dict(), "simclr.pt")
    assert torch.allclose(load_target(f"{library}:resnet18@simclr.pt")(IMAGES), as_target(model)(IMAGES), atol=1e-5)


def test_of_two_backbones_that_are_called_alike_the_teachers_is_taken_and_else_the_user_is_asked() -> None:
    one, other = (torchvision.models.resnet18() for _ in range(2))
    both = {"student.backbone": one, "teacher.backbone": other}
    torch.save({f"{name}.{k}": v for name, net in both.items() for k, v in net.state_dict().items()}, "pair.pt")
    assert same(load_target("torchvision:resnet18@pair.pt"), other)
    both = {"left.backbone": one, "right.backbone": other}
    torch.save({f"{name}.{k}": v for name, net in both.items() for k, v in net.state_dict().items()}, "tie.pt")
    with pytest.raises(UsageError, match=r"fit under 'left\.backbone\.' and under 'right\.backbone\.': save those"):
        load_target("torchvision:resnet18@tie.pt")


def test_a_resnet_under_a_name_of_the_users_own_is_taken_and_of_several_one_must_be_chosen() -> None:
    model = nn.Module()
    model.trunk, model.projector = backbone(), nn.Linear(512, 4)
    torch.save(model.state_dict(), "one.pt")
    assert same(load_target("one.pt"), model.trunk)
    model.other_trunk = backbone()
    torch.save(model.state_dict(), "two.pt")
    with pytest.raises(UsageError, match=r"holds several ResNets \(other_trunk, trunk\): choose one with encoder="):
        load_target("two.pt")
    assert same(load_target("two.pt", "other_trunk"), model.other_trunk)


def test_somebody_elses_config_beside_the_weights_is_passed_over() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_resnet")
    save_file(model.state_dict(), "model.safetensors")
    Path("config.json").write_text('{"architectures": ["ViTModel"], "hidden_size": 192}')
    assert same(load_target("timm:test_resnet@model.safetensors"), model)


def test_weights_of_another_size_are_refused_with_their_names() -> None:
    torch.save(torchvision.models.resnet34().state_dict(), "resnet34.pt")
    with pytest.raises(UsageError, match=r"'resnet34.pt' are not those of 'resnet18'; unexpected: layer1\.2\.conv1"):
        load_target("torchvision:resnet18@resnet34.pt")
    with pytest.raises(UsageError, match=r"not those of 'resnet50'; missing: .* of another shape: layer1\.0\.conv1"):
        load_target("torchvision:resnet50@resnet34.pt")


def test_missing_weights_are_an_error_and_those_left_over_are_told(caplog: pytest.LogCaptureFixture) -> None:
    weights = SimCLR().state_dict()
    torch.save({**weights, "criterion.center": torch.zeros(3)}, "more.pt")
    with caplog.at_level(logging.INFO):
        load_target("more.pt", target_class=f"{__name__}:SimCLR")
    assert "Left over in more.pt: criterion (1 tensor)." in caplog.text
    del weights["backbone.0.weight"]
    torch.save(weights, "less.pt")
    with pytest.raises(UsageError, match=r"'less.pt' are not those of 'SimCLR'; missing: backbone\.0\.weight\.$"):
        load_target("less.pt", target_class=f"{__name__}:SimCLR")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SimClr", r"has no function 'SimClr'. Did you mean 'SimCLR'"),
        ("WithArguments", r"WithArguments cannot be built .* \(it has none\): TypeError: .*'width'.* Give a function"),
        ("fit", r"fit cannot be built with"),
        ("Path", r"Path returned PosixPath, expected a model"),
    ],
)
def test_a_class_that_cannot_be_used_is_told(name: str, message: str) -> None:
    torch.save(SimCLR().state_dict(), "weights.pt")
    with pytest.raises(UsageError, match=message):
        load_target("weights.pt", target_class=f"{__name__}:{name}")


def test_a_class_goes_with_a_checkpoint_only() -> None:
    with pytest.raises(UsageError, match="A target class goes with a checkpoint"):
        load_target("timm:resnet18", target_class=f"{__name__}:SimCLR")


class Bomb:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("exploded"),)


def test_nothing_in_a_file_is_executed() -> None:
    torch.save({"state_dict": SimCLR().state_dict(), "hyper_parameters": {"x": Bomb()}}, "bomb.ckpt")
    Path("plain.pt").write_bytes(pickle.dumps(Bomb()))
    for spec in ("bomb.ckpt", "plain.pt", "timm:resnet18@bomb.ckpt", "torchvision:resnet18@bomb.ckpt"):
        with pytest.raises(UsageError, match=r"holds more than tensors and plain values|cannot be read"):
            load_target(spec)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
@pytest.mark.parametrize("file", ["weights.ckpt", "weights.safetensors"])
def test_a_damaged_file_is_told_in_one_line(file: str, content: bytes) -> None:
    Path(file).write_bytes(content)
    with pytest.raises(UsageError, match=f"'{file}' (cannot be read|holds more)") as caught:
        load_target(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "'weights.pt' holds no weights; it has epoch"),
        (torch.zeros(3), "'weights.pt' holds Tensor, expected weights by name"),
        ([1, 2], "'weights.pt' holds list, expected weights by name"),
    ],
)
def test_a_file_without_weights_is_told(content: Any, message: str) -> None:
    torch.save(content, "weights.pt")
    with pytest.raises(UsageError, match=message):
        load_target("weights.pt")


def test_torchvision_names_are_checked() -> None:
    with pytest.raises(UsageError, match=r"torchvision knows no model 'resnet_18'\. Did you mean 'resnet18'"):
        load_target("torchvision:resnet_18")
    with pytest.raises(UsageError, match=r"There is no file 'absent.pt'"):
        load_target("torchvision:resnet18@absent.pt")


# --- several sets of weights in a file


PAIRS = {
    "state_dict": "state_dict_ema",
    "model": "model_ema",
    "student": "teacher",
}


@pytest.mark.parametrize("plain", PAIRS)
def test_averaged_weights_and_a_teachers_are_taken_told_and_can_be_left(
    plain: str, caplog: pytest.LogCaptureFixture
) -> None:
    averaged, nets = PAIRS[plain], [torchvision.models.resnet18() for _ in range(2)]
    weights = {name: net.state_dict() for name, net in zip((plain, averaged), nets, strict=True)}
    state = torch.optim.Adam(nets[0].parameters()).state_dict()
    torch.save({"epoch": 3, "optimizer": state, **weights, "args": Namespace(arch="resnet18")}, "both.pth.tar")
    with caplog.at_level(logging.INFO):
        assert same(load_target("torchvision:resnet18@both.pth.tar"), nets[1])
    assert (
        f"Took the weights under '{averaged}' of both.pth.tar, which averages the others; left: {plain}" in caplog.text
    )
    chosen = load_target("both.pth.tar", weights=plain)
    assert same(chosen, nets[0])
    assert chosen.options == {"target": "both.pth.tar", "target_weights": plain}
    with pytest.raises(UsageError, match=f"has no weights under 'momentum'. It has them under: {plain}, {averaged}"):
        load_target("both.pth.tar", weights="momentum")
    with pytest.raises(UsageError, match="A key of weights goes with a checkpoint"):
        load_target("timm:resnet18", weights=plain)


def test_of_sets_with_names_of_the_users_own_one_must_be_chosen() -> None:
    nets = {name: torchvision.models.resnet18() for name in ("left", "right")}
    torch.save({name: net.state_dict() for name, net in nets.items()}, "own.bin")
    with pytest.raises(UsageError, match="has weights under left, right: choose with --target-weights KEY"):
        load_target("own.bin")
    assert same(load_target("own.bin", weights="right"), nets["right"])
    torch.save({"trunk_weights": nets["left"].state_dict(), "epoch": 1}, "one.pth")
    assert same(load_target("one.pth"), nets["left"])


def test_what_averaging_and_checkpointing_add_to_names_is_taken_off() -> None:
    model = SimCLR()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    torch.save(averaged.state_dict(), "averaged.pt")
    assert same(load_target("averaged.pt"), model)
    wrapped = {
        key.replace("backbone.4.", "backbone.4._checkpoint_wrapped_module."): v for key, v in model.state_dict().items()
    }
    assert any("_checkpoint_wrapped_module" in key for key in wrapped)
    torch.save(wrapped, "wrapped.pt")
    assert same(load_target("wrapped.pt"), model)


def test_plain_values_beside_the_weights_do_no_harm() -> None:
    net = torchvision.models.resnet18()
    beside = {"args": Namespace(out=Path("runs")), "best": np.float64(0.5)}
    torch.save({"model": net.state_dict(), **beside}, "script.pth")
    assert same(load_target("script.pth"), net)


def test_a_torchscript_program_in_a_file_says_how_it_is_given() -> None:
    torch.jit.save(torch.jit.script(nn.Conv2d(3, 4, 3)), "program.pt")
    with pytest.raises(UsageError, match=r"is a TorchScript program and no weights: write a function that returns"):
        load_target("program.pt")
