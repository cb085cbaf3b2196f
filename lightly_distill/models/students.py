"""Students by name: builds them and checks once that they fit the images."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from lightly_distill import adapters
from lightly_distill.adapters import StudentAdapter
from lightly_distill.errors import UsageError, did_you_mean, first_line

DEFAULT_ADAPTER = "timm"


def student_builder(name: str, image_size: int, *, batch_size: int = 2) -> Callable[[], nn.Module]:
    """Resolves a student's name and checks that it can be trained on images of this size.

    Args:
        name: `ADAPTER:NAME`, or `NAME` for a timm model; options of the adapter follow, as in `resnet18:stem=small`.
        image_size: Height and width of the images, in pixels.
        batch_size: Images of the check, 1 or 2; batch norm over a single value cannot be trained on one.

    Returns:
        Builds a freshly initialised student, images `(B, 3, image_size, image_size)` to features `(B, p)`. It draws
        from torch's global generator, which this function itself leaves as it was.

    Raises:
        UsageError: If the name is unknown or the student does not fit images of this size.
    """
    if not isinstance(name, str):
        raise UsageError(f"A student is named, such as 'resnet18'; got {type(name).__name__}.")
    adapter, plain_name = find_adapter(name)
    build = partial(adapter.build, plain_name, image_size)
    with torch.random.fork_rng(devices=[]):
        model = build()
        images = torch.rand(batch_size, 3, image_size, image_size)
        for mode in (True, False):
            _check(name, model.train(mode), images)
    return build


def check_names(names: Iterable[str]) -> None:
    """Refuses names that no adapter builds, before there are images; an adapter without `check_name` leaves it open.

    Raises:
        UsageError: If there is one.
    """
    for name in names:
        adapter, plain_name = find_adapter(name)
        if hasattr(adapter, "check_name"):
            adapter.check_name(plain_name)


def find_adapter(name: str) -> tuple[StudentAdapter, str]:
    """Splits a student's name, `[ADAPTER:]NAME[:key=value]`, into its adapter and the rest.

    Raises:
        UsageError: If no such adapter is installed.
    """
    prefix, separator, rest = name.partition(":")
    is_option = "=" in rest.partition(":")[0]
    adapter, plain_name = (prefix, rest) if separator and not is_option else (DEFAULT_ADAPTER, name)
    installed = sorted(adapters.available("students"))
    if adapter not in installed:
        hint = did_you_mean(adapter, installed, form=f"{{}}:{plain_name}", list_up_to=0)
        raise UsageError(f"No adapter '{adapter}' for students. Installed: {', '.join(installed)}.{hint}")
    found: StudentAdapter = adapters.get("students", adapter)
    return found, plain_name


def _check(name: str, model: nn.Module, images: Tensor) -> None:
    mode = "training" if model.training else "eval"
    size = images.shape[-1]
    try:
        with torch.no_grad():
            features = model(images)
    except Exception as error:  # whatever the layer at fault raises
        raise UsageError(
            f"The student '{name}' fails in {mode} mode on images of {size}x{size}: {first_line(error)}"
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
        returned = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UsageError(f"The student '{name}' returns {returned} in {mode} mode, expected features (2, p).")
    if not features.isfinite().all():
        raise UsageError(f"The student '{name}' returns features that are not finite in {mode} mode.")
