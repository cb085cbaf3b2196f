"""Whether a timm model gives features of images of a size, and what to take where it does not."""

import difflib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import timm
import torch
from accelerate import init_empty_weights
from timm.models import model_entrypoint
from torch import Tensor

from lightly_distill.errors import UsageError, first_line
from lightly_distill_integrations import small_stems

# Image sizes, in pixels, that are tried to find one that a model takes.
SIZES: tuple[int, ...] = (8, 16, 24, 28, 32, 40, 48, 56, 64, 75, 80, 96, 112, 128, 160, 192, 224, 240, 256, 288)
SIZES += (336, 384, 448, 512, 600, 768, 896)

_NEAR_NAMES = 3
_TRIALS = 8  # of near names, in the family and again among all: seconds, not minutes


class Fit(NamedTuple):
    """How a model takes images of one size.

    Attributes:
        arguments: What `timm.create_model` needs besides `num_classes=0`.
        features: Width p of the features.
        parameters: Number of weights, without a head.
    """

    arguments: dict[str, Any]
    features: int
    parameters: int


class UnfitError(Exception):
    """A model does not take images of a size; the text is the reason, without a full stop."""


class NoFeaturesError(UnfitError):
    """A model returns something else than `(B, p)`, whatever the size."""


@cache
def fit(name: str, image_size: int, *, shapes_only: bool = False) -> Fit:
    """Tries a model on two images, with its size given, as vision transformers need it, and without.

    Leaves torch's global generator as it was.

    Args:
        name: A name that timm knows.
        image_size: Height and width of the images, in pixels.
        shapes_only: Tries on the meta device, without weights in memory and without arithmetic. The answer is the same,
            but for models that ask for the value of a tensor: those count as unfit.

    Raises:
        UnfitError: If it does not take images of this size, or returns no features.
    """
    if not shapes_only:
        return _fit(name, image_size, "cpu", nullcontext)
    try:
        return _fit(name, image_size, "meta", lambda: torch.device("meta"))
    except UnfitError as unfit:
        if "meta" not in str(unfit):
            raise
    # older versions of timm read numbers from tensors while they build: these stay real here, only weights do not
    return _fit(name, image_size, "meta", init_empty_weights)


def refusal(name: str, image_size: int, unfit: UnfitError) -> UsageError:
    """Makes the error that names why a model is refused, the smallest size that it takes and near names that fit."""
    size = smallest_size(name)
    near = near_names(name, image_size)
    sentences = [
        f"The model '{name}' cannot be used with images of {image_size}x{image_size}: {str(unfit).rstrip('.')}.",
        f"The smallest of the usual sizes that it takes is {size}x{size}." if size else "",
        f"Near names that fit: {', '.join(near)}." if near else "",
    ]
    return UsageError(" ".join(filter(None, sentences)))


def smallest_size(name: str) -> int | None:
    """Returns the smallest of `SIZES`, in pixels, that a model takes, by shapes only; None if it takes none."""
    for size in SIZES:
        try:
            fit(name, size, shapes_only=True)
            return size
        except NoFeaturesError:
            return None
        except UnfitError:
            continue
    return None


def near_names(name: str, image_size: int) -> list[str]:
    """Returns up to three names like this one, of its own family first, that take images of this size."""
    found: list[str] = []
    everywhere = [other for other in names() if other != name]
    family = set(timm.list_models(module=model_entrypoint(name).__module__.rpartition(".")[2]))
    for near in ([other for other in everywhere if other in family], everywhere):
        for other in difflib.get_close_matches(name, near, n=_TRIALS, cutoff=0.3):
            try:
                fit(other, image_size, shapes_only=True)
            except UnfitError:
                continue
            if other not in found:
                found.append(other)
            if len(found) == _NEAR_NAMES:
                return found
    return found


def names() -> list[str]:
    """Returns the names that timm knows, our ConvNets among them, without the small stems that somebody asked for."""
    return [name for name in timm.list_models() if not name.endswith(small_stems.SUFFIX)]


def _fit(name: str, image_size: int, device: str, place: Callable[[], AbstractContextManager[Any]]) -> Fit:
    failures = []
    tries: tuple[dict[str, Any], ...] = ({"img_size": image_size}, {})
    for arguments in tries:
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                with place():
                    model = timm.create_model(name, pretrained=False, num_classes=0, **arguments).eval()
                features = model.to(device)(torch.zeros(2, 3, image_size, image_size, device=device))
        except UsageError:  # of an architecture of our own
            raise
        except Exception as error:  # timm raises whatever the layer at fault raises
            if not (isinstance(error, TypeError) and "img_size" in str(error)):
                failures.append(UnfitError(first_line(error)))
            continue
        if isinstance(features, Tensor) and features.ndim == 2 and len(features) == 2:
            parameters = sum(parameter.numel() for parameter in model.parameters())
            return Fit(arguments, features.shape[1], parameters)
        failures.append(NoFeaturesError(_returned(features)))
    raise failures[0]


def _returned(features: Any) -> str:
    if not isinstance(features, Tensor):
        return f"it returns a {type(features).__name__}, not features (2, p)"
    kind = {3: "tokens", 4: "a map"}.get(features.ndim, "a tensor")
    return f"it returns {kind} {tuple(features.shape)}, not features (2, p)"
