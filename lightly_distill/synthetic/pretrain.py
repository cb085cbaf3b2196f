"""Trains a fresh student on a synthetic set."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange
from typing_extensions import Unpack

from lightly_distill.errors import DistillError, UsageError
from lightly_distill.models.students import feature_dim, find_adapter, student_builder
from lightly_distill.runtime.device import resolve_device
from lightly_distill.runtime.files import empty_folder
from lightly_distill.runtime.seeding import generator, global_seed
from lightly_distill.runtime.settings import check_number, choose

if TYPE_CHECKING:
    from lightly_distill.synthetic.synthetic_set import SyntheticSet


@dataclass(frozen=True)
class PretrainConfig:
    """How a student is trained on a synthetic set: by SGD, to predict its representations.

    The defaults are those of KRR-ST (arXiv:2310.06511), but for half of its 1,000 epochs.
    """

    epochs: int = 500
    """Passes over the set in pre-training."""
    batch_size: int = 256
    """Images of a step, at least 2; a last batch of a single image joins the one before it."""
    lr: float = 0.1
    """Learning rate of SGD in pre-training, constant."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 1e-3
    """Of SGD, on the backbone and its head."""

    def __post_init__(self) -> None:
        check_number(self, "epochs", "lr")
        check_number(self, "batch_size", least=2)
        check_number(self, "momentum", "weight_decay", least=0)


class PretrainOptions(TypedDict, total=False):
    """The fields of `PretrainConfig` as keywords."""

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float


def pretrain(
    student: str,
    synthetic: "SyntheticSet",
    *,
    config: PretrainConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    out: "str | Path | None" = None,
    progress: bool = True,
    **options: Unpack[PretrainOptions],
) -> nn.Module:
    """Trains a fresh student to predict the representations of a synthetic set, as in KRR-ST (arXiv:2310.06511).

    The loss is the mean squared error of a linear head on the student's features, without augmentation.

    Args:
        student: Name of the backbone: `ADAPTER:NAME`, or `NAME` for a timm model.
        synthetic: The set to train on; at least 2 images.
        config: All settings at once, instead of options.
        seed: Root of all random draws: initial weights, order of the images, dropout.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        out: New or empty folder for the trained backbone, written as the student's library writes it.
        progress: Shows a bar where there is a terminal.
        options: Fields of `PretrainConfig`, such as `epochs=100`.

    Returns:
        The backbone without the head, in eval mode, on the device it was trained on. It expects images normalised
        with the `mean` and `std` of the set.

    Raises:
        UsageError: If a number is out of range, the student is unknown or does not fit, or `out` is not empty.
        DistillError: If the loss is no longer a finite number.
    """
    recipe = choose(config, PretrainConfig(), options)
    _check(synthetic.images)
    folder = None if out is None else empty_folder(Path(out))
    place = resolve_device(device)
    images, representations = synthetic.images.to(place), synthetic.representations.to(place)
    size = images.shape[-1]
    build = student_builder(student, size)
    with global_seed(seed, "pretrain", "init"):
        backbone = build()
        head = nn.Linear(feature_dim(backbone, size), representations.shape[1])
    model = nn.Sequential(backbone, head).to(place)
    # a third faster on a CPU; as the students of the pool
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )

    bar = trange(recipe.epochs, unit="epoch", desc=f"Pre-training {student}", disable=None if progress else True)
    for epoch in bar:
        with global_seed(seed, "pretrain", epoch, device=place):
            batches = _batches(len(images), recipe.batch_size, seed, epoch)
            loss = _epoch(model, optimizer, images, representations, batches)
        if not loss < float("inf"):
            raise DistillError(
                f"The loss of student '{student}' is {loss} in epoch {epoch + 1} of {recipe.epochs}. "
                f"Try a smaller learning rate, such as lr={recipe.lr / 10:g}."
            )
        bar.set_postfix(loss=f"{loss:.4g}")

    backbone.eval()
    if folder is not None:
        adapter, _ = find_adapter(student)
        adapter.save(backbone, str(folder), _metadata(student, synthetic, recipe, seed))
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


def _epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, representations: Tensor, batches: list[Tensor]
) -> float:
    """Makes one step of each batch and returns the mean loss of the images."""
    total = torch.zeros((), device=images.device)  # stays on the device: read once an epoch
    for indices in batches:
        indices = indices.to(images.device)
        loss = F.mse_loss(model(images[indices]), representations[indices])
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        total += loss.detach() * len(indices)
    return total.item() / len(images)


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
