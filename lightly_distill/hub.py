"""Sets by name: a folder, or a dataset repository on the Hugging Face Hub, `OWNER/NAME` or `OWNER/NAME@REVISION`."""

import copy
import importlib
import re
from pathlib import Path
from typing import Any

from lightly_distill.errors import DistillError, UsageError

_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*"
_REPO_ID = re.compile(_NAME, re.ASCII)
# what comes before the last part of an absolute path, which is all of a name or stands in it after `:` or `@`
_FOLDERS = re.compile(r"(^|(?<=[:@]))([A-Za-z]:)?[/\\~].*[/\\](?=[^/\\#])")
_WITH_REVISION = re.compile(rf"(?P<repo>{_NAME})(@(?P<revision>[\w./-]+))?", re.ASCII)


def client() -> Any:
    """Imports the adapter of the Hub's client, which the core does not need for anything else.

    Raises:
        DistillError: If the client cannot be imported.
    """
    try:
        return importlib.import_module("lightly_distill_integrations.hub")
    except ImportError as error:
        raise DistillError(f"The Hugging Face Hub's client cannot be imported: {error}") from error


def check_repo_id(repo_id: str) -> None:
    """Refuses what is no name of a repository.

    Raises:
        UsageError: If it is not `OWNER/NAME`.
    """
    if not _REPO_ID.fullmatch(repo_id):
        raise UsageError(f"A repository on the Hugging Face Hub is OWNER/NAME, such as me/cifar10-1k; got '{repo_id}'.")


def without_folders(provenance: dict[str, Any]) -> dict[str, Any]:
    """Returns a copy for others to see: of absolute paths in the names of source and target, the last part is left."""
    provenance = copy.deepcopy(provenance)
    for part in (provenance.get("source"), provenance.get("target")):
        if isinstance(part, dict) and isinstance(part.get("name"), str):
            part["name"] = _FOLDERS.sub("", part["name"])
    return provenance


def local_folder(place: "str | Path", revision: str | None = None) -> tuple[Path, str]:
    """Returns the folder of a set, fetched from the Hub where there is no folder of that name.

    Args:
        place: A folder, or `OWNER/NAME` or `OWNER/NAME@REVISION` on the Hub. A folder that exists wins.
        revision: Branch, tag or commit on the Hub.

    Returns:
        The folder, and where it comes from as `OWNER/NAME@COMMIT`; empty for a folder of the user's.

    Raises:
        UsageError: If a revision of a folder is asked for, or there is no such repository.
        DistillError: If the repository holds no set, or one that must not be trusted, or the Hub cannot be reached and
            the set is not in its cache.
    """
    folder, match = Path(place), _WITH_REVISION.fullmatch(str(place))
    if folder.exists() or match is None:
        if revision is not None:
            raise UsageError(f"A revision is of a set on the Hugging Face Hub; {place} is a folder.")
        return folder, ""
    if revision is not None and match["revision"] is not None and revision != match["revision"]:
        raise UsageError(f"Two revisions are asked for: {match['revision']} in '{place}', and {revision}.")
    fetched, commit = client().fetch_set(match["repo"], revision or match["revision"])
    return fetched, f"{match['repo']}@{commit}"
