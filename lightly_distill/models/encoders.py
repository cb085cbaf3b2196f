"""Finds the encoder inside a model, and models by their specification."""

import contextlib
import copy
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightly_distill import adapters
from lightly_distill.adapters import FoundEncoder, TargetAdapter
from lightly_distill.errors import DistillError, UsageError, did_you_mean

Encoder = Callable[[Tensor], Any]
Finder = TypeVar("Finder", bound=Callable[[nn.Module], "nn.Module | None"])

CHECKPOINTS = (".ckpt", ".pt", ".pth", ".pth.tar", ".bin", ".safetensors")
_CHECKPOINT_ADAPTER = "lightly"  # reads a checkpoint that is given without a name in front
_PROBE_SIZES = (32, 64, 224)  # pixels, tried in turn on each part of a model
_MAX_CANDIDATES = 8
# Functions of this process's scripts, by module and name: a cell that runs again replaces its own.
_registered: dict[tuple[str, str], Callable[[nn.Module], "nn.Module | None"]] = {}


def register_target(finder: Finder) -> Finder:
    """Registers a function that finds the encoder inside models of one's own, to be used as a decorator.

    It is asked before the installed adapters. A package that brings target models of its own declares an entry point
    in the group `lightly_distill.targets` instead; see `adapters.TargetAdapter`.

    Args:
        finder: Takes a model, and returns the module inside that maps images (B, 3, H, W) to representations (B, d),
            a map (B, d, H, W) or tokens (B, N, d); or None if the model is not its kind. Must not change the model.

    Returns:
        The function itself.

    Example:
        >>> @register_target
        ... def trunk_of_my_models(model):
        ...     return model.trunk if isinstance(model, MyModel) else None
    """
    _registered[finder.__module__, finder.__qualname__] = finder
    return finder


def find_encoder(model: "nn.Module | Encoder", encoder: "str | nn.Module | None" = None) -> FoundEncoder:
    """Finds the module from images to representations.

    Args:
        model: A model of any library, or a function. Is not changed.
        encoder: The module itself, or the path of an attribute of the model. By default the functions of
            `register_target` are asked, then the installed target adapters, third parties' first; where none knows the
            model, the model is its own encoder.

    Raises:
        UsageError: If `encoder` names no module of the model, or an adapter cannot find the encoder.
    """
    if encoder is not None:
        part = _submodule(model, encoder) if isinstance(encoder, str) else encoder
        path = encoder if isinstance(encoder, str) else _path_of(model, part)
        # Only how it is called is the adapter's; which module it is, the user has said.
        with contextlib.suppress(UsageError):
            as_called = _ask_adapters(part)
            if as_called is not None and not as_called.path:
                return FoundEncoder(as_called.encoder, path, "named by the user")
        return FoundEncoder(part, path, "named by the user")
    if not isinstance(model, nn.Module):
        if callable(model):
            return FoundEncoder(model, "", "a function of images")
        raise UsageError(f"A target is a module or a function of images, not {type(model).__name__}.")
    for (_, name), finder in reversed(_registered.items()):
        module = finder(model)
        if isinstance(module, nn.Module):
            return FoundEncoder(module, _path_of(model, module), f"as {name} says")
        if module is not None:
            raise UsageError(f"The registered function {name} returned {type(module).__name__}, expected a module.")
    return _ask_adapters(model) or FoundEncoder(model, "", "no adapter knows the model, so it is taken whole")


def candidates(model: nn.Module) -> str:
    """Returns the parts of a model that take images, with the shape of what they return, for an error message.

    Each part is tried on a copy in eval mode with two images of 32, 64 or 224 pixels.
    """
    fitting: list[str] = []
    for path, part in model.named_modules():
        if path and path.count(".") < 2 and len(fitting) < _MAX_CANDIDATES:
            shape = _output_shape(part)
            if shape is not None:
                fitting.append(f"{path} {shape}")
    return ", ".join(fitting) or "none of its parts takes images"


def encoder_name(model: Any, found: FoundEncoder) -> str:
    """Returns where an encoder was found, such as `SimCLR.backbone`."""
    if not isinstance(model, nn.Module):
        kind = type(found.encoder) if isinstance(found.encoder, nn.Module) else type(model)
        return str(getattr(found.encoder, "__qualname__", kind.__name__))
    return f"{type(model).__name__}.{found.path}" if found.path else type(model).__name__


