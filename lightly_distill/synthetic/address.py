"""Sets by name: a folder, or a dataset repository on the Hugging Face Hub, `OWNER/NAME` or `OWNER/NAME@REVISION`."""

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from lightly_distill import adapters
from lightly_distill.adapters import HubAdapter
from lightly_distill.errors import UsageError

DEFAULT_HUB = "huggingface"

_NAME = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*"
_REPO_ID = re.compile(_NAME, re.ASCII)
# what comes before the last part of an absolute path, which is all of a name or stands in it after `:` or `@`
_FOLDERS = re.compile(r"(^|(?<=[:@]))([A-Za-z]:)?[/\\~].*[/\\](?=[^/\\#])")
_WITH_REVISION = re.compile(rf"(?P<repo>{_NAME})(@(?P<revision>[\w./-]+))?", re.ASCII)


@dataclass(frozen=True)
class Published:
    """What was sent, or would be.

    Attributes:
        url: Of the repository or the pull request; the folder of a dry run.
        files: Bytes of each file.
        changed: Whether anything was not there already.
        near_copies: What was found, see `NearCopies.facts`; None where the check was not made.
    """

    url: str
    files: dict[str, int]
    changed: bool
    near_copies: dict[str, Any] | None


@dataclass(frozen=True)
class PublishOptions:
    """How a set is published on the Hugging Face Hub."""

    private: bool | None = None
    """Of a new repository. None leaves it to the user's settings on the Hub."""
    revision: str | None = None
    """Branch to send to, made if it is not there."""
    create_pr: bool = False
    """Open a pull request."""
    commit_message: str | None = None
    """Default: what is sent."""
    license: str | None = None
    """Of the set: an identifier that the Hub knows, such as `cc-by-4.0`."""
    source_license: str | None = None
    """Of the real images, in words, for the card."""
    evaluation: str | Path | None = None
    """Folder that `evaluate` wrote, whose results go into the card and the set's metrics."""
    data: Any = None
    """The real images, for the search for near copies. Default: what the run's configuration says."""
    target: Any = None
    """The target model or its specification. Default: as `data`."""
    representations: Any = None
    """Of the real images, as `DistillationStage.run` takes them. Default: those of the run, or they are computed."""
    pairs: str | Path | None = None
    """PNG to write, of the pairs that are nearest to each other. It shows real images, and is never sent."""
    accept_near_copies: bool = False
    """Publish all the same if images are near copies of real ones."""
    dry_run: str | Path | None = None
    """Folder that gets exactly what would be sent, in place of what an earlier dry run left; nothing is sent."""

    def __post_init__(self) -> None:
        if self.create_pr and self.revision is not None:
            raise UsageError(
                "A pull request is opened against the main branch: give a revision or create_pr, not both."
            )


class PublishKeywords(TypedDict, total=False):
    """The fields of `PublishOptions` as keywords."""

    private: bool | None
    revision: str | None
    create_pr: bool
    commit_message: str | None
    license: str | None
    source_license: str | None
    evaluation: str | Path | None
    data: Any
    target: Any
    representations: Any
    pairs: str | Path | None
    accept_near_copies: bool
    dry_run: str | Path | None


def find_hub(repo_id: str) -> tuple[HubAdapter, str]:
    """Splits the name of a repository, `[HUB:]OWNER/NAME`, into the adapter of its hub and its name there.

    Raises:
        UsageError: If it is no such name.
        DistillError: If the hub's client cannot be imported.
    """
    hub, plain = _split_hub(repo_id)
    if not _REPO_ID.fullmatch(plain):
        raise UsageError(f"A repository on the Hugging Face Hub is OWNER/NAME, such as me/cifar10-1k; got '{repo_id}'.")
    found: HubAdapter = adapters.get("hubs", hub)
    return found, plain


def _split_hub(place: str) -> tuple[str, str]:
    hub, colon, rest = place.partition(":")
    return (hub, rest) if colon and hub in adapters.available("hubs") else (DEFAULT_HUB, place)


def without_folders(provenance: dict[str, Any]) -> dict[str, Any]:
    """Returns a copy for others to see: of absolute paths in names, the last part is left."""
    provenance = copy.deepcopy(provenance)
    for part in map(provenance.get, ("source", "target", "representations")):
        if isinstance(part, dict) and isinstance(part.get("name"), str):
            part["name"] = _FOLDERS.sub("", part["name"])
    return provenance


def local_folder(place: "str | Path", revision: str | None = None) -> tuple[Path, str]:
    """Returns the folder of a set, fetched from the Hub where there is no folder of that name.

    Args:
        place: A folder, or `OWNER/NAME` or `OWNER/NAME@REVISION` on the Hub; of another installed hub, with its name
            before it, `HUB:OWNER/NAME`. A folder that exists wins.
        revision: Branch, tag or commit on the Hub.

    Returns:
        The folder, and where it comes from as `OWNER/NAME@COMMIT`; empty for a folder of the user's.

    Raises:
        UsageError: If a revision of a folder is asked for, or there is no such repository.
        DistillError: If the repository holds no set, or one that must not be trusted, or the Hub cannot be reached and
            the set is not in its cache.
    """
    if not isinstance(place, (str, Path)):
        raise UsageError(f"A set is a folder or OWNER/NAME on the Hugging Face Hub; got {type(place).__name__}.")
    folder, (hub, plain) = Path(place), _split_hub(str(place))
    match = _WITH_REVISION.fullmatch(plain)
    if folder.exists() or match is None:
        if revision is not None:
            raise UsageError(f"A revision is of a set on the Hugging Face Hub; {place} is a folder.")
        return folder, ""
    if revision is not None and match["revision"] is not None and revision != match["revision"]:
        raise UsageError(f"Two revisions are asked for: {match['revision']} in '{place}', and {revision}.")
    client: HubAdapter = adapters.get("hubs", hub)
    fetched, commit = client.fetch_set(match["repo"], revision or match["revision"])
    return fetched, f"{'' if hub == DEFAULT_HUB else f'{hub}:'}{match['repo']}@{commit}"
