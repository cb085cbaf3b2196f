"""The Hugging Face Hub: fetches sets, sends sets and students, and says in one line what failed."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lightly_distill.adapters import Repository, Sent
from lightly_distill.errors import DistillError, UsageError, did_you_mean
from lightly_distill.sharing import publish as sharing
from lightly_distill.synthetic import set_facts
from lightly_distill.synthetic.address import Published, PublishOptions
from lightly_distill_integrations.huggingface import hub_errors

Kind = Literal["dataset", "model"]
TIMEOUT = 60.0  # seconds without an answer; the client itself would wait for ever
CARD = "README.md"
KEY = '"lightly_distill"'  # in the configuration of a student

_logger = logging.getLogger(__name__)


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
            if isinstance(error, GatedRepoError) or (hub_errors.status_of(error) == 401 and get_token() is not None):
                raise
            return Repository(None, (), None)
        files = tuple(file.rfilename for file in info.siblings)

        def read(name: str) -> str:
            path = hf_hub_download(repo_id, name, repo_type=kind, revision=info.sha)
            return Path(path).read_text(encoding="utf-8")

        ours = set_facts.FACTS in files if kind == "dataset" else "config.json" in files and KEY in read("config.json")
        if set(files) - {CARD, ".gitattributes"} and not ours:
            what = "synthetic set" if kind == "dataset" else "student of ours"
            raise UsageError(
                f"{repo_id} on the Hugging Face Hub is a {kind} that is no {what}: choose another name, so that "
                "nothing is overwritten."
            )
        return Repository(read(CARD) if CARD in files else None, files, info.sha)


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
        ours = rf"data/train-.*\.parquet|preview\.(png|webp)|(map_)?{re.escape(set_facts.PROJECTION)}"
        stale = [name for name in before.files if re.fullmatch(ours, name) and name not in files]
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


def publish(synthetic: Any, repo_id: str, options: PublishOptions) -> Published:
    """Publishes a set, with its card and after a look for near copies; see `sharing/publish.py`."""
    return sharing.publish(synthetic, repo_id, options)


def fetch_set(repo_id: str, revision: str | None) -> tuple[Path, str]:
    """Fetches a set into the Hub's ordinary cache, and takes it from there where the Hub cannot be reached.

    The repository is a stranger's: its JSON is read first, then what it claims is compared with the sizes that the Hub
    reports, and only then are the files that it lists fetched, each checked by its hash.

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
            if not hub_errors.is_unreachable(error):
                raise
            return _from_cache(repo_id, revision, shown, error)
        sizes = _sizes(info)
        if set_facts.FACTS not in sizes:
            raise DistillError(
                f"{shown} on the Hugging Face Hub is a dataset, but holds no synthetic set: there is no "
                f"{set_facts.FACTS} in it."
            )
        set_facts.check_facts_size(sizes[set_facts.FACTS], f"{set_facts.FACTS} of {shown}")

        def get(name: str, *, force: bool, revision: str = info.sha) -> Path:
            return Path(hf_hub_download(repo_id, name, repo_type="dataset", revision=revision, force_download=force))

        # by its name, so that the cache knows it without the Hub
        commit = get(set_facts.FACTS, force=False, revision=revision or constants.DEFAULT_REVISION).parent.name
        if commit != info.sha:  # somebody has just published again
            info = _info(repo_id, "dataset", commit)
            sizes = _sizes(info)
        folder = get(set_facts.FACTS, force=False, revision=commit).parent
        facts = _twice(lambda again: set_facts.read_facts(get(set_facts.FACTS, force=again, revision=commit).parent))
        set_facts.check_sizes(facts, sizes, shown)
        for name, expected in set_facts.hashed(facts).items():
            _twice(
                lambda again, name=name, expected=expected: set_facts.check_file(  # type: ignore[misc]
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
        path = Path(hf_hub_download(repo_id, set_facts.FACTS, repo_type="dataset", revision=revision,
                                    local_files_only=True))  # fmt: skip
        for name in set_facts.hashed(set_facts.read_facts(path.parent)):
            hf_hub_download(repo_id, name, repo_type="dataset", revision=path.parent.name, local_files_only=True)
    except EntryNotFoundError:
        parent = Path(repo_id).parent
        if parent.is_dir():  # more likely a slip in the name of a folder than a set of the Hub
            near = did_you_mean(repo_id, map(str, parent.iterdir()), list_up_to=0)
            raise UsageError(
                f"There is no folder {shown}.{near} (As a name on the Hugging Face Hub it is out of reach.)"
            ) from error
        raise DistillError(
            f"There is no folder {shown}, and the set of that name can be had neither from the Hugging Face Hub nor "
            f"from its cache: {hub_errors.why(error)}"
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
        message = f"{what}: {hub_errors.why(error)}"
        raise kind(f"{message} {then}".strip()) from error
    finally:
        session.timeout = before
