"""Trains a fresh student on a synthetic set."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm
from typing_extensions import Unpack

from lightly_distill.data.augment import vary
from lightly_distill.errors import DistillError, UsageError, did_you_mean
from lightly_distill.models.recipe import Recipe, RecipeOptions, make_optimizer
from lightly_distill.models.rows import RowHead, row_loss, with_rows
from lightly_distill.models.students import find_adapter, student_builder
from lightly_distill.runtime.device import resolve_device
from lightly_distill.runtime.files import empty_folder
from lightly_distill.runtime.seeding import generator, global_seed
from lightly_distill.runtime.settings import check_number, check_one_of, choose
from lightly_distill.runtime.terms import on_own_terms

if TYPE_CHECKING:
    from lightly_distill.synthetic.synthetic_set import SyntheticSet


@dataclass(frozen=True)
class PretrainConfig(Recipe):
    """How a student is trained on a synthetic set, to predict its representations and maps.

    The defaults are what was best for small sets, of real images as of synthetic ones; `RECIPES["paper"]` is that of
    KRR-ST (arXiv:2310.06511).
    """

    steps: int = 500
    """Training steps, whatever the number of images."""
    batch_size: int = 256
    """Images of a step, at least 2; all, if the set has fewer."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Of the learning rate: as it is, or down to 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "steps")
        check_number(self, "batch_size", least=2)
        check_one_of("schedule", self.schedule, ("constant", "cosine"))


class PretrainOptions(RecipeOptions, total=False):
    """The fields of `PretrainConfig` as keywords."""

    steps: int
    batch_size: int
    schedule: Literal["constant", "cosine"]


RECIPES: dict[str, PretrainConfig] = {
    "default": PretrainConfig(),
    # 1,000 epochs of its 1,000 images: KRR-ST, arXiv:2310.06511, section 4
    "paper": PretrainConfig(steps=4000, mixup=False, crop_and_flip=False, optimizer="sgd"),
}


@on_own_terms()
def pretrain(
    student: str,
    synthetic: "SyntheticSet",
    *,
    recipe: str = "default",
    config: PretrainConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    out: "str | Path | None" = None,
    progress: bool = True,
    **options: Unpack[PretrainOptions],
) -> nn.Module:
    """Trains a fresh student to predict the representations and maps of a synthetic set.

    The loss is the mean squared error of a linear head on the student's features, plus that of a 1x1 convolution on its
    last map, where set and student have maps.

    Args:
        student: Name of the backbone: `ADAPTER:NAME`, or `NAME` for a timm model.
        synthetic: The set to train on; at least 2 images.
        recipe: Of `RECIPES`, which the options change: `default`, or `paper` for that of KRR-ST.
        config: All settings at once, instead of recipe and options.
        seed: Root of all random draws: initial weights, order of the images, dropout.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        out: New or empty folder for the trained backbone, written as the student's library writes it.
        progress: Shows a bar where there is a terminal.
        options: Fields of `PretrainConfig`, such as `steps=1000`.

    Returns:
        The backbone without the head, in eval mode, on the device it was trained on. It expects images normalised
        with the `mean` and `std` of the set.

    Raises:
        UsageError: If a number is out of range, the student is unknown or does not fit, or `out` is not empty.
        DistillError: If the loss is no longer a finite number.
    """
    settings = choose(config, find_recipe(recipe), options)
    _check(synthetic.images)
    folder = None if out is None else empty_folder(Path(out))
    place = resolve_device(device)
    images, targets = synthetic.images.to(place), synthetic.targets.to(place)
    build = student_builder(student, images.shape[-1])
    with global_seed(seed, "pretrain", "init"):
        backbone = build().to(place)
        rows, features = with_rows(backbone, images[:2], synthetic.layout.grid)
        head = RowHead(features, synthetic.layout).to(place)
    # channels last: a third faster on a CPU; as the students of the pool
    training = Training(rows.to(memory_format=torch.channels_last), head, settings, seed)
    bar = tqdm(total=settings.steps, unit="step", desc=f"Pre-training {student}", disable=None if progress else True)
    with bar:
        while training.step < settings.steps:
            loss = training.pass_over(images, targets)
            if not loss < float("inf"):
                raise DistillError(
                    f"The loss of student '{student}' is {loss} after step {training.step} of {settings.steps}. "
                    f"Try a smaller learning rate, such as lr={training.lr / 10:g}."
                )
            bar.update(training.step - bar.n)
            bar.set_postfix(loss=f"{loss:.4g}")

    backbone.eval()
    if folder is not None:
        adapter, _ = find_adapter(student)
        adapter.save(backbone, str(folder), _metadata(student, synthetic, settings, seed))
    return backbone


