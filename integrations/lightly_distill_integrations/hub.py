"""The Hugging Face Hub: fetches sets, sends sets and students, and tells what failed in one line."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_session,
    get_token,
    hf_hub_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lightly_distill import artifact
from lightly_distill.errors import DistillError, UsageError, first_line

Kind = Literal["dataset", "model"]
TIMEOUT = 60.0  # seconds without an answer; the client itself would wait for ever
CARD = "README.md"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token of yours (https://huggingface.co/settings/tokens)"
# By what one sees that a repository that is not new is of its kind, so that nothing else is ever overwritten.
OWN_FILE = {"dataset": artifact.FACTS, "model": "model.safetensors"}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Repository:
    """What stands on the Hub before something is sent.

    Attributes:
        card: Its README.md, None if there is none.
        files: Names of all files; empty if there is no such repository yet.
        commit: Its newest commit, None if there is none.
    """

    card: str | None
    files: tuple[str, ...]
    commit: str | None


@dataclass(frozen=True)
class Sent:
    """Where it is now: `url` of the repository or pull request, its `commit`, and whether anything `changed`."""

    url: str
    commit: str
    changed: bool


def check_token() -> None:
    """Asks the Hub who the user is, before any long work.

    Raises:
        DistillError: If there is no token, or it is refused, or the Hub cannot be reached.
    """
    with _one_line("Nothing was sent"):
        HfApi().whoami(token=True)


def look_at(repo_id: str, kind: Kind, revision: str | None) -> Repository:
    """Returns what stands in a repository that is to be written to.

    Raises:
        UsageError: If it is somebody's repository of something else.
        DistillError: If the Hub does not say.
    """
    with _one_line(f"Nothing was sent to {repo_id}"):
        try:
            info = _info(repo_id, kind, revision)
        except RevisionNotFoundError:  # a branch that will be made from the main one
            info = _info(repo_id, kind, None)
        except RepositoryNotFoundError as error:
            if isinstance(error, GatedRepoError) or (_status(error) == 401 and get_token() is not None):
                raise
            return Repository(None, (), None)
        files = tuple(file.rfilename for file in info.siblings)
        if set(files) - {CARD, ".gitattributes"} and OWN_FILE[kind] not in files:
            raise UsageError(
                f"{repo_id} on the Hugging Face Hub is a {kind} with other files, and has no {OWN_FILE[kind]}: choose "
                "another name, so that nothing is overwritten."
            )
        card = None
        if CARD in files:
            path = hf_hub_download(repo_id, CARD, repo_type=kind, revision=info.sha)
            card = Path(path).read_text(encoding="utf-8")
        return Repository(card, files, info.sha)


def send(
    folder: Path,
    repo_id: str,
    kind: Kind,
    before: Repository,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str,
) -> Sent:
    """Sends a folder as one commit, so that nobody ever sees half of it.

    What the Hub has already is not sent again: after a failure, the same call completes what is missing.

    Args:
        folder: All its files are sent.
        repo_id: Made if it is not there.
        kind: Of repository.
        before: From `look_at`. A repository that has changed since is not written to.
        private: Of a new repository; None leaves it to the user's settings on the Hub.
        revision: Branch, made if it is not there. None is the main one.
        create_pr: Opens a pull request instead.
        message: Of the commit.

    Raises:
        DistillError: If it fails, in one line that says what to do.
    """
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    api = HfApi()
    then = "Nothing has changed there, and your files are as they were: the same command completes it."
    with _one_line(f"Sending to {repo_id} failed", then):
        api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True)
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, repo_type=kind, exist_ok=True)
        stale = [name for name in before.files if re.fullmatch(r"data/train-.*\.parquet", name) and name not in files]
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, path) for name, path in files.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=message,
            repo_type=kind,
            revision=revision,
            create_pr=create_pr,
            parent_commit=before.commit,
        )
    url = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
    return Sent(commit.pr_url or url, commit.oid, commit.oid != before.commit)


def fetch_set(repo_id: str, revision: str | None) -> tuple[Path, str]:
    """Fetches a set into the Hub's ordinary cache, and takes it from there where the Hub cannot be reached.

    The repository is a stranger's: its JSON is read first, then what it claims is compared with the sizes that the Hub
    tells, and only then are the files that it lists fetched, each checked by its hash.

    Args:
        repo_id: `OWNER/NAME` of a dataset.
        revision: Branch, tag or commit. None is the main branch.

    Returns:
        The folder, and the commit it is of.

    Raises:
        UsageError: If there is no such repository or revision, or the user may not see it.
        DistillError: If it holds no set, or one that cannot be trusted, or it is neither reachable nor in the cache.
    """
    shown = f"{repo_id}@{revision}" if revision else repo_id
    with _one_line(f"There is no folder {shown}, and the set of that name on the Hugging Face Hub cannot be had"):
        try:
            info = _info(repo_id, "dataset", revision)
        except Exception as error:
            if not _is_unreachable(error):
                raise
            return _from_cache(repo_id, revision, shown, error)
        sizes = _sizes(info)
        if artifact.FACTS not in sizes:
            raise DistillError(
                f"{shown} on the Hugging Face Hub is a dataset, but holds no synthetic set: there is no "
                f"{artifact.FACTS} in it."
            )
        artifact.check_facts_size(sizes[artifact.FACTS], f"{artifact.FACTS} of {shown}")

        def get(name: str, *, force: bool, revision: str = info.sha) -> Path:
            return Path(hf_hub_download(repo_id, name, repo_type="dataset", revision=revision, force_download=force))

        # by its name, so that the cache knows it without the Hub
        commit = get(artifact.FACTS, force=False, revision=revision or constants.DEFAULT_REVISION).parent.name
        if commit != info.sha:  # somebody has just published again
            info = _info(repo_id, "dataset", commit)
            sizes = _sizes(info)
        folder = get(artifact.FACTS, force=False, revision=commit).parent
        facts = _twice(lambda again: artifact.read_facts(get(artifact.FACTS, force=again, revision=commit).parent))
        artifact.check_sizes(facts, sizes, shown)
        for name, expected in artifact.hashed(facts).items():
            _twice(
                lambda again, name=name, expected=expected: artifact.check_file(  # type: ignore[misc]
                    get(name, force=again, revision=commit), expected
                )
            )
        return folder, commit


def _twice(read: Callable[[bool], Any]) -> Any:
    """Reads a file, and gets it again where it is damaged: the client looks at nothing but its size."""
    try:
        return read(False)
    except DistillError:
        return read(True)


def _from_cache(repo_id: str, revision: str | None, shown: str, error: Exception) -> tuple[Path, str]:
    try:
        path = Path(hf_hub_download(repo_id, artifact.FACTS, repo_type="dataset", revision=revision,
                                    local_files_only=True))  # fmt: skip
        for name in artifact.hashed(artifact.read_facts(path.parent)):
            hf_hub_download(repo_id, name, repo_type="dataset", revision=path.parent.name, local_files_only=True)
    except EntryNotFoundError:
        raise DistillError(
            f"There is no folder {shown}, and the set of that name can be had neither from the Hugging Face Hub nor "
            f"from its cache: {_why(error)}"
        ) from error
    _logger.warning("The Hugging Face Hub cannot be reached; %s is taken from the cache.", shown)
    return path.parent, path.parent.name


def _info(repo_id: str, kind: Kind, revision: str | None) -> Any:
    return HfApi().repo_info(repo_id, repo_type=kind, revision=revision, files_metadata=True)


def _sizes(info: Any) -> Mapping[str, int]:
    return {file.rfilename: file.size or 0 for file in info.siblings}


@contextmanager
def _one_line(what: str, then: str = "") -> Iterator[None]:
    """Gives each request a time limit, and turns what the client raises into one line."""
    session: Any = get_session()
    before, session.timeout = getattr(session, "timeout", None), TIMEOUT
    try:
        yield
    except DistillError:
        raise
    except Exception as error:  # httpx2, OSError, RuntimeError, ValueError: the client raises all of these
        kind = UsageError if isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)) else DistillError
        told = f"{what}: {_why(error)}"
        raise kind(f"{told} {then}".strip()) from error
    finally:
        session.timeout = before


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _status(error: BaseException) -> int | None:
    """Returns the status that the Hub answered with."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None and isinstance(error, ConnectionError):  # Xet tells it in the text alone
        match = re.search(r"\((40[13]) \w+\)", str(error))
        status = int(match[1]) if match else None
    return status


