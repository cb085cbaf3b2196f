import dataclasses

import pytest
import torch
from torch import Tensor

import tiny
from lightly_distill.data.source import open_source
from lightly_distill.method import start
from lightly_distill.method.config import DistillConfig
from lightly_distill.method.kmeans import nearest_to_centroids
from lightly_distill.method.real_images import RealImages
from lightly_distill.method.start import initial
from lightly_distill.models.targets import Target, as_target


def make(**options: object) -> tuple[RealImages, Tensor, Target, DistillConfig]:
    images, target, config = tiny.images(60), as_target(tiny.encoder()), tiny.config(**options)
    return RealImages.of_target(open_source(images), target, config, torch.device("cpu")), images, target, config


def test_the_initial_set_is_real_images_with_the_targets_representations() -> None:
    for views in (0, 2, "random"):
        real, images, target, config = make(source_views=views)
        index, batch = initial(real, config)
        assert len(set(index.tolist())) == 10
        assert torch.equal(batch.images, real.normalise(images[index]))
        torch.testing.assert_close(batch.representations, target(images[index].float() / 255))


def indices(**options: object) -> list[int]:
    real, *_, config = make(**options)
    return initial(real, config)[0].tolist()


def test_another_seed_starts_from_other_images() -> None:
    first, again, other = (indices(seed=seed, holdout=0) for seed in (0, 0, 1))
    assert first == again
    # 10 of 60 images by chance: one or two of them in common, not nearly all
    assert len(set(first) & set(other)) < 6


@pytest.mark.parametrize("views", [0, 2, "random"])
def test_kmeans_starts_from_the_images_nearest_to_the_centroids_of_those_that_are_not_held_out(
    views: int | str,
) -> None:
    real, images, target, config = make(num_images=6, holdout=6, source_views=views, init="kmeans")
    chosen, batch = initial(real, config)
    train = real.split.train
    points = target(images[train].float() / 255)
    assert torch.equal(chosen, train[nearest_to_centroids(points, 6, config.seed)])
    torch.testing.assert_close(batch.representations, target(images[chosen].float() / 255))
    assert chosen.tolist() != indices(num_images=6, holdout=6, source_views=views)


@pytest.mark.parametrize("views", [0, 2, "random"])
def test_noise_has_mean_and_covariance_of_real_images_with_their_representations(
    views: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "CHUNK", 25)  # several chunks, the last one smaller
    real, images, target, config = make(source_views=views, holdout=0, init="noise")
    many = dataclasses.replace(config, num_images=20_000)
    index, batch = initial(real, many)
    assert (index == -1).all() and batch.images.shape == (20_000, 3, 8, 8)
    drawn = torch.cat([batch.images.flatten(1), batch.representations], dim=1)
    truth = torch.cat([real.normalise(images).flatten(1), target(images.float() / 255)], dim=1)
    error = 5 * truth.std(0).max().item() / 20_000**0.5
    torch.testing.assert_close(drawn.mean(0), truth.mean(0), rtol=0, atol=error)
    torch.testing.assert_close(torch.cov(drawn.T), torch.cov(truth.T), rtol=0, atol=0.06 * float(truth.var(0).max()))
    again = initial(real, many)[1]
    assert torch.equal(again.images, batch.images) and torch.equal(again.representations, batch.representations)


def test_noise_is_like_no_real_image() -> None:
    real, images, _, config = make(holdout=0, init="noise")
    many = dataclasses.replace(config, num_images=200)
    truth, drawn = real.normalise(images).flatten(1), initial(real, many)[1].images.flatten(1)
    among_real = torch.cdist(truth, truth).fill_diagonal_(torch.inf).min(1).values
    assert torch.cdist(drawn, truth).min() > 0.5 * among_real.median()
