"""The last map of a model, before its global pooling, and how it is had from the same pass as what the model returns.

Shapes: B images, d numbers of a representation, p of features, C channels, N tokens, (h, w) the positions of a map as
the model makes it, grid the cells of a side after it was averaged.

What a library knows of its models is in `find_map` of its adapter. Of any other model, and of functions, all modules
that run are watched by one hook on `nn.Module` itself: nothing is attached to the model, and layers with a faster
path for modules without hooks still take it.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook

from lightly_distill import adapters
from lightly_distill.adapters import MapReader
from lightly_distill.errors import UsageError

_ADAPTIVE_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_CLASS_TOKENS = 2  # so few tokens, as in distillation, stand for the whole image

_readers: "WeakKeyDictionary[nn.Module, MapReader]" = WeakKeyDictionary()


class NoMapError(Exception):
    """A model has no map; the text is the reason, without a full stop."""


def maps(student: nn.Module, images: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Computes a student's features and its last map, in one pass through which gradients flow.

    Args:
        student: A backbone of any library, in whichever mode it is to run.
        images: Normalised, shape (B, 3, H, W).
        grid: Cells of a side.

    Returns:
        The features as `student(images)` returns them, shape (B, p), and the map, shape (B, C, grid, grid). A map with
        fewer positions than the grid has is enlarged, so that every student can learn from the same targets.

    Raises:
        UsageError: If the student has no map.
    """
    try:
        features, last = with_map(student, images)
    except NoMapError as error:
        raise UsageError(f"The student {type(student).__name__} has no map: {error}.") from error
    return features, at_grid(last, grid)


def at_grid(last: Tensor, grid: int) -> Tensor:
    """Averages or enlarges a map (B, C, h, w) to (B, C, grid, grid)."""
    if min(last.shape[-2:]) < grid:
        return F.interpolate(last, size=(grid, grid), mode="bilinear", align_corners=False)
    return to_grid(last, grid)


def with_map(model: "nn.Module | Callable[[Tensor], Any]", images: Tensor) -> tuple[Any, Tensor]:
    """Runs a model once.

    Args:
        model: An encoder or a student.
        images: Of its dtype, shape (B, 3, H, W).

    Returns:
        What `model(images)` returns, and the last map before its global pooling, shape (B, C, h, w).

    Raises:
        NoMapError: If the model has no map.
    """
    if not isinstance(model, nn.Module):
        return watched(model, images)
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    return reader_of(model)(model, images)


def reader_of(model: nn.Module) -> MapReader:
    """Returns what runs this model and shows its map, as `with_map`."""
    if model not in _readers:
        _readers[model] = _find_reader(model)
    return _readers[model]


def to_grid(last: Tensor, grid: int) -> Tensor:
    """Averages a map (B, C, h, w) to (B, C, grid, grid).

    Raises:
        NoMapError: If the map has fewer positions than the grid.
    """
    height, width = last.shape[-2:]
    if min(height, width) < grid:
        fewer = " or fewer cells (--target-map, target_map)" if grid > 2 else ""  # a map has at least 2 a side
        raise NoMapError(
            f"its last map is {height}x{width}, smaller than {grid}x{grid} cells; take larger images (--target-size, "
            f"target_size){fewer}"
        )
    return F.adaptive_avg_pool2d(last, grid)


def of_tokens(tokens: Tensor, num_prefix_tokens: int | None = None) -> Tensor:
    """Puts tokens back to where their patches were.

    Args:
        tokens: Shape (B, N, C), row by row; those that stand for the whole image come first.
        num_prefix_tokens: How many those are. By default the fewest without which the others fill a square.

    Returns:
        Shape (B, C, h, w), h = w.

    Raises:
        NoMapError: If the tokens of patches do not fill a square.
    """
    count = tokens.shape[1]
    if num_prefix_tokens is None:
        num_prefix_tokens = count - math.isqrt(count) ** 2
    side = math.isqrt(max(count - num_prefix_tokens, 0))
    if side == 0 or side**2 != count - num_prefix_tokens:
        raise NoMapError(f"its {count} tokens, {num_prefix_tokens} of them for the whole image, fill no square")
    return tokens[:, num_prefix_tokens:].transpose(1, 2).reshape(len(tokens), -1, side, side)


