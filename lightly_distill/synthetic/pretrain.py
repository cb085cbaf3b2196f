"""Trains a fresh student on a synthetic set."""

import json
import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightly_distill.data.augment import jitter_colors, vary
from lightly_distill.data.pixels import Normalised
from lightly_distill.errors import DistillError, UsageError, did_you_mean
from lightly_distill.models.recipe import Recipe, RecipeOptions, check_bf16, gains_from_bf16, make_optimizer
from lightly_distill.models.rows import RowHead, row_loss, with_rows
from lightly_distill.models.students import check_names, find_adapter, student_builder
from lightly_distill.runtime.console import speaking
from lightly_distill.runtime.device import resolve_device
from lightly_distill.runtime.files import new_folder
from lightly_distill.runtime.progress import Progress
from lightly_distill.runtime.seeding import generator, global_seed
from lightly_distill.runtime.settings import check_number, check_one_of, choose
from lightly_distill.runtime.terms import on_own_terms

if TYPE_CHECKING:
    from lightly_distill.synthetic.synthetic_set import SyntheticSet

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainConfig(Recipe):
    """How a student is trained on a synthetic set, to predict its representations and maps.

    The defaults are what was best for small sets, of real images as of synthetic ones; `RECIPES["paper"]` is that of
    KRR-ST (arXiv:2310.06511).
    """

    steps: int = 1000
    """Training steps, whatever the number of images."""
    batch_size: int = 256
    """Images of a step, at least 2; all, if the set has fewer."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Of the learning rate: as it is, or down to 0."""
    color_jitter: float = 0.4
    """Change brightness, contrast and saturation of each image by up to this fraction, anew in each training step; 0
    leaves colours as they are. The targets stay, as those of most models do when colours change so much."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the student's features; weights and loss are float32. auto: fp32, but bf16 on a CPU that computes in it,
    unless the student has convolutions in groups, which are slower in it, or a stride on a map of one pixel, of which
    torch gets the gradient wrong."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "steps")
        check_number(self, "batch_size", least=2)
        check_number(self, "color_jitter", least=0)
        if self.color_jitter > 1:
            raise UsageError(f"color_jitter is a fraction, at most 1; got {self.color_jitter}.")
        check_one_of("schedule", self.schedule, ("constant", "cosine"))
        check_one_of("precision", self.precision, ("auto", "fp32", "bf16"))


class PretrainOptions(RecipeOptions, total=False):
    """The fields of `PretrainConfig` as keywords."""

    steps: int
    batch_size: int
    schedule: Literal["constant", "cosine"]
    color_jitter: float
    precision: Literal["auto", "fp32", "bf16"]


RECIPES: dict[str, PretrainConfig] = {
    "default": PretrainConfig(),
    # 1,000 epochs of its 1,000 images: KRR-ST, arXiv:2310.06511, section 4
    "paper": PretrainConfig(
        steps=4000, mixup=False, crop_and_flip=False, color_jitter=0, optimizer="sgd", precision="fp32"
    ),
}


@on_own_terms()
@speaking
def pretrain(
    student: str,
    synthetic: "SyntheticSet | str | Path",
    *,
    recipe: str = "default",
    config: PretrainConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    out: "str | Path | None" = None,
    transform: "Callable[[Tensor], Tensor] | None" = None,
    verbose: bool = True,
    **options: Unpack[PretrainOptions],
) -> nn.Module:
    """Trains a fresh student to predict the representations and maps of a synthetic set.

    The loss is the mean squared error of a linear head on the student's features, plus that of a 1x1 convolution on its
    last map, where set and student have maps.

    Args:
        student: Name of the backbone: `ADAPTER:NAME`, or `NAME` for a timm model.
        synthetic: The set to train on, its folder, that of the run that made it, or its name on the Hub; at least 2
            images.
        recipe: Of `RECIPES`, which the options change: `default`, or `paper` for that of KRR-ST.
        config: All settings at once, instead of recipe and options.
        seed: Root of all random draws: initial weights, order of the images, dropout.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, `mps` or `xpu`.
        out: New or empty folder for the trained backbone, written as the student's library writes it.
        transform: Of each image, float32 in [0, 1], shape (3, S, S), to one of the same shape, anew in each step and
            before the recipe's own augmentation: such as a transform of `torchvision.transforms.v2` that changes
            colours. The targets stay as they are, so it should change nothing that the target model sees.
        verbose: Shows a bar where there is a terminal, a line now and then elsewhere, and the losses at the end.
        options: Fields of `PretrainConfig`, such as `steps=1000`.

    Returns:
        The backbone without the head, in eval mode, on the device it was trained on. It expects images normalised
        with the `mean` and `std` of the set; of a timm model, `timm.data.resolve_data_config(model=...)` tells them.

    Raises:
        UsageError: If a number is out of range, the student is unknown or does not fit images or precision, or `out` is
            not empty.
        DistillError: If the loss is no longer a finite number.
    """
    check_student(student, synthetic)
    settings = choose(config, find_recipe(recipe), options)
    if transform is not None and not callable(transform):
        raise UsageError(f"transform is a function of an image (3, S, S); got {transform!r}.")
    if isinstance(synthetic, str | Path):
        from lightly_distill.synthetic.synthetic_set import SyntheticSet  # here: it brings all that writes sets

        synthetic = SyntheticSet.load(synthetic)
    if not hasattr(synthetic, "normalised"):
        raise UsageError(f"A student is trained on a synthetic set; got {type(synthetic).__name__}.")
    _check(synthetic.normalised)
    with new_folder(None if out is None else Path(out)) as folder:
        backbone = _trained(student, synthetic, settings, seed, device, transform=transform, shown=verbose)
        adapter, _ = find_adapter(student)
        metadata = _metadata(student, synthetic, settings, seed)
        if hasattr(adapter, "configure"):
            adapter.configure(backbone, metadata)
        if folder is not None:
            adapter.save(backbone, str(folder), metadata)
    return backbone


def _trained(
    student: str,
    synthetic: "SyntheticSet",
    settings: PretrainConfig,
    seed: int,
    device: str,
    *,
    transform: "Callable[[Tensor], Tensor] | None",
    shown: bool,
) -> nn.Module:
    place = resolve_device(device)
    images, targets = synthetic.normalised.to(place), synthetic.targets.to(place)
    build = student_builder(student, images.shape[-1])
    with global_seed(seed, "pretrain", "init"):
        backbone = build().to(place)
        rows, features = with_rows(backbone, images[:2], synthetic.layout.grid)
        head = RowHead(features, synthetic.layout).to(place)
    # channels last: a third faster on a CPU; as the students of the pool
    rows = rows.to(memory_format=torch.channels_last)
    if settings.precision == "bf16":
        check_bf16(rows, student, images[:1])
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and gains_from_bf16(rows, images[:2]))
    training = Training(rows, head, settings, seed, transform, bf16=bf16)
    with Progress(f"Pre-training {student}", settings.steps, "step", shown=shown) as bar:
        first: float | None = None
        while training.step < settings.steps:
            before = training.step
            loss = training.pass_over(images, targets)
            first = loss if first is None else first
            if not loss < float("inf"):
                raise DistillError(
                    f"The loss of student '{student}' is {loss} after step {training.step} of {settings.steps}. "
                    f"Try a smaller learning rate, such as lr={training.lr / 10:g}."
                )
            bar.add(training.step - before, f"loss {loss:.4g}")
    if shown:
        _logger.info(
            "Pre-trained %s for %s steps: loss %.4g in the first pass, %.4g in the last.",
            student,
            f"{training.step:,}",
            first,
            loss,
        )
    return backbone.eval()


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
        transform: Of each image, as `pretrain` takes it, or None.
        bf16: Whether features are computed in bfloat16.

    Attributes:
        step: Steps done.
        lr: Learning rate at the start.
    """

    def __init__(
        self,
        rows: nn.Module,
        head: RowHead,
        config: PretrainConfig,
        seed: int,
        transform: "Callable[[Tensor], Tensor] | None" = None,
        *,
        bf16: bool = False,
    ) -> None:
        self._transform = transform
        self._rows, self._head, self._config, self._seed = rows.train(), head, config, seed
        self._optimizer = make_optimizer(rows, head, config)
        device = next(head.parameters()).device
        self._precision = torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else nullcontext()
        self.step, self._pass = 0, 0
        self.lr: float = self._optimizer.param_groups[0]["lr"]

    def pass_over(self, images: Normalised, targets: Tensor) -> float:
        """Makes a step of each batch of a pass over the set, or those that are left; returns their mean loss."""
        with global_seed(self._seed, "pretrain", self._pass, device=images.device):
            batches = _batches(len(images), self._config.batch_size, self._seed, self._pass)
            batches = batches[: self._config.steps - self.step]
            total = torch.zeros((), device=images.device)  # stays on the device: read once a pass
            for indices in batches:
                total += self._one_step(images, targets, indices.to(images.device)) * len(indices)
        self._pass += 1
        return total.item() / sum(map(len, batches))

    def _one_step(self, images: Normalised, targets: Tensor, indices: Tensor) -> Tensor:
        config, layout = self._config, self._head.targets
        draw = generator(self._seed, "pretrain", "vary", self.step)
        shown = images[indices]
        if self._transform is not None:
            shown = images.in_units(partial(_transformed, self._transform), shown)
        if config.color_jitter:
            shown = images.in_units(partial(jitter_colors, strength=config.color_jitter, generator=draw), shown)
        batch, truth = vary(
            shown,
            targets[indices],
            layout.mirrored,
            draw,
            crop=config.crop_and_flip,
            mixup=config.mixup,
        )
        if config.schedule == "cosine":
            for group in self._optimizer.param_groups:
                group["lr"] = self.lr * (1 + math.cos(math.pi * self.step / config.steps)) / 2
        with self._precision:
            rows = self._rows(batch)
        loss = row_loss(self._head(rows.float()), truth, layout)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._optimizer.step()
        self.step += 1
        return loss.detach()


