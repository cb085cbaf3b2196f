import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightly_distill.errors import DistillError, UsageError
from lightly_distill.models.targets import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Target,
    _in_short,
    as_target,
    load_target,
    represent,
)

IMAGES = torch.rand(4, 3, 8, 8)


class Encoder(nn.Module):
    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.dropout(self.norm(self.convolution(images))).mean((2, 3))


class Model(nn.Module):
    """An SSL model with an encoder where no adapter looks, and a head that cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(Encoder())
        self.head = nn.utils.weight_norm(nn.Linear(5, 4))


def unit(function: Callable[[Tensor], Any], **arguments: Any) -> Target:
    """A target that hands images to the function as they are."""
    return as_target(function, mean=(0, 0, 0), std=(1, 1, 1), **arguments)


def test_images_are_normalised_with_imagenets_statistics_by_default() -> None:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    expected = ((IMAGES - mean) / std).flatten(1)
    torch.testing.assert_close(as_target(nn.Flatten())(IMAGES), expected)


def test_the_encoders_own_normalisation_comes_before_imagenets_and_after_the_callers() -> None:
    encoder = nn.Flatten()
    encoder.mean, encoder.std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    assert as_target(encoder).mean == (0.5, 0.5, 0.5)
    assert as_target(encoder).std == (0.25, 0.25, 0.25)
    assert as_target(encoder, mean=(0, 0, 0), std=(1, 1, 1)).mean == (0, 0, 0)


def test_a_buffer_named_mean_is_not_taken_for_a_normalisation() -> None:
    encoder = nn.Flatten()
    encoder.register_buffer("mean", torch.zeros(3, 1, 1))
    assert as_target(encoder).mean == IMAGENET_MEAN


@pytest.mark.parametrize("training", [True, False])
def test_the_users_model_stays_as_it_is(training: bool) -> None:
    model = Model().train(training)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    target = as_target(model, "trunk.0")
    target.train()
    represent(target, [(IMAGES * 255).byte()], device="cpu", total=4)
    assert all(module.training is training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_target_stays_frozen_and_in_eval_mode_when_told_to_train() -> None:
    target = as_target(Encoder())
    before = target.weights_sha256()
    nn.Sequential(target).train()
    first, second = target(IMAGES), target(IMAGES)
    assert not any(module.training for module in target.modules())
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert not any(parameter.requires_grad for parameter in target.parameters())
    assert target.weights_sha256() == before


def test_no_gradient_leaves_a_target() -> None:
    weight = torch.ones(3, requires_grad=True)
    assert not unit(lambda x: x.mean((2, 3)) * weight)(IMAGES.clone().requires_grad_()).requires_grad


def test_training_goes_on_without_changing_the_target() -> None:
    model = Encoder()
    target = as_target(model)
    before = target(IMAGES)
    with torch.no_grad():
        model.convolution.weight.mul_(2)
    assert torch.equal(target(IMAGES), before)


def test_a_target_passes_through() -> None:
    target = as_target(Encoder())
    assert as_target(target) is target


def test_a_module_can_be_given_as_encoder() -> None:
    model = Model()
    target = as_target(model, model.trunk[0])
    assert target.name == "Model.trunk.0"
    assert target(IMAGES).shape == (4, 5)


def test_an_encoder_that_is_not_there_is_told_with_its_neighbours() -> None:
    with pytest.raises(UsageError, match=r"Model has no module 'trunc'. Did you mean 'trunk'"):
        as_target(Model(), "trunc")
    with pytest.raises(UsageError, match=r"Model has no module 'x'. Known: head, trunk\."):
        as_target(Model(), "x")


def test_an_encoder_that_cannot_be_copied_is_told_by_name() -> None:
    with pytest.raises(UsageError, match=r"The encoder Model cannot be copied: .*[^.]\. Name a part of it with"):
        as_target(Model())


def test_something_that_is_no_model_is_refused() -> None:
    with pytest.raises(UsageError, match="A target is a module or a function of images, not int"):
        as_target(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x.flatten(1), IMAGES.flatten(1)),
        (lambda x: x, IMAGES.mean((2, 3))),
        (lambda x: x.flatten(2), IMAGES.flatten(2).mean(1)),
        (lambda x: x.flatten(1).double(), IMAGES.flatten(1)),
    ],
    ids=["vectors", "map", "tokens", "double"],
)
def test_outputs_become_one_float32_vector_an_image(function: Callable[[Tensor], Tensor], expected: Tensor) -> None:
    target = unit(function)
    assert target.dim is None
    result = target(IMAGES)
    assert result.dtype == torch.float32
    assert target.dim == expected.shape[1]
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: (x, x), r"returned a tuple of \(4, 3, 8, 8\), \(4, 3, 8, 8\), expected a tensor \(B, d\)"),
        (lambda x: {"logits": x.mean((2, 3))}, r"returned a dict of \(4, 3\)"),
        (lambda x: None, "returned a NoneType"),
        (lambda x: x.mean((2, 3)) * float("nan"), r"returned NaN or infinity in a tensor of shape \(4, 3\)"),
        (lambda x: x.mean((2, 3)) + float("inf"), r"returned NaN or infinity in a tensor of shape \(4, 3\)"),
        (lambda x: x.mean((2, 3))[:, :0], r"shape \(4, 0\), expected \(B, d\)"),
        (lambda x: x.mean((2, 3))[:3], r"shape \(3, 3\), expected \(B, d\)"),
        (lambda x: x.mean((1, 2, 3)), r"shape \(4,\), expected \(B, d\)"),
        (lambda x: x.mean((2, 3)).argmax(1, keepdim=True), r"torch.int64, shape \(4, 1\); expected floating point"),
        (
            lambda x: x @ x.new_zeros(7, 7),
            r"fails on images of shape \(4, 3, 8, 8\): .*7x7\)\. If it takes .* give it as input_size",
        ),
    ],
)
def test_an_output_that_is_no_representation_is_told_by_name_and_shape(
    function: Callable[[Tensor], Any], message: str
) -> None:
    with pytest.raises(DistillError, match=f"The target mine,? .*{message}"):
        unit(function, name="mine")(IMAGES)


def test_a_width_that_changes_is_told() -> None:
    target = unit(lambda x: x.flatten(1), name="mine")
    target(IMAGES)
    with pytest.raises(DistillError, match=r"returned a tensor of shape \(4, 75\): d is 75 now and was 192"):
        target(torch.rand(4, 3, 5, 5))


def test_images_are_resized_only_for_an_encoder_with_another_input_size() -> None:
    seen = []
    target = unit(lambda x: seen.append(x) or x.flatten(1), input_size=8)
    target(IMAGES)
    target(torch.rand(1, 3, 16, 12))
    assert torch.equal(seen[0], IMAGES)
    assert seen[1].shape == (1, 3, 8, 8)
    encoder = nn.Flatten()
    encoder.input_size = 16
    assert as_target(encoder)(IMAGES).shape == (4, 3 * 16 * 16)


def test_an_input_size_may_be_two_equal_numbers_and_nothing_else() -> None:
    assert unit(nn.Flatten(), input_size=(224, 224)).input_size == 224
    for wrong in ((224, 160), (3, 224, 224), 0, "224", 2.5):
        with pytest.raises(UsageError, match="input_size must be a number of pixels, or two equal ones"):
            unit(nn.Flatten(), input_size=wrong)


def test_a_half_precision_encoder_gets_images_of_its_dtype() -> None:
    result = as_target(Encoder().bfloat16())(IMAGES)
    assert result.dtype == torch.float32


def test_fingerprint_changes_with_all_that_a_representation_depends_on() -> None:
    encoder = Encoder().eval()
    changed, buffer_changed = copy.deepcopy(encoder), copy.deepcopy(encoder)
    with torch.no_grad():
        changed.convolution.bias[0] += 1e-6
        buffer_changed.norm.running_mean[0] += 1e-6
    same_weights = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU())
    other_layer = nn.Sequential(same_weights[0], nn.GELU())
    targets = [
        as_target(encoder),
        as_target(changed),
        as_target(buffer_changed),
        as_target(encoder, mean=(0.5, 0.5, 0.5)),
        as_target(encoder, std=(0.5, 0.5, 0.5)),
        as_target(encoder, input_size=4),
        as_target(same_weights),
        as_target(other_layer),
        unit(lambda x: x.mean((2, 3))),
        unit(lambda x: x.amax((2, 3))),
    ]
    assert len({target.weights_sha256() for target in targets}) == len(targets)
    assert as_target(copy.deepcopy(encoder)).weights_sha256() == targets[0].weights_sha256()


@pytest.mark.parametrize("total", [None, 10])
def test_batches_of_bytes_are_represented_in_their_order(total: int | None) -> None:
    images = torch.randint(0, 256, (10, 3, 4, 4), dtype=torch.uint8)
    result = represent(unit(lambda x: x.flatten(1)), images.split(4), device="cpu", total=total)
    torch.testing.assert_close(result, images.flatten(1) / 255)


@pytest.mark.parametrize(
    ("count", "total", "message"),
    [
        (0, None, "given 0 images, expected at least one"),
        (4, 5, "4 images, expected 5"),
        (4, 3, "4 images, expected 3"),
    ],
)
def test_another_number_of_images_than_told_is_an_error(count: int, total: int | None, message: str) -> None:
    batches = torch.zeros(count, 3, 4, 4, dtype=torch.uint8).split(2) if count else []
    with pytest.raises(DistillError, match=message):
        represent(unit(lambda x: x.mean((2, 3))), batches, device="cpu", total=total)


def test_a_function_in_the_working_directory_is_a_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_ssl.py").write_text("from torch import nn\n\ndef build():\n    return nn.Flatten()\n")
    monkeypatch.chdir(tmp_path)
    target = load_target("my_own_ssl:build")
    assert target.name == "my_own_ssl:build"
    assert target(IMAGES).shape == (4, 192)


def test_a_timm_name_with_a_file_is_a_target(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "weights.safetensors"
    safetensors.save_file(timm.create_model("test_resnet").state_dict(), path)
    target = load_target(f"timm:test_resnet@{path}")
    assert target(torch.rand(2, 3, 32, 32)).shape == (2, 96)
    assert target.name == f"timm:test_resnet@{path}"


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("resnet18", UsageError, r"'resnet18' is no target. Expected timm:NAME, .* adapters: .*timm"),
        ("tim:resnet18", UsageError, r"'tim' is neither an adapter .* Did you mean 'timm:resnet18'\?"),
        ("timm:resnet_18", UsageError, "timm knows no model 'resnet_18'. Did you mean 'resnet18'"),
        (
            "collections:OrderedDic",
            UsageError,
            "has no function 'OrderedDic'. Did you mean 'OrderedDict'",
        ),
        ("collections.nothing:x", UsageError, "'collections.nothing' is neither an adapter"),
        ("builtins:int", UsageError, "'builtins:int' returned int, expected a model"),
        ("operator:add", DistillError, "'operator:add' failed: TypeError: "),
        ("string:digits", UsageError, "'string:digits' is no function, but str."),
        ("sys:exit", DistillError, r"function of target 'sys:exit' ended the program \(sys\.exit\(\)\)"),
    ],
)
def test_a_specification_that_cannot_be_used_is_told(spec: str, error: type[DistillError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        load_target(spec)
    assert "\n" not in str(caught.value)


def test_a_module_that_itself_misses_a_module_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import not_installed_at_all\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DistillError, match="cannot be imported: No module named 'not_installed_at_all'"):
        load_target("half_installed:build")


@pytest.mark.parametrize(("code", "told"), [("0", "0"), ("'no GPU found'", "'no GPU found'"), ("", "")])
def test_a_module_that_ends_the_program_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, told: str
) -> None:
    (tmp_path / "a_script.py").write_text(f"import sys\n\ndef build():\n    pass\n\nsys.exit({code})\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DistillError, match="put what it runs under `if __name__ == '__main__':`") as caught:
        load_target("a_script:build")
    assert f"'a_script:build' ended the program (sys.exit({told}))" in str(caught.value)


def test_a_model_where_a_function_is_expected_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_at_once.py").write_text("from torch import nn\n\nmodel = nn.Flatten()\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="'made_at_once:model' is a model itself; give a function that returns it"):
        load_target("made_at_once:model")


def test_the_fingerprint_of_a_function_leaves_it_free_to_answer_other_sizes() -> None:
    target = as_target(lambda images: images.flatten(1), name="flat")
    assert target.weights_sha256() == target.weights_sha256()
    assert target(torch.zeros(2, 3, 8, 8)).shape == (2, 192)


def test_a_function_is_known_by_its_answers_on_a_gpu_whatever_their_last_bits() -> None:
    weights = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))

    def answers(noise: float) -> str:
        def function(images: Tensor) -> Tensor:
            made = images.mean((2, 3)) @ weights
            return made * (1 + noise * torch.randn(made.shape, generator=torch.Generator().manual_seed(3)))

        return as_target(function).weights_sha256()

    assert answers(0) == answers(0)
    assert answers(0) != answers(1e-6)  # a CPU repeats itself
    made = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(4, 64, generator=torch.Generator().manual_seed(2))
    assert torch.equal(_in_short(made), _in_short(made * (1 + 1e-6 * noise)))  # a GPU need not
    assert not torch.equal(_in_short(made), _in_short(made * (1 + 0.3 * noise)))


def test_what_a_target_is_made_with_is_not_taken_of_one_that_is_made() -> None:
    made = as_target(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))
    assert as_target(made) is made
    for options in ({"encoder": "nowhere"}, {"input_size": 64}, {"mean": (0.5,) * 3}):
        with pytest.raises(UsageError, match="is a target already: give encoder, mean, std"):
            as_target(made, **options)