def is_trained(
    student: str, synthetic: "SyntheticSet", out: "str | Path", *, config: PretrainConfig, seed: int = 0
) -> bool:
    """Returns whether a folder holds just the backbone that `pretrain` with these arguments would write there."""
    path = Path(out, "config.json")
    if not path.is_file() or not Path(out, "model.safetensors").is_file():
        return False
    try:
        written = json.loads(path.read_text()).get("lightly_distill")
    except (ValueError, AttributeError):
        return False
    return bool(written == json.loads(json.dumps(_metadata(student, synthetic, config, seed))))


def find_recipe(name: str) -> PretrainConfig:
    """Returns a recipe by name.

    Raises:
        UsageError: If there is none of this name.
    """
    if name not in RECIPES:
        raise UsageError(f"Unknown recipe '{name}'.{did_you_mean(name, RECIPES)}")
    return RECIPES[name]


class Training:
    """A student in training on a synthetic set.

    Args:
        rows: Images to rows of features; trained.
        head: To rows of targets; trained.
        config: All settings.
        seed: Root of all random draws.

    Attributes:
        step: Steps done.
        lr: Learning rate at the start.
    """

    def __init__(self, rows: nn.Module, head: RowHead, config: PretrainConfig, seed: int) -> None:
        self._rows, self._head, self._config, self._seed = rows.train(), head, config, seed
        self._optimizer = make_optimizer(rows, head, config)
        self.step, self._pass = 0, 0
        self.lr: float = self._optimizer.param_groups[0]["lr"]

    def pass_over(self, images: Tensor, targets: Tensor) -> float:
        """Makes a step of each batch of a pass over the set, or those that are left; returns their mean loss."""
        with global_seed(self._seed, "pretrain", self._pass, device=images.device):
            batches = _batches(len(images), self._config.batch_size, self._seed, self._pass)
            batches = batches[: self._config.steps - self.step]
            total = torch.zeros((), device=images.device)  # stays on the device: read once a pass
            for indices in batches:
                total += self._one_step(images, targets, indices.to(images.device)) * len(indices)
        self._pass += 1
        return total.item() / sum(map(len, batches))

    def _one_step(self, images: Tensor, targets: Tensor, indices: Tensor) -> Tensor:
        config, layout = self._config, self._head.targets
        draw = generator(self._seed, "pretrain", "vary", self.step)
        batch, truth = vary(
            images[indices],
            targets[indices],
            layout.mirrored,
            draw,
            crop=config.crop_and_flip,
            mixup=config.mixup,
        )
        if config.schedule == "cosine":
            for group in self._optimizer.param_groups:
                group["lr"] = self.lr * (1 + math.cos(math.pi * self.step / config.steps)) / 2
        loss = row_loss(self._head(self._rows(batch)), truth, layout)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._optimizer.step()
        self.step += 1
        return loss.detach()


def _batches(count: int, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    batches = list(torch.split(torch.randperm(count, generator=generator(seed, "pretrain", epoch)), batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:  # batch norm cannot train on one image
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _check(images: Tensor) -> None:
    if images.shape[-1] != images.shape[-2]:
        raise UsageError(f"Students take square images, this set's are {images.shape[-2]}x{images.shape[-1]}.")
    if len(images) < 2:
        raise UsageError(f"Pre-training needs number of images of at least 2, got {len(images)}.")


def _metadata(student: str, synthetic: "SyntheticSet", recipe: PretrainConfig, seed: int) -> dict[str, Any]:
    return {
        "student": student,
        "mean": list(synthetic.mean),
        "std": list(synthetic.std),
        "input_size": list(synthetic.images.shape[1:]),
        "pretraining": {**asdict(recipe), "seed": seed},
        "synthetic_set": synthetic.provenance,
        **({"set": synthetic.origin} if synthetic.origin else {}),
    }
