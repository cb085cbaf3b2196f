import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from lightly_distill.data.augment import jitter_colors, vary
from lightly_distill.models.rows import Layout
from lightly_distill.runtime.seeding import generator

TARGETS = Layout(2, channels=1, grid=4)


def batch(count: int = 64) -> tuple[Tensor, Tensor]:
    """Images whose mean is in the vector, and whose 4x4 average is the map."""
    images = torch.rand(count, 3, 16, 16, generator=generator(0, "recipe"))
    maps = nn.functional.adaptive_avg_pool2d(images[:, :1], 4)
    return images, TARGETS.join(torch.stack([images.mean((1, 2, 3)), torch.arange(float(count))], 1), maps)


def varied(images: Tensor, rows: Tensor, **ways: bool) -> tuple[Tensor, Tensor]:
    return vary(images, rows, TARGETS.mirrored, generator(1, "draw"), **{"crop": False, "mixup": False, **ways})


def test_mixup_mixes_targets_as_it_mixes_images() -> None:
    images, rows = batch()
    mixed, targets = varied(images, rows, mixup=True)
    assert not torch.equal(mixed, images)
    torch.testing.assert_close(mixed.mean((1, 2, 3)), targets[:, 0])
    torch.testing.assert_close(nn.functional.adaptive_avg_pool2d(mixed[:, :1], 4).flatten(1), targets[:, 2:])
    assert not torch.equal(
        varied(images, rows, mixup=True)[0],
        vary(images, rows, TARGETS.mirrored, generator(2, "draw"), crop=False, mixup=True)[0],
    )


def test_a_mirrored_image_has_a_mirrored_map_and_a_crop_is_a_shift() -> None:
    images, rows = batch()
    shown, targets = varied(images, rows, crop=True)
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


def test_colours_are_jittered_as_torchvision_does_and_each_image_by_its_own_factors() -> None:
    images = 0.2 + 0.4 * torch.rand(64, 3, 8, 8, generator=generator(0, "images"))  # so that nothing is clipped
    shown = jitter_colors(images, 0.3, generator(1, "draw"))
    factors = 1 + 0.3 * (2 * torch.rand(3, 64, generator=generator(1, "draw")) - 1)
    assert 0.7 < factors.min() < 0.75 and 1.25 < factors.max() < 1.3 and len(factors.unique()) == 3 * 64
    for image, expected, (brightness, contrast, saturation) in zip(shown, images, factors.T.tolist(), strict=True):
        expected = transforms.adjust_contrast(transforms.adjust_brightness(expected, brightness), contrast)
        torch.testing.assert_close(image, transforms.adjust_saturation(expected, saturation), rtol=1e-3, atol=1e-4)
