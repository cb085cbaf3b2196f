"""The last map of a model: where a bright square is, in encoders whose map is known, and in those of each kind."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from lightly_distill import DistillError, UsageError, as_target
from lightly_distill.models.maps import NoMapError, maps, of_tokens, to_grid
from lightly_distill.models.students import student_builder
from lightly_distill.models.targets import Target

SIZE, PATCH, GRID = 16, 4, 4
ROW, COLUMN = 1, 2  # of the bright square; not the same, so that a transposed map shows


def bright() -> Tensor:
    """Two dark images; the second with a bright square that fills one patch."""
    images = torch.zeros(2, 3, SIZE, SIZE)
    images[1, :, ROW * PATCH : (ROW + 1) * PATCH, COLUMN * PATCH : (COLUMN + 1) * PATCH] = 1
    return images


def expected() -> Tensor:
    """Where the square is, (2, 5, GRID, GRID)."""
    cells = torch.zeros(2, 5, GRID, GRID)
    cells[1, :, ROW, COLUMN] = 1
    return cells


def patches() -> nn.Conv2d:
    """A convolution that copies the brightness of each patch to all of its five channels."""
    convolution = nn.Conv2d(3, 5, PATCH, stride=PATCH, bias=False)
    nn.init.constant_(convolution.weight, 1 / (3 * PATCH**2))
    return convolution


class Tokens(nn.Module):
    """Tokens of patches behind `prefix` others, through a layer that changes nothing."""

    def __init__(self, prefix: int = 0, *, images_second: bool = False) -> None:
        super().__init__()
        self.patches, self.last = patches(), nn.Identity()
        self.prefix, self.images_second = prefix, images_second

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([torch.full((len(tokens), self.prefix, 5), 7.0), tokens], 1)
        if self.images_second:
            return self.last(tokens.transpose(0, 1)).transpose(0, 1)
        return self.last(tokens)


class ClassToken(Tokens):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[:, 0]


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.last = patches(), nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.patches(images).permute(0, 2, 3, 1)).mean((1, 2))


class Gated(nn.Module):
    """A pooling inside a block, as in squeeze-and-excitation, and a global one that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = patches()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(5, 5, 1))
        self.last = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        last = self.patches(images)
        return self.last(last * torch.ones_like(self.gate(last))).mean((2, 3))


