"""Finds the encoder inside a model, and models by their specification."""

import difflib
import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightly_distill import integrations
from lightly_distill.errors import DistillError, UsageError
from lightly_distill.protocols import TargetAdapter

_logger = logging.getLogger(__name__)

Encoder = Callable[[Tensor], Any]


def find_encoder(model: "nn.Module | Encoder", encoder: "str | nn.Module | None" = None) -> "nn.Module | Encoder":
    """Finds the module from images to representations.

    Args:
        model: A model of any library, or a function. Is not changed.
        encoder: The module itself, or the path of an attribute of the model; by default the installed target adapters
            are asked in the order of their names, and where none knows the model, the model is its own encoder.

    Raises:
        UsageError: If `encoder` names no module of the model.
    """
    if isinstance(encoder, nn.Module):
        return encoder
    if isinstance(encoder, str):
        return _submodule(model, encoder)
    if not isinstance(model, nn.Module):
        if callable(model):
            return model
        raise UsageError(f"A target is a module or a function of images, not {type(model).__name__}.")
    for name in sorted(integrations.available("targets")):  # Lightly's before timm's
        adapter: TargetAdapter = integrations.get("targets", name)
        found = adapter.find_encoder(model)
        if found is not None:
            return found
    _logger.info("No adapter knows %s: it is taken as the encoder itself.", type(model).__name__)
    return model


def encoder_name(model: Any, encoder: Any) -> str:
    """Returns where an encoder was found, such as `SimCLR.backbone`."""
    if not isinstance(encoder, nn.Module):
        return getattr(encoder, "__qualname__", type(encoder).__name__)
    if not isinstance(model, nn.Module):
        return type(encoder).__name__
    paths = {id(module): path for path, module in model.named_modules()}
    # An adapter may have wrapped the encoder; then the first module inside is the one in the model.
    for candidate in (encoder, *encoder.children())[:2]:
        if paths.get(id(candidate)):
            return f"{type(model).__name__}.{paths[id(candidate)]}"
        if candidate is model:
            break
    return type(model).__name__


def load_model(spec: str) -> Any:
    """Returns the model of a target specification; see `targets.load_target`."""
    prefix, separator, rest = spec.partition(":")
    adapters = sorted(integrations.available("targets"))
    if not (separator and prefix and rest):
        raise UsageError(
            f"'{spec}' is no target. Expected timm:NAME, timm:NAME@FILE or pkg.module:callable; "
            f"adapters: {', '.join(adapters)}."
        )
    if prefix in adapters:
        return integrations.get("targets", prefix).load(rest)
    function = _import(spec, prefix, rest, adapters)
    try:
        model = function()
    except Exception as error:  # somebody else's code
        raise DistillError(f"The function of target '{spec}' failed: {type(error).__name__}: {error}") from error
    if not callable(model):
        raise UsageError(f"The function of target '{spec}' returned {type(model).__name__}, expected a model.")
    return model


def _submodule(model: Any, path: str) -> nn.Module:
    found = model
    for part in path.split("."):
        found = getattr(found, part, None)
    if isinstance(found, nn.Module):
        return found
    paths = [known for known, _ in model.named_modules() if known] if isinstance(model, nn.Module) else []
    nearest = difflib.get_close_matches(path, paths, n=3) or [known for known in paths if "." not in known]
    raise UsageError(f"{type(model).__name__} has no module '{path}'. Nearest: {', '.join(nearest) or 'none'}.")


def _import(spec: str, module_name: str, attribute: str, adapters: list[str]) -> Callable[[], Any]:
    try:
        with _working_directory_importable():
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise DistillError(f"The module of target '{spec}' cannot be imported: {error}") from error
        nearest = difflib.get_close_matches(module_name, adapters, n=1)
        hint = f" Did you mean '{nearest[0]}:{attribute}'?" if nearest else ""
        raise UsageError(
            f"'{spec}' is no target: '{module_name}' is neither an adapter ({', '.join(adapters)}) nor a module "
            f"that can be imported.{hint}"
        ) from error
    except Exception as error:  # somebody else's code
        raise DistillError(f"The module of target '{spec}' failed: {type(error).__name__}: {error}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        nearest = difflib.get_close_matches(attribute, vars(module), n=3)
        hint = f" Nearest: {', '.join(nearest)}." if nearest else ""
        raise UsageError(f"The module '{module_name}' has no function '{attribute}'.{hint}")
    found: Callable[[], Any] = function
    return found


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    # As `python -m` does; a console script has its own folder on the path instead.
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
