"""What the Hub's client raises, as a reason and a cure."""

import re
from collections.abc import Iterator

from huggingface_hub import get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lightly_distill.errors import first_line

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token of yours (https://huggingface.co/settings/tokens)"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def status_of(error: BaseException) -> int | None:
    """Returns the status that the Hub answered with."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None and isinstance(error, ConnectionError):  # Xet has it in the text alone
        match = re.search(r"\((40[13]) \w+\)", str(error))
        status = int(match[1]) if match else None
    return status


def is_unreachable(error: BaseException) -> bool:
    """Returns whether the Hub did not answer, or with its own trouble: what is cached may be used."""
    status = next((found for found in map(status_of, _chain(error)) if found is not None), None)
    if status is not None:
        return status == 429 or status >= 500
    return any(_is_connection(link) for link in _chain(error))


def _is_connection(error: BaseException) -> bool:
    module = type(error).__module__.split(".")[0]
    return isinstance(error, (ConnectionError, TimeoutError)) or module in ("httpx", "httpx2", "httpcore", "requests")


def why(error: BaseException) -> str:
    """Returns the reason and the cure."""
    for link in _chain(error):
        reason = _told(link)
        if reason:
            return reason
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
    if isinstance(error, RepositoryNotFoundError) and not (status_of(error) == 401 and get_token() is not None):
        log_in = "" if get_token() else f"; if it is private, {LOG_IN}"
        return f"there is no such repository, or you have no right to see it{log_in}."
    if isinstance(error, HFValidationError):
        return f"{first_line(error)}."
    status = status_of(error)
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
