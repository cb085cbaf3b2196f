from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lightly_distill import adapters
from lightly_distill.errors import UsageError
from lightly_distill.models.students import find_adapter, student_builder


def adapter_of(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
    """Makes `own:NAME` build this model."""
    monkeypatch.setattr(adapters, "available", lambda group: {"own": None, "timm": None})
    monkeypatch.setattr(adapters, "get", lambda group, name: SimpleNamespace(build=lambda name, size: model))


class Function(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> object:
        return self.function(self, images)


@pytest.mark.parametrize(
    ("name", "adapter", "rest"),
    [
        ("resnet18", "timm", "resnet18"),
        ("timm:resnet18", "timm", "resnet18"),
        ("resnet18:stem=small", "timm", "resnet18:stem=small"),
        ("timm:resnet18:stem=small", "timm", "resnet18:stem=small"),
        ("own:resnet18", "own", "resnet18"),
        ("own:resnet18:a=b:c=d", "own", "resnet18:a=b:c=d"),
    ],
)
def test_an_adapter_stands_before_the_name_and_options_after_it(
    name: str, adapter: str, rest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "available", lambda group: {"own": None, "timm": None})
    monkeypatch.setattr(adapters, "get", lambda group, name: name)
    assert find_adapter(name) == (adapter, rest)


@pytest.mark.parametrize("name", ["convnet_4_8", "timm:convnet_4_8"])
def test_a_plain_name_is_timms(name: str) -> None:
    build = student_builder(name, 16)
    assert build()(torch.rand(2, 3, 16, 16)).shape == (2, 8 * 4 * 4)


def test_checking_a_student_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    build = student_builder("convnet_4_9", 16)
    assert torch.equal(torch.get_rng_state(), before)
    build()
    assert not torch.equal(torch.get_rng_state(), before)


def test_builders_draw_from_the_global_generator() -> None:
    build = student_builder("convnet_4_8", 16)
    torch.manual_seed(3)
    first, other = build(), build()
    torch.manual_seed(3)
    again = build()
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(first(images), again(images))
    assert not torch.equal(first(images), other(images))


def test_an_adapter_that_is_not_installed_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"No adapter 'tim' for students. .*Did you mean 'timm:resnet18'\?"):
        student_builder("tim:resnet18", 32)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda self, x: x, r"'own:x' returns \(2, 3, 8, 8\) in training mode, expected features \(2, p\)"),
        (lambda self, x: (x, x), r"'own:x' returns tuple in training mode"),
        (lambda self, x: x.flatten(1) / 0, "returns features that are not finite in training mode"),
        (lambda self, x: x.flatten(1 if self.training else 0), r"returns \(384,\) in eval mode"),
        (lambda self, x: x @ x.new_zeros(7, 7), "fails in training mode on images of 8x8: "),
    ],
)
def test_a_student_without_features_is_refused_before_it_is_trained(
    function: Callable[[nn.Module, Tensor], object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter_of(monkeypatch, Function(function))
    with pytest.raises(UsageError, match=message):
        student_builder("own:x", 8)
