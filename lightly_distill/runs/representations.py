"""Where a run finds the target's representations of its real images, or keeps them for others."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightly_distill.data.locate import missing_path
from lightly_distill.data.source import Source
from lightly_distill.errors import UsageError
from lightly_distill.method import brought
from lightly_distill.method.brought import Brought
from lightly_distill.method.representation_cache import Keeper, RepresentationCache
from lightly_distill.runtime.processes import ALONE, Processes

FOLDER = "representations"  # in the folder of a run
_TABLES = (".parquet", ".arrow")
_ON_THE_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)

Found = Brought | Path | None


def find_representations(given: Any) -> Found:
    """Finds out what a user means by `representations`.

    Args:
        given: A folder to keep them in, new or not, or the folder of a run. Or what the user has already: a file `.pt`,
            `.pth`, `.npy` or `.safetensors` of one tensor (n, d), or a Hugging Face dataset with a column `embedding`,
            as a folder, a table, `OWNER/NAME` on the Hub or a dataset object. Or None.

    Returns:
        The folder, or the representations that were brought, checked but for what depends on source and target.

    Raises:
        UsageError: If it is none of these, or what was brought is not a table of finite floats.
    """
    if given is None:
        return None
    if not isinstance(given, str | Path):
        return brought.read_dataset(given)
    text, path = str(given), Path(given).expanduser()
    if path.is_file():
        if path.suffix.lower() in brought.SUFFIXES:
            return brought.read_file(path)
        if path.suffix.lower() not in _TABLES:
            kinds = ", ".join((*brought.SUFFIXES, *_TABLES))
            raise UsageError(f"{path} is no file of representations: give a folder, or a file ending in {kinds}.")
        return brought.read_dataset(text)
    if path.is_dir():
        return brought.read_dataset(text) if _is_dataset(path) else path
    if path.suffix.lower() in (*brought.SUFFIXES, *_TABLES):
        raise UsageError(missing_path(text))
    # what stands in no folder that there is, is more likely a name on the Hub than a new folder
    if "#" in text or text.startswith("huggingface:") or (_ON_THE_HUB.fullmatch(text) and not path.parent.is_dir()):
        return brought.read_dataset(text)
    return path


def keeper(found: Found, source: Source, target_sha256: str, run: Path | None, processes: Processes = ALONE) -> Keeper:
    """Returns what has or keeps the representations of a source.

    Args:
        found: From `find_representations`.
        source: Real images.
        target_sha256: Of the target.
        run: Folder of this run, None if it keeps nothing.
        processes: That share the work.

    Raises:
        UsageError: If what the user brought does not fit the source.
    """
    if isinstance(found, Brought):
        return found.of(source)
    facts = _key(source, target_sha256)
    own = None if run is None else run / FOLDER
    if found is None or is_run(found):  # another run's folder is left as it is
        return RepresentationCache(own, facts, processes, also=[found / FOLDER] if found else [])
    return RepresentationCache(found, facts, processes, also=[own] if own else [], shared=True)


def reader(found: Found, source: Source, target_sha256: str, runs: Sequence[Path]) -> Keeper:
    """As `keeper`, for what has no folder of its own: shards are read, also those of runs, and none is written."""
    if isinstance(found, Brought):
        return found.of(source)
    also = [folder / FOLDER for folder in runs]
    if found is not None:
        also.append(found / FOLDER if is_run(found) else found)
    return RepresentationCache(None, _key(source, target_sha256), also=also)


def is_run(folder: Path) -> bool:
    """Returns whether a folder is that of a run."""
    return (folder / FOLDER).is_dir() or (folder / "config.yaml").is_file()


def _key(source: Source, target_sha256: str) -> dict[str, str]:
    return {"source": source.fingerprint, "target": target_sha256}


def _is_dataset(folder: Path) -> bool:
    names = ("dataset_dict.json", "state.json", *(f"{place}*{kind}" for place in ("", "data/") for kind in _TABLES))
    return any(next(folder.glob(name), None) for name in names)