def watched(model: Callable[[Tensor], Any], images: Tensor) -> tuple[Any, Tensor]:
    """Runs any model or function, and takes for its map what its modules show; see `with_map`.

    That is the last map before all positions become one, or the last tokens if none follows.
    """
    with watch(len(images)) as seen:
        output = model(images)
    if isinstance(output, Tensor):
        if output.ndim == 4 and _positions(output) > 1:
            return output, output
        if output.ndim == 3:
            return output, of_tokens(output)
    return output, seen.map(output.shape[1] if isinstance(output, Tensor) and output.ndim > 1 else None)


@contextmanager
def watch(batch_size: int) -> Iterator["Watch"]:
    """Yields what sees all modules that run in this thread; compiled ones run uncompiled, as hooks are not in there."""
    seen = Watch(batch_size)
    handle = register_module_forward_hook(seen)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield seen
    finally:
        handle.remove()


@contextmanager
def output_of(module: nn.Module) -> Iterator[list[Any]]:
    """Yields a list that holds, afterwards, what each call of one module returned."""
    returned: list[Any] = []
    handle = module.register_forward_hook(lambda _, inputs, output: returned.append(output))
    try:
        with torch.compiler.set_stance("force_eager"):
            yield returned
    finally:
        handle.remove()


class Watch:
    """Remembers the last map or tokens that a module returned, or gave to a pooling to one position."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._thread = get_ident()
        self._last: Tensor | None = None
        self._pooled = False

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Looks at one call of a module, as a forward hook."""
        if get_ident() != self._thread:
            return
        given: Any = inputs[0] if inputs else None
        if self._is_map(given) and _is_global_pooling(module, given, output):
            self._last, self._pooled = given, _positions(given) > 1
        # what becomes of the single position after a pooling, such as in MobileNetV3's head, is no map
        elif (self._is_map(output) and not (self._pooled and _positions(output) == 1)) or self._are_tokens(output):
            self._last, self._pooled = output, False

    def map(self, channels: int | None) -> Tensor:
        """Returns it as a map (B, C, h, w).

        Args:
            channels: Length of the representation, by which a map with its channels last is known.

        Raises:
            NoMapError: If no module showed a map or tokens, or the tokens fill no square.
        """
        last = self._last
        if last is None:
            raise NoMapError("none of its modules returns a map or tokens")
        if last.ndim == 3:
            return of_tokens(last if len(last) == self._batch_size else last.transpose(0, 1))
        _, first, second, third = last.shape
        channels_last = first != channels and (third == channels or first == second != third)
        return last.permute(0, 3, 1, 2) if channels_last else last

    def _is_map(self, value: Any) -> bool:
        return _is_float(value) and value.ndim == 4 and len(value) == self._batch_size

    def _are_tokens(self, value: Any) -> bool:
        if not (_is_float(value) and value.ndim == 3 and self._batch_size in value.shape[:2]):
            return False
        # some transformers, as CLIP's, have the images in second place
        count: int = value.shape[1 if len(value) == self._batch_size else 0]
        return count > _CLASS_TOKENS


def _find_reader(model: nn.Module) -> MapReader:
    for group in ("targets", "students"):
        for adapter in adapters.installed(group):
            find: Callable[[nn.Module], MapReader | None] | None = getattr(adapter, "find_map", None)
            reader = find(model) if find is not None else None
            if reader is not None:
                return reader
    return watched


def _is_global_pooling(module: nn.Module, given: Tensor, output: Any) -> bool:
    if isinstance(module, _ADAPTIVE_POOLS):
        return True
    to_one = isinstance(output, Tensor) and output.ndim == 4 and _positions(output) == 1 < _positions(given)
    if not to_one or output.shape[1] != given.shape[1]:
        return False
    return all(parameter.ndim <= 1 for parameter in module.parameters())  # a convolution makes a map of its own


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _positions(value: Tensor) -> int:
    return value.shape[-2] * value.shape[-1]
