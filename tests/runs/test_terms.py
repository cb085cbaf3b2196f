"""Whatever a script has set in torch, the stage works on its own terms and leaves the script's as they were."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import tiny
from lightly_distill import DistillationStage, SyntheticSet, UsageError, as_target, evaluate, pretrain
from lightly_distill.evaluation.tasks import open_task


@contextmanager
def default_dtype(kind: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def gradients_off() -> Iterator[None]:
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        torch.set_grad_enabled(True)


TERMS: dict[str, Any] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "set_grad_enabled(False)": gradients_off,
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "meta by default": lambda: torch.device("meta"),
}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return tiny.images(40)


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1)).eval()


def student(synthetic: SyntheticSet) -> list[Tensor]:
    trained = pretrain("convnet_4_4", synthetic, steps=3, verbose=False, device="cpu")
    return list(trained.state_dict().values())


# with views of each step the target is asked in it, where a default dtype once failed after all the work
@pytest.mark.parametrize(("terms", "views"), [*((terms, 0) for terms in TERMS), ("float64 by default", "random")])
def test_set_and_student_are_the_same_on_any_terms(
    terms: str, views: Any, images: Tensor, encoder: nn.Module, tmp_path: Path
) -> None:
    plain = DistillationStage(encoder, source_views=views, **tiny.QUICK).run(images)
    expected = student(plain)
    with ExitStack() as held:
        held.enter_context(TERMS[terms]())
        before = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.is_autocast_enabled("cpu"))
        made = DistillationStage(encoder, source_views=views, **tiny.QUICK).run(images, out=tmp_path / "run")
        found = student(made)
        assert before == (torch.is_grad_enabled(), torch.get_default_dtype(), torch.is_autocast_enabled("cpu"))
    assert torch.equal(made.images, plain.images) and torch.equal(made.representations, plain.representations)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert torch.equal(SyntheticSet.load(tmp_path / "run").images, plain.images)


def test_an_evaluation_needs_no_gradients_of_the_script(images: Tensor, encoder: nn.Module) -> None:
    data = [(image, number % 2) for number, image in enumerate(images)]
    made = DistillationStage(encoder, **tiny.QUICK).run(images)
    with torch.inference_mode(), default_dtype(torch.float64):
        task = open_task(("mine", data, data), image_size=8)
        (result,) = evaluate(
            made, "convnet_4_4", [task], baselines=["scratch"], probes=["linear", "finetune"], seeds=1, steps=3,
            finetune_steps=2, device="cpu",
        )  # fmt: skip
    assert set(result.arms) == {"scratch", "distilled"}


# --- encoders that are programs


def programs(encoder: nn.Module) -> dict[str, Any]:
    torch.jit.save(torch.jit.script(encoder), "encoder.pt")
    batch = torch.export.Dim.DYNAMIC
    exported = torch.export.export(encoder, (torch.rand(4, 3, 8, 8),), dynamic_shapes=({0: batch},))
    return {
        "scripted": torch.jit.script(encoder),
        "traced": torch.jit.trace(encoder, torch.rand(2, 3, 8, 8)),
        "frozen": torch.jit.freeze(torch.jit.script(encoder)),
        "loaded": torch.jit.load("encoder.pt"),
        "exported": exported,
        "module of an exported one": exported.module(),
    }


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_an_encoder_that_is_a_program_is_a_target(
    images: Tensor, encoder: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = as_target(encoder)(images / 255)
    for kind, program in programs(encoder).items():
        assert torch.allclose(as_target(program)(images / 255), expected, atol=1e-5), kind
        assert len(DistillationStage(program, **tiny.QUICK).run(images)) == 8, kind


def test_a_compiled_target_is_the_same_target(encoder: nn.Module) -> None:
    assert as_target(torch.compile(encoder)).weights_sha256() == as_target(encoder).weights_sha256()
    model = timm.create_model("test_resnet")
    plain = as_target(model)
    compiled = as_target(torch.compile(model))
    assert compiled.weights_sha256() == plain.weights_sha256()
    assert (compiled.mean, compiled.own_size, compiled.encoder_name) == (plain.mean, plain.own_size, plain.encoder_name)
    outer = nn.Sequential(torch.compile(encoder))  # type: ignore[arg-type]
    assert as_target(outer).weights_sha256() == as_target(nn.Sequential(encoder)).weights_sha256()


# --- encoders of other channels


def test_an_encoder_of_grey_images_is_given_grey_ones(images: Tensor) -> None:
    grey = nn.Sequential(nn.Conv2d(1, 6, 3), nn.AdaptiveAvgPool2d(1))
    shown = images[:, :1].expand(-1, 3, -1, -1) / 255
    target = as_target(grey, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert torch.allclose(target(shown), grey(shown[:, :1]).flatten(1), atol=1e-4)
    assert len(DistillationStage(grey, **tiny.QUICK).run(images)) == 8


def test_an_encoder_of_four_channels_says_so(images: Tensor) -> None:
    four = nn.Sequential(nn.Conv2d(4, 6, 3), nn.AdaptiveAvgPool2d(1))
    with pytest.raises(Exception, match="Its first convolution takes 4 channels, images have 3") as caught:
        DistillationStage(four, **tiny.QUICK).run(images)
    assert "one size only" not in str(caught.value)


def test_a_student_that_was_saved_is_a_target_by_its_folder(images: Tensor, encoder: nn.Module, tmp_path: Path) -> None:
    made = DistillationStage(encoder, **tiny.QUICK).run(images)
    trained = pretrain("convnet_4_4", made, steps=3, verbose=False, device="cpu", out=tmp_path / "student")
    stage = DistillationStage(f"timm:local-dir:{tmp_path / 'student'}", **tiny.QUICK)
    assert stage.target.mean == made.mean
    assert torch.allclose(stage.target(images / 255), as_target(trained, mean=made.mean, std=made.std)(images / 255))
    with pytest.raises(UsageError, match=r"There is no model with a configuration of timm in '.*nothing'"):
        DistillationStage(f"timm:local-dir:{tmp_path / 'nothing'}", **tiny.QUICK)
