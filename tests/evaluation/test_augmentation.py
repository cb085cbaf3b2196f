import pytest
import torch

from lightly_distill.evaluation.augmentation import KINDS, augment

IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_of(seed: int) -> list[float]:
    generator = seeded(seed)
    torch.randint(6, (1,), generator=generator)
    return torch.rand(3, generator=generator).tolist()


def test_two_batches_are_changed_in_the_same_way() -> None:
    for seed in range(30):
        whole = augment(IMAGES, seeded(seed))
        part = augment(IMAGES[3:], seeded(seed))
        torch.testing.assert_close(whole[3:], part)


def test_every_kind_is_drawn_and_lets_gradients_through() -> None:
    seen = set()
    for seed in range(60):
        images = IMAGES.clone().requires_grad_()
        changed = augment(images, seeded(seed))
        assert changed.shape == images.shape and changed.isfinite().all()
        (gradient,) = torch.autograd.grad(changed.square().sum(), images)
        assert gradient.abs().sum() > 0
        seen.add(next(kind for kind in KINDS if torch.equal(changed, KINDS[kind](IMAGES, draw_of(seed)))))
    assert seen == set(KINDS)


@pytest.mark.parametrize(
    ("kind", "draw"),
    [
        ("colour", (0.5, 0.5, 0.5)),  # nothing added, both factors 1
        ("crop", (0.5, 0.5, 0.0)),
        ("flip", (0.5, 0.0, 0.0)),
        ("scale", ((1 - 1 / 1.2) / (1.2 - 1 / 1.2), (1 - 1 / 1.2) / (1.2 - 1 / 1.2), 0.0)),
        ("rotate", (0.5, 0.0, 0.0)),
    ],
)
def test_each_kind_has_a_draw_that_changes_nothing(kind: str, draw: tuple[float, ...]) -> None:
    torch.testing.assert_close(KINDS[kind](IMAGES, draw), IMAGES)


def test_crop_shifts_by_whole_pixels_and_cutout_blanks_a_square() -> None:
    shifted = KINDS["crop"](IMAGES, (0.0, 0.99, 0.0))  # up to one pixel at a side of 8: one up, one to the left
    assert torch.equal(shifted[..., 1:, :-1], IMAGES[..., :-1, 1:]) and not shifted[..., 0, :].any()
    cut = KINDS["cutout"](IMAGES, (0.5, 0.5, 0.0))
    assert not cut[..., 2:6, 2:6].any()
    cut[..., 2:6, 2:6] = IMAGES[..., 2:6, 2:6]
    assert torch.equal(cut, IMAGES)
