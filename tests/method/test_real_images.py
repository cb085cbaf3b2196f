from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from lightly_distill.data.pixels import PAD, crop_and_flip
from lightly_distill.data.source import open_source
from lightly_distill.errors import UsageError
from lightly_distill.method import real_images as real_images
from lightly_distill.method.config import DistillConfig
from lightly_distill.method.kmeans import nearest_to_centroids
from lightly_distill.method.real_images import RealImages
from lightly_distill.method.representation_cache import RepresentationCache
from lightly_distill.method.step import RealBatch
from lightly_distill.models.targets import Target, as_target
from lightly_distill.runtime.seeding import generator

CPU = torch.device("cpu")


def make(count: int = 60, **options: object) -> tuple[RealImages, Tensor, Target, DistillConfig]:
    images, target, config = tiny.images(count), as_target(tiny.encoder()), tiny.config(**options)
    return RealImages(open_source(images), target, config, CPU), images, target, config


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
    real, *_ = make(count=60, batch_size=20)
    held_out = real.held_out()
    assert held_out is not None and len(held_out.images) == 6  # a tenth, since 512 would be too many
    held = {bytes(image.numpy()) for image in held_out.images}
    used = [image for batch in real.batches(0, 8) for image in batch.images] + list(real.initial(10)[1].images)
    assert held.isdisjoint(bytes(image.numpy()) for image in used)
    assert make(holdout=0)[0].held_out() is None


def test_the_initial_set_is_real_images_with_the_targets_representations() -> None:
    for views in (0, 2, "random"):
        real, images, target, _ = make(source_views=views)
        index, batch = real.initial(10)
        assert len(set(index.tolist())) == 10
        assert torch.equal(to_uint8(real, batch.images), images[index])
        torch.testing.assert_close(batch.representations, target(images[index].float() / 255))


def test_fewer_images_than_asked_for_are_refused_with_both_numbers() -> None:
    with pytest.raises(UsageError, match=r"has 20 usable images \(2 of them held out\), fewer than num_images=19"):
        make(count=20, num_images=19)


def test_a_batch_larger_than_the_source_is_the_whole_source() -> None:
    real, *_ = make(count=30, batch_size=1000, holdout=3)
    assert [len(batch.images) for batch in real.batches(0, 3)] == [27] * 3


def test_normalised_images_have_the_targets_statistics() -> None:
    target = as_target(tiny.encoder(), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    real = RealImages(open_source(tiny.images()), target, tiny.config(), CPU)
    grey = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=generator(0, "grey"))
    expected = (grey[:, 2].double() / 255 - 0.3) / 0.1
    torch.testing.assert_close(real.normalise(grey)[:, 2].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("views", [0, 2])
def test_a_resumed_run_does_not_ask_the_target_again_and_another_seed_of_views_does(views: int, tmp_path: Path) -> None:
    facts = {"source": "60 images", "target": "the encoder"}

    def batches(seed: int) -> tuple[list[RealBatch], int]:
        config, target = tiny.config(source_views=views, seed=seed), as_target(tiny.encoder())
        asked: list[int] = []
        target.register_forward_pre_hook(lambda module, inputs: asked.append(len(inputs[0])))
        real = RealImages(open_source(tiny.images()), target, config, CPU, RepresentationCache(tmp_path, facts))
        return list(real.batches(0, 4)), sum(asked)

    first, computed = batches(seed=0)
    again, computed_again = batches(seed=0)
    assert (computed, computed_again) == (60 * max(1, views), 0)
    memory = list(make(source_views=views)[0].batches(0, 4))
    for a, b, c in zip(first, again, memory, strict=True):
        assert torch.equal(a.representations, b.representations) and torch.equal(a.representations, c.representations)
        assert torch.equal(a.images, b.images)
    assert batches(seed=1)[1] == (120 if views else 0)  # without views, a seed changes nothing that is kept


def test_another_seed_starts_from_other_images() -> None:
    first, again, other = (make(seed=seed, holdout=0)[0].initial(10)[0].tolist() for seed in (0, 0, 1))
    assert first == again
    # 10 of 60 images by chance: one or two of them in common, not nearly all
    assert len(set(first) & set(other)) < 6


@pytest.mark.parametrize("views", [0, 2, "random"])
def test_kmeans_starts_from_the_images_nearest_to_the_centroids_of_those_that_are_not_held_out(
    views: int | str,
) -> None:
    real, images, target, config = make(num_images=6, holdout=6, source_views=views, init="kmeans")
    indices, batch = real.initial(6)
    train = real._train
    points = target(images[train].float() / 255)
    assert torch.equal(indices, train[nearest_to_centroids(points, 6, config.seed)])
    torch.testing.assert_close(batch.representations, target(images[indices].float() / 255))
    assert not torch.equal(indices, make(num_images=6, holdout=6, source_views=views)[0].initial(6)[0])


@pytest.mark.parametrize("views", [0, 2, "random"])
def test_images_that_stay_on_the_device_make_the_same_batches(
    views: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, *_ = make(source_views=views)
    monkeypatch.setattr(
        "lightly_distill.method.real_images._on_device", lambda source, device: source.read(torch.arange(len(source)))
    )
    resident, *_ = make(source_views=views)
    expected = list(plain.batches(0, 6))
    monkeypatch.setattr(type(resident._source), "stream", None)  # nothing is read from the source any more
    for a, b in zip(expected, resident.batches(0, 6), strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.representations, b.representations)


@pytest.mark.parametrize("views", [0, 2, "random"])
def test_noise_has_mean_and_covariance_of_real_images_with_their_representations(
    views: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_images, "CHUNK", 25)  # several chunks, the last one smaller
    real, images, target, _ = make(source_views=views, holdout=0, init="noise")
    index, batch = real.initial(20_000)
    assert (index == -1).all() and batch.images.shape == (20_000, 3, 8, 8)
    drawn = torch.cat([batch.images.flatten(1), batch.representations], dim=1)
    truth = torch.cat([real.normalise(images).flatten(1), target(images.float() / 255)], dim=1)
    error = 5 * truth.std(0).max().item() / 20_000**0.5
    torch.testing.assert_close(drawn.mean(0), truth.mean(0), rtol=0, atol=error)
    torch.testing.assert_close(torch.cov(drawn.T), torch.cov(truth.T), rtol=0, atol=0.06 * float(truth.var(0).max()))
    again = real.initial(20_000)[1]
    assert torch.equal(again.images, batch.images) and torch.equal(again.representations, batch.representations)


def test_noise_is_like_no_real_image() -> None:
    real, images, *_ = make(holdout=0, init="noise")
    truth, drawn = real.normalise(images).flatten(1), real.initial(200)[1].images.flatten(1)
    among_real = torch.cdist(truth, truth).fill_diagonal_(torch.inf).min(1).values
    assert torch.cdist(drawn, truth).min() > 0.5 * among_real.median()