class LearnedPower(nn.Module):
    """A pooling of one's own, with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.ones(1))

    def forward(self, last: Tensor) -> Tensor:
        return last.pow(self.power).mean((2, 3), keepdim=True)


def plain(model: Any) -> Target:
    return as_target(model, mean=(0, 0, 0), std=(1, 1, 1))


KINDS: dict[str, Callable[[], Any]] = {
    "a map": patches,
    "pooled": lambda: nn.Sequential(patches(), nn.AdaptiveAvgPool2d(1)),
    "pooled by its size": lambda: nn.Sequential(patches(), nn.AvgPool2d(GRID), nn.Flatten()),
    "pooled by one's own": lambda: nn.Sequential(patches(), LearnedPower()),
    "pooled before a last layer": lambda: nn.Sequential(
        patches(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(5, 8, 1), nn.ReLU(), nn.Flatten()
    ),
    "flattened": lambda: nn.Sequential(patches(), nn.Flatten()),
    "pooled in a block too": Gated,
    "channels last": ChannelsLast,
    "tokens": Tokens,
    "tokens after a class token and registers": partial(Tokens, 5),
    "a class token": partial(ClassToken, 1),
    "a class token of images in second place": partial(ClassToken, 1, images_second=True),
    "a function": lambda: ChannelsLast().forward,
}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_map_shows_a_bright_square_where_it_is(kind: str) -> None:
    target = plain(KINDS[kind]())
    representations, cells = target.maps(bright(), GRID)
    torch.testing.assert_close(cells, expected())
    assert torch.equal(representations, target(bright()))
    assert not torch_module._global_forward_hooks


@pytest.mark.parametrize("kind", ["a map", "pooled", "pooled by its size", "pooled by one's own", "channels last"])
def test_a_map_that_is_averaged_over_all_positions_is_the_representation(kind: str) -> None:
    torch.manual_seed(0)
    representations, cells = plain(KINDS[kind]()).maps(torch.rand(3, 3, SIZE, SIZE), 1)
    torch.testing.assert_close(cells.flatten(1), representations)


def test_cells_are_the_averages_of_the_positions_in_them() -> None:
    last = torch.arange(64.0).view(1, 1, 8, 8)
    torch.testing.assert_close(to_grid(last, 2)[0, 0], torch.tensor([[13.5, 17.5], [45.5, 49.5]]))
    assert to_grid(last, 8).equal(last)
    assert to_grid(last, 3).shape == (1, 1, 3, 3)


def test_tokens_of_registers_are_left_out_by_their_number_or_else_by_what_fills_a_square() -> None:
    tokens = torch.arange(9.0).view(1, 9, 1)
    assert of_tokens(tokens, 5)[0, 0].tolist() == [[5, 6], [7, 8]]
    assert of_tokens(tokens)[0, 0].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    with pytest.raises(NoMapError, match="its 9 tokens, 1 of them for the whole image, fill no square"):
        of_tokens(tokens, 1)


def test_a_map_smaller_than_the_grid_is_refused_in_one_line() -> None:
    with pytest.raises(
        UsageError,
        match=r"^The target Conv2d has no map of images of shape \(3, 16, 16\): its last map is 4x4, "
        r"smaller than 5x5 cells; take larger images .* or fewer cells \(--target-map, target_map\)\.$",
    ):
        plain(patches()).maps(bright(), 5)


@pytest.mark.parametrize("model", [nn.Flatten(), lambda images: images.flatten(1)], ids=["module", "function"])
def test_a_model_without_a_map_is_refused_in_one_line(model: Any) -> None:
    with pytest.raises(UsageError, match=r"has no map of images of .*: none of its modules returns a map or tokens\.$"):
        plain(model).maps(bright(), 2)


def test_errors_of_the_encoder_are_those_of_its_representation_and_leave_no_hook() -> None:
    target = as_target(nn.Sequential(patches(), nn.Linear(7, 7)))
    with pytest.raises(DistillError, match=r"fails on images of shape \(2, 3, 16, 16\): mat1 and mat2"):
        target.maps(bright(), 2)
    assert not torch_module._global_forward_hooks


def test_nothing_stays_in_the_users_model() -> None:
    model = nn.Sequential(patches(), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    before = copy.deepcopy(model.state_dict())
    attributes = [sorted(vars(module)) for module in model.modules()]
    plain(model).maps(bright(), 2)
    assert [sorted(vars(module)) for module in model.modules()] == attributes
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("inside", [False, True])
def test_a_compiled_encoder_and_its_copy_have_the_map_too(inside: bool) -> None:
    model: Any = nn.Sequential(patches(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    if inside:
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    for target in (plain(model), copy.deepcopy(plain(model)), plain(lambda images: model(images))):
        representations = target(bright())  # compiles it
        again, cells = target.maps(bright(), GRID)
        torch.testing.assert_close(cells, expected())
        torch.testing.assert_close(again, representations)
    assert maps(model, bright(), GRID)[1].equal(cells)


STUDENTS = [
    "convnet_8_16",
    "resnet10t:stem=small",
    "mobilenetv3_small_050",
    "test_vit",
    "test_mambaout",
    "mixer_s32_224",
]


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_learns_from_its_map_and_its_features_in_one_pass(name: str) -> None:
    size = 32
    torch.manual_seed(0)
    student = student_builder(name, size)().train()
    head = nn.Conv2d(maps(student, torch.rand(2, 3, size, size), 2)[1].shape[1], 6, 1)
    images = torch.rand(2, 3, size, size)
    features, cells = maps(student, images, 2)
    assert cells.shape[2:] == (2, 2)
    head(cells).square().mean().backward()
    first = next(student.parameters())
    assert first.grad is not None and first.grad.abs().sum() > 0
    torch.manual_seed(0)
    features, cells = maps(student.eval(), images, 2)
    assert torch.equal(features, student(images))


def test_a_students_map_with_fewer_positions_than_the_grid_is_enlarged() -> None:
    _, cells = maps(nn.Sequential(patches(), nn.Flatten()), bright(), 8)
    assert cells.shape == (2, 5, 8, 8)
    assert cells[1, 0].argmax() // 8 in (2, 3) and cells[1, 0].argmax() % 8 in (4, 5)


def test_a_student_without_a_map_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"^The student Sequential has no map: none of its modules .*tokens\.$"):
        maps(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), bright(), 2)
