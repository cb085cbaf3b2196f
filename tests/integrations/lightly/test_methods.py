"""Every method of Lightly as a target: the encoder that is meant, and the model as it was."""

import copy
from typing import Any

import lightly.models
import pytest
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from lightly_distill.models.targets import IMAGENET_MEAN, IMAGENET_STD, as_target
from lightly_zoo import BENCHMARKS, METHODS, SIZE, Method, assemble, resnet

CASES = [*METHODS.items(), *((f"benchmark-{name}", method) for name, method in BENCHMARKS.items())]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("base", [nn.Module, LightningModule], ids=["module", "lightning"])
@pytest.mark.parametrize("method", [method for _, method in CASES], ids=[name for name, _ in CASES])
def test_each_method_is_represented_by_the_encoder_that_it_is_evaluated_with(
    method: Method, base: type[nn.Module], images: Tensor
) -> None:
    model = _build(method, base)
    before = _facts(model)

    target = as_target(model)
    result = target(images)

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    encoder: Any = copy.deepcopy(model.get_submodule(method.path)).eval()
    with torch.no_grad():
        expected = method.expected(encoder, (images - mean) / std)
    assert result.ndim == 2 and len(result) == 3
    torch.testing.assert_close(result, expected)
    assert result.isfinite().all()
    assert torch.equal(target(images), result)
    assert (result[0] - result[1]).abs().max() > 1e-4  # sensitive to the image
    name = type(model).__name__
    assert target.encoder_name == (f"{name}.{method.path}" if method.path else name)
    assert method.why in target.reason
    assert _facts(model) == before


def _build(method: Method, base: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            return method.build(base).train()
        except (AttributeError, TypeError, RuntimeError) as error:
            if lightly.__version__ >= "1.6":
                raise
            pytest.skip(f"lightly {lightly.__version__} itself cannot build it: {error}")


@pytest.mark.parametrize("name", ["SimCLR", "MoCo", "BYOL", "BarlowTwins", "SimSiam", "NNCLR"])
def test_the_old_classes_of_lightly_are_represented_by_their_backbone(name: str, images: Tensor) -> None:
    if not hasattr(lightly.models, name):
        pytest.skip(f"lightly {lightly.__version__} has no lightly.models.{name} (removed in 1.6.0)")
    model = getattr(lightly.models, name)(resnet(), num_ftrs=512)
    target = as_target(model)
    assert target.encoder_name == f"{name}.backbone"
    assert target(images).shape == (3, 512)


def test_a_model_inside_another_module_is_found(images: Tensor) -> None:
    inner = METHODS["dino"].build(nn.Module)
    outer = assemble(LightningModule, "Experiment", model=inner, criterion=nn.Identity())
    target = as_target(outer)
    assert target.encoder_name == "Experiment.model.teacher_backbone"
    assert torch.equal(target(images), as_target(inner)(images))


def test_another_encoder_can_be_asked_for_and_is_called_as_its_kind_needs(images: Tensor) -> None:
    student = as_target(METHODS["ijepa"].build(nn.Module), "encoder")
    assert student.encoder_name == "IJEPA.encoder" and student.reason == "named by the user"
    encoder = student.encoder.encoder  # type: ignore[union-attr]
    with torch.no_grad():
        expected = encoder((images - student._mean) / student._std)[:, 1:].mean(1)
    torch.testing.assert_close(student(images), expected)


def _facts(model: nn.Module) -> dict[str, Any]:
    """All that a user could see changed, comparable."""
    return {
        "weights": {key: hash(tensor.numpy(force=True).tobytes()) for key, tensor in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "gradients": [parameter.requires_grad for parameter in model.parameters()],
        "devices": [str(tensor.device) for tensor in model.state_dict().values()],
        "modules": [id(module) for module in model.modules()],
    }
