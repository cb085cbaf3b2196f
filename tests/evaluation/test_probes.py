from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import pretended
import tiny
from lightly_distill import DistillationStage, as_target
from lightly_distill.data.labels import source_labels
from lightly_distill.data.pixels import Normalised
from lightly_distill.data.source import first_items, open_source
from lightly_distill.evaluation import gpu_probes, probes
from lightly_distill.evaluation.data_free import make_teacher
from lightly_distill.evaluation.evaluate import evaluate
from lightly_distill.evaluation.trial import Transfer, Trial, features, pooled_features
from lightly_distill.models.students import student_builder
from lightly_distill.runtime.seeding import generator, global_seed

COUNT = 2000


def both(kind: str, train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> tuple[float, float]:
    """Returns the accuracies of scikit-learn and of what a GPU does, here on the CPU."""
    arrays = [part.numpy() for part in (train, labels, test, test_labels)]
    if kind == "knn":
        found = gpu_probes.knn_accuracy(train, labels, test, test_labels, probes.NEIGHBOURS)
        return probes.knn_accuracy(*arrays), found
    found = gpu_probes.linear_accuracy(train, labels, test, test_labels, **probes.LOGISTIC)
    return probes.linear_accuracy(*arrays), found


@pytest.fixture(scope="module")
def photos(real_data: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """By split, of CIFAR-10."""
    found = {}
    for split in ("train", "test"):
        items = first_items(f"cifar10#{split}", COUNT)
        source = open_source(items, image_size=32)
        found[split] = source.read(torch.arange(COUNT)), source_labels(items, source.kept)
    return found


@pytest.mark.parametrize("classes", [10, 2])
@pytest.mark.parametrize("name", ["linear", "linear-pooled", "knn"])
def test_a_gpu_measures_what_scikit_learn_does(
    photos: dict[str, tuple[Tensor, Tensor]], name: str, classes: int
) -> None:
    with global_seed(0, "student"):
        backbone = student_builder("convnet_16_32_64", 32)()
    parts: list[Tensor] = []
    for images, labels in photos.values():
        of = pooled_features if name == "linear-pooled" else features
        shown = Normalised(images, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        parts += [torch.from_numpy(of(backbone, shown)), labels % classes]
    expected, found = both("knn" if name == "knn" else "linear", *parts)
    assert 1.1 / classes < expected < 0.95
    assert abs(found - expected) < 0.00101  # a tenth of a point; both stop where the gradient is small, not zero


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_a_gpu_measures_the_same_of_odd_features(kind: str) -> None:
    draw = generator(0, "features")
    labels = torch.arange(12) % 3
    train = torch.randn(12, 6, generator=draw) + labels[:, None]
    train[:, 4:] = torch.tensor([0.0, 7.3])  # dead, and constant
    test = torch.cat([train, torch.randn(200, 6, generator=draw)])  # the very images, whose distance is 0
    test_labels = torch.arange(len(test)) % 3
    expected, found = both(kind, train, labels, test, test_labels)
    assert found == expected
    expected, found = both(kind, train[:3], labels[:3], test, test_labels)  # fewer images than neighbours
    assert found == expected


def test_neighbours_are_found_a_few_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = generator(1, "features")
    train, test = torch.randn(30, 4, generator=draw), torch.randn(50, 4, generator=draw)
    labels, test_labels = torch.arange(30) % 3, torch.arange(50) % 3
    whole = gpu_probes.knn_accuracy(train, labels, test, test_labels, 5)
    monkeypatch.setattr(gpu_probes, "_AT_ONCE", 7 * 30)
    assert gpu_probes.knn_accuracy(train, labels, test, test_labels, 5) == whole


def test_where_the_device_is_a_gpu_all_arms_and_probes_run_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("knn_accuracy", "linear_accuracy"):
        monkeypatch.setattr(probes, name, lambda *_: pytest.fail("scikit-learn was asked"))
    pair = [TensorDataset(tiny.images(count), torch.arange(count) % 3) for count in (30, 12)]
    options: dict[str, Any] = {"student": "convnet_4_4", "num_images": 8, "steps": 0, "batch_size": 16}
    own = DistillationStage(as_target(tiny.encoder()), **options).run(tiny.images(40))
    with pretended.cuda():
        (result,) = evaluate(
            own,
            "convnet_4_4",
            [tuple(pair)],
            data=tiny.images(40),
            target=as_target(tiny.encoder()),
            baselines=("scratch", "random", "full", "target"),
            probes=tuple(probes.PROBES),
            steps=3,
            full_epochs=1,
            finetune_steps=3,
            seeds=1,
            device="cuda",
        )
    assert not result.failed
    assert set(result.arms["full"].values) == {f"TensorDataset/{name}" for name in probes.PROBES}
    assert all(0 <= value <= 1 for arm in result.arms.values() for values in arm.values.values() for value in values)


class Watched(nn.Module):
    """Says in which precision it is trained, by kind of device."""

    seen: ClassVar[set[tuple[str, bool]]] = set()

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 8)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            kind = images.device.type
            self.seen.add((kind, torch.is_autocast_enabled(kind)))
        return self.layer(images).flatten(1)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_networks_are_trained_in_bf16_on_a_gpu_only(device: str) -> None:
    Watched.seen.clear()
    with pretended.cuda():
        shown = Normalised(tiny.images(12), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        labels = torch.arange(12) % 3
        trial = Trial(Watched().to(device), shown, labels, shown, labels, 3, finetune_steps=2)
        trial.transfer = Transfer(shown, make_teacher(trial, Watched), Watched)
        for name in ("finetune", "data-free"):
            probes.PROBES[name].accuracy(trial)
    assert Watched.seen == {(device, device == "cuda")}
