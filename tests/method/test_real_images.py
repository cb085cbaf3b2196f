import pytest
import torch
from torch import Tensor

import tiny
from lightly_distill.data.pixels import PAD, crop_and_flip
from lightly_distill.data.source import open_source
from lightly_distill.errors import UsageError
from lightly_distill.method.config import DistillConfig
from lightly_distill.method.real_images import RealImages
from lightly_distill.method.start import initial
from lightly_distill.models.targets import Target, as_target
from lightly_distill.runtime.seeding import generator

CPU = torch.device("cpu")


def make(count: int = 60, **options: object) -> tuple[RealImages, Tensor, Target, DistillConfig]:
    images, target, config = tiny.images(count), as_target(tiny.encoder()), tiny.config(**options)
    return RealImages.of_target(open_source(images), target, config, CPU), images, target, config


def to_uint8(real: RealImages, normalised: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (real.mean, real.std))
    return ((normalised * std + mean) * 255).round().byte()


@pytest.mark.parametrize("views", [0, 1, 3, "random"])
def test_representations_are_the_targets_of_the_very_views_in_the_batch(views: int | str) -> None:
    real, _, target, _ = make(source_views=views)
    for batch in real.batches(0, 3):
        truth = target(to_uint8(real, batch.images).float() / 255)
        torch.testing.assert_close(batch.representations, truth, rtol=1e-5, atol=1e-6)


def test_images_are_as_they_are_without_views() -> None:
    real, images, *_ = make()
    originals = {bytes(image.numpy()) for image in images}
    for batch in real.batches(0, 4):
        assert all(bytes(image.numpy()) in originals for image in to_uint8(real, batch.images))


def test_fixed_views_are_k_crops_or_flips_of_each_image_and_random_ones_are_ever_new() -> None:
    for views, least, most in ((3, 60, 72), ("random", 500, 880)):  # of 40 batches of 22 of 24 images
        real, *_ = make(count=24, num_images=5, batch_size=22, holdout=0, source_views=views)
        seen = {bytes(image.numpy()) for batch in real.batches(0, 40) for image in to_uint8(real, batch.images)}
        assert least <= len(seen) <= most


def test_crop_and_flip_equals_torchvision_style_slicing() -> None:
    images = tiny.images(4)
    crops = torch.tensor([[0, 8, 0], [3, 1, 1], [PAD, PAD, 1], [PAD, PAD, 0]])
    padded = torch.nn.functional.pad(images, (PAD,) * 4)
    for view, whole, (top, left, flip) in zip(crop_and_flip(images, crops), padded, crops.tolist(), strict=True):
        expected = whole[:, top : top + 8, left : left + 8]
        assert torch.equal(view, expected.flip(-1) if flip else expected)


def test_a_step_copies_no_mean_and_std_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    real, *_ = make()
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    first = real.normalise(images)
    monkeypatch.setattr(torch, "tensor", lambda *args, **kwargs: pytest.fail("made anew"))
    assert torch.equal(real.normalise(images), first)


def test_each_image_comes_once_an_epoch_in_another_order_each_epoch() -> None:
    real, *_ = make(count=48, holdout=0, batch_size=12)
    epochs = [[bytes(i.numpy()) for b in real.batches(4 * e, 4 * e + 4) for i in b.images] for e in range(2)]
    assert len(set(epochs[0])) == len(epochs[0]) == 48
    assert set(epochs[0]) == set(epochs[1]) and epochs[0] != epochs[1]


@pytest.mark.parametrize("views", [0, 2, "random"])
def test_batches_are_a_function_of_the_step(views: int | str) -> None:
    straight = list(make(source_views=views)[0].batches(0, 9))
    later = list(make(source_views=views)[0].batches(5, 9))
    for a, b in zip(straight[5:], later, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.representations, b.representations)
    other = next(make(source_views=views, seed=1)[0].batches(0, 1))
    assert not torch.equal(straight[0].images, other.images)


def test_held_out_images_are_never_in_a_batch_nor_in_the_initial_set() -> None:
    real, *_, config = make(count=60, batch_size=20)
    held_out = real.held_out()
    assert held_out is not None and len(held_out.images) == 6  # a tenth, since 512 would be too many
    held = {bytes(image.numpy()) for image in held_out.images}
    used = [image for batch in real.batches(0, 8) for image in batch.images] + list(initial(real, config)[1].images)
    assert held.isdisjoint(bytes(image.numpy()) for image in used)
    assert make(holdout=0)[0].held_out() is None


def test_fewer_images_than_asked_for_are_refused_with_both_numbers() -> None:
    with pytest.raises(
        UsageError, match="fewer than num_images=19: ask for at most 18, keep none aside with holdout=0"
    ):
        make(count=20, num_images=19)


def test_a_batch_larger_than_the_source_is_the_whole_source() -> None:
    real, *_ = make(count=30, batch_size=1000, holdout=3)
    assert [len(batch.images) for batch in real.batches(0, 3)] == [27] * 3


def test_normalised_images_have_the_targets_statistics() -> None:
    target = as_target(tiny.encoder(), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    real = RealImages.of_target(open_source(tiny.images()), target, tiny.config(), CPU)
    grey = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=generator(0, "grey"))
    expected = (grey[:, 2].double() / 255 - 0.3) / 0.1
    torch.testing.assert_close(real.normalise(grey)[:, 2].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("views", [0, 2, "random"])
def test_images_that_stay_on_the_device_make_the_same_batches(
    views: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, *_ = make(source_views=views)
    resident, *_ = make(source_views=views)
    resident.resident = resident.source.read(torch.arange(60))  # as it is on a GPU with room for them
    expected = list(plain.batches(0, 6))
    monkeypatch.setattr(type(resident.source), "stream", None)  # nothing is read from the source any more
    for a, b in zip(expected, resident.batches(0, 6), strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.representations, b.representations)
