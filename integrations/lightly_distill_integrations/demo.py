"""`lightly-distill demo`: the whole story on scikit-learn's handwritten digits, in minutes on a laptop CPU."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from lightly.loss import BarlowTwinsLoss
from lightly.models.modules import BarlowTwinsProjectionHead
from lightly.transforms.simclr_transform import SimCLRTransform
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import resize, to_pil_image
from tqdm import trange

from lightly_distill import DistillationStage, SyntheticSet, pretrain
from lightly_distill.data.pixels import Normalised
from lightly_distill.evaluation.probes import knn_accuracy, linear_accuracy
from lightly_distill.evaluation.report import charts
from lightly_distill.evaluation.trial import features
from lightly_distill.models.students import student_builder
from lightly_distill.runs.run_folder import RunFolder
from lightly_distill.runtime import seeding

SIZE = 32  # pixels
DIGIT = 20  # pixels of a digit in it
TRAIN = 1297  # digits for everything but the last measurement; the other 500 are held out
LABELS = 100  # labelled digits of the probes
REPEATS = 8  # disjoint draws of those labels, averaged

TARGET, TARGET_EPOCHS = "resnet10t", 30
STUDENT, PRETRAIN_STEPS = "convnet_16_32_64", 60
PRETRAININGS = 4  # of each arm, averaged: single ones of a minute's recipe differ by a point or two
SETTINGS: dict[str, Any] = {
    "num_images": 20,
    "steps": 2000,
    "batch_size": 256,
    "target_dims": None,  # of Barlow Twins on digits, what lies beyond the usual 64 components teaches too
    # as many steps as the pre-training takes; mirrored, a digit is none, and a minute is too short for mixtures
    "pool": {"size": 30, "max_age": 60, "mixup": False, "crop_and_flip": False},
}

_logger = logging.getLogger(__name__)

Transform = Callable[[Any], Any]
Accuracies = dict[str, dict[str, float]]  # arm to probe to accuracy in [0, 1]


class Views(Dataset[list[Tensor]]):
    """Two random views of each image, as any Lightly script has them."""

    def __init__(self, images: Tensor, transform: Transform) -> None:
        self._images = [to_pil_image(image) for image in images]
        self._transform = transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> list[Tensor]:
        views: list[Tensor] = self._transform(self._images[index])
        return views


class BarlowTwins(nn.Module):
    """The model of Lightly's Barlow Twins example, with a timm backbone."""

    def __init__(self, backbone: nn.Module, width: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = BarlowTwinsProjectionHead(width, 512, 128)

    def forward(self, x: Tensor) -> Tensor:
        """Returns projections (B, 128) of images (B, 3, H, W)."""
        projected: Tensor = self.projection_head(self.backbone(x))
        return projected


def train_target(images: Tensor, transform: Transform, *, backbone: str, epochs: int, seed: int) -> BarlowTwins:
    """Trains a small target as an ordinary Lightly script does.

    Args:
        images: uint8, shape (n, 3, H, W).
        transform: Lightly transform, one image to two views.
        backbone: timm name.
        epochs: Passes over the images.
        seed: Of weights and views.
    """
    with seeding.global_seed(seed, "demo", "target"):
        network = timm.create_model(backbone, num_classes=0)
        model = BarlowTwins(network, network.head_hidden_size).train()
        loader = DataLoader(Views(images, transform), batch_size=128, shuffle=True, drop_last=True, num_workers=2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * len(loader))
        criterion = BarlowTwinsLoss()
        for epoch in (bar := trange(epochs, desc="Training the target with Lightly", unit="epoch", disable=None)):
            for first, second in loader:
                loss = criterion(model(first), model(second))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3g}")
            if bar.disable and (epoch + 1) % 5 == 0:  # no terminal: log now and then instead
                _logger.info("Target: epoch %d of %d, loss %.3g", epoch + 1, epochs, loss.item())
    return model


def load_images() -> tuple[Tensor, Tensor]:
    """Returns the digits, each at a random place of a picture of SIZE pixels, uint8 RGB, and their labels.

    Centred digits would show nothing: their raw pixels are already worth 97% to a linear classifier. Here they are
    worth 20%, and a network has to learn what a digit is wherever it stands.
    """
    digits = load_digits()
    small = torch.from_numpy(digits.images / 16 * 255).byte()[:, None]
    enlarged = resize(small, [DIGIT, DIGIT])
    generator = seeding.generator(0, "demo", "images")  # the same pictures and the same split whatever the seed
    pictures = torch.zeros(len(small), 3, SIZE, SIZE, dtype=torch.uint8)
    corners = torch.randint(SIZE - DIGIT + 1, (len(small), 2), generator=generator)
    for picture, digit, (top, left) in zip(pictures, enlarged, corners.tolist(), strict=True):
        picture[:, top : top + DIGIT, left : left + DIGIT] = digit
    order = torch.randperm(len(small), generator=generator)
    return pictures[order], torch.from_numpy(digits.target)[order]


