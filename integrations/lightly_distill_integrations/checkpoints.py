"""Weights out of checkpoint files, matched to a model by name, without running anything in the file."""

import inspect
import logging
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lightly_distill.errors import UsageError, first_line, sentence
from lightly_distill.models.encoders import CHECKPOINTS

_logger = logging.getLogger(__name__)

# Names under which Lightly's scripts keep an encoder, and why it is the one to take, best first: a model with
# `backbone` and `teacher_backbone` is evaluated by its `backbone` (Lightly's benchmarks), one without `backbone` by
# its teacher (DINO, iBOT, CAPI, I-JEPA).
ENCODERS = {
    "backbone": "as Lightly evaluates it",
    "teacher_backbone": "the teacher, which averages the student and is what the method evaluates",
    "target_encoder": "the target encoder, which averages the encoder and is what the method evaluates",
    "encoder": "as Lightly evaluates it",
    "student_backbone": "there is no teacher",
    "features": "as in old versions of Lightly",
}
_HEADS = ("fc", "head", "heads", "classifier", "linear")  # a classifier's last layers, in timm, torchvision, Lightly
# Under which scripts save weights, those to take first: averaged ones, by which methods are evaluated (timm takes the
# first two so too), and a teacher's, which averages the student.
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "teacher", "target", "momentum")
_HOLDERS = (*_AVERAGED, "state_dict", "model", "model_state_dict", "student", "net", "weights", "params")
# torch.compile, DistributedDataParallel and AveragedModel, activation checkpointing, FSDP
_WRAPPERS = ("_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
_COUNTS = ("n_averaged",)  # which AveragedModel adds
_NO_WEIGHTS = ("optim", "sched", "scaler", "callbacks", "loops", "loss")  # in the names of other states
# plain values that scripts save beside weights, whose making runs no code of the file's
_PLAIN: list[Any] = [
    Namespace,
    PosixPath,
    PurePosixPath,
    np.dtype,
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")),
]


@dataclass(frozen=True)
class Checkpoint:
    """What is in a file of weights.

    Attributes:
        path: The file.
        tensors: By name, without what `torch.compile` and DistributedDataParallel add to names.
        hyper_parameters: As Lightning's `save_hyperparameters` leaves them; plain values only.
    """

    path: Path
    tensors: dict[str, Tensor]
    hyper_parameters: dict[str, Any] = field(default_factory=dict)

    def build(self, model_class: Callable[..., Any]) -> nn.Module:
        """Builds a model, given those of the hyper-parameters that it takes.

        Raises:
            UsageError: If it fails, or returns no module.
        """
        name = getattr(model_class, "__qualname__", str(model_class))
        try:
            taken = inspect.signature(model_class).parameters
            takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
            given = {key: value for key, value in self.hyper_parameters.items() if takes_all or key in taken}
            model = model_class(**given)
        except Exception as error:  # somebody else's code
            raise UsageError(
                f"{name} cannot be built with the hyper-parameters in '{self.path}' "
                f"({', '.join(self.hyper_parameters) or 'it has none'}): {type(error).__name__}: {sentence(error)} "
                "Give a function without arguments that returns the model."
            ) from error
        if not isinstance(model, nn.Module):
            raise UsageError(f"{name} returned {type(model).__name__}, expected a model.")
        return model

    def fill(self, model: nn.Module, name: str, *, strict: bool) -> None:
        """Loads the weights into a model, whatever prefix they have in the file.

        Where several prefixes fit, the one that comes first in `ENCODERS` is taken. What is left over is logged.

        Args:
            model: Is changed.
            name: For messages.
            strict: Whether weights under the same prefix that the model does not have are an error, but for a head.

        Raises:
            UsageError: If a weight is missing or of another shape, or, if `strict`, there is one too many.
        """
        own = model.state_dict()
        prefix, keys = self._match(model, own)
        found = {key: self.tensors[there] for key, there in keys.items() if there in self.tensors}
        used = {keys[key] for key in found}
        over = [key for key in self.tensors if key not in used]
        beside = without_head({key.removeprefix(prefix): self.tensors[key] for key in over if key.startswith(prefix)})
        problems = {
            "missing": [key for key in own if key not in found],
            "unexpected": list(beside) if strict else [],
            "of another shape": [key for key in found if found[key].shape != own[key].shape],
        }
        faults = [f"{what}: {_few(names)}" for what, names in problems.items() if names]
        if faults:
            under = f" under '{prefix}'" if prefix else ""
            raise UsageError(f"The weights in '{self.path}'{under} are not those of '{name}'; {'; '.join(faults)}.")
        model.load_state_dict(found)
        _logger.info("Loaded %d tensors of %s%s.", len(found), self.path, f" under '{prefix}'" if prefix else "")
        self.report_left_over(used)

    def report_left_over(self, used: Iterable[str]) -> None:
        """Logs the names that are not among `used`, in groups."""
        used = set(used)
        over = [key for key in self.tensors if key not in used]
        if over:
            _logger.info("Left over in %s: %s.", self.path, groups(over))

    def _match(self, model: nn.Module, own: Mapping[str, Tensor]) -> tuple[str, dict[str, str]]:
        """Returns the best prefix, and the name in the file for each name of the model."""
        children = [child for child, _ in model.named_children()]
        spellings = [{key: key for key in own}]
        if not isinstance(model, nn.Sequential):  # Lightly's examples slice a ResNet: `backbone.0.weight` is its conv1
            spellings.append({key: _numbered(key, children) for key in own})
        found = [((1, 0), "", spellings[0])]
        for spelling in spellings:
            for prefix in self._prefixes(spelling.values()):
                keys = {key: prefix + there for key, there in spelling.items()}
                fitting = sum(self._shape(there) == own[key].shape for key, there in keys.items())
                found.append(((-fitting, _rank(prefix)), prefix, keys))
        found.sort(key=lambda one: one[0])
        (score, prefix, keys), *others = found
        tied = sorted({other for their_score, other, _ in others if their_score == score} - {prefix})
        if tied and -score[0] == len(own):
            raise UsageError(
                f"The weights in '{self.path}' fit under '{prefix}' and under '{tied[0]}': save those that you mean "
                f"alone, such as torch.save(model.{prefix.rstrip('.')}.state_dict(), 'weights.pt')."
            )
        return prefix, keys

    def _prefixes(self, names: Iterable[str]) -> list[str]:
        ends = list(names)
        found: set[str] = set()
        for end in (*ends[:2], *ends[-2:]):  # one could be missing
            found |= {key[: -len(end)] for key in self.tensors if key == end or key.endswith(f".{end}")}
        return sorted(found)

    def _shape(self, name: str) -> torch.Size | None:
        return self.tensors[name].shape if name in self.tensors else None


def read(place: str | Path) -> Checkpoint:
    """Reads a checkpoint of PyTorch Lightning, a state dict of torch, or safetensors.

    Of several sets of weights the averaged one or the teacher's is taken, which is told.

    Args:
        place: The file, with `#KEY` for the weights that it holds under this key.

    Raises:
        UsageError: If there is no such file or key, it is damaged, or it holds more than tensors and plain values.
    """
    path, key = _place(str(place))
    if not path.is_file():
        raise UsageError(f"There is no file '{path}'; expected weights, in a file ending in {', '.join(CHECKPOINTS)}.")
    if not path.name.endswith(CHECKPOINTS):
        raise UsageError(f"'{path}' is not a file of weights; expected one ending in {', '.join(CHECKPOINTS)}.")
    try:
        content = _content(path)
    except Exception as error:  # a damaged file fails in many ways
        unsafe = _unsafe_classes(path)
        if unsafe:
            raise UsageError(
                f"'{path}' holds more than tensors and plain values ({_few(unsafe)}), and reading that would run code "
                "from the file. "
                "If you made it yourself, save the weights alone: torch.save(model.state_dict(), 'weights.pt')."
            ) from error
        if "TorchScript" in str(error):
            raise UsageError(
                f"'{path}' is a TorchScript program and no weights: write a function that returns "
                f"torch.jit.load('{path}'), and give it as pkg.module:function."
            ) from error
        raise UsageError(f"The weights in '{path}' cannot be read: {first_line(error)}") from error
    hyper_parameters: dict[str, Any] = {}
    if isinstance(content, Mapping):
        kept = content.get("hyper_parameters") or {}
        hyper_parameters = dict(kept if isinstance(kept, Mapping) else vars(kept))
    weights = _weights(content, path, key)
    if isinstance(weights, Tensor) or not isinstance(weights, Mapping):
        raise UsageError(f"'{path}' holds {type(weights).__name__}, expected weights by name.")
    named = {_unwrapped(str(name)): value for name, value in weights.items() if isinstance(value, Tensor)}
    tensors = {name: value for name, value in named.items() if name not in _COUNTS}
    if not tensors:
        raise UsageError(f"'{path}' holds no weights; it has {', '.join(map(str, list(weights)[:8])) or 'nothing'}.")
    return Checkpoint(path, tensors, hyper_parameters)


def _place(text: str) -> tuple[Path, str | None]:
    file, mark, key = text.rpartition("#")
    return (Path(file), key) if mark and not Path(text).is_file() else (Path(text), None)


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    with torch.serialization.safe_globals(_PLAIN):
        return torch.load(path, map_location="cpu", weights_only=True)


def _weights(content: Any, path: Path, key: str | None) -> Any:
    """Returns the weights among what a file holds: the only ones, those of a key, or the first of `_HOLDERS`."""
    if not isinstance(content, Mapping):
        return content
    sets = [name for name, value in content.items() if isinstance(name, str) and _is_weights(name, value)]
    if key is not None:
        if key not in content or not isinstance(content[key], Mapping):
            raise UsageError(
                f"'{path}' has no weights under '{key}'. It has them under: {', '.join(sets) or 'no key'}."
            )
        return content[key]
    if not sets or any(isinstance(value, Tensor) and "." in str(name) for name, value in content.items()):
        return content
    order = {name: place for place, name in enumerate(_HOLDERS)}
    first, *others = sorted(sets, key=lambda name: order.get(name, len(order)))
    if others and first not in order:
        raise UsageError(f"'{path}' has weights under {', '.join(sets)}: choose with --target-weights KEY.")
    if others:
        why = ", which averages the others" if first in _AVERAGED else ""
        _logger.info(
            "Took the weights under '%s' of %s%s; left: %s (--target-weights KEY takes others).",
            first,
            path,
            why,
            ", ".join(others),
        )
    return content[first]


def _is_weights(name: str, value: Any) -> bool:
    """Returns whether an entry of a checkpoint holds weights by name."""
    if not isinstance(value, Mapping) or any(part in name.lower() for part in _NO_WEIGHTS):
        return False
    return any(isinstance(each, Tensor) for each in value.values()) and all(isinstance(each, str) for each in value)


def _unsafe_classes(path: Path) -> list[str]:
    """Returns what a file of torch.save holds besides tensors and plain values, as torch finds without running it."""
    try:
        with torch.serialization.safe_globals(_PLAIN):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # damaged, or no such file at all
        return []


def groups(names: Iterable[str]) -> str:
    """Returns how many names there are by first part, such as `projection_head (4 tensors)`."""
    counts = Counter(name.partition(".")[0] for name in names)
    return ", ".join(f"{name} ({count} tensor{'s' if count > 1 else ''})" for name, count in counts.items())


def without_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of a classifier without those of its last layers."""
    return {key: tensor for key, tensor in tensors.items() if key.partition(".")[0] not in _HEADS}


def _unwrapped(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _numbered(key: str, children: list[str]) -> str:
    first, dot, rest = key.partition(".")
    return f"{children.index(first)}{dot}{rest}" if first in children else key


def _rank(prefix: str) -> int:
    order, parts = list(ENCODERS), prefix.split(".")
    rank = 2 * min((order.index(part) for part in parts if part in order), default=len(order))
    # of two that are called alike, the teacher's or the averaged one
    return rank + (not any("teacher" in part or "ema" in part.split("_") for part in parts))


def _few(names: list[str]) -> str:
    return f"{', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