def load_model(spec: str, target_class: str | None = None) -> Any:
    """Returns the model of a target specification; see `targets.load_target`."""
    prefix, separator, rest = spec.partition(":")
    known = sorted(adapters.available("targets"))
    model_class = None if target_class is None else _import("target class", target_class, known)
    if is_checkpoint(spec) and prefix not in known:
        return adapters.get("targets", _CHECKPOINT_ADAPTER).load_checkpoint(spec, model_class)
    if model_class is not None:
        raise UsageError(f"A target class goes with a checkpoint, such as last.ckpt; '{spec}' names its own.")
    _refuse_files(spec)
    if not (separator and prefix and rest):
        raise UsageError(
            f"'{spec}' is no target. Expected timm:NAME, timm:NAME@FILE, a checkpoint ending in "
            f"{', '.join(CHECKPOINTS)}, or pkg.module:callable; adapters: {', '.join(known)}."
        )
    if prefix in known:
        return adapters.get("targets", prefix).load(rest)
    function = _import("target", spec, known)
    try:
        model = function()
    except SystemExit as end:
        raise DistillError(f"The function of target '{spec}' ended the program {_exit(end)}; let it return.") from end
    except Exception as error:  # somebody else's code
        raise DistillError(f"The function of target '{spec}' failed: {type(error).__name__}: {error}") from error
    if not callable(model):
        raise UsageError(f"The function of target '{spec}' returned {type(model).__name__}, expected a model.")
    return model


def _refuse_files(spec: str) -> None:
    """Refuses a file of Python where a module is expected, before anything in it runs."""
    file, _, attribute = spec.partition(":")
    if file.endswith(".py"):
        module = ".".join(Path(file).with_suffix("").parts).lstrip(".")
        attribute = attribute or "FUNCTION"
        raise UsageError(
            f"'{spec}' names a file; a function that returns the model is named by its module: {module}:{attribute}. "
            "Importing it runs all of the file that is not under `if __name__ == '__main__':`."
        )


def is_checkpoint(spec: str) -> bool:
    """Returns whether a specification is a checkpoint, `FILE` or `FILE#KEY`."""
    return spec.endswith(CHECKPOINTS) or spec.rpartition("#")[0].endswith(CHECKPOINTS)


def _ask_adapters(model: Any) -> FoundEncoder | None:
    adapter: TargetAdapter
    for adapter in adapters.installed("targets"):  # Lightly's comes before timm's
        found = adapter.find_encoder(model)
        if found is not None:
            return found
    return None


def _output_shape(part: nn.Module) -> tuple[int, ...] | None:
    """Returns the shape that a part makes of two images, or None if it takes none or returns no representation."""
    for size in _PROBE_SIZES:
        try:
            probe: Any = copy.deepcopy(part).eval()
            parameter = next(probe.parameters(), torch.empty(0))
            images = torch.zeros(2, 3, size, size, dtype=parameter.dtype, device=parameter.device)
            with torch.no_grad():
                output = probe(images)
        except Exception:  # layers refuse images in ways without number
            continue
        if isinstance(output, Tensor) and output.ndim in (2, 3, 4) and len(output) == 2:
            return tuple(output.shape)
    return None


def _path_of(model: Any, part: nn.Module) -> str:
    named = model.named_modules() if isinstance(model, nn.Module) else ()
    return next((path for path, module in named if module is part), "")


def _submodule(model: Any, path: str) -> nn.Module:
    found = model
    for part in path.split("."):
        found = getattr(found, part, None)
    if isinstance(found, nn.Module):
        return found
    paths = [known for known, _ in model.named_modules() if known] if isinstance(model, nn.Module) else []
    tops = [known for known in paths if "." not in known]
    hint = did_you_mean(path, paths, most=3, list_up_to=0) or did_you_mean(path, tops)
    raise UsageError(f"{type(model).__name__} has no module '{path}'.{hint}")


def _import(what: str, spec: str, known: list[str]) -> Callable[..., Any]:
    """Imports `pkg.module:callable`; the working directory counts as a place for modules."""
    module_name, _, attribute = spec.partition(":")
    if not (module_name and attribute):
        raise UsageError(f"'{spec}' is no {what}; expected pkg.module:Name.")
    _refuse_files(spec)
    try:
        with _working_directory_importable():
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise DistillError(f"The module of {what} '{spec}' cannot be imported: {error}") from error
        hint = did_you_mean(module_name, known, form=f"{{}}:{attribute}", list_up_to=0)
        raise UsageError(
            f"'{spec}' is no {what}: '{module_name}' is neither an adapter ({', '.join(known)}) nor a module "
            f"that can be imported.{hint}"
        ) from error
    except SystemExit as end:  # a script, which would end us with a status of its own
        raise DistillError(
            f"The module of {what} '{spec}' ended the program {_exit(end)} as it was imported: put what it runs under "
            "`if __name__ == '__main__':`."
        ) from end
    except Exception as error:  # somebody else's code
        raise DistillError(f"The module of {what} '{spec}' failed: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        hint = did_you_mean(attribute, vars(module), most=3, list_up_to=0)
        raise UsageError(f"The module '{module_name}' has no function '{attribute}'.{hint}")
    function = getattr(module, attribute)
    if isinstance(function, nn.Module):
        raise UsageError(f"'{spec}' is a model itself; give a function that returns it, such as {module_name}:make.")
    if not callable(function):
        raise UsageError(f"'{spec}' is no function, but {type(function).__name__}.")
    found: Callable[..., Any] = function
    return found


def _exit(end: SystemExit) -> str:
    """Returns how somebody else's code ended the program, such as `(sys.exit(0))`."""
    return f"(sys.exit({'' if end.code is None else repr(end.code)}))"


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    # As `python -m` does; a console script has its own folder on the path instead.
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