def _transformed(transform: "Callable[[Tensor], Tensor]", images: Tensor) -> Tensor:
    """Applies a user's transform to each image (3, S, S) of a batch."""
    changed = [transform(image) for image in images]
    if any(not isinstance(image, Tensor) or image.shape != images.shape[1:] for image in changed):
        raise UsageError(f"The transform must return images of shape {tuple(images.shape[1:])}, as it is given.")
    return torch.stack(changed)


def _batches(count: int, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    order = torch.randperm(count, generator=generator(seed, "pretrain", epoch))
    # all of about one size: batch norm learns statistics of a few images that are left over as it does of a whole batch
    parts = max(1, min(-(-count // batch_size), count // 2))
    return list(torch.tensor_split(order, parts))


def check_student(student: Any, synthetic: Any) -> None:
    """Refuses a set in the place of the student, several students, and an unknown one."""
    folders = isinstance(student, str) and isinstance(synthetic, str) and not Path(synthetic).exists()
    if hasattr(student, "normalised") or isinstance(student, Path) or (folders and Path(student).is_dir()):
        raise UsageError("The student comes first, then the set: pretrain('resnet18', synthetic).")
    if isinstance(student, str) and "," in student:
        raise UsageError(f"One student is pre-trained at a time, such as 'resnet18'; got '{student}'.")
    if isinstance(student, str):
        check_names([student])


def _check(images: Normalised) -> None:
    if images.shape[-1] != images.shape[-2]:
        raise UsageError(f"Students take square images, this set's are {images.shape[-2]}x{images.shape[-1]}.")
    if len(images) < 2:
        raise UsageError(f"Pre-training needs at least 2 images; the set has {len(images)}.")


def _metadata(student: str, synthetic: "SyntheticSet", recipe: PretrainConfig, seed: int) -> dict[str, Any]:
    return {
        "student": student,
        "mean": list(synthetic.mean),
        "std": list(synthetic.std),
        "input_size": list(synthetic.normalised.shape[1:]),
        "pretraining": {**asdict(recipe), "seed": seed},
        "synthetic_set": synthetic.provenance,
        **({"set": synthetic.origin} if synthetic.origin else {}),
    }
