"""Which timm models take images of a size: all names tried once, the answers kept in the user's cache folder."""

import json
import logging
import os
from fnmatch import fnmatchcase
from pathlib import Path

import timm
import torch
from tqdm import tqdm

from lightly_distill.adapters import StudentFacts
from lightly_distill_integrations.timm import fit

_logger = logging.getLogger(__name__)


def list_students(image_size: int, pattern: str) -> dict[str, StudentFacts | None]:
    """Tries each name that matches on the meta device, so that no weights are in memory.

    Args:
        image_size: Height and width of the images, in pixels.
        pattern: Of names, with `*` and `?`.

    Returns:
        Parameters and features by name; None where a model does not take images of this size.
    """
    names = [name for name in fit.names() if fnmatchcase(name, pattern)]
    path = _cache_file(image_size)
    known = _read(path)
    missing = [name for name in names if name not in known]
    if missing:
        try:
            for name in tqdm(missing, desc="Trying models", unit="model", disable=None):
                known[name] = _facts(name, image_size)
        finally:  # an interrupted run has not been for nothing
            _write(path, known)
    return {name: known[name] for name in names}


def _facts(name: str, image_size: int) -> StudentFacts | None:
    try:
        fitting = fit.fit(name, image_size, shapes_only=True)
    except fit.UnfitError:
        return None
    return StudentFacts(fitting.parameters, fitting.features)


def _cache_file(image_size: int) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "lightly_distill")
    return folder / f"students-timm{timm.__version__}-torch{torch.__version__}-{image_size}.json"


def _read(path: Path) -> dict[str, StudentFacts | None]:
    try:
        saved = json.loads(path.read_text())
        return {name: facts and StudentFacts(int(facts[0]), int(facts[1])) for name, facts in saved.items()}
    except (OSError, ValueError, TypeError, AttributeError, LookupError):  # absent or damaged: made anew
        return {}


def _write(path: Path, known: dict[str, StudentFacts | None]) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(known))
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        _logger.warning("The answers cannot be kept in %s: %s", path, error)
