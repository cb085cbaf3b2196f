"""torchvision's datasets as sources, by the name of their class."""

import contextlib
import inspect
import os
import sys
from pathlib import Path
from typing import Any

import torchvision.datasets
from torchvision.datasets import VisionDataset

from lightly_distill.data.locate import DATA_FOLDER, choose_split
from lightly_distill.errors import UsageError, did_you_mean


def open(spec: str, split: str | None) -> Any:
    """Builds a dataset of torchvision, downloading it where torchvision can.

    Args:
        spec: Name of a class of `torchvision.datasets`, such as `CIFAR10`.
        split: Default: `train`, or what the class takes by default.

    Returns:
        The dataset, without transform, in the folder that LIGHTLY_DISTILL_DATA names or in the user's cache.

    Raises:
        UsageError: If there is no such class or split, it needs more than a folder, or it cannot be downloaded.
    """
    known = {
        name: getattr(torchvision.datasets, name)
        for name in torchvision.datasets.__all__
        if inspect.isclass(getattr(torchvision.datasets, name)) and name != "VisionDataset"
    }
    if spec not in known:
        raise UsageError(f"torchvision has no dataset '{spec}'.{did_you_mean(spec, known, list_up_to=12)}")
    root = Path(os.environ.get(DATA_FOLDER) or Path.home() / ".cache" / "lightly_distill" / "torchvision")
    arguments, split = _arguments(known[spec], spec, split, root)
    try:
        if "root" in arguments:
            root.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(sys.stderr):  # older versions print what they do
            data = known[spec](**arguments)
    except Exception as error:  # downloads and checks fail in ways without number
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"torchvision cannot provide '{spec}' in '{root}': {reason}") from error
    if split is not None and not hasattr(data, "split"):
        data.split = split  # for the source's name; some classes keep it as `train`
    return data


def _arguments(
    kind: type[VisionDataset], name: str, split: str | None, root: Path
) -> tuple[dict[str, Any], str | None]:
    """Returns what to call the class with, and the split that this is."""
    parameters = _parameters(kind)
    arguments = {key: value for key, value in (("root", str(root)), ("download", True)) if key in parameters}
    key = next((key for key in ("split", "image_set", "train") if key in parameters), None)
    if key == "train":
        split = choose_split(("train", "test"), split, f"torchvision:{name}")
        arguments["train"] = split == "train"
    elif key is not None:
        default = parameters[key].default
        split = split or (default if isinstance(default, str) else "train")
        arguments[key] = split
    elif split is not None:
        choose_split((), split, f"torchvision:{name}")
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.name not in arguments]
    if needed:
        raise UsageError(
            f"torchvision's {name} also needs {', '.join(needed)}: build it in Python and pass the object."
        )
    return arguments, split


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    """Returns the constructor's parameters, and those of its base class where it hands on `**kwargs`."""
    own = inspect.signature(kind).parameters.values()
    named = {p.name: p for p in own if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    if any(p.kind is p.VAR_KEYWORD for p in own):
        named = _parameters(kind.__mro__[1]) | named
    return named