def _is_unreachable(error: BaseException) -> bool:
    """Returns whether the Hub did not answer, or with its own trouble: what is cached may be used."""
    status = next((found for found in map(_status, _chain(error)) if found is not None), None)
    if status is not None:
        return status == 429 or status >= 500
    return any(_is_connection(link) for link in _chain(error))


def _is_connection(error: BaseException) -> bool:
    module = type(error).__module__.split(".")[0]
    return isinstance(error, (ConnectionError, TimeoutError)) or module in ("httpx", "httpx2", "httpcore", "requests")


def _why(error: BaseException) -> str:
    """Returns the reason and the cure."""
    for link in _chain(error):
        told = _told(link)
        if told:
            return told
    return f"{first_line(error)}."


def _told(error: BaseException) -> str | None:
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it."
    if isinstance(error, LocalTokenNotFoundError):
        return f"there is no token: {LOG_IN}."
    if isinstance(error, GatedRepoError):
        return "it is gated: ask for access on its page, and log in."
    if isinstance(error, RevisionNotFoundError):
        return "there is no such branch, tag or commit."
    if isinstance(error, RepositoryNotFoundError) and not (_status(error) == 401 and get_token() is not None):
        log_in = "" if get_token() else f"; if it is private, {LOG_IN}"
        return f"there is no such repository, or you have no right to see it{log_in}."
    if isinstance(error, HFValidationError):
        return f"{first_line(error)}."
    status = _status(error)
    if status == 401:
        return f"your token is refused: {LOG_IN}." if get_token() else f"there is no token: {LOG_IN}."
    if status == 403:
        said = getattr(error, "server_message", None) or first_line(error)
        return (
            "you have no right to write there: check the name, and that your token may write "
            f"(https://huggingface.co/settings/tokens). The Hub says: {said}."
        )
    if status in (409, 412):
        return "somebody has changed the repository meanwhile."
    if status == 429 or (status is not None and status >= 500):
        return f"the Hub is overloaded or down (status {status}): try again later."
    if status is not None:
        return f"{first_line(error)}."
    if isinstance(error, ValueError) and "Invalid metadata in README.md" in str(error):
        return f"the Hub refuses the header of the card: {' '.join(str(error).split('README.md.')[-1].split())}."
    if _is_connection(error):
        return f"the connection to the Hub failed or was cut ({first_line(error)}): check the network."
    return None
