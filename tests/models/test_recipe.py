import pytest
import timm
import torch
from torch import Tensor, nn

from lightly_distill.models.recipe import kind_of, make_optimizer, vary
from lightly_distill.models.rows import Layout
from lightly_distill.runtime.seeding import generator

TARGETS = Layout(2, channels=1, grid=4)


def batch(count: int = 64) -> tuple[Tensor, Tensor]:
    """Images whose mean is in the vector, and whose 4x4 average is the map."""
    images = torch.rand(count, 3, 16, 16, generator=generator(0, "recipe"))
    maps = nn.functional.adaptive_avg_pool2d(images[:, :1], 4)
    return images, TARGETS.join(torch.stack([images.mean((1, 2, 3)), torch.arange(float(count))], 1), maps)


def varied(images: Tensor, rows: Tensor, **ways: bool) -> tuple[Tensor, Tensor]:
    return vary(images, rows, TARGETS, generator(1, "draw"), **{"crop_and_flip": False, "mixup": False, **ways})


def test_mixup_mixes_targets_as_it_mixes_images() -> None:
    images, rows = batch()
    mixed, targets = varied(images, rows, mixup=True)
    assert not torch.equal(mixed, images)
    torch.testing.assert_close(mixed.mean((1, 2, 3)), targets[:, 0])
    torch.testing.assert_close(nn.functional.adaptive_avg_pool2d(mixed[:, :1], 4).flatten(1), targets[:, 2:])
    assert not torch.equal(
        varied(images, rows, mixup=True)[0],
        vary(images, rows, TARGETS, generator(2, "draw"), crop_and_flip=False, mixup=True)[0],
    )


def test_a_mirrored_image_has_a_mirrored_map_and_a_crop_is_a_shift() -> None:
    images, rows = batch()
    shown, targets = varied(images, rows, crop_and_flip=True)
    vectors, maps = TARGETS.split(targets)
    _, own = TARGETS.split(rows)
    assert maps is not None and own is not None and torch.equal(vectors, rows[:, :2])
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(maps, own, strict=True)]
    assert 10 < sum(mirrored) < 54
    padded = nn.functional.pad(images, (2, 2, 2, 2), mode="reflect")
    for image, source, turned in zip(shown, padded, mirrored, strict=True):
        straight = image.flip(2) if turned else image
        found = [(y, x) for y in range(5) for x in range(5) if torch.equal(straight, source[:, y : y + 16, x : x + 16])]
        assert found


@pytest.mark.parametrize(
    ("name", "kind"),
    [("resnet10t", "sgd"), ("test_vit", "adamw"), ("test_convnext", "adamw"), ("convnet_4_4", "sgd")],
)
def test_the_family_decides_the_optimizer_unless_the_user_does(name: str, kind: str) -> None:
    from lightly_distill.models.students import student_builder

    student = student_builder(name, 32)() if name.startswith("convnet") else timm.create_model(name, num_classes=0)
    assert kind_of(student, "auto") == kind
    assert kind_of(student, "sgd") == "sgd"
    made = make_optimizer(student, nn.Linear(1, 1), kind="auto", lr=None, momentum=0.5, weight_decay=None)
    assert isinstance(made, torch.optim.AdamW if kind == "adamw" else torch.optim.SGD)
    own = make_optimizer(student, nn.Linear(1, 1), kind="auto", lr=0.25, momentum=0.5, weight_decay=0.125)
    assert (own.param_groups[0]["lr"], own.param_groups[0]["weight_decay"]) == (0.25, 0.125)