def run(out: Path, *, seed: int = 0, overwrite: bool = False) -> Accuracies:
    """Runs the demo.

    Args:
        out: Output folder.
        seed: Root of every random draw.
        overwrite: Replace an old demo in `out`.

    Returns:
        Accuracy on held-out digits by arm and probe.

    Raises:
        UsageError: If the folder is in use.
    """
    RunFolder.check(out, resume=False, overwrite=overwrite)
    images, labels = load_images()
    print(f"{len(images)} real images: handwritten digits of scikit-learn, {TRAIN} for training, the rest held out.")
    transform = SimCLRTransform(
        input_size=SIZE,
        min_scale=0.4,
        hf_prob=0.0,
        rr_prob=0.5,
        rr_degrees=15,
        random_gray_scale=0.0,
        gaussian_blur=0.1,
    )
    model = train_target(images[:TRAIN], transform, backbone=TARGET, epochs=TARGET_EPOCHS, seed=seed)

    # what a script adds to its own training, as in the README
    stage = DistillationStage(target=model, student=STUDENT, seed=seed, **SETTINGS)
    synthetic = stage.run(images[:TRAIN], out=out, overwrite=overwrite)

    accuracies = compare(stage, synthetic, images, labels, seed)
    synthetic.metrics = {"accuracy": accuracies, "labels": LABELS}
    synthetic.save(out / "set", overwrite=True)
    _report(accuracies, synthetic, out)
    return accuracies


def compare(stage: DistillationStage, synthetic: SyntheticSet, images: Tensor, labels: Tensor, seed: int) -> Accuracies:
    """Measures the student from scratch, pre-trained on the real images that the set started from, and on the set."""
    # no steps: the very images that the set started from, with the same kind of targets
    selected = DistillationStage(stage.target, config=replace(stage.config, steps=0)).run(images[:TRAIN])
    arms = {"scratch": None, "random real images": selected, "distilled": synthetic}
    accuracies = {}
    for name, arm in arms.items():
        measured = []
        for number in range(PRETRAININGS):
            own_seed = seeding.derive(seed, "demo", number)
            if arm is None:
                with seeding.global_seed(own_seed, "pretrain", "init"):  # the weights that `pretrain` starts from
                    backbone = student_builder(STUDENT, SIZE)()
            else:
                backbone = pretrain(STUDENT, arm, recipe="paper", steps=PRETRAIN_STEPS, seed=own_seed, device="cpu")
            measured.append(
                probe(features(backbone, Normalised(images, synthetic.mean, synthetic.std)), labels.numpy())
            )
        accuracies[name] = {kind: float(np.mean([one[kind] for one in measured])) for kind in measured[0]}
    return accuracies


def probe(found: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """Returns kNN and linear accuracy on the held-out digits, averaged over draws of LABELS training digits."""
    results: dict[str, list[float]] = {"kNN": [], "linear": []}
    for start in range(0, REPEATS * LABELS, LABELS):
        few = slice(start, start + LABELS)
        task = (found[few], labels[few], found[TRAIN:], labels[TRAIN:])
        results["kNN"].append(knn_accuracy(*task))
        results["linear"].append(linear_accuracy(*task))
    return {name: float(np.mean(values)) for name, values in results.items()}


def _report(accuracies: Accuracies, synthetic: SyntheticSet, out: Path) -> None:
    probes = list(next(iter(accuracies.values())))
    losses = synthetic.provenance["heldout_loss"]
    print(f"\nOuter loss on held-out digits: {losses['initial']:.3f} at the start, {losses['final']:.3f} at the end.")
    print(f"Accuracy on {1797 - TRAIN} held-out digits, {LABELS} labels, {PRETRAININGS} pre-trainings of {STUDENT}:\n")
    width = max(map(len, accuracies))
    print(" " * width, *(f"{name:>8}" for name in probes))
    for arm, values in accuracies.items():
        print(f"{arm:<{width}}", *(f"{100 * values[name]:7.1f}%" for name in probes))
    table = {name: {arm: [values[name]] for arm, values in accuracies.items()} for name in probes}
    title = f"{len(synthetic)} images, {LABELS} labels, {STUDENT}"
    charts.accuracy_bars(table, out / "pictures" / "accuracy.png", title)
    (out / "results.json").write_text(json.dumps(accuracies, indent=2) + "\n")
    print(
        "\nThis is one run. Another seed (--seed) draws another target, other starting images and other weights, and\n"
        "the differences between the rows change by a point or two; tests/benchmarks/README.md has three seeds."
    )
    print(f"\nPictures: {out / 'pictures'}   The set: {out / 'set'}   More: lightly-distill inspect {out}")
