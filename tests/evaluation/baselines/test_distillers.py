from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from lightly_distill import UsageError
from lightly_distill.data.labels import source_labels
from lightly_distill.data.locate import locate
from lightly_distill.data.source import Source, open_source
from lightly_distill.evaluation.baselines import matching
from lightly_distill.evaluation.baselines.labelled import LabelledImages
from lightly_distill.evaluation.baselines.matching import class_means, distribution_matching
from lightly_distill.evaluation.baselines.ridge import supervised_ridge
from lightly_distill.method.config import DistillConfig, make_config
from lightly_distill.models.students import student_builder

CLASSES = 3
LABELS = torch.arange(60) % CLASSES


def config(**options: Any) -> DistillConfig:
    settings = {"student": "convnet_4_8", "num_images": 7, "steps": 20, "batch_size": 16, "holdout": 6, "device": "cpu"}
    return make_config(**{**settings, "pool": {"size": 2, "max_age": 3}, **options})


def coloured() -> Source:
    """Images that tell their class by their colour."""
    images = tiny.images(60) // 2
    images[torch.arange(60), LABELS] += 100
    return open_source(images)


def labelled(settings: DistillConfig) -> LabelledImages:
    return LabelledImages(coloured(), LABELS, settings, torch.device("cpu"))


def one_hot(labels: Tensor) -> Tensor:
    return torch.eye(CLASSES)[labels] - 1 / CLASSES


@pytest.mark.parametrize("views", [0, 2, "random"])
def test_labels_stand_for_the_representations_of_images_and_of_all_their_views(views: Any) -> None:
    real = labelled(config(source_views=views)).real
    std = torch.tensor(real.std).view(1, 3, 1, 1)
    mean = torch.tensor(real.mean).view(1, 3, 1, 1)
    held = real.held_out()
    assert held is not None
    for batch in [held, *real.batches(0, 5)]:
        brightest = (batch.images * std + mean).mean((2, 3)).argmax(1)  # what the images tell of their class
        torch.testing.assert_close(batch.representations, one_hot(brightest))


def test_both_start_from_as_many_images_of_each_class_as_can_be() -> None:
    images = labelled(config())
    index, batch = images.initial(7)
    assert torch.bincount(LABELS[index]).tolist() in ([3, 2, 2], [2, 3, 2], [2, 2, 3])
    assert torch.equal(batch.images, images.real.normalise(coloured().read(index)))
    assert not set(index.tolist()) & set(images.real.split.held_out.tolist())


def test_a_step_of_matching_draws_as_many_of_each_class_or_all_there_are() -> None:
    images = labelled(config())
    first, _ = images.of_each_class(4, step=0)
    second, _ = images.of_each_class(4, step=1)
    assert LABELS[first].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(set(first.tolist())) == 12 and set(first.tolist()) != set(second.tolist())
    everything, _ = images.of_each_class(1000, step=0)
    assert sorted(everything.tolist()) == images.real.split.train.tolist()


def test_supervised_ridge_learns_to_predict_the_labels_of_held_out_images() -> None:
    made = supervised_ridge(coloured(), LABELS, config())
    assert made.images.shape == (7, 3, 8, 8) and made.representations.shape == (7, CLASSES)
    losses = made.provenance["heldout_loss"]
    assert losses["final"] < 0.7 * losses["initial"]
    start = one_hot(LABELS[made.source_index])
    assert not torch.allclose(made.representations, start)  # labels are learned
    assert torch.equal(made.representations.argmax(1), start.argmax(1))


def class_mean_distance(images: Tensor, labels: Tensor, settings: DistillConfig) -> float:
    """Of pixels, which no network is needed for."""
    real = labelled(settings).real
    train = real.split.train
    wanted = [real.plain(train[LABELS[train] == label]).images.mean(0) for label in range(CLASSES)]
    return sum(float((images[labels == c].mean(0) - wanted[c]).square().mean()) for c in range(CLASSES))


def test_matching_brings_the_class_means_together() -> None:
    settings = config(steps=40)
    made = distribution_matching(coloured(), LABELS, settings)
    labels = LABELS[made.source_index]
    torch.testing.assert_close(made.representations, one_hot(labels))
    start = labelled(settings).real.normalise(coloured().read(made.source_index))
    assert class_mean_distance(made.images, labels, settings) < 0.8 * class_mean_distance(start, labels, settings)
    assert made.provenance["distance"]["final"] < made.provenance["distance"]["initial"]


def test_class_means_are_those_of_each_class_in_one_pass_or_many(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = torch.randn(9, 3, 8, 8), torch.tensor([0, 0, 0, 0, 2, 2, 3, 3, 3])
    student = student_builder("convnet_4_4_in", 8)()  # instance norm: images do not see each other
    means = class_means(student, images, labels, 5, seed=1, step=2)
    assert means.shape == (5, 16) and not means[1].any() and not means[4].any()
    alone = class_means(student, images[4:6], labels[4:6], 5, seed=1, step=2)
    torch.testing.assert_close(means[2], alone[2])  # the augmentation is that of the class, whatever else there is
    assert matching.CHUNK > 9
    monkeypatch.setattr(matching, "CHUNK", 4)
    torch.testing.assert_close(class_means(student, images, labels, 5, seed=1, step=2), means)


@pytest.mark.parametrize("distiller", [supervised_ridge, distribution_matching])
def test_a_seed_decides_and_the_given_statistics_are_kept(distiller: Any) -> None:
    settings = config(steps=2)
    first, again = (distiller(coloured(), LABELS, settings, mean=(0, 0, 0), std=(1, 1, 1)) for _ in range(2))
    other = distiller(coloured(), LABELS, replace(settings, seed=1), mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.equal(first.images, again.images) and torch.equal(first.representations, again.representations)
    assert not torch.equal(first.images, other.images) and first.mean == (0, 0, 0) and first.std == (1, 1, 1)


def test_labels_can_be_made_as_long_and_as_large_as_representations() -> None:
    for distiller in (supervised_ridge, distribution_matching):
        made = distiller(coloured(), LABELS, config(steps=2), dim=5, scale=10.0)
        assert made.dim == 5 and not made.representations[:, CLASSES:].any()
        torch.testing.assert_close(
            made.representations[:, :CLASSES], 10 * one_hot(LABELS[made.source_index]), atol=0.5, rtol=0
        )
    assert supervised_ridge(coloured(), LABELS, config(steps=2), dim=2).dim == CLASSES


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(UsageError, match="an image of each class at least: 2 images are too few for 3 classes"):
        distribution_matching(coloured(), LABELS, config(num_images=2))
    for distiller in (supervised_ridge, distribution_matching):
        with pytest.raises(UsageError, match="Tensor has 60 usable images, and 59 labels were given"):
            distiller(coloured(), LABELS[:59], config())
        with pytest.raises(UsageError, match="are all of one class: there are no labels to distil"):
            distiller(coloured(), torch.zeros(60, dtype=torch.int64), config())


@pytest.mark.slow
def test_real_images_are_distilled_with_their_labels(real_data: Any) -> None:
    data, _ = locate("cifar10#train")
    some = data.select(range(2000))
    source = open_source(some)
    labels = source_labels(some, source.kept)
    settings = config(student="convnet_16_16_16", num_images=20, steps=30, batch_size=128, holdout=200)
    losses = supervised_ridge(source, labels, settings).provenance["heldout_loss"]
    assert losses["final"] < losses["initial"]
    distance = distribution_matching(source, labels, settings).provenance["distance"]
    assert distance["final"] < 0.8 * distance["initial"]
